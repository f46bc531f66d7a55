//! A card under a driver: receive buffers, packets there and back.
#![allow(dead_code)]

use std::collections::VecDeque;

use treaty_device_net::{Net, NetConfig};
use treaty_memory::GuestMemory;
use treaty_net::PacketBackend;
use treaty_testkit::rig::{DirectRig, Rig};
use treaty_testkit::{Driver, Token, guest_memory};
use treaty_virtio_device::{DeviceCounters, Features};
use treaty_virtio_spec::net::{HEADER_SIZE, Header, feature as bit};
use treaty_worker::{ReactorKind, Worker, WorkerHandle};
use zerocopy::{FromBytes, IntoBytes};

pub const MAC: [u8; 6] = [0x52, 0x54, 0, 0, 0, 1];
pub const PEER: [u8; 6] = [0x52, 0x54, 0, 0, 0, 2];
/// IEEE 802 local experimental ethertype 1: nobody answers it.
pub const EXPERIMENTAL: [u8; 2] = [0x88, 0xb5];
/// Bytes of the receive buffers that a driver with mergeable buffers offers.
pub const BUFFER: usize = 2048;

pub fn net(backend: impl PacketBackend + 'static, worker: &WorkerHandle) -> Net {
    let config = NetConfig {
        mac: Some(MAC),
        ..NetConfig::default()
    };
    Net::new(&config, Box::new(backend), vec![worker.clone()]).unwrap()
}

/// A frame with `payload` bytes that count up from `seed`.
pub fn frame(destination: [u8; 6], seed: u64, payload: usize) -> Vec<u8> {
    let mut bytes = destination.to_vec();
    bytes.extend_from_slice(&PEER);
    bytes.extend_from_slice(&EXPERIMENTAL);
    bytes.extend_from_slice(&seed.to_le_bytes());
    bytes.extend((0..payload).map(|at| (at as u64 * 31).wrapping_add(seed) as u8));
    bytes
}

/// The receive buffers of one queue, in the order in which they were offered.
#[derive(Default)]
pub struct Receiving {
    tokens: VecDeque<Token>,
}

impl Receiving {
    /// Offers `count` buffers of `size` bytes.
    pub fn fill(&mut self, driver: &mut Driver, queue: u16, count: usize, size: usize) {
        for _ in 0..count {
            self.tokens.push_back(driver.offer(queue, &[], &[size]));
        }
        driver.kick(queue);
    }

    pub fn forget(&mut self) {
        self.tokens.clear();
    }

    /// The next packet, whose buffers are offered again.
    pub fn next(&mut self, driver: &mut Driver) -> (Header, Vec<u8>) {
        let first = self.tokens.pop_front().expect("buffers were offered");
        let done = driver.wait(first);
        let (header, data) = Header::read_from_prefix(done.data()).expect("a whole header");
        let mut frame = data.to_vec();
        self.fill(driver, first.queue, 1, done.bytes.len());
        for _ in 1..header.num_buffers.get() {
            let token = self.tokens.pop_front().expect("buffers were offered");
            let done = driver.wait(token);
            frame.extend_from_slice(done.data());
            self.fill(driver, token.queue, 1, done.bytes.len());
        }
        (header, frame)
    }

    /// Packets until one is `wanted`.
    pub fn find(&mut self, driver: &mut Driver, wanted: &[u8]) -> Header {
        loop {
            let (header, frame) = self.next(driver);
            if frame == wanted {
                return header;
            }
        }
    }
}

pub fn send(driver: &mut Driver, queue: u16, header: &Header, frame: &[u8]) {
    let done = driver.transfer(queue, &[header.as_bytes(), frame], &[]);
    assert_eq!(done.written, 0);
}

/// One card on a direct rig with its worker.
pub struct Bench {
    pub driver: Driver,
    pub receiving: Receiving,
    pub counters: DeviceCounters,
    pub worker: Worker,
}

impl Bench {
    /// A live card; all that `choose` accepts of what is offered, one pair and the control queue enabled, 48 receive
    /// buffers.
    pub fn new(backend: impl PacketBackend + 'static, choose: impl FnOnce(Features) -> Features) -> Self {
        let mut bench = Self::without_buffers(backend, choose);
        let mergeable = bench.driver.accepted().has(bit::MRG_RXBUF);
        let size = if mergeable { BUFFER } else { 65562 };
        bench.receiving.fill(&mut bench.driver, 0, 48, size);
        bench
    }

    /// As [`new`](Self::new), with an empty receive queue.
    pub fn without_buffers(
        backend: impl PacketBackend + 'static,
        choose: impl FnOnce(Features) -> Features,
    ) -> Self {
        let worker = Worker::start("net", ReactorKind::Auto).unwrap();
        let net = net(backend, &worker.handle());
        let counters = net.counters();
        let memory = guest_memory();
        let rig = DirectRig::new(Box::new(net), memory.clone());
        let mut bench = Self {
            driver: Driver::new(Box::new(rig), memory),
            receiving: Receiving::default(),
            counters,
            worker,
        };
        let accepted = bench.driver.negotiate(choose);
        for index in [0, 1] {
            bench.driver.enable_queue(index);
        }
        if accepted.has(bit::CTRL_VQ) {
            let control = bench.control(accepted);
            bench.driver.enable_queue(control);
        }
        bench.driver.driver_ok();
        bench
    }

    fn control(&mut self, accepted: Features) -> u16 {
        if accepted.has(bit::MQ) {
            self.driver.read_config::<2>(8)[0] as u16 * 2
        } else {
            2
        }
    }

    pub fn memory(&self) -> GuestMemory {
        self.driver.memory().clone()
    }

    pub fn send(&mut self, header: &Header, frame: &[u8]) {
        send(&mut self.driver, 1, header, frame);
    }

    /// The next packet.
    pub fn receive(&mut self) -> (Header, Vec<u8>) {
        self.receiving.next(&mut self.driver)
    }

    /// A control command; its answer.
    pub fn command(&mut self, class: u8, command: u8, data: &[u8]) -> u8 {
        let accepted = self.driver.accepted();
        let queue = self.control(accepted);
        let done = self
            .driver
            .transfer(queue, &[&[&[class, command], data].concat()], &[1]);
        assert_eq!(done.written, 1);
        done.bytes[0]
    }

    pub fn count(&self, name: &str) -> u64 {
        self.counters.sum(name)
    }

    pub fn status_bits(&mut self) -> u16 {
        u16::from_le_bytes(self.driver.read_config(6))
    }
}

/// A card on a direct rig that no driver has used, for a state to move into.
pub fn unused_rig(
    backend: impl PacketBackend + 'static,
    worker: &WorkerHandle,
    memory: GuestMemory,
) -> Box<dyn Rig> {
    Box::new(DirectRig::new(Box::new(net(backend, worker)), memory))
}

/// Bytes of a header and a frame as one.
pub fn packet(header: &Header, frame: &[u8]) -> Vec<u8> {
    let mut bytes = header.as_bytes().to_vec();
    assert_eq!(bytes.len(), HEADER_SIZE);
    bytes.extend_from_slice(frame);
    bytes
}
