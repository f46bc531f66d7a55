//! Both halves on two threads that sleep when there is nothing to do: a notification that is lost stops them for good.
#![cfg(not(loom))]
mod common;

use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use common::{Pair, corners, pair};
use treaty_virtio_ring::{Burst, DeviceRing, DriverRing, RingMemory, Segment};

const CHAINS: u64 = 20_000;

/// An eventfd of sorts.
#[derive(Default)]
struct Bell(Mutex<bool>, Condvar);

impl Bell {
    fn ring(&self) {
        *self.0.lock().unwrap() = true;
        self.1.notify_one();
    }

    fn wait(&self, who: &str) {
        let rung = self.0.lock().unwrap();
        let (mut rung, timeout) = self
            .1
            .wait_timeout_while(rung, Duration::from_secs(60), |rung| !*rung)
            .unwrap();
        assert!(!timeout.timed_out(), "{who} was never woken");
        *rung = false;
    }
}

fn drive<M: RingMemory>(ring: &mut DriverRing<M>, doorbell: &Bell, interrupt: &Bell) {
    let (mut offered, mut reaped, mut sum) = (0, 0, 0u64);
    while reaped < CHAINS {
        let before = (offered, reaped);
        let readable = [Segment {
            addr: 0x1000 + offered,
            len: 16,
        }];
        let writable = [
            Segment {
                addr: 0x9000,
                len: 512,
            },
            Segment { addr: 0xa000, len: 1 },
        ];
        while offered < CHAINS && offered < before.0 + 7 {
            let writable = &writable[..(offered % 3) as usize];
            if ring.offer(&readable, writable, offered).is_err() {
                break;
            }
            offered += 1;
        }
        if ring.publish() {
            doorbell.ring();
        }
        while let Some(used) = ring.reap().unwrap() {
            reaped += 1;
            sum += used.token;
        }
        if before == (offered, reaped) && !ring.arm() {
            interrupt.wait("the driver");
        }
        ring.disarm();
    }
    assert_eq!(sum, CHAINS * (CHAINS - 1) / 2);
}

fn serve<M: RingMemory>(ring: &mut DeviceRing<M>, doorbell: &Bell, interrupt: &Bell) {
    let mut burst = Burst::new(4);
    let mut served = 0;
    while served < CHAINS {
        if ring.next_burst(&mut burst, 16).unwrap() == 0 && !ring.arm() {
            doorbell.wait("the device");
        }
        ring.disarm();
        while let Some(chain) = burst.pop() {
            served += 1;
            let room: u32 = chain.writable.iter().map(|segment| segment.len).sum();
            ring.complete(chain.head, room);
        }
        if ring.publish() {
            interrupt.ring();
        }
    }
}

#[test]
fn no_chain_and_no_notification_is_lost() {
    for (layout, features, tables) in corners() {
        for size in [4, 64] {
            let Pair {
                mut driver,
                mut device,
                ..
            } = pair(layout, size, features, 4, tables);
            let bells = Arc::new((Bell::default(), Bell::default()));
            let theirs = bells.clone();
            let device = std::thread::spawn(move || serve(&mut device, &theirs.0, &theirs.1));
            drive(&mut driver, &bells.0, &bells.1);
            device.join().unwrap();
        }
    }
}
