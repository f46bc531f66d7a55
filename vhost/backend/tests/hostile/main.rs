//! Hardening row 11: a front-end that keeps to no rule. Whatever it sends, its connection ends and nothing else does: no panic, no
//! hang, no descriptor, mapping or memory left behind, and the next front-end is served.
//!
//! Each connection is made from a seed, which a failure names.

mod peer;

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use treaty_chardev::Chardev;
use treaty_device_blk::{Blk, BlkConfig};
use treaty_device_console::{Console, ConsoleConfig, PortConfig};
use treaty_device_net::{Net, NetConfig};
use treaty_device_rng::{Rng, RngConfig};
use treaty_net::Loopback;
use treaty_storage::RamImage;
use treaty_testkit::holdings::{descriptors_and_maps, resident_bytes};
use treaty_testkit::scale;
use treaty_vhost_backend::{Endpoint, Options, Stop, serve_with};
use treaty_vhost_protocol::Channel;
use treaty_vhost_protocol::table::frontend as code;
use treaty_virtio_device::VirtioDevice;
use treaty_virtio_spec::feature;
use treaty_worker::{ReactorKind, Worker, WorkerHandle};

use peer::Peer;

const LIMIT: Duration = Duration::from_secs(60);

/// Serves `device` to one connection after the other; says when each has ended.
fn daemon(
    mut device: Box<dyn VirtioDevice>,
    streams: mpsc::Receiver<UnixStream>,
    ended: mpsc::Sender<()>,
) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        let stop = Stop::new().unwrap();
        let options = Options {
            iommu: true,
            ..Options::default()
        };
        for stream in streams {
            serve_with(Endpoint::Connected(stream), &mut *device, &stop, &options).unwrap();
            ended.send(()).unwrap();
        }
    })
}

fn survive(name: &str, connections: u64, device: impl FnOnce(WorkerHandle) -> Box<dyn VirtioDevice>) {
    let worker = Worker::start("hostile", ReactorKind::Auto).unwrap();
    let (streams, inbox) = mpsc::channel();
    let (sender, ended) = mpsc::channel();
    let thread = daemon(device(worker.handle()), inbox, sender);
    let mut before = ((0, 0), 0);
    let (mut refused, begin) = (0, Instant::now());
    for seed in 0..connections {
        if seed == connections / 4 {
            before = (descriptors_and_maps(), resident_bytes());
        }
        let (ours, theirs) = UnixStream::pair().unwrap();
        streams.send(theirs).unwrap();
        let mut peer = Peer::new(seed, ours);
        refused += u64::from(peer.run().is_err());
        drop(peer);
        if let Err(error) = ended.recv_timeout(LIMIT) {
            panic!("{name}, seed {seed}: the connection does not end: {error}");
        }
    }
    let (holdings, bytes) = before;
    let now = resident_bytes();
    assert_eq!(
        descriptors_and_maps(),
        holdings,
        "{name}: descriptors, mapped memfds"
    );
    assert!(now < bytes + (8 << 20), "{name}: {bytes} bytes became {now}");
    let seconds = begin.elapsed().as_secs_f32();
    println!(
        "{name}: seeds 0..{connections}, {refused} refused while they spoke, {bytes} bytes became {now}, {seconds:.1} s"
    );
    assert!(refused > 0 && refused < connections);

    let (ours, theirs) = UnixStream::pair().unwrap();
    streams.send(theirs).unwrap();
    let mut channel = Channel::new(ours, &[]);
    let row = treaty_vhost_protocol::table::row(code::ROWS, code::GET_FEATURES).unwrap();
    channel.send(row, false, &[], &[]).unwrap();
    let offered: u64 = channel.receive_reply(row, LIMIT).unwrap().read().unwrap();
    assert_ne!(offered & feature::VERSION_1.0, 0, "the next front-end is served");
    drop((channel, streams));
    ended.recv_timeout(LIMIT).unwrap();
    thread.join().unwrap();
}

/// One after the other: they count the descriptors of the process.
#[test]
fn hardening_11_hostile_front_ends_of_every_device() {
    let count = scale(1500, 100_000);
    survive("blk", count, |worker| {
        let config = BlkConfig {
            queues: 2,
            ..BlkConfig::default()
        };
        Box::new(Blk::new(config, Arc::new(RamImage::new(2048)), vec![worker]).unwrap())
    });
    survive("rng", count, |worker| {
        Box::new(Rng::new(RngConfig::default(), worker))
    });
    survive("net", count, |worker| {
        let backend = Box::new(Loopback::echo(2).unwrap());
        Box::new(Net::new(&NetConfig::default(), backend, vec![worker]).unwrap())
    });
    survive("console", count, |worker| {
        let port = |name: &str| PortConfig {
            chardev: Chardev::null(),
            console: false,
            name: Some(name.to_owned()),
        };
        let config = ConsoleConfig {
            ports: vec![port("one"), port("two")],
            size: None,
            queue_size: 64,
        };
        Box::new(Console::new(config, worker).unwrap())
    });
}
