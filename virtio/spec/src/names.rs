//! What the specification calls each feature bit.

use crate::{DeviceId, Features};

type Names = &'static [(u32, &'static str)];

/// virtio 1.3 §6
const COMMON: Names = &[
    (28, "INDIRECT_DESC"),
    (29, "EVENT_IDX"),
    (32, "VERSION_1"),
    (33, "ACCESS_PLATFORM"),
    (34, "RING_PACKED"),
    (35, "IN_ORDER"),
    (36, "ORDER_PLATFORM"),
    (37, "SR_IOV"),
    (38, "NOTIFICATION_DATA"),
    (39, "NOTIF_CONFIG_DATA"),
    (40, "RING_RESET"),
];

/// virtio 1.3 §5.1.3
const NET: Names = &[
    (0, "CSUM"),
    (1, "GUEST_CSUM"),
    (2, "CTRL_GUEST_OFFLOADS"),
    (3, "MTU"),
    (5, "MAC"),
    (7, "GUEST_TSO4"),
    (8, "GUEST_TSO6"),
    (9, "GUEST_ECN"),
    (10, "GUEST_UFO"),
    (11, "HOST_TSO4"),
    (12, "HOST_TSO6"),
    (13, "HOST_ECN"),
    (14, "HOST_UFO"),
    (15, "MRG_RXBUF"),
    (16, "STATUS"),
    (17, "CTRL_VQ"),
    (18, "CTRL_RX"),
    (19, "CTRL_VLAN"),
    (21, "GUEST_ANNOUNCE"),
    (22, "MQ"),
    (23, "CTRL_MAC_ADDR"),
    (53, "NOTF_COAL"),
    (54, "GUEST_USO4"),
    (55, "GUEST_USO6"),
    (56, "HOST_USO"),
    (57, "HASH_REPORT"),
    (59, "GUEST_HDRLEN"),
    (60, "RSS"),
    (61, "RSC_EXT"),
    (62, "STANDBY"),
    (63, "SPEED_DUPLEX"),
];

/// virtio 1.3 §5.2.3
const BLK: Names = &[
    (1, "SIZE_MAX"),
    (2, "SEG_MAX"),
    (4, "GEOMETRY"),
    (5, "RO"),
    (6, "BLK_SIZE"),
    (9, "FLUSH"),
    (10, "TOPOLOGY"),
    (11, "CONFIG_WCE"),
    (12, "MQ"),
    (13, "DISCARD"),
    (14, "WRITE_ZEROES"),
    (15, "LIFETIME"),
    (16, "SECURE_ERASE"),
    (17, "ZONED"),
];

/// virtio 1.3 §5.3.3
const CONSOLE: Names = &[(0, "SIZE"), (1, "MULTIPORT"), (2, "EMERG_WRITE")];

/// The name of feature bit `bit` of a device; `None` if it has none here.
pub fn feature_name(device: DeviceId, bit: u32) -> Option<&'static str> {
    let own = match device {
        DeviceId::NET => NET,
        DeviceId::BLK => BLK,
        DeviceId::CONSOLE => CONSOLE,
        _ => &[],
    };
    let mut names = own.iter().chain(COMMON);
    names.find(|(known, _)| *known == bit).map(|(_, name)| *name)
}

/// The bits of a set, lowest first.
pub fn feature_bits(features: Features) -> impl Iterator<Item = u32> {
    (0..u64::BITS).filter(move |bit| features.has(Features::bit(*bit)))
}
