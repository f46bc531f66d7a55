//! The header of a packet. virtio 1.3 §5.1.6

use treaty_net::Offloads;
use treaty_virtio_device::ChainReader;
use treaty_virtio_spec::net::{
    GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP, GSO_UDP_L4, HDR_F_DATA_VALID, HDR_F_NEEDS_CSUM,
    HEADER_SIZE, Header, LEGACY_HEADER_SIZE, feature as bit,
};
use treaty_virtio_spec::{Features, feature};
use zerocopy::FromBytes;

/// Bytes of each packet's header, from what was accepted; what was offered does not matter.
pub(crate) fn header_size(accepted: Features) -> usize {
    if accepted.has(feature::VERSION_1) || accepted.has(bit::MRG_RXBUF) {
        HEADER_SIZE
    } else {
        LEGACY_HEADER_SIZE
    }
}

/// Reads a header of `size` bytes from the front of a chain, however it is cut into descriptors. `None` if the chain is
/// shorter or lies outside guest memory.
#[inline]
pub(crate) fn read_header(reader: &mut ChainReader<'_>, size: usize) -> Option<Header> {
    if size == HEADER_SIZE {
        return Header::read_from_bytes(&reader.read_array::<HEADER_SIZE>()?).ok();
    }
    let legacy = reader.read_array::<LEGACY_HEADER_SIZE>()?;
    let mut bytes = [0; HEADER_SIZE];
    bytes.get_mut(..LEGACY_HEADER_SIZE)?.copy_from_slice(&legacy);
    Header::read_from_bytes(&bytes).ok()
}

/// The header contradicts the frame or the accepted features.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BadHeader;

/// True if the header asks nothing of whoever transmits the frame: [`check`] makes the default one of it.
#[inline(always)]
pub(crate) fn is_plain(header: &Header) -> bool {
    header.flags & HDR_F_NEEDS_CSUM == 0 && header.gso_type == GSO_NONE
}

/// Checks a transmit header against a frame of `frame_len` bytes; what the back-end gets has only fields with a meaning.
/// virtio 1.3 §5.1.6.2
pub(crate) fn check(header: &Header, frame_len: usize, accepted: Offloads) -> Result<Header, BadHeader> {
    let mut checked = Header::default();
    let partial = header.flags & HDR_F_NEEDS_CSUM != 0;
    if partial {
        let (start, offset) = (header.csum_start.get(), header.csum_offset.get());
        let end = usize::from(start) + usize::from(offset) + size_of::<u16>();
        if !accepted.csum || end > frame_len {
            return Err(BadHeader);
        }
        checked.flags = HDR_F_NEEDS_CSUM;
        checked.csum_start = header.csum_start;
        checked.csum_offset = header.csum_offset;
    }
    if header.gso_type == GSO_NONE {
        return Ok(checked);
    }
    let has_size = header.gso_size.get() > 0;
    if !partial || !has_size || !segmentation_allowed(header.gso_type, accepted) {
        return Err(BadHeader);
    }
    checked.gso_type = header.gso_type;
    checked.gso_size = header.gso_size;
    // A hint only: a driver may have put anything there. virtio 1.3 §5.1.6.2.2
    let longest = u16::try_from(frame_len).unwrap_or(u16::MAX);
    checked.hdr_len = header.hdr_len.get().min(longest).into();
    Ok(checked)
}

fn segmentation_allowed(gso_type: u8, accepted: Offloads) -> bool {
    let ecn = gso_type & GSO_ECN != 0;
    match gso_type & !GSO_ECN {
        GSO_TCPV4 => accepted.tso4 && (!ecn || accepted.ecn),
        GSO_TCPV6 => accepted.tso6 && (!ecn || accepted.ecn),
        GSO_UDP => accepted.ufo && !ecn,
        GSO_UDP_L4 => accepted.uso && !ecn,
        _ => false,
    }
}

/// A received header as the driver may see it; `None` if the packet needs what the driver did not accept.
/// virtio 1.3 §5.1.6.4
pub(crate) fn admit(header: &Header, accepted: Offloads) -> Option<Header> {
    let mut shown = *header;
    // Right for all packets but those that span several, which the queue sees to.
    shown.num_buffers = 1.into();
    if !accepted.csum {
        if header.flags & HDR_F_NEEDS_CSUM != 0 {
            return None;
        }
        shown.flags = 0;
    }
    shown.flags &= HDR_F_NEEDS_CSUM | HDR_F_DATA_VALID;
    let plain = header.gso_type == GSO_NONE;
    (plain || segmentation_allowed(header.gso_type, accepted)).then_some(shown)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn partial(start: u16, offset: u16) -> Header {
        Header {
            flags: HDR_F_NEEDS_CSUM,
            csum_start: start.into(),
            csum_offset: offset.into(),
            ..Header::default()
        }
    }

    /// Hardening row 9: a header's size comes from what was accepted.
    #[test]
    fn hardening_09_header_size_follows_accepted_features() {
        assert_eq!(header_size(Features::NONE), 10);
        assert_eq!(header_size(bit::MRG_RXBUF), 12);
        assert_eq!(header_size(feature::VERSION_1), 12);
    }

    /// Hardening row 10: the checksum lies inside the packet, to the byte.
    #[test]
    fn hardening_10_checksum_beyond_the_packet_is_refused() {
        assert!(check(&partial(34, 16), 52, Offloads::ALL).is_ok());
        assert_eq!(check(&partial(34, 16), 51, Offloads::ALL), Err(BadHeader));
        assert_eq!(
            check(&partial(u16::MAX, u16::MAX), 65550, Offloads::ALL),
            Err(BadHeader)
        );
        assert_eq!(
            check(&partial(34, 16), 52, Offloads::NONE),
            Err(BadHeader),
            "not accepted"
        );
    }

    /// Hardening row 10: segmentation needs a size, a checksum and the accepted feature.
    #[test]
    fn hardening_10_segmentation_is_checked() {
        let packet = |gso_type, gso_size: u16| Header {
            gso_type,
            gso_size: gso_size.into(),
            hdr_len: u16::MAX.into(),
            ..partial(34, 16)
        };
        let all = Offloads::ALL;
        let checked = check(&packet(GSO_TCPV4, 1448), 3000, all).unwrap();
        assert_eq!(checked.hdr_len.get(), 3000, "the hint stays inside the frame");
        assert_eq!(check(&packet(GSO_TCPV4, 0), 3000, all), Err(BadHeader));

        assert_eq!(check(&packet(2, 1448), 3000, all), Err(BadHeader), "no such type");
        assert_eq!(
            check(&packet(GSO_UDP_L4 | GSO_ECN, 1448), 3000, all),
            Err(BadHeader)
        );
        assert_eq!(
            check(&packet(GSO_ECN, 1448), 3000, all),
            Err(BadHeader),
            "ECN of nothing"
        );
        let without_flag = Header {
            flags: 0,
            ..packet(GSO_TCPV4, 1448)
        };
        assert_eq!(check(&without_flag, 3000, all), Err(BadHeader));
        for (gso_type, without) in [
            (GSO_TCPV4, Offloads { tso4: false, ..all }),
            (GSO_TCPV6, Offloads { tso6: false, ..all }),
            (GSO_UDP, Offloads { ufo: false, ..all }),
            (GSO_UDP_L4, Offloads { uso: false, ..all }),
            (GSO_TCPV4 | GSO_ECN, Offloads { ecn: false, ..all }),
        ] {
            assert!(check(&packet(gso_type, 1448), 3000, all).is_ok());
            assert_eq!(check(&packet(gso_type, 1448), 3000, without), Err(BadHeader));
            assert!(admit(&packet(gso_type, 1448), all).is_some());
            assert!(admit(&packet(gso_type, 1448), without).is_none());
        }
    }

    #[test]
    fn checksum_flags_are_hidden_from_drivers_that_did_not_ask() {
        let valid = Header {
            flags: HDR_F_DATA_VALID | 0x80,
            ..Header::default()
        };
        assert_eq!(admit(&valid, Offloads::NONE).unwrap().flags, 0);
        assert_eq!(admit(&valid, Offloads::ALL).unwrap().flags, HDR_F_DATA_VALID);
        assert!(admit(&partial(0, 0), Offloads::NONE).is_none());
    }

    proptest! {
        /// Whatever the guest writes, a header that passes describes bytes inside the frame and accepted features only.
        #[test]
        fn hardening_10_no_header_reaches_past_its_frame(
            bytes in proptest::array::uniform12(any::<u8>()),
            frame_len in 14usize..65551,
            mask in 0u8..64,
        ) {
            let accepted = Offloads {
                csum: mask & 1 != 0,
                tso4: mask & 2 != 0,
                tso6: mask & 4 != 0,
                ecn: mask & 8 != 0,
                ufo: mask & 16 != 0,
                uso: mask & 32 != 0,
            };
            if let Ok(checked) = check(&Header::read_from_bytes(&bytes).unwrap(), frame_len, accepted) {
                let partial = checked.flags & HDR_F_NEEDS_CSUM != 0;
                let end = usize::from(checked.csum_start.get()) + usize::from(checked.csum_offset.get()) + 2;
                prop_assert!(!partial || (accepted.csum && end <= frame_len));
                prop_assert!(usize::from(checked.hdr_len.get()) <= frame_len);
                prop_assert!(checked.gso_type == GSO_NONE || (partial && checked.gso_size.get() > 0));
                let shown = Header { num_buffers: 1.into(), ..checked };
                prop_assert_eq!(admit(&checked, accepted), Some(shown));
            }
        }
    }
}
