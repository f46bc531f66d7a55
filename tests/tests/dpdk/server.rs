//! testpmd's `net_vhost` behind our front-end: our own driver sends frames of every length, testpmd forwards each back.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use treaty_testkit::guest_memory;
use treaty_testkit::ours::{self, RigDma};
use treaty_vhost_frontend::{Kind, Link, Peer, VhostUserDevice};
use treaty_virtio_driver::{DriverOptions, Net, Transport};
use treaty_virtio_spec::{Features, feature};
use treaty_virtio_transport::RingOffer;

use crate::frames::{assert_same, every_length};
use crate::testpmd::Testpmd;

/// Without an answer for so long, a frame is lost.
const LIMIT: Duration = Duration::from_secs(60);
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// Frames on their way, fewer than the receive queue has buffers.
const UNDERWAY: usize = 32;

fn testpmd(socket: &Path, options: &str) -> Testpmd {
    let vdev = format!("net_vhost0,iface={},queues=1{options}", socket.display());
    let mut testpmd = Testpmd::start(&[vdev], &["--port-topology=loop"]);
    testpmd.forward();
    testpmd
}

fn goes_round(link: Arc<Link>, ring_features: Features, seed: u64) {
    assert!(
        link.ring_features().has(ring_features),
        "{:?}",
        link.ring_features()
    );
    let memory = guest_memory();
    let offer = RingOffer::ALL.within(link.ring_features());
    let device = Box::new(VhostUserDevice::new(link));
    let options = DriverOptions {
        ring_features,
        queue_size: 64,
        vector: None,
    };
    let transport = ours::pci_offering(device, memory.clone(), offer);
    let mut card = Net::start(transport, RigDma::new(memory), &options).unwrap();
    assert_eq!(card.mac(), MAC);
    let frames = every_length(seed);
    let back = through(&mut card, &frames);
    assert_same(&format!("{ring_features:?}"), &back, &frames);
    // A driver waits for a reset by counting, and DPDK may be slow: the device is taken away, which is a reset, too.
    drop(card);
}

/// Sends all frames; what came back.
fn through<T: Transport>(card: &mut Net<T, RigDma>, frames: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let deadline = Instant::now() + LIMIT;
    let (mut sent, mut back) = (0, Vec::new());
    while back.len() < frames.len() {
        assert!(
            Instant::now() < deadline,
            "{sent} frames sent, {} came back",
            back.len()
        );
        while card.reap_sent().unwrap() {}
        if let Some(frame) = frames.get(sent).filter(|_| sent < back.len() + UNDERWAY)
            && card.send(frame).unwrap()
        {
            sent += 1;
            card.transmit_queue().notify();
            continue;
        }
        let mut frame = vec![0; 2048];
        match card.receive(&mut frame).unwrap() {
            Some(len) => {
                frame.truncate(len);
                back.push(frame);
                card.receive_queue().notify();
            }
            None => std::thread::yield_now(),
        }
    }
    back
}

/// Each link is used by several devices in turn, with other rings.
#[test]
fn dpdk_behind_our_front_end() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("vhost.sock");
    let back_end = testpmd(&socket, "");
    let link = Arc::new(Link::open(Peer::Connect(socket), Kind::net(MAC, None)).unwrap());
    let packed = feature::RING_PACKED;
    for (seed, ring_features) in (1..).zip([
        Features::NONE,
        packed,
        feature::INDIRECT_DESC | feature::EVENT_IDX,
        packed | feature::EVENT_IDX,
        feature::IN_ORDER,
        packed | feature::IN_ORDER,
    ]) {
        goes_round(link.clone(), ring_features, seed);
    }
    assert!(!link.status().degraded && link.status().reconnects == 0);
    drop(link);
    back_end.quit();
}

/// DPDK connects to us, goes away and comes back.
#[test]
fn dpdk_connects_to_our_front_end() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("vhost.sock");
    let peer = Peer::listen(&socket).unwrap();
    let first = testpmd(&socket, ",client=1");
    let link = Arc::new(Link::open(peer, Kind::net(MAC, None)).unwrap());
    goes_round(link.clone(), feature::RING_PACKED, 11);
    first.quit();
    let second = testpmd(&socket, ",client=1");
    let deadline = Instant::now() + LIMIT;
    while link.status().reconnects == 0 {
        assert!(Instant::now() < deadline, "the second testpmd was not taken");
        std::thread::sleep(Duration::from_millis(5));
    }
    goes_round(link, Features::NONE, 12);
    second.quit();
}
