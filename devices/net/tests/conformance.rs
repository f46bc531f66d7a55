//! The suite that every device passes on every rig.

mod common;

use common::{BUFFER, MAC, Receiving, frame, net, send};
use treaty_net::Loopback;
use treaty_testkit::{Driver, Subject, Token, conform};
use treaty_virtio_device::{Features, VirtioDevice};
use treaty_virtio_spec::net::{Header, feature as bit};
use treaty_worker::WorkerHandle;
use zerocopy::IntoBytes;

/// A card whose packets come back.
struct NetSubject {
    pairs: u16,
    /// Not accepted.
    without: Features,
    receiving: Receiving,
    sent: u64,
}

impl NetSubject {
    fn new(pairs: u16, without: Features) -> Self {
        Self {
            pairs,
            without,
            receiving: Receiving::default(),
            sent: 0,
        }
    }

    fn next_frame(&mut self, payload: usize) -> Vec<u8> {
        self.sent += 1;
        frame(MAC, self.sent, payload)
    }
}

impl Subject for NetSubject {
    fn name(&self) -> &'static str {
        "net"
    }

    fn device(&mut self, worker: &WorkerHandle) -> Box<dyn VirtioDevice> {
        Box::new(net(Loopback::echo(self.pairs).unwrap(), worker))
    }

    fn features(&self, offered: Features) -> Features {
        offered.without(self.without)
    }

    fn queues(&self, accepted: Features) -> Vec<u16> {
        let pairs = if accepted.has(bit::MQ) { self.pairs } else { 1 };
        (0..=pairs * 2).collect()
    }

    fn fewest_queues(&self, _accepted: Features) -> Vec<u16> {
        vec![0, 1]
    }

    fn prepare(&mut self, driver: &mut Driver) {
        self.receiving.forget();
        let size = if driver.accepted().has(bit::MRG_RXBUF) {
            BUFFER
        } else {
            10_000
        };
        self.receiving.fill(driver, 0, 24, size);
    }

    fn io(&mut self, driver: &mut Driver, round: u64) {
        for payload in [46, 1400, 9000 - 22] {
            let frame = self.next_frame(payload + round as usize);
            send(driver, 1, &Header::default(), &frame);
            let header = self.receiving.find(driver, &frame);
            let mergeable = driver.accepted().has(bit::MRG_RXBUF);
            let expected = if mergeable && payload > 1400 { 5 } else { 1 };
            assert_eq!(header.num_buffers.get(), expected);
        }
    }

    fn begin(&mut self, driver: &mut Driver) -> Vec<Token> {
        let header = Header::default();
        let tokens = (0..3).map(|_| {
            let frame = self.next_frame(100);
            driver.offer(1, &[header.as_bytes(), &frame], &[])
        });
        let tokens = tokens.collect();
        driver.kick(1);
        tokens
    }

    /// A receive queue is looked at only when there is a packet for it.
    fn victim(&self) -> u16 {
        1
    }
}

#[test]
fn conforms() {
    conform(&mut NetSubject::new(1, Features::NONE));
}

#[test]
fn conforms_with_two_pairs() {
    conform(&mut NetSubject::new(2, Features::NONE));
}

#[test]
fn conforms_without_mergeable_buffers_and_without_mq() {
    conform(&mut NetSubject::new(2, bit::MRG_RXBUF.with(bit::MQ)));
}
