//! Ports, control messages and back-ends, seen from a driver.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use treaty_chardev::Chardev;
use treaty_device_console::{Console, ConsoleConfig, PortConfig, WindowSize};
use treaty_testkit::rig::DirectRig;
use treaty_testkit::{Driver, guest_memory};
use treaty_virtio_device::{DeviceCounters, Features};
use treaty_virtio_spec::console::{Control, EMERG_WR_OFFSET, event, feature};
use treaty_worker::{ReactorKind, Worker};
use zerocopy::{FromBytes, IntoBytes};

struct Bench {
    driver: Driver,
    counters: DeviceCounters,
    _worker: Worker,
}

fn data_port(chardev: Chardev, name: &str) -> PortConfig {
    PortConfig {
        chardev,
        console: false,
        name: Some(name.to_owned()),
    }
}

fn console_port(chardev: Chardev) -> PortConfig {
    PortConfig {
        chardev,
        console: true,
        name: None,
    }
}

impl Bench {
    fn new(ports: Vec<PortConfig>, size: Option<WindowSize>, choose: fn(Features) -> Features) -> Self {
        let worker = Worker::start("console", ReactorKind::Auto).unwrap();
        let config = ConsoleConfig {
            ports,
            size,
            queue_size: 64,
        };
        let console = Console::new(config, worker.handle()).unwrap();
        let counters = console.counters();
        let memory = guest_memory();
        let rig = DirectRig::new(Box::new(console), memory.clone());
        let mut driver = Driver::new(Box::new(rig), memory);
        let accepted = driver.negotiate(choose);
        let ports = u32::from_le_bytes(driver.read_config(4));
        let queues = if accepted.has(feature::MULTIPORT) {
            2 + 2 * ports as u16
        } else {
            2
        };
        for index in 0..queues {
            driver.enable_queue(index);
        }
        driver.driver_ok();
        Self {
            driver,
            counters,
            _worker: worker,
        }
    }

    fn tell(&mut self, id: u32, event: u16, value: u16) {
        let message = Control {
            id: id.into(),
            event: event.into(),
            value: value.into(),
        };
        self.driver.transfer(3, &[message.as_bytes()], &[]);
    }

    /// The next control message: port, event, value, data.
    fn told(&mut self) -> (u32, u16, u16, Vec<u8>) {
        let done = self.driver.transfer(2, &[], &[128]);
        let (control, data) = Control::read_from_prefix(done.data()).unwrap();
        (
            control.id.get(),
            control.event.get(),
            control.value.get(),
            data.to_vec(),
        )
    }
}

fn all(offered: Features) -> Features {
    offered
}

/// virtio 1.3 §5.3.5, §5.3.6.2: the driver is ready, hears of each port, answers, hears what each is.
#[test]
fn ports_are_introduced_in_order() {
    let ports = vec![
        console_port(Chardev::null()),
        data_port(Chardev::null(), "org.example.data"),
    ];
    let mut bench = Bench::new(ports, Some(WindowSize { cols: 132, rows: 43 }), all);
    assert_eq!(bench.driver.read_config::<8>(0), [132, 0, 43, 0, 2, 0, 0, 0]);
    bench.tell(0, event::DEVICE_READY, 1);
    assert_eq!(bench.told(), (0, event::DEVICE_ADD, 1, vec![]));
    assert_eq!(bench.told(), (1, event::DEVICE_ADD, 1, vec![]));
    bench.tell(0, event::PORT_READY, 1);
    assert_eq!(bench.told(), (0, event::CONSOLE_PORT, 1, vec![]));
    assert_eq!(bench.told(), (0, event::RESIZE, 0, vec![132, 0, 43, 0]));
    assert_eq!(bench.told(), (0, event::PORT_OPEN, 1, vec![]));
    bench.tell(1, event::PORT_READY, 1);
    assert_eq!(
        bench.told(),
        (1, event::PORT_NAME, 1, b"org.example.data".to_vec())
    );
    assert_eq!(bench.told(), (1, event::PORT_OPEN, 1, vec![]));
}

#[test]
fn input_waits_until_the_driver_opens_the_port() {
    let (near, mut far) = Chardev::pair().unwrap();
    let mut bench = Bench::new(vec![data_port(near, "p")], None, all);
    far.write_all(b"early").unwrap();
    let buffer = bench.driver.offer(0, &[], &[16]);
    bench.driver.kick(0);
    bench.tell(0, event::PORT_OPEN, 1);
    assert_eq!(bench.driver.wait(buffer).data(), b"early");
    bench.tell(0, event::PORT_OPEN, 0);
    far.write_all(b"late").unwrap();
    let buffer = bench.driver.offer(0, &[], &[16]);
    bench.driver.kick(0);
    bench.tell(0, event::PORT_OPEN, 1);
    assert_eq!(bench.driver.wait(buffer).data(), b"late");
}

#[test]
fn a_client_that_comes_and_goes_opens_and_closes_the_port() {
    let path = std::env::temp_dir().join(format!("treaty-console-{}", std::process::id()));
    let ports = vec![data_port(Chardev::socket(&path).unwrap(), "p")];
    let mut bench = Bench::new(ports, None, all);
    bench.tell(0, event::PORT_READY, 1);
    assert_eq!(bench.told().1, event::PORT_NAME);
    assert_eq!(bench.told(), (0, event::PORT_OPEN, 0, vec![]), "nobody is there");
    for _ in 0..3 {
        let mut client = UnixStream::connect(&path).unwrap();
        assert_eq!(bench.told(), (0, event::PORT_OPEN, 1, vec![]));
        bench.tell(0, event::PORT_OPEN, 1);
        bench.driver.transfer(1, &[b"to the host"], &[]);
        let mut text = [0; 11];
        client.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"to the host");
        client.write_all(b"to the guest").unwrap();
        assert_eq!(bench.driver.transfer(0, &[], &[64]).data(), b"to the guest");
        drop(client);
        assert_eq!(bench.told(), (0, event::PORT_OPEN, 0, vec![]));
        bench.tell(0, event::PORT_OPEN, 0);
    }
    bench.driver.transfer(1, &[b"to nobody"], &[]);
}

#[test]
fn a_data_port_waits_for_a_slow_host_and_a_console_does_not() {
    for console in [false, true] {
        let (near, mut far) = Chardev::pair().unwrap();
        let chardev = near.clone();
        let port = if console {
            console_port(near)
        } else {
            data_port(near, "p")
        };
        let mut bench = Bench::new(vec![port], None, all);
        let block = vec![0x5a; 32 * 1024];
        let offered: usize = 40;
        let tokens: Vec<_> = (0..offered)
            .map(|_| bench.driver.offer(1, &[&block], &[]))
            .collect();
        bench.driver.kick(1);
        let total = offered * block.len();
        if console {
            // All come back though nobody reads.
            for token in tokens {
                bench.driver.wait(token);
            }
            assert!(chardev.dropped_bytes() > 0);
        } else {
            let mut received = vec![0; total];
            far.read_exact(&mut received).unwrap();
            for token in tokens {
                bench.driver.wait(token);
            }
            assert_eq!(chardev.dropped_bytes(), 0);
            assert!(received.iter().all(|byte| *byte == 0x5a));
        }
        assert_eq!(bench.counters.sum("bytes") as usize, total);
    }
}

/// What a queue that must stop cannot get rid of is given up, not waited for.
#[test]
fn a_stop_does_not_wait_for_a_slow_host() {
    let (near, far) = Chardev::pair().unwrap();
    let mut bench = Bench::new(vec![data_port(near, "p")], None, all);
    let block = vec![1; 64 * 1024];
    for _ in 0..20 {
        bench.driver.offer(1, &[&block], &[]);
    }
    bench.driver.kick(1);
    bench.driver.rig().pause();
    bench.driver.rig().resume();
    bench.driver.reset();
    drop(far);
}

#[test]
fn emergency_writes_need_no_driver() {
    let (near, mut far) = Chardev::pair().unwrap();
    let worker = Worker::start("console", ReactorKind::Auto).unwrap();
    let console = Console::new(ConsoleConfig::single(near), worker.handle()).unwrap();
    let memory = guest_memory();
    let mut driver = Driver::new(
        Box::new(DirectRig::new(Box::new(console), memory.clone())),
        memory,
    );
    for byte in b"oops" {
        driver.rig().write_config(EMERG_WR_OFFSET, &[*byte, 0, 0, 0]);
    }
    driver.rig().write_config(0, &[1, 2, 3, 4]);
    let mut text = [0; 4];
    far.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"oops");
}

#[test]
fn a_single_port_works_without_multiport() {
    let (near, mut far) = Chardev::pair().unwrap();
    let mut bench = Bench::new(
        vec![console_port(near), data_port(Chardev::null(), "p")],
        None,
        |offered| offered.without(feature::MULTIPORT),
    );
    bench.driver.transfer(1, &[b"out"], &[]);
    let mut text = [0; 3];
    far.read_exact(&mut text).unwrap();
    far.write_all(b"in").unwrap();
    assert_eq!(bench.driver.transfer(0, &[], &[8]).data(), b"in");
}

/// Hardening rows 12, 20 and 34: messages about ports that do not exist, cut short, without end, or outside memory.
#[test]
fn hardening_34_nonsense_on_the_control_queues_is_survived() {
    let mut bench = Bench::new(vec![data_port(Chardev::null(), "p")], None, all);
    for (id, event) in [
        (1, event::PORT_OPEN),
        (u32::MAX, event::PORT_READY),
        (0, 99),
        (0, event::DEVICE_ADD),
    ] {
        bench.tell(id, event, 1);
    }
    assert_eq!(bench.counters.sum("ignored"), 4);
    bench.driver.transfer(3, &[&[0; 7]], &[]);
    bench.driver.transfer(3, &[], &[8]);
    bench.driver.transfer(1, &[], &[8]);
    assert_eq!(bench.counters.sum("bad_chains"), 3);
    // However often it is asked, each message is due once.
    for _ in 0..1000 {
        bench.tell(0, event::DEVICE_READY, 1);
        bench.tell(0, event::PORT_READY, 1);
    }
    let small = bench.driver.transfer(2, &[], &[4]);
    assert_eq!(small.written, 0, "a buffer too small for a message gets nothing");
    assert_eq!(bench.told().1, event::PORT_NAME);
    assert_eq!(bench.told().1, event::PORT_OPEN);
    let last = bench.driver.offer(2, &[], &[64]);
    bench.driver.kick(2);
    bench.tell(0, event::DEVICE_READY, 1);
    assert_eq!(
        bench.driver.wait(last).data()[..8],
        [0, 0, 0, 0, 1, 0, 1, 0],
        "nothing else was due before"
    );
}

#[test]
fn configurations_that_cannot_be_are_refused() {
    let worker = Worker::start("console", ReactorKind::Auto).unwrap();
    let refused = |ports: Vec<PortConfig>| {
        let config = ConsoleConfig {
            ports,
            size: None,
            queue_size: 64,
        };
        Console::new(config, worker.handle()).err().unwrap().to_string()
    };
    assert_eq!(refused(vec![]), "a console device has 1 to 31 ports, not 0");
    let many = (0..32).map(|_| console_port(Chardev::null())).collect();
    assert!(refused(many).contains("not 32"));
    assert!(refused(vec![data_port(Chardev::null(), &"x".repeat(65))]).contains("port 0"));
}
