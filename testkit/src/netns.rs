//! Network namespaces, and raw sockets on the interfaces in them: what a test sends stays there.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::process::{Command, ExitStatus};

use crate::WAIT_LIMIT;

/// Room for any frame.
const LONGEST_FRAME: usize = 1 << 16;

/// Runs `test` on a thread in a network namespace of its own; `None` (and a line that says why) where that is not allowed or
/// there is no tap driver.
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
    let thread = std::thread::spawn(run);
    thread
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Runs `ip` in the calling thread's namespace.
pub fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split_whitespace()).status();
    let done = status.as_ref().is_ok_and(ExitStatus::success);
    assert!(done, "ip {arguments}: {status:?}");
}

/// Gives the namespace an uplink that leads nowhere, with an address and a default route: some programs ask for one.
pub fn add_uplink() {
    ip("link set lo up");
    ip("tuntap add dev uplink0 mode tap");
    ip("address add 192.0.2.2/24 dev uplink0");
    ip("link set uplink0 up");
    ip("route add default via 192.0.2.1");
}

/// Waits until the descriptor has any of `events` (`POLLIN`, `POLLOUT`).
pub fn wait_for(fd: RawFd, events: libc::c_short) {
    let limit_ms = i32::try_from(WAIT_LIMIT.as_millis()).unwrap_or(i32::MAX);
    assert_ne!(
        poll_for(fd, events, limit_ms),
        0,
        "descriptor {fd} did not become ready"
    );
}

/// Which of `events` the descriptor has now.
pub fn poll(fd: RawFd, events: libc::c_short) -> libc::c_short {
    poll_for(fd, events, 0)
}

fn poll_for(fd: RawFd, events: libc::c_short, limit_ms: i32) -> libc::c_short {
    let mut entry = libc::pollfd {
        fd,
        events,
        revents: 0,
    };
    // SAFETY: one entry, which lives across the call.
    let count = unsafe { libc::poll(&raw mut entry, 1, limit_ms) };
    assert!(count >= 0, "poll: {}", io::Error::last_os_error());
    entry.revents
}

/// A raw socket on one interface of the calling thread's namespace.
pub struct PacketSocket(OwnedFd);

impl PacketSocket {
    /// Binds to `interface`.
    pub fn open(interface: &str) -> Self {
        let protocol = (libc::ETH_P_ALL as u16).to_be();
        // SAFETY: no pointers; the result is checked before it is owned.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW, protocol.into()) };
        assert!(fd >= 0, "packet socket: {}", io::Error::last_os_error());
        // SAFETY: just created, no other owner.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        let name = CString::new(interface).expect("a name without NUL");
        // SAFETY: plain integers; all zeroes is an address.
        let mut address = unsafe { std::mem::zeroed::<libc::sockaddr_ll>() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol;
        // SAFETY: the name lives across the call.
        address.sll_ifindex = unsafe { libc::if_nametoindex(name.as_ptr()) } as i32;
        let len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: the address lives across the call and has that length.
        let bound = unsafe { libc::bind(fd, (&raw const address).cast(), len) };
        assert_eq!(bound, 0, "bind to {interface}: {}", io::Error::last_os_error());
        Self(socket)
    }

    /// Transmits a frame by the interface.
    pub fn transmit(&self, frame: &[u8]) {
        // SAFETY: the slice lives across the call.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        assert_eq!(sent, frame.len() as isize, "send: {}", io::Error::last_os_error());
    }

    /// The next frame of the given EtherType that passes the interface in either direction.
    pub fn capture(&self, ethertype: [u8; 2]) -> Vec<u8> {
        loop {
            wait_for(self.0.as_raw_fd(), libc::POLLIN);
            let mut frame = vec![0u8; LONGEST_FRAME];
            // SAFETY: the vector is writable for its length.
            let len = unsafe { libc::recv(self.0.as_raw_fd(), frame.as_mut_ptr().cast(), frame.len(), 0) };
            frame.truncate(usize::try_from(len).unwrap_or(0));
            if frame.get(12..14) == Some(&ethertype) {
                return frame;
            }
        }
    }
}
