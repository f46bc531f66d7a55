//! The suite that every device passes on every rig.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use treaty_chardev::Chardev;
use treaty_device_console::{Console, ConsoleConfig, PortConfig, WindowSize};
use treaty_testkit::{Driver, Subject, Token, conform};
use treaty_virtio_device::{Features, VirtioDevice};
use treaty_virtio_spec::console::{Control, event, feature};
use treaty_worker::WorkerHandle;
use zerocopy::IntoBytes;

/// A console device; the port under test is the last one.
struct ConsoleSubject {
    ports: usize,
    far: Option<UnixStream>,
    receive: VecDeque<Token>,
    count: u64,
}

impl ConsoleSubject {
    fn new(ports: usize) -> Self {
        Self {
            ports,
            far: None,
            receive: VecDeque::new(),
            count: 0,
        }
    }

    fn receive_queue(&self) -> u16 {
        if self.ports == 1 { 0 } else { self.ports as u16 * 2 }
    }

    fn transmit_queue(&self) -> u16 {
        self.receive_queue() + 1
    }

    fn message(&mut self, driver: &mut Driver, event: u16) {
        let id = if event == event::DEVICE_READY {
            u32::MAX
        } else {
            self.ports as u32 - 1
        };
        let message = Control {
            id: id.into(),
            event: event.into(),
            value: 1.into(),
        };
        driver.transfer(3, &[message.as_bytes()], &[]);
    }

    fn text(&mut self) -> Vec<u8> {
        self.count += 1;
        format!("<line {}>", self.count).into_bytes()
    }
}

impl Subject for ConsoleSubject {
    fn name(&self) -> &'static str {
        "console"
    }

    fn device(&mut self, worker: &WorkerHandle) -> Box<dyn VirtioDevice> {
        let port = |chardev, console| PortConfig {
            chardev,
            console,
            name: (!console).then(|| "data".to_owned()),
        };
        let (near, far) = Chardev::pair().unwrap();
        self.far = Some(far);
        let mut ports: Vec<_> = (1..self.ports).map(|_| port(Chardev::null(), true)).collect();
        ports.push(port(near, self.ports == 1));
        let config = ConsoleConfig {
            ports,
            size: Some(WindowSize { cols: 80, rows: 25 }),
            queue_size: 64,
        };
        Box::new(Console::new(config, worker.clone()).unwrap())
    }

    fn queues(&self, accepted: Features) -> Vec<u16> {
        let count = if accepted.has(feature::MULTIPORT) {
            self.ports as u16 * 2 + 2
        } else {
            2
        };
        (0..count).collect()
    }

    fn fewest_queues(&self, accepted: Features) -> Vec<u16> {
        if accepted.has(feature::MULTIPORT) {
            vec![2, 3, self.receive_queue(), self.transmit_queue()]
        } else {
            vec![0, 1]
        }
    }

    fn prepare(&mut self, driver: &mut Driver) {
        let queue = self.receive_queue();
        self.receive = (0..8).map(|_| driver.offer(queue, &[], &[64])).collect();
        driver.kick(queue);
        if driver.accepted().has(feature::MULTIPORT) {
            for event in [event::DEVICE_READY, event::PORT_READY, event::PORT_OPEN] {
                self.message(driver, event);
            }
        }
    }

    fn io(&mut self, driver: &mut Driver, _round: u64) {
        let out = self.text();
        driver.transfer(self.transmit_queue(), &[&out[..3], &out[3..]], &[]);
        let far = self.far.as_mut().expect("a device was made");
        let mut seen = Vec::new();
        while !seen.ends_with(&out) {
            let mut byte = [0];
            far.read_exact(&mut byte).unwrap();
            seen.push(byte[0]);
        }
        let input = self.text();
        self.far.as_mut().expect("as above").write_all(&input).unwrap();
        let mut got = Vec::new();
        while got.len() < input.len() {
            let token = self.receive.pop_front().expect("offered");
            got.extend_from_slice(driver.wait(token).data());
            let queue = self.receive_queue();
            self.receive.push_back(driver.offer(queue, &[], &[64]));
            driver.kick(queue);
        }
        assert_eq!(got, input);
    }

    fn begin(&mut self, driver: &mut Driver) -> Vec<Token> {
        let queue = self.transmit_queue();
        let text = self.text();
        let tokens = (0..4).map(|_| driver.offer(queue, &[&text], &[])).collect();
        driver.kick(queue);
        tokens
    }

    /// A receive queue is looked at only when there is input for it.
    fn victim(&self) -> u16 {
        self.transmit_queue()
    }
}

#[test]
fn conforms() {
    conform(&mut ConsoleSubject::new(1));
}

#[test]
fn conforms_with_several_ports() {
    conform(&mut ConsoleSubject::new(3));
}
