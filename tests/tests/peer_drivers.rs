//! Drivers that we did not write (the `virtio-drivers` crate) run against our network card and console on every rig. Those for disks and
//! entropy are with their devices.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use treaty_chardev::Chardev;
use treaty_device_console::{Console, ConsoleConfig};
use treaty_device_net::{Net, NetConfig};
use treaty_net::Loopback;
use treaty_testkit::peer::{PeerHal, PeerTransport};
use treaty_testkit::rig::all_kinds;
use treaty_testkit::{WAIT_LIMIT, guest_memory};
use treaty_virtio_device::VirtioDevice;
use treaty_worker::{ReactorKind, Worker, WorkerHandle};
use virtio_drivers::device::console::VirtIOConsole;
use virtio_drivers::device::net::{TxBuffer, VirtIONet};

/// Makes a device on each kind of rig; `E` is the far end of what it is connected to.
fn on_every_rig<E>(
    make: impl Fn(&WorkerHandle) -> (Box<dyn VirtioDevice>, E),
    driver: impl Fn(PeerTransport, E),
) {
    let worker = Worker::start("devices", ReactorKind::Auto).unwrap();
    for kind in all_kinds() {
        println!("on {}", kind.name());
        let memory = guest_memory();
        let (device, end) = make(&worker.handle());
        let rig = kind.build(device, memory.clone());
        driver(PeerTransport::new(rig, memory), end);
    }
}

fn wait<R>(what: &str, mut poll: impl FnMut() -> Option<R>) -> R {
    let deadline = Instant::now() + WAIT_LIMIT;
    loop {
        if let Some(result) = poll() {
            return result;
        }
        assert!(Instant::now() < deadline, "{what} does not happen");
        std::thread::yield_now();
    }
}

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];

#[test]
fn net() {
    let make = |worker: &WorkerHandle| -> (Box<dyn VirtioDevice>, ()) {
        let config = NetConfig {
            mac: Some(MAC),
            ..Default::default()
        };
        let backend = Box::new(Loopback::echo(1).unwrap());
        (
            Box::new(Net::new(&config, backend, vec![worker.clone()]).unwrap()),
            (),
        )
    };
    on_every_rig(make, |transport, ()| {
        let mut net = VirtIONet::<PeerHal, _, 16>::new(transport, 2048).unwrap();
        assert_eq!(net.mac_address(), MAC);
        for round in 0..100u16 {
            let mut frame = vec![round as u8; 60 + usize::from(round) * 14];
            frame[..6].copy_from_slice(&MAC);
            net.send(TxBuffer::from(&frame)).unwrap();
            let received = wait("the echo", || net.receive().ok());
            assert_eq!(received.packet(), frame);
            net.recycle_rx_buffer(received).unwrap();
        }
    });
}

#[test]
fn console() {
    let make = |worker: &WorkerHandle| -> (Box<dyn VirtioDevice>, UnixStream) {
        let (near, far) = Chardev::pair().unwrap();
        let console = Console::new(ConsoleConfig::single(near), worker.clone()).unwrap();
        (Box::new(console), far)
    };
    on_every_rig(make, |transport, mut far| {
        let mut console = VirtIOConsole::<PeerHal, _>::new(transport).unwrap();
        for round in 0..50 {
            let line = format!("line {round}\n");
            console.send_bytes(line.as_bytes()).unwrap();
            let mut seen = vec![0; line.len()];
            far.read_exact(&mut seen).unwrap();
            assert_eq!(seen, line.as_bytes());
            far.write_all(line.as_bytes()).unwrap();
            for expected in line.bytes() {
                assert_eq!(wait("the line", || console.recv(true).unwrap()), expected);
            }
        }
    });
}
