//! Frames in host buffers, and network namespaces.
#![allow(unsafe_code, dead_code)]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use treaty_buffers::{AlignedBlock, IoBuffers};
use treaty_net::{MAX_FRAME, PacketReceiver, Received};
use treaty_virtio_spec::net::Header;

/// A frame as a sender takes it.
pub fn buffers(bytes: &[u8]) -> IoBuffers {
    let mut list = AlignedBlock::new(bytes.len(), 8).buffers();
    list.copy_from(bytes);
    list
}

/// Waits for a frame.
pub fn receive(receiver: &mut dyn PacketReceiver) -> (Header, Vec<u8>) {
    let mut frame = vec![0; MAX_FRAME];
    loop {
        match receiver.receive(&mut frame) {
            Received::Frame { header, len } => return (header, frame[..len].to_vec()),
            Received::Nothing => wait(receiver.input_fd().unwrap(), libc::POLLIN),
            other => panic!("{other:?}"),
        }
    }
}

pub fn wait(fd: RawFd, events: libc::c_short) {
    let mut entry = libc::pollfd {
        fd,
        events,
        revents: 0,
    };
    // SAFETY: one live entry.
    let ready = unsafe { libc::poll(&raw mut entry, 1, 10_000) };
    assert_eq!(ready, 1, "nothing for ten seconds");
}

/// Runs `test` on a thread in a network namespace of its own; `None` (and a line that says why) where that is not allowed.
pub fn in_network_namespace<T: Send + 'static>(test: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let run = move || {
        // SAFETY: no pointers; changes this thread only.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            println!(
                "SKIPPED: no new network namespace: {}",
                io::Error::last_os_error()
            );
            return None;
        }
        if let Err(error) = std::fs::File::open("/dev/net/tun") {
            println!("SKIPPED: /dev/net/tun: {error}");
            return None;
        }
        Some(test())
    };
    std::thread::spawn(run).join().unwrap()
}

/// A raw socket on an interface of the calling thread's namespace: sees what the interface transmits, and transmits.
pub fn packet_socket(interface: &str) -> OwnedFd {
    let protocol = u16::try_from(libc::ETH_P_ALL).unwrap().to_be();
    // SAFETY: no pointers; checked before it is owned.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW, protocol.into()) };
    assert!(fd >= 0, "{}", io::Error::last_os_error());
    // SAFETY: just created.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let name = std::ffi::CString::new(interface).unwrap();
    // SAFETY: all zeroes is an address; the fields that matter are set.
    let mut address = unsafe { std::mem::zeroed::<libc::sockaddr_ll>() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = protocol;
    // SAFETY: the name is NUL-terminated and lives across the call.
    address.sll_ifindex = unsafe { libc::if_nametoindex(name.as_ptr()) } as i32;
    let size = size_of::<libc::sockaddr_ll>() as u32;
    // SAFETY: the address lives across the call and has that size.
    let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size) };
    assert_eq!(bound, 0, "{}", io::Error::last_os_error());
    socket
}

pub fn transmit(socket: &OwnedFd, frame: &[u8]) {
    // SAFETY: the slice lives across the call.
    let sent = unsafe { libc::send(socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
    assert_eq!(sent, frame.len() as isize, "{}", io::Error::last_os_error());
}

/// The next frame of the given ethertype that the interface receives.
pub fn capture(socket: &OwnedFd, ethertype: u16) -> Vec<u8> {
    loop {
        wait(socket.as_raw_fd(), libc::POLLIN);
        let mut frame = vec![0u8; MAX_FRAME];
        // SAFETY: the vector is writable for its length.
        let len = unsafe { libc::recv(socket.as_raw_fd(), frame.as_mut_ptr().cast(), frame.len(), 0) };
        frame.truncate(len.try_into().unwrap());
        if frame.get(12..14) == Some(&ethertype.to_be_bytes()) {
            return frame;
        }
    }
}

/// An Ethernet frame of the experimental type, so that nothing in the kernel answers it.
pub fn frame(destination: [u8; 6], fill: u8, payload: usize) -> Vec<u8> {
    let mut bytes = destination.to_vec();
    bytes.extend_from_slice(&[0x52, 0x54, 0, 0, 0, 0x99]);
    bytes.extend_from_slice(&EXPERIMENTAL.to_be_bytes());
    bytes.extend(std::iter::repeat_n(fill, payload));
    bytes
}

/// IEEE 802 local experimental ethertype 1.
pub const EXPERIMENTAL: u16 = 0x88b5;
pub const BROADCAST: [u8; 6] = [0xff; 6];
