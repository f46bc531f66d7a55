//! Frames in host buffers.

use treaty_buffers::{AlignedBlock, IoBuffers};
use treaty_net::{MAX_FRAME, PacketReceiver, Received};
use treaty_testkit::netns::wait_for;
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
            Received::Nothing => wait_for(receiver.input_fd().unwrap(), libc::POLLIN),
            other => panic!("{other:?}"),
        }
    }
}

/// An Ethernet frame of the experimental type, so that nothing in the kernel answers it.
pub fn frame(destination: [u8; 6], fill: u8, payload: usize) -> Vec<u8> {
    let mut bytes = destination.to_vec();
    bytes.extend_from_slice(&[0x52, 0x54, 0, 0, 0, 0x99]);
    bytes.extend_from_slice(&EXPERIMENTAL);
    bytes.extend(std::iter::repeat_n(fill, payload));
    bytes
}

/// IEEE 802 local experimental ethertype 1.
pub const EXPERIMENTAL: [u8; 2] = [0x88, 0xb5];
pub const BROADCAST: [u8; 6] = [0xff; 6];
