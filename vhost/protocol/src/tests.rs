use std::fs;
use std::io::Write;
use std::os::fd::AsFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::*;
use crate::payload::VringState;
use crate::table::frontend;

/// Tests that count this process's descriptors must not run beside tests that make some.
static DESCRIPTORS: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    DESCRIPTORS.lock().unwrap_or_else(PoisonError::into_inner)
}

fn pair() -> (UnixStream, Channel) {
    let (peer, ours) = UnixStream::pair().unwrap();
    (peer, Channel::new(ours, frontend::ROWS))
}

fn request(code: u32) -> &'static Row {
    row(frontend::ROWS, code).unwrap()
}

fn raw(request: u32, flags: u32, size: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Header { request, flags, size }.as_bytes().to_vec();
    bytes.extend_from_slice(payload);
    bytes
}

fn open_fds() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn a_message_travels_with_its_descriptors_even_byte_by_byte() {
    let _alone = alone();
    let (peer, mut ours) = pair();
    let sender = Channel::new(peer.try_clone().unwrap(), frontend::ROWS);
    let file = fs::File::open("/dev/null").unwrap();
    sender
        .send(
            request(frontend::SET_VRING_KICK),
            true,
            &3u64.to_ne_bytes(),
            &[file.as_fd()],
        )
        .unwrap();
    let message = ours.try_receive().unwrap().unwrap();
    assert_eq!(
        (message.row.name, message.need_reply, message.fds.len()),
        ("SET_VRING_KICK", true, 1)
    );
    assert_eq!(message.read::<u64>().unwrap(), 3);

    let state = VringState { index: 1, num: 256 };
    for byte in raw(frontend::SET_VRING_NUM, FLAG_VERSION, 8, state.as_bytes()) {
        assert!(ours.try_receive().unwrap().is_none());
        (&peer).write_all(&[byte]).unwrap();
    }
    assert_eq!(
        ours.try_receive().unwrap().unwrap().read::<VringState>().unwrap(),
        state
    );
    drop((sender, peer));
    assert!(matches!(ours.try_receive(), Err(ProtocolError::Closed)));
}

/// Hardening row 11: each size, flag and descriptor count is checked; descriptors are closed on every error.
#[test]
fn hardening_11_bad_messages_end_the_connection_and_leak_nothing() {
    let _alone = alone();
    let cases: [(&str, Vec<u8>, usize); 7] = [
        ("unknown", raw(99, FLAG_VERSION, 0, &[]), 1),
        ("version", raw(1, 0, 0, &[]), 0),
        ("reply", raw(1, FLAG_VERSION | FLAG_REPLY, 0, &[]), 1),
        ("short", raw(frontend::SET_FEATURES, FLAG_VERSION, 4, &[0; 4]), 0),
        (
            "huge",
            raw(frontend::SET_FEATURES, FLAG_VERSION, u32::MAX, &[]),
            1,
        ),
        ("surplus fd", raw(frontend::GET_FEATURES, FLAG_VERSION, 0, &[]), 2),
        ("no fd", raw(frontend::SET_LOG_FD, FLAG_VERSION, 0, &[]), 0),
    ];
    let null = fs::File::open("/dev/null").unwrap();
    for (name, bytes, fds) in cases {
        let (peer, mut ours) = pair();
        let before = open_fds();
        send_once(peer.as_raw_fd(), &bytes, &vec![null.as_fd(); fds], 0).unwrap();
        let error = ours
            .try_receive()
            .err()
            .unwrap_or_else(|| panic!("{name} was accepted"));
        drop(error);
        drop(ours);
        assert_eq!(open_fds(), before - 1, "{name} leaks a descriptor");
    }
}

#[test]
fn hardening_11_descriptor_floods_and_half_messages() {
    let _alone = alone();
    let null = fs::File::open("/dev/null").unwrap();
    let (peer, mut ours) = pair();
    let before = open_fds();
    for byte in raw(frontend::SET_FEATURES, FLAG_VERSION, 8, &[0; 7]) {
        // Descriptors with every byte: far more than any message may have.
        send_once(peer.as_raw_fd(), &[byte], &[null.as_fd(); MAX_FDS], 0).unwrap();
    }
    assert!(matches!(ours.try_receive(), Err(ProtocolError::FdCount { .. })));
    drop(ours);
    assert_eq!(open_fds(), before - 1);

    let (peer, mut ours) = pair();
    (&peer)
        .write_all(&raw(frontend::SET_FEATURES, FLAG_VERSION, 8, &[0; 3]))
        .unwrap();
    assert!(ours.try_receive().unwrap().is_none());
    drop(peer);
    assert!(matches!(ours.try_receive(), Err(ProtocolError::HalfMessage)));
}

#[test]
fn replies_match_their_request() {
    let _alone = alone();
    let (peer, ours) = pair();
    let mut sender = Channel::new(peer, frontend::ROWS);
    let get = request(frontend::GET_FEATURES);
    ours.reply_value(get, &7u64).unwrap();
    assert_eq!(
        sender
            .receive_reply(get, Duration::from_secs(5))
            .unwrap()
            .read::<u64>()
            .unwrap(),
        7
    );
    ours.reply_value(request(frontend::GET_QUEUE_NUM), &1u64).unwrap();
    assert!(matches!(
        sender.receive_reply(get, Duration::from_secs(5)),
        Err(ProtocolError::Flags { .. })
    ));
    let limit = Duration::from_millis(1);
    assert!(matches!(
        sender.receive_reply(get, limit),
        Err(ProtocolError::Timeout("GET_FEATURES"))
    ));
}
