//! Each back-end against the real thing: tap interfaces in a namespace, passt as a process, sockets.

mod common;

use std::path::PathBuf;

use common::{BROADCAST, EXPERIMENTAL, buffers, frame, receive};
use treaty_net::{
    BackendError, Loopback, Offloads, PacketBackend, Received, Sent, Socket, Tap, User, UserOptions,
};
use treaty_testkit::netns::{PacketSocket, add_uplink, in_network_namespace, ip, poll, wait_for};
use treaty_virtio_spec::net::{GSO_NONE, HDR_F_NEEDS_CSUM, Header};

fn plain() -> Header {
    Header::default()
}

fn refused(result: Result<Tap, BackendError>) -> String {
    match result {
        Err(BackendError::Refused(text)) => text,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("was opened"),
    }
}

#[test]
fn a_tap_is_made_and_carries_frames_both_ways() {
    in_network_namespace(|| {
        let mut tap = Tap::open("treaty0", 1).unwrap();
        assert_eq!((tap.name(), tap.capabilities().mtu), ("treaty0", Some(1500)));
        let host = PacketSocket::open("treaty0");
        let (mut sender, mut receiver) = (tap.sender(0).unwrap(), tap.receiver(0).unwrap());
        let out = frame(BROADCAST, 0x11, 100);
        assert_eq!(sender.send(&plain(), &buffers(&out)), Sent::Taken);
        assert_eq!(host.capture(EXPERIMENTAL), out);
        let back = frame([0x52, 0x54, 0, 0, 0, 1], 0x22, 1400);
        host.transmit(&back);
        loop {
            // The kernel's own packets (IPv6 neighbour discovery) come too.
            let (header, bytes) = receive(&mut *receiver);
            if bytes.get(12..14) == Some(&EXPERIMENTAL) {
                assert_eq!(bytes, back);
                assert_eq!((header.gso_type, header.flags & HDR_F_NEEDS_CSUM), (GSO_NONE, 0));
                break;
            }
        }
        drop((sender, receiver, tap));
        assert!(!PathBuf::from("/sys/class/net/treaty0").exists());
    });
}

#[test]
fn a_tap_with_pairs_delivers_to_active_ones_only() {
    in_network_namespace(|| {
        ip("tuntap add dev multi0 mode tap multi_queue");
        let mut tap = Tap::open("multi0", 4).unwrap();
        let host = PacketSocket::open("multi0");
        let mut receivers: Vec<_> = (0..4).map(|pair| tap.receiver(pair).unwrap()).collect();
        let mut room = vec![0; treaty_net::MAX_FRAME];
        for active in [1u16, 4, 2, 1] {
            tap.set_pairs(active).unwrap();
            for number in 0..64 {
                host.transmit(&frame([0x52, 0x54, 0, 0, 0, number], number, 60));
            }
            let mut total = 0;
            for (pair, receiver) in receivers.iter_mut().enumerate() {
                let mut here = 0;
                while let Received::Frame { len, .. } = receiver.receive(&mut room) {
                    here += usize::from(room[..len].get(12..14) == Some(&EXPERIMENTAL));
                }
                assert!(
                    pair < active.into() || here == 0,
                    "pair {pair} of {active} got {here}"
                );
                total += here;
            }
            assert_eq!(total, 64, "with {active} pairs");
        }
        assert!(tap.sender(4).is_err());
    });
}

#[test]
fn a_tap_opens_existing_interfaces_and_explains_refusals() {
    in_network_namespace(|| {
        ip("tuntap add dev one0 mode tap");
        ip("tuntap add dev many0 mode tap multi_queue");
        ip("tuntap add dev tun0 mode tun");
        let first = Tap::open("one0", 1).unwrap();
        assert!(refused(Tap::open("one0", 1)).contains("in use"));
        drop(first);
        assert!(
            Tap::open("many0", 1).is_ok(),
            "one queue of an interface made for several"
        );
        assert!(refused(Tap::open("one0", 2)).contains("multi_queue"));
        assert!(refused(Tap::open("tun0", 1)).contains("not a tap"));
        assert!(refused(Tap::open("far-too-long-a-name", 1)).contains("interface name"));
        assert!(refused(Tap::open("x", 0)).contains("queue pairs"));
        assert!(refused(Tap::from_fds(vec![])).contains("descriptor"));
        let not_a_tap = std::fs::File::open("/dev/null").unwrap().into();
        assert!(matches!(
            Tap::from_fds(vec![not_a_tap]),
            Err(BackendError::Host { .. })
        ));
    });
}

#[test]
fn a_tap_takes_the_offloads_it_offers() {
    in_network_namespace(|| {
        let mut tap = Tap::open("treaty1", 1).unwrap();
        let usable = tap.capabilities().receive;
        assert!(usable.csum && usable.tso4 && usable.tso6);
        tap.set_receive_offloads(usable).unwrap();
        tap.set_receive_offloads(Offloads::NONE).unwrap();
        // A packet with a checksum left to the kernel, and one whose checksum lies outside it.
        let mut sender = tap.sender(0).unwrap();
        let bytes = frame(BROADCAST, 0, 60);
        let partial = |start: u16| Header {
            flags: HDR_F_NEEDS_CSUM,
            csum_start: start.into(),
            csum_offset: 16.into(),
            ..plain()
        };
        assert_eq!(sender.send(&partial(34), &buffers(&bytes)), Sent::Taken);
        assert_eq!(sender.send(&partial(70), &buffers(&bytes)), Sent::Dropped);
    });
}

#[test]
fn sockets_join_two_ends_in_any_order() {
    let path = std::env::temp_dir().join(format!("treaty-wire-{}", std::process::id()));
    let mut one = Socket::shared(&path).unwrap();
    let mut sender = one.sender(0).unwrap();
    let bytes = frame(BROADCAST, 3, 1000);
    assert_eq!(
        sender.send(&plain(), &buffers(&bytes)),
        Sent::Dropped,
        "nobody is there"
    );
    for round in 0..3 {
        let mut two = Socket::shared(&path).unwrap();
        assert!(Socket::shared(&path).is_err(), "a third end is refused");
        let (mut out, mut back) = (two.sender(0).unwrap(), two.receiver(0).unwrap());
        assert_eq!(
            sender.send(&plain(), &buffers(&bytes)),
            Sent::Taken,
            "round {round}"
        );
        assert_eq!(receive(&mut *back).1, bytes);
        assert_eq!(out.send(&plain(), &buffers(&bytes[..60])), Sent::Taken);
        assert_eq!(receive(&mut *one.receiver(0).unwrap()).1, bytes[..60]);
        let mut sent = 0;
        while sender.send(&plain(), &buffers(&bytes)) == Sent::Taken {
            sent += 1;
        }
        assert!(
            sent > 0,
            "a full peer says Later, and none of what was taken is lost"
        );
        assert_eq!(sender.send(&plain(), &buffers(&bytes)), Sent::Later);
        for _ in 0..sent {
            receive(&mut *back);
        }
        wait_for(sender.output_fd().unwrap(), libc::POLLOUT);
        assert_eq!(sender.send(&plain(), &buffers(&bytes)), Sent::Taken);
    }
    assert_eq!(
        sender.send(&plain(), &buffers(&bytes)),
        Sent::Dropped,
        "the peer has left"
    );
    drop(one);
    assert!(!path.exists());
}

#[test]
fn a_cable_keeps_order_and_headers_and_waits_when_full() {
    let (mut left, mut right) = Loopback::cable(2).unwrap();
    let (mut sender, mut receiver) = (left.sender(1).unwrap(), right.receiver(1).unwrap());
    let mut sent = 0u16;
    let header = |number: u16| Header {
        gso_size: number.into(),
        ..plain()
    };
    while sender.send(&header(sent), &buffers(&[1; 60])) == Sent::Taken {
        sent += 1;
    }
    assert_eq!(poll(sender.output_fd().unwrap(), libc::POLLOUT), 0, "full");
    assert_eq!(poll(receiver.input_fd().unwrap(), libc::POLLIN), libc::POLLIN);
    for number in 0..sent {
        assert_eq!(receive(&mut *receiver).0, header(number));
    }
    assert!(matches!(
        receiver.receive(&mut vec![0; treaty_net::MAX_FRAME]),
        Received::Nothing
    ));
    assert_eq!(poll(receiver.input_fd().unwrap(), libc::POLLIN), 0, "empty");
    wait_for(sender.output_fd().unwrap(), libc::POLLOUT);
    assert_eq!(sender.send(&header(0), &buffers(&[1; 60])), Sent::Taken);
    assert_eq!(poll(receiver.input_fd().unwrap(), libc::POLLIN), libc::POLLIN);
    assert!(left.sender(2).is_err());
}

fn passt() -> Option<User> {
    match User::start(&UserOptions::default()) {
        Ok(user) => Some(user),
        Err(BackendError::Refused(text)) => {
            println!("SKIPPED: {text}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn passt_that_is_not_installed_is_one_clear_line() {
    let options = UserOptions {
        program: "passt-which-nobody-has".into(),
        ..UserOptions::default()
    };
    let Err(error) = User::start(&options) else {
        panic!("started");
    };
    assert!(error.to_string().contains("apt install passt"), "{error}");
}

/// An ARP request for any address but our own is answered by passt itself.
#[test]
fn passt_answers_over_the_stream_and_ends_with_its_backend() {
    in_network_namespace(|| {
        add_uplink();
        if let Some(user) = passt() {
            ask_passt_for_an_address(user);
        }
    });
}

fn ask_passt_for_an_address(mut user: User) {
    let mut request = BROADCAST.to_vec();
    request.extend_from_slice(&[0x52, 0x54, 0, 0, 0, 1, 0x08, 0x06]);
    request.extend_from_slice(&[0, 1, 8, 0, 6, 4, 0, 1]);
    request.extend_from_slice(&[0x52, 0x54, 0, 0, 0, 1, 10, 99, 99, 1]);
    request.extend_from_slice(&[0, 0, 0, 0, 0, 0, 10, 99, 99, 2]);
    let (mut sender, mut receiver) = (user.sender(0).unwrap(), user.receiver(0).unwrap());
    assert_eq!(sender.send(&plain(), &buffers(&request)), Sent::Taken);
    loop {
        let (_, reply) = receive(&mut *receiver);
        if reply.get(12..14) == Some(&[0x08, 0x06]) && reply.get(20..22) == Some(&[0, 2]) {
            assert_eq!(
                reply.get(28..32),
                Some(&[10, 99, 99, 2][..]),
                "sender protocol address"
            );
            assert_eq!(reply.get(..6), Some(&[0x52, 0x54, 0, 0, 0, 1][..]));
            break;
        }
    }
    let process = PathBuf::from(format!("/proc/{}", user.process_id()));
    assert!(process.exists());
    drop(user);
    assert!(!process.exists());
    assert!(matches!(
        receiver.receive(&mut vec![0; treaty_net::MAX_FRAME]),
        Received::Down(_)
    ));
}
