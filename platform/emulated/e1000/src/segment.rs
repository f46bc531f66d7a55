//! What a packet needs before it goes out: checksums, segments, a VLAN tag. 8254x 4.0 §3.3.6, §3.5

use crate::checksum;

/// Where headers and checksums are, as a context descriptor or an old one says. Offsets are bytes of the packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Context {
    pub(crate) ip_start: usize,
    pub(crate) ip_checksum: usize,
    pub(crate) ip_end: usize,
    pub(crate) payload_start: usize,
    pub(crate) payload_checksum: usize,
    pub(crate) payload_end: usize,
    /// Bytes of all headers, which every segment repeats.
    pub(crate) header: usize,
    /// Payload bytes of a segment.
    pub(crate) segment: usize,
    pub(crate) tcp: bool,
    pub(crate) ipv4: bool,
}

/// What is to be done to a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Work {
    pub(crate) context: Context,
    pub(crate) segments: bool,
    pub(crate) ip_checksum: bool,
    pub(crate) payload_checksum: bool,
    /// Type and tag to put in.
    pub(crate) vlan: Option<(u16, u16)>,
}

const TCP_SEQUENCE: usize = 4;
const TCP_FLAGS: usize = 13;
const TCP_FIN_PSH: u8 = 0b1001;
const UDP_LENGTH: usize = 4;
const IPV6_HEADER_BYTES: usize = 40;

/// More segments than this are not made of one packet: 256 KiB in pieces of the smallest sensible size.
const MAX_SEGMENTS: usize = 4096;

/// Makes the frames of `packet` and appends them to `frames`. A packet that does not fit its description goes out as it is, or
/// not at all; it never makes more than [`MAX_SEGMENTS`].
pub(crate) fn finish(mut packet: Vec<u8>, work: &Work, frames: &mut Vec<Vec<u8>>) {
    let context = &work.context;
    if !work.segments {
        put_checksums(&mut packet, work);
        frames.push(tagged(packet, work));
        return;
    }
    let Some((header, payload)) = packet.split_at_checked(context.header) else {
        return;
    };
    if context.segment == 0 || payload.is_empty() {
        return;
    }
    let count = payload.len().div_ceil(context.segment).min(MAX_SEGMENTS);
    for (index, piece) in payload.chunks(context.segment).take(count).enumerate() {
        let mut frame = Vec::with_capacity(header.len() + piece.len() + 4);
        frame.extend_from_slice(header);
        frame.extend_from_slice(piece);
        fit_headers(&mut frame, context, index, index + 1 == count);
        if work.payload_checksum {
            add_length(&mut frame, context);
        }
        put_checksums(&mut frame, work);
        frames.push(tagged(frame, work));
    }
}

fn put_checksums(frame: &mut [u8], work: &Work) {
    let context = &work.context;
    if work.payload_checksum {
        let (start, end) = (context.payload_start, end_of(context.payload_end));
        checksum::put(frame, context.payload_checksum, start, end);
    }
    if work.ip_checksum {
        let end = end_of(context.ip_end);
        checksum::put(frame, context.ip_checksum, context.ip_start, end);
    }
}

/// The manual's ends are the last byte's offsets, 0 for the packet's end.
fn end_of(last: usize) -> usize {
    if last == 0 { 0 } else { last + 1 }
}

/// Lengths, numbers and flags of segment `index`.
fn fit_headers(frame: &mut [u8], context: &Context, index: usize, last: bool) {
    let ip_bytes = frame.len().saturating_sub(context.ip_start);
    if context.ipv4 {
        put_u16(frame, context.ip_start + 2, ip_bytes as u16);
        let id = get_u16(frame, context.ip_start + 4);
        put_u16(frame, context.ip_start + 4, id.wrapping_add(index as u16));
    } else {
        let bytes = ip_bytes.saturating_sub(IPV6_HEADER_BYTES);
        put_u16(frame, context.ip_start + 4, bytes as u16);
    }
    let payload = context.payload_start;
    if !context.tcp {
        let bytes = frame.len().saturating_sub(payload);
        put_u16(frame, payload + UDP_LENGTH, bytes as u16);
        return;
    }
    if let Some(place) = frame
        .get_mut(payload + TCP_SEQUENCE..)
        .and_then(|rest| rest.first_chunk_mut::<4>())
    {
        let sent = (index * context.segment) as u32;
        *place = u32::from_be_bytes(*place).wrapping_add(sent).to_be_bytes();
    }
    if let Some(flags) = frame.get_mut(payload + TCP_FLAGS)
        && !last
    {
        *flags &= !TCP_FIN_PSH;
    }
}

/// The driver's sum of the pseudo header has no length in it, because every segment has its own.
fn add_length(frame: &mut [u8], context: &Context) {
    let bytes = frame.len().saturating_sub(context.payload_start);
    let before = get_u16(frame, context.payload_checksum);
    put_u16(
        frame,
        context.payload_checksum,
        checksum::add(before, bytes as u16),
    );
}

fn tagged(mut frame: Vec<u8>, work: &Work) -> Vec<u8> {
    const ADDRESSES: usize = 12;
    if let Some((kind, tag)) = work.vlan
        && frame.len() >= ADDRESSES
    {
        let [a, b] = kind.to_be_bytes();
        let [c, d] = tag.to_be_bytes();
        frame.splice(ADDRESSES..ADDRESSES, [a, b, c, d]);
    }
    frame
}

fn get_u16(frame: &[u8], at: usize) -> u16 {
    let bytes = frame.get(at..).and_then(|rest| rest.first_chunk());
    bytes.map_or(0, |bytes| u16::from_be_bytes(*bytes))
}

fn put_u16(frame: &mut [u8], at: usize, value: u16) {
    if let Some(place) = frame.get_mut(at..).and_then(|rest| rest.first_chunk_mut::<2>()) {
        *place = value.to_be_bytes();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ethernet, IPv4 and TCP headers without options, 54 bytes.
    fn tcp_headers() -> Vec<u8> {
        let mut packet = vec![0u8; 54];
        packet[12..14].copy_from_slice(&[8, 0]);
        packet[14] = 0x45;
        packet[18..20].copy_from_slice(&7u16.to_be_bytes());
        packet[22..24].copy_from_slice(&[64, 6]);
        packet[26..34].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        packet[38..42].copy_from_slice(&1000u32.to_be_bytes());
        packet[46] = 0x50;
        packet[47] = 0x19;
        // The pseudo header without the length.
        let sum = checksum::add(checksum::sum(&packet[26..34]), 6);
        packet[50..52].copy_from_slice(&sum.to_be_bytes());
        packet
    }

    fn context() -> Context {
        Context {
            ip_start: 14,
            ip_checksum: 24,
            ip_end: 33,
            payload_start: 34,
            payload_checksum: 50,
            payload_end: 0,
            header: 54,
            segment: 1000,
            tcp: true,
            ipv4: true,
        }
    }

    #[test]
    fn segments_are_whole_packets() {
        let mut packet = tcp_headers();
        packet.extend((0..2500u32).map(|i| i as u8));
        let work = Work {
            context: context(),
            segments: true,
            ip_checksum: true,
            payload_checksum: true,
            vlan: None,
        };
        let mut frames = Vec::new();
        finish(packet, &work, &mut frames);
        let lengths: Vec<usize> = frames.iter().map(Vec::len).collect();
        assert_eq!(lengths, [1054, 1054, 554]);
        for (index, frame) in frames.iter().enumerate() {
            assert_eq!(checksum::sum(&frame[14..34]), !0, "IP header");
            let pseudo = checksum::add(checksum::sum(&frame[26..34]), 6);
            let pseudo = checksum::add(pseudo, (frame.len() - 34) as u16);
            assert_eq!(checksum::add(pseudo, checksum::sum(&frame[34..])), !0, "TCP");
            assert_eq!(usize::from(get_u16(frame, 16)), frame.len() - 14);
            assert_eq!(usize::from(get_u16(frame, 18)), 7 + index);
            assert_eq!(frame[38..42], (1000 + 1000 * index as u32).to_be_bytes());
            assert_eq!(frame[47], if index == 2 { 0x19 } else { 0x10 });
            assert_eq!(frame[54], (1000 * index) as u8);
        }
    }

    #[test]
    fn a_tag_goes_behind_the_addresses() {
        let work = Work {
            vlan: Some((0x8100, 5)),
            ..Work::default()
        };
        let mut frames = Vec::new();
        finish((0..20).collect(), &work, &mut frames);
        assert_eq!(frames[0][10..20], [10, 11, 0x81, 0, 0, 5, 12, 13, 14, 15]);
    }

    /// Hardening row 21: contexts that make no sense make no segments, and end.
    #[test]
    fn hardening_21_senseless_contexts_end() {
        let far = Context {
            ip_start: 255,
            ip_checksum: 255,
            ip_end: 0xffff,
            payload_start: 255,
            payload_checksum: 255,
            payload_end: 1,
            header: 10,
            segment: 1,
            tcp: true,
            ipv4: false,
        };
        for context in [far, Context { segment: 0, ..far }, Context { header: 500, ..far }] {
            let work = Work {
                context,
                segments: true,
                ip_checksum: true,
                payload_checksum: true,
                vlan: Some((0, 0)),
            };
            let mut frames = Vec::new();
            finish(vec![0; 100], &work, &mut frames);
            assert!(frames.len() <= 90);
            finish(vec![0; 300_000], &work, &mut frames);
            assert!(frames.len() <= 90 + MAX_SEGMENTS);
        }
    }
}
