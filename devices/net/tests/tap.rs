//! A card on a real tap interface, in a network namespace of its own.

mod common;

use common::{Bench, EXPERIMENTAL, MAC, PEER, frame};
use treaty_net::{PacketBackend, Tap};
use treaty_testkit::netns::{PacketSocket, in_network_namespace, ip};
use treaty_virtio_device::Features;
use treaty_virtio_spec::net::{GSO_TCPV4, HDR_F_NEEDS_CSUM, Header, feature as bit};

fn all(offered: Features) -> Features {
    offered
}

/// The next packet of our own: the kernel's (IPv6 neighbour discovery) come too.
fn receive_ours(bench: &mut Bench) -> (Header, Vec<u8>) {
    loop {
        let (header, bytes) = bench.receive();
        if bytes.get(12..14) == Some(&EXPERIMENTAL) {
            return (header, bytes);
        }
    }
}

#[test]
fn frames_pass_between_guest_and_host() {
    in_network_namespace(|| {
        let tap = Tap::open("card0", 1).unwrap();
        let host = PacketSocket::open("card0");
        let mut bench = Bench::new(tap, all);
        assert_eq!(
            u16::from_le_bytes(bench.driver.read_config(10)),
            1500,
            "the interface's MTU"
        );
        for number in 0..200 {
            let out = frame(PEER, number, (number as usize * 13) % 1400);
            bench.send(&Header::default(), &out);
            assert_eq!(host.capture(EXPERIMENTAL), out);
            let back = frame(MAC, number, (number as usize * 7) % 1400);
            host.transmit(&back);
            assert_eq!(receive_ours(&mut bench).1, back);
        }
    });
}

/// An IPv4/TCP segment from 10.0.0.1 to 10.0.0.2 with `payload` bytes; the checksum is left to whoever sends it.
fn tcp(payload: usize) -> Vec<u8> {
    let mut bytes = [PEER, MAC].concat();
    bytes.extend_from_slice(&[0x08, 0x00]);
    let total = (40 + payload) as u16;
    let mut ip = vec![
        0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
    ];
    ip[2..4].copy_from_slice(&total.to_be_bytes());
    let sum = ones_sum(&ip);
    ip[10..12].copy_from_slice(&(!sum).to_be_bytes());
    let mut segment = vec![
        0x12, 0x34, 0, 80, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0x20, 0, 0, 0, 0, 0,
    ];
    let pseudo = [&ip[12..20], &[0, 6], &(20 + payload as u16).to_be_bytes()].concat();
    segment[16..18].copy_from_slice(&ones_sum(&pseudo).to_be_bytes());
    bytes.extend_from_slice(&ip);
    bytes.extend_from_slice(&segment);
    bytes.extend((0..payload).map(|at| at as u8));
    bytes
}

/// The IPv4 protocol number.
const TCP: u8 = 6;

fn ones_sum(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// The checksum over pseudo header and segment is right: the sum of all words is all ones.
fn tcp_checksum_holds(frame: &[u8]) -> bool {
    let (ip, segment) = (&frame[14..34], &frame[34..]);
    let pseudo = [&ip[12..20], &[0, 6], &(segment.len() as u16).to_be_bytes()].concat();
    ones_sum(&[&pseudo, segment].concat()) == 0xffff
}

/// A super-frame goes to the kernel whole. The driver of another card, which takes no offloads, gets segments with
/// checksums: the kernel does what the header says.
#[test]
fn offloads_are_the_kernels() {
    in_network_namespace(|| {
        let (left, right) = (Tap::open("left0", 1).unwrap(), Tap::open("right0", 1).unwrap());
        ip("link add bridge0 type bridge");
        ip("link set left0 master bridge0");
        ip("link set right0 master bridge0");
        ip("link set bridge0 up");
        let mut left = Bench::new(left, all);
        let mut right = Bench::new(right, |offered| offered & (bit::MAC | bit::CTRL_VQ));
        assert!(
            left.driver.accepted().has(bit::HOST_TSO4),
            "this kernel's taps have TSO"
        );
        let payload = 10_000;
        let header = Header {
            flags: HDR_F_NEEDS_CSUM,
            gso_type: GSO_TCPV4,
            hdr_len: 54.into(),
            gso_size: 1448.into(),
            csum_start: 34.into(),
            csum_offset: 16.into(),
            num_buffers: 0.into(),
        };
        left.send(&header, &tcp(payload));
        let (mut got, mut segments) = (0, 0);
        while got < payload {
            let (header, bytes) = right.receive();
            // The bridge has packets of its own.
            if bytes.get(12..14) != Some(&[0x08, 0x00]) || bytes[23] != TCP {
                continue;
            }
            assert_eq!((header.flags, header.gso_type), (0, 0));
            assert!(tcp_checksum_holds(&bytes));
            got += bytes.len() - 54;
            segments += 1;
        }
        assert_eq!(segments, payload.div_ceil(1448));
        // The other way round nothing is left to the receiver either, for nobody did.
        assert_eq!((left.count("dropped"), right.count("unwanted")), (0, 0));
    });
}

/// Pairs follow the command: packets arrive on those that are on.
#[test]
fn pairs_follow_the_driver() {
    use treaty_virtio_spec::net::ctrl;
    in_network_namespace(|| {
        let tap = Tap::open("pairs0", 2).unwrap();
        assert_eq!(tap.capabilities().max_pairs, 2);
        let host = PacketSocket::open("pairs0");
        let mut bench = Bench::new(tap, all);
        for index in [2, 3] {
            bench.driver.enable_queue(index);
        }
        let mut second = common::Receiving::default();
        second.fill(&mut bench.driver, 2, 32, 2048);
        for number in 0..8 {
            host.transmit(&frame(MAC, number, 60));
            assert_eq!(
                receive_ours(&mut bench).1,
                frame(MAC, number, 60),
                "one pair at first"
            );
        }
        assert_eq!(bench.command(ctrl::MQ, ctrl::MQ_VQ_PAIRS_SET, &[2, 0]), ctrl::OK);
        common::send(&mut bench.driver, 3, &Header::default(), &frame(PEER, 99, 60));
        loop {
            let seen = host.capture(EXPERIMENTAL);
            if seen[..6] == PEER {
                assert_eq!(seen, frame(PEER, 99, 60));
                break;
            }
        }
        assert_eq!(bench.command(ctrl::MQ, ctrl::MQ_VQ_PAIRS_SET, &[1, 0]), ctrl::OK);
        host.transmit(&frame(MAC, 100, 60));
        loop {
            let (_, bytes) = receive_ours(&mut bench);
            if bytes == frame(MAC, 100, 60) {
                break;
            }
        }
    });
}
