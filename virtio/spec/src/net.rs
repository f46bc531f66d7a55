//! Network device. virtio 1.3 §5.1

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Feature bits. virtio 1.3 §5.1.3
pub mod feature {
    use crate::Features;

    /// The device takes packets with a partial checksum.
    pub const CSUM: Features = Features::bit(0);
    /// The driver takes packets with a partial checksum.
    pub const GUEST_CSUM: Features = Features::bit(1);
    /// The driver changes the receive offloads by control command.
    pub const CTRL_GUEST_OFFLOADS: Features = Features::bit(2);
    /// The device's greatest MTU is in `mtu`.
    pub const MTU: Features = Features::bit(3);
    /// The device's address is in `mac`.
    pub const MAC: Features = Features::bit(5);
    /// The driver takes TCPv4 segmentation offload packets.
    pub const GUEST_TSO4: Features = Features::bit(7);
    /// The driver takes TCPv6 segmentation offload packets.
    pub const GUEST_TSO6: Features = Features::bit(8);
    /// The driver takes TSO packets with ECN.
    pub const GUEST_ECN: Features = Features::bit(9);
    /// The driver takes UDP fragmentation offload packets.
    pub const GUEST_UFO: Features = Features::bit(10);
    /// The device takes TCPv4 segmentation offload packets.
    pub const HOST_TSO4: Features = Features::bit(11);
    /// The device takes TCPv6 segmentation offload packets.
    pub const HOST_TSO6: Features = Features::bit(12);
    /// The device takes TSO packets with ECN.
    pub const HOST_ECN: Features = Features::bit(13);
    /// The device takes UDP fragmentation offload packets.
    pub const HOST_UFO: Features = Features::bit(14);
    /// A received packet may span several buffers.
    pub const MRG_RXBUF: Features = Features::bit(15);
    /// The link's state is in `status`.
    pub const STATUS: Features = Features::bit(16);
    /// There is a control queue.
    pub const CTRL_VQ: Features = Features::bit(17);
    /// Control commands of class [`RX`](super::ctrl::RX): promiscuous and all-multicast.
    pub const CTRL_RX: Features = Features::bit(18);
    /// VLAN filtering.
    pub const CTRL_VLAN: Features = Features::bit(19);
    /// The other commands of class [`RX`](super::ctrl::RX).
    pub const CTRL_RX_EXTRA: Features = Features::bit(20);
    /// The device asks the driver to announce itself.
    pub const GUEST_ANNOUNCE: Features = Features::bit(21);
    /// Several queue pairs.
    pub const MQ: Features = Features::bit(22);
    /// The driver sets the address by control command.
    pub const CTRL_MAC_ADDR: Features = Features::bit(23);
    /// The driver takes UDPv4 segmentation offload packets.
    pub const GUEST_USO4: Features = Features::bit(54);
    /// The driver takes UDPv6 segmentation offload packets.
    pub const GUEST_USO6: Features = Features::bit(55);
    /// The device takes UDP segmentation offload packets.
    pub const HOST_USO: Features = Features::bit(56);
    /// The device may set `hdr_len` exactly.
    pub const GUEST_HDRLEN: Features = Features::bit(59);
    /// Speed and duplex are in the configuration.
    pub const SPEED_DUPLEX: Features = Features::bit(63);
}

/// What each packet begins with, in memory that both sides see. virtio 1.3 §5.1.6
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Header {
    /// `HDR_F_*`.
    pub flags: u8,
    /// One of `GSO_*`, perhaps with [`GSO_ECN`].
    pub gso_type: u8,
    /// Bytes of Ethernet, IP and transport headers; a hint.
    pub hdr_len: U16,
    /// Payload bytes of each segment.
    pub gso_size: U16,
    /// Where the checksum begins, from the start of the frame.
    pub csum_start: U16,
    /// Where the checksum goes, from `csum_start`.
    pub csum_offset: U16,
    /// Buffers that the packet spans (receive only).
    pub num_buffers: U16,
}

/// Bytes of [`Header`]: with VERSION_1 or MRG_RXBUF. virtio 1.3 §5.1.6
pub const HEADER_SIZE: usize = size_of::<Header>();
/// Bytes of a legacy header without `num_buffers`. virtio 1.3 §5.1.6
pub const LEGACY_HEADER_SIZE: usize = 10;

/// The checksum from `csum_start` on is to be completed. virtio 1.3 §5.1.6
pub const HDR_F_NEEDS_CSUM: u8 = 1;
/// The checksum has been validated (receive). virtio 1.3 §5.1.6
pub const HDR_F_DATA_VALID: u8 = 2;

/// Not a segmentation offload packet. virtio 1.3 §5.1.6
pub const GSO_NONE: u8 = 0;
/// TCPv4.
pub const GSO_TCPV4: u8 = 1;
/// UDP fragmentation.
pub const GSO_UDP: u8 = 3;
/// TCPv6.
pub const GSO_TCPV6: u8 = 4;
/// UDP segmentation.
pub const GSO_UDP_L4: u8 = 5;
/// The TCP packet has ECN set; a flag beside the type.
pub const GSO_ECN: u8 = 0x80;

/// The link is up. virtio 1.3 §5.1.4
pub const STATUS_LINK_UP: u16 = 1;
/// The driver shall announce itself. virtio 1.3 §5.1.4
pub const STATUS_ANNOUNCE: u16 = 2;

/// Device configuration. virtio 1.3 §5.1.4
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Config {
    /// Address, with MAC.
    pub mac: [u8; 6],
    /// `STATUS_*`, with STATUS.
    pub status: U16,
    /// Queue pairs, with MQ.
    pub max_virtqueue_pairs: U16,
    /// Bytes, with MTU.
    pub mtu: U16,
    /// Mb/s; [`SPEED_UNKNOWN`] if not known.
    pub speed: U32,
    /// 0 half, 1 full, 0xff not known.
    pub duplex: u8,
}

/// Bytes of [`Config`].
pub const CONFIG_SIZE: usize = size_of::<Config>();
/// No speed. virtio 1.3 §5.1.4
pub const SPEED_UNKNOWN: u32 = u32::MAX;
/// No duplex. virtio 1.3 §5.1.4
pub const DUPLEX_UNKNOWN: u8 = 0xff;

/// Bytes of a frame that is not an offload packet, without MTU: Ethernet header, 1500, no VLAN tag. virtio 1.3 §5.1.6.3
pub const PLAIN_FRAME_SIZE: usize = 1514;
/// Bytes of the largest frame a driver must have room for when it accepted offloads. virtio 1.3 §5.1.6.3
pub const MAX_FRAME_SIZE: usize = 65550;

/// Least value of `mtu`. virtio 1.3 §5.1.4.1
pub const MIN_MTU: u16 = 68;
/// Range of the command that sets the queue pairs. virtio 1.3 §5.1.6.5.5
pub const VQ_PAIRS_MIN: u16 = 1;
/// Greatest number of queue pairs. virtio 1.3 §5.1.6.5.5
pub const VQ_PAIRS_MAX: u16 = 0x8000;

/// The control queue's commands. virtio 1.3 §5.1.6.5
pub mod ctrl {
    use super::U16;
    use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

    /// What each command begins with; command data follow, then the acknowledgement.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
    #[repr(C)]
    pub struct Command {
        /// A class.
        pub class: u8,
        /// A command of that class.
        pub command: u8,
    }

    /// Acknowledgement: done.
    pub const OK: u8 = 0;
    /// Acknowledgement: refused.
    pub const ERR: u8 = 1;

    /// Class: which packets are received. virtio 1.3 §5.1.6.5.1
    pub const RX: u8 = 0;
    /// Promiscuous; one byte, 0 or 1, like all of this class.
    pub const RX_PROMISC: u8 = 0;
    /// All multicast.
    pub const RX_ALLMULTI: u8 = 1;
    /// All unicast.
    pub const RX_ALLUNI: u8 = 2;
    /// No multicast.
    pub const RX_NOMULTI: u8 = 3;
    /// No unicast.
    pub const RX_NOUNI: u8 = 4;
    /// No broadcast.
    pub const RX_NOBCAST: u8 = 5;

    /// Class: addresses. virtio 1.3 §5.1.6.5.2
    pub const MAC: u8 = 1;
    /// Two tables, unicast then multicast: each a u32 count and that many addresses.
    pub const MAC_TABLE_SET: u8 = 0;
    /// Six bytes.
    pub const MAC_ADDR_SET: u8 = 1;

    /// Class: VLAN filter. virtio 1.3 §5.1.6.5.3
    pub const VLAN: u8 = 2;
    /// A u16 VLAN ID.
    pub const VLAN_ADD: u8 = 0;
    /// A u16 VLAN ID.
    pub const VLAN_DEL: u8 = 1;

    /// Class: announcing. virtio 1.3 §5.1.6.5.4
    pub const ANNOUNCE: u8 = 3;
    /// No data.
    pub const ANNOUNCE_ACK: u8 = 0;

    /// Class: multiqueue. virtio 1.3 §5.1.6.5.5
    pub const MQ: u8 = 4;
    /// [`MqPairs`].
    pub const MQ_VQ_PAIRS_SET: u8 = 0;

    /// Data of [`MQ_VQ_PAIRS_SET`].
    pub type MqPairs = U16;

    /// Class: receive offloads. virtio 1.3 §5.1.6.5.6
    pub const GUEST_OFFLOADS: u8 = 5;
    /// A u64 of feature bits.
    pub const GUEST_OFFLOADS_SET: u8 = 0;
}
