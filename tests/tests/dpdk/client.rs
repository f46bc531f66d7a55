//! testpmd's `net_virtio_user` drives our network card over vhost-user: what it reads from a file goes out, is sent back by the
//! card's other end, and is written to another file.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use treaty_device_net::{Net, NetConfig};
use treaty_net::Loopback;
use treaty_testkit::rig::Daemon;
use treaty_testkit::scale;
use treaty_virtio_device::{
    Description, DeviceEvents, DeviceQueue, Features, QueueState, Reply, RestoreError, SaveError, SavedState,
    StartError, VirtioDevice,
};
use treaty_virtio_spec::{feature, net};
use treaty_worker::{ReactorKind, Worker};

use crate::frames::{assert_same, every_length, read_pcap, write_pcap};
use crate::testpmd::{Testpmd, has_avx512};

/// Our card, and what its queues were started with.
struct Card {
    net: Net,
    accepted: Arc<AtomicU64>,
}

impl VirtioDevice for Card {
    fn description(&self) -> &Description {
        self.net.description()
    }
    fn attach(&mut self, events: DeviceEvents) {
        self.net.attach(events);
    }
    fn negotiate(&mut self, accepted: Features) -> bool {
        self.net.negotiate(accepted)
    }
    fn read_config(&self, offset: u32, dst: &mut [u8]) {
        self.net.read_config(offset, dst);
    }
    fn write_config(&mut self, offset: u32, src: &[u8]) {
        self.net.write_config(offset, src);
    }
    fn start_queue(&mut self, index: u16, queue: DeviceQueue, accepted: Features) -> Result<(), StartError> {
        self.accepted.store(accepted.0, Ordering::Relaxed);
        self.net.start_queue(index, queue, accepted)
    }
    fn stop_queue(&mut self, index: u16, reply: Reply<Option<QueueState>>) {
        self.net.stop_queue(index, reply);
    }
    fn reset(&mut self) {
        self.net.reset();
    }
    fn save(&self) -> Result<SavedState, SaveError> {
        self.net.save()
    }
    fn restore(&mut self, state: SavedState) -> Result<(), RestoreError> {
        self.net.restore(state)
    }
}

/// A card whose every pair sends back what it is given, behind a socket.
struct Served {
    accepted: Arc<AtomicU64>,
    _daemon: Daemon,
    _workers: Vec<Worker>,
}

impl Served {
    fn start(path: &Path, pairs: u16) -> Self {
        let workers: Vec<Worker> = (0..pairs)
            .map(|index| Worker::start(&format!("net{index}"), ReactorKind::Auto).unwrap())
            .collect();
        let handles = workers.iter().map(Worker::handle).collect();
        let backend = Box::new(Loopback::echo(pairs).unwrap());
        let accepted: Arc<AtomicU64> = Arc::default();
        let card = Card {
            net: Net::new(&NetConfig::default(), backend, handles).unwrap(),
            accepted: accepted.clone(),
        };
        Self {
            accepted,
            _daemon: Daemon::start(path, Box::new(card)),
            _workers: workers,
        }
    }
}

/// A way in which testpmd drives the card.
struct Case {
    /// Options of `net_virtio_user`.
    options: &'static str,
    /// What must have been negotiated.
    features: Features,
    /// The functions that DPDK must have chosen for it: receive and transmit.
    paths: [&'static str; 2],
}

impl Case {
    fn new(options: &'static str, features: Features, receive: &'static str, transmit: &'static str) -> Self {
        Self {
            options,
            features,
            paths: [receive, transmit],
        }
    }

    /// Sends a frame of every length round on each pair.
    fn run(&self, pairs: u16) {
        (0..scale(1, 100)).for_each(|round| self.once(pairs, 0x7ea7_0000 + round * 0x100));
    }

    fn once(&self, pairs: u16, seed: u64) {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("net.sock");
        let served = Served::start(&socket, pairs);
        let file = |what: &str, pair: u16| dir.path().join(format!("{what}{pair}"));
        let mut pcap = "net_pcap0".to_owned();
        let mut wanted = Vec::new();
        for pair in 0..pairs {
            let frames = every_length(seed + u64::from(pair));
            write_pcap(&file("in", pair), &frames);
            pcap += &format!(",rx_pcap={}", file("in", pair).display());
            wanted.push(frames);
        }
        for pair in 0..pairs {
            pcap += &format!(",tx_pcap={}", file("out", pair).display());
        }
        let options = self.options;
        let card = format!(
            "net_virtio_user0,path={},queues={pairs},{options}",
            socket.display()
        );
        let queues = [format!("--rxq={pairs}"), format!("--txq={pairs}")];
        let mut testpmd = Testpmd::start(&[pcap, card], &[&queues[0], &queues[1]]);
        testpmd.forward();
        testpmd.wait_sent(0, wanted.iter().map(Vec::len).sum());
        let log = testpmd.quit();
        for pair in 0..pairs {
            let (got, wanted) = (read_pcap(&file("out", pair)), &wanted[usize::from(pair)]);
            assert_same(&format!("{options}, seed {seed:#x}, pair {pair}"), &got, wanted);
        }
        let accepted = Features(served.accepted.load(Ordering::Relaxed));
        let judged = feature::RING_PACKED | feature::IN_ORDER | net::feature::MRG_RXBUF | net::feature::MQ;
        assert_eq!(accepted & judged, self.features, "{options}");
        for path in self.paths {
            assert!(
                log.contains(&format!("virtio: using {path} path")),
                "{options}: {path}\n{log}"
            );
        }
    }
}

const MERGEABLE: Features = net::feature::MRG_RXBUF;

#[test]
fn split_rings() {
    let in_order = feature::IN_ORDER;
    for case in [
        Case::new(
            "mrg_rxbuf=0,in_order=0",
            Features::NONE,
            "standard Rx",
            "standard Tx",
        ),
        Case::new("in_order=0", MERGEABLE, "mergeable buffer Rx", "standard Tx"),
        Case::new("mrg_rxbuf=0", in_order, "inorder Rx", "inorder Tx"),
        Case::new("queue_size=64", in_order | MERGEABLE, "inorder Rx", "inorder Tx"),
        Case::new(
            "mrg_rxbuf=0,in_order=0,vectorized=1",
            Features::NONE,
            "vectorized Rx",
            "standard Tx",
        ),
    ] {
        case.run(1);
    }
}

#[test]
fn packed_rings() {
    let packed = feature::RING_PACKED;
    let in_order = packed | feature::IN_ORDER;
    let (receive, transmit) = ("packed ring standard Rx", "packed ring standard Tx");
    let mergeable = "packed ring mergeable buffer Rx";
    for case in [
        Case::new("packed_vq=1,mrg_rxbuf=0,in_order=0", packed, receive, transmit),
        Case::new("packed_vq=1,in_order=0", packed | MERGEABLE, mergeable, transmit),
        Case::new("packed_vq=1,mrg_rxbuf=0", in_order, receive, transmit),
        Case::new(
            "packed_vq=1,queue_size=64",
            in_order | MERGEABLE,
            mergeable,
            transmit,
        ),
    ] {
        case.run(1);
    }
    let vectors = if has_avx512() {
        ["packed ring vectorized Rx", "packed ring vectorized Tx"]
    } else {
        [receive, transmit]
    };
    let options = "packed_vq=1,mrg_rxbuf=0,vectorized=1";
    Case::new(options, in_order, vectors[0], vectors[1]).run(1);
}

/// Each pair's frames come back on that pair.
#[test]
fn several_queue_pairs() {
    let features = net::feature::MQ | MERGEABLE;
    let in_order = features | feature::IN_ORDER | feature::RING_PACKED;
    Case::new("in_order=0", features, "mergeable buffer Rx", "standard Tx").run(2);
    Case::new(
        "packed_vq=1",
        in_order,
        "packed ring mergeable buffer Rx",
        "packed ring standard Tx",
    )
    .run(4);
}
