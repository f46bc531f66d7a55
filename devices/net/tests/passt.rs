//! A card on user networking: passt answers ARP and DHCP.

mod common;

use common::{Bench, MAC};
use treaty_net::{BackendError, User, UserOptions};
use treaty_testkit::netns::{add_uplink, in_network_namespace};
use treaty_virtio_spec::net::Header;

const BROADCAST: [u8; 6] = [0xff; 6];

/// Runs `test` on a card with passt behind it, in a namespace with an uplink that leads nowhere.
fn with_passt(test: fn(Bench)) {
    in_network_namespace(move || {
        add_uplink();
        match User::start(&UserOptions::default()) {
            Ok(user) => test(Bench::new(user, |offered| offered)),
            Err(BackendError::Refused(text)) => println!("SKIPPED: {text}"),
            Err(error) => panic!("{error}"),
        }
    });
}

fn ethernet(destination: [u8; 6], ethertype: [u8; 2], payload: &[u8]) -> Vec<u8> {
    [&destination[..], &MAC, &ethertype, payload].concat()
}

/// Frames until one is what `pick` looks for.
fn receive_until<T>(bench: &mut Bench, pick: impl Fn(&[u8]) -> Option<T>) -> T {
    loop {
        if let Some(found) = pick(&bench.receive().1) {
            return found;
        }
    }
}

#[test]
fn arp_is_answered() {
    with_passt(ask_by_arp);
}

fn ask_by_arp(mut bench: Bench) {
    let mut request = vec![0, 1, 8, 0, 6, 4, 0, 1];
    request.extend_from_slice(&MAC);
    request.extend_from_slice(&[10, 99, 99, 1]);
    request.extend_from_slice(&[0; 6]);
    request.extend_from_slice(&[10, 99, 99, 2]);
    bench.send(&Header::default(), &ethernet(BROADCAST, [8, 6], &request));
    let sender = receive_until(&mut bench, |frame| {
        let reply = frame.get(12..14) == Some(&[8, 6]) && frame.get(20..22) == Some(&[0, 2]);
        reply.then(|| frame[28..32].to_vec())
    });
    assert_eq!(sender, [10, 99, 99, 2]);
}

fn ip_checksum(header: &[u8]) -> u16 {
    let words = header
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
    let sum: u32 = words.sum();
    !((sum & 0xffff) + (sum >> 16)) as u16
}

/// A DHCP discover: BOOTP request, magic cookie, message type 1, end.
fn discover(transaction: u32) -> Vec<u8> {
    let mut bootp = vec![1, 1, 6, 0];
    bootp.extend_from_slice(&transaction.to_be_bytes());
    bootp.extend_from_slice(&[0, 0, 0x80, 0]);
    bootp.extend_from_slice(&[0; 16]);
    bootp.extend_from_slice(&MAC);
    bootp.extend_from_slice(&[0; 10 + 64 + 128]);
    bootp.extend_from_slice(&[99, 130, 83, 99]);
    bootp.extend_from_slice(&[53, 1, 1, 55, 3, 1, 3, 6, 255]);
    bootp.resize(300, 0);
    let mut udp = vec![0, 68, 0, 67];
    udp.extend_from_slice(&(8 + bootp.len() as u16).to_be_bytes());
    // No checksum, which UDP over IPv4 allows.
    udp.extend_from_slice(&[0, 0]);
    udp.extend_from_slice(&bootp);
    let mut ip = vec![
        0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255,
    ];
    ip[2..4].copy_from_slice(&(20 + udp.len() as u16).to_be_bytes());
    let sum = ip_checksum(&ip);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    ethernet(BROADCAST, [8, 0], &[ip, udp].concat())
}

#[test]
fn dhcp_offers_an_address() {
    with_passt(ask_by_dhcp);
}

fn ask_by_dhcp(mut bench: Bench) {
    bench.send(&Header::default(), &discover(0x1234_5678));
    let (transaction, address) = receive_until(&mut bench, |frame| {
        // IPv4, UDP from port 67 to 68, BOOTP reply.
        let reply = frame.get(12..14) == Some(&[8, 0])
            && frame.get(23) == Some(&17)
            && frame.get(34..38) == Some(&[0, 67, 0, 68])
            && frame.get(42) == Some(&2);
        reply.then(|| (frame[46..50].to_vec(), frame[58..62].to_vec()))
    });
    assert_eq!(transaction, 0x1234_5678u32.to_be_bytes());
    assert_eq!(address, [192, 0, 2, 2], "the host's own");
}
