//! Messages of a front-end that means well, and what the vhost-user targets share.

use std::fs::File;
use std::os::fd::FromRawFd;

use treaty_vhost_protocol::features as bit;
use treaty_vhost_protocol::payload::{MemoryRegion, VRING_FD_NONE, VringAddr, VringState};
use treaty_vhost_protocol::table::{Reply, Row, frontend as code};
use treaty_virtio_device::{Layout, RingConfig, RingFeatures};
use treaty_virtio_spec::feature;
use zerocopy::IntoBytes;

const DESCRIPTORS: u64 = 0x1000;
const DRIVER: u64 = 0x2000;
const DEVICE: u64 = 0x3000;
const SIZE: u16 = 16;

/// A memfd that can be truncated.
pub fn plain_memfd(len: u64) -> File {
    // SAFETY: a constant name; the result is checked below.
    let fd = unsafe { libc::memfd_create(c"treaty-fuzz".as_ptr(), libc::MFD_CLOEXEC) };
    assert!(fd >= 0);
    // SAFETY: just created, no other owner.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(len).expect("a size");
    file
}

/// The row of any message with that code.
pub fn row_of(code: u32) -> Row {
    Row {
        code,
        name: "any",
        payload: 0..=0,
        fds: 0..=0,
        reply: Reply::Ack,
        needs: 0,
    }
}

/// What makes ring 0 run: code, payload, and the kind of descriptor that goes along (0 memory, 3 eventfd).
pub fn honest_start(user: u64, bytes: u64) -> Vec<(u32, Vec<u8>, Option<u8>)> {
    let region = MemoryRegion {
        guest_address: 0,
        size: bytes,
        user_address: user,
        mmap_offset: 0,
    };
    let mut table = 1u64.as_bytes().to_vec();
    table.extend_from_slice(region.as_bytes());
    let addr = VringAddr {
        index: 0,
        flags: 0,
        descriptor: user + DESCRIPTORS,
        available: user + DRIVER,
        used: user + DEVICE,
        log: DEVICE,
    };
    let state = |num| VringState { index: 0, num }.as_bytes().to_vec();
    let protocol = bit::MQ
        | bit::LOG_SHMFD
        | bit::REPLY_ACK
        | bit::BACKEND_REQ
        | bit::INFLIGHT_SHMFD
        | bit::RESET_DEVICE
        | bit::CONFIGURE_MEM_SLOTS
        | bit::STATUS
        | bit::DEVICE_STATE;
    let features = feature::VERSION_1.0 | bit::PROTOCOL_FEATURES;
    vec![
        (code::SET_PROTOCOL_FEATURES, protocol.as_bytes().to_vec(), None),
        (code::SET_FEATURES, features.as_bytes().to_vec(), None),
        (code::SET_MEM_TABLE, table, Some(0)),
        (code::SET_VRING_NUM, state(u32::from(SIZE)), None),
        (code::SET_VRING_ADDR, addr.as_bytes().to_vec(), None),
        (code::SET_VRING_CALL, VRING_FD_NONE.as_bytes().to_vec(), None),
        (code::SET_VRING_KICK, 0u64.as_bytes().to_vec(), Some(3)),
        (code::SET_VRING_ENABLE, state(1), None),
    ]
}

/// A ring in the first pages of memory.
pub fn ring_config() -> RingConfig {
    RingConfig {
        layout: Layout::Split,
        size: SIZE,
        descriptor_area: DESCRIPTORS,
        driver_area: DRIVER,
        device_area: DEVICE,
        features: RingFeatures::default(),
        max_chain: SIZE,
    }
}
