//! Two cards, two drivers, one wire.

mod common;

use common::{Bench, MAC, frame};
use proptest::prelude::*;
use treaty_net::{Loopback, Socket};
use treaty_virtio_device::Features;
use treaty_virtio_spec::net::{GSO_TCPV4, HDR_F_NEEDS_CSUM, Header, feature as bit};
use zerocopy::IntoBytes;

fn all(offered: Features) -> Features {
    offered
}

#[test]
fn two_machines_talk_over_a_socket() {
    let path = std::env::temp_dir().join(format!("treaty-net-wire-{}", std::process::id()));
    let mut left = Bench::new(Socket::shared(&path).unwrap(), all);
    let mut right = Bench::new(Socket::shared(&path).unwrap(), all);
    assert!(
        !left.driver.accepted().has(bit::CSUM),
        "no offloads without anybody to do them"
    );
    for round in 0..50 {
        let there = frame(MAC, round, (round as usize * 37) % 1450);
        left.send(&Header::default(), &there);
        assert_eq!(right.receive().1, there);
        let back = frame(MAC, round, 60);
        right.send(&Header::default(), &back);
        assert_eq!(left.receive().1, back);
    }
}

/// More frames than the wire and the receiver hold: the sender waits, none is lost, none overtakes another.
#[test]
fn a_full_wire_makes_the_sender_wait() {
    let (left, right) = Loopback::cable(1).unwrap();
    let (mut left, mut right) = (Bench::new(left, all), Bench::new(right, all));
    let mut tokens = std::collections::VecDeque::new();
    let mut offer = |left: &mut Bench, numbers: std::ops::Range<u64>| {
        let header = Header::default();
        for number in numbers {
            let bytes = frame(MAC, number, 100);
            tokens.push_back(left.driver.offer(1, &[header.as_bytes(), &bytes], &[]));
        }
        left.driver.kick(1);
        tokens.clone()
    };
    // The wire holds 256, the stage 64, the receive queue 48.
    for batch in 0..5 {
        for token in offer(&mut left, batch * 64..(batch + 1) * 64)
            .into_iter()
            .skip(batch as usize * 64)
        {
            left.driver.wait(token);
        }
    }
    let last = offer(&mut left, 320..400);
    while left.count("waits") == 0 {
        std::thread::yield_now();
    }
    for number in 0..400 {
        assert_eq!(right.receive().1, frame(MAC, number, 100));
    }
    for token in last.into_iter().skip(320) {
        left.driver.wait(token);
    }
}

#[test]
fn super_frames_cross_with_their_headers() {
    let (left, right) = Loopback::cable(1).unwrap();
    let (mut left, mut right) = (Bench::new(left, all), Bench::new(right, all));
    let header = Header {
        flags: HDR_F_NEEDS_CSUM,
        gso_type: GSO_TCPV4,
        hdr_len: 54.into(),
        gso_size: 1448.into(),
        csum_start: 34.into(),
        csum_offset: 16.into(),
        num_buffers: 0.into(),
    };
    let bytes = frame(MAC, 7, 64_000);
    left.send(&header, &bytes);
    let (received, frame) = right.receive();
    assert_eq!(frame, bytes);
    let buffers = (bytes.len() + 12).div_ceil(common::BUFFER) as u16;
    assert_eq!(
        received,
        Header {
            num_buffers: buffers.into(),
            ..header
        }
    );
    assert_eq!(left.count("packets") + right.count("packets"), 2);
}

/// Hardening row 9: a card offers segmentation, the driver does not accept it: such packets are not delivered.
#[test]
fn hardening_09_what_was_not_accepted_is_not_delivered() {
    let plain = |offered: Features| offered & (bit::MAC | bit::CTRL_VQ);
    let (left, right) = Loopback::cable(1).unwrap();
    let (mut left, mut right) = (Bench::new(left, all), Bench::new(right, plain));
    let offloaded = Header {
        flags: HDR_F_NEEDS_CSUM,
        gso_type: GSO_TCPV4,
        gso_size: 1448.into(),
        csum_start: 34.into(),
        csum_offset: 16.into(),
        ..Header::default()
    };
    left.send(&offloaded, &frame(MAC, 1, 3000));
    left.send(&Header::default(), &frame(MAC, 2, 100));
    assert_eq!(
        right.receive(),
        (
            Header {
                num_buffers: 1.into(),
                ..Header::default()
            },
            frame(MAC, 2, 100)
        )
    );
    assert_eq!(right.count("unwanted"), 1);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// However a driver cuts its packets and buffers, what arrives is what was sent, in order, over as many buffers as it
    /// needs. The model is a list of frames and a circle of buffer sizes.
    #[test]
    fn any_layout_carries_any_frames(
        frames in proptest::collection::vec((0usize..5000, proptest::collection::vec(1usize..600, 0..4)), 1..12),
        sizes in proptest::collection::vec(100usize..3000, 1..9),
        packed in any::<bool>(),
    ) {
        use treaty_virtio_spec::feature::{INDIRECT_DESC, RING_PACKED};
        let mut bench = Bench::without_buffers(Loopback::echo(1).unwrap(), |offered| {
            if packed { offered } else { offered.without(RING_PACKED.with(INDIRECT_DESC)) }
        });
        let mut circle = sizes.iter().cycle().take(60.max(sizes.len()) / sizes.len() * sizes.len());
        for size in circle.by_ref() {
            bench.receiving.fill(&mut bench.driver, 0, 1, *size);
        }
        let mut circle = sizes.iter().cycle();
        for (number, (payload, cuts)) in frames.iter().enumerate() {
            let bytes = frame(MAC, number as u64, *payload);
            let whole = common::packet(&Header::default(), &bytes);
            let mut pieces: Vec<&[u8]> = Vec::new();
            let mut rest = whole.as_slice();
            for cut in cuts {
                let (piece, after) = rest.split_at((*cut).min(rest.len() - 1));
                pieces.push(piece);
                rest = after;
            }
            pieces.push(rest);
            pieces.retain(|piece| !piece.is_empty());
            bench.driver.transfer(1, &pieces, &[]);
            let (header, received) = bench.receive();
            prop_assert_eq!(&received, &bytes);
            let mut room = 0;
            let expected = circle.by_ref().take_while(|size| { let full = room + **size >= whole.len(); room += **size; !full }).count() + 1;
            prop_assert_eq!(usize::from(header.num_buffers.get()), expected);
        }
    }
}
