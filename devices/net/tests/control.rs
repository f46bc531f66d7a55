//! The control queue and what it changes.

mod common;

use std::sync::{Arc, Mutex};

use common::{Bench, MAC, frame};
use treaty_net::{
    BackendError, Capabilities, Loopback, Null, Offloads, PacketBackend, PacketReceiver, PacketSender,
};
use treaty_testkit::rig::Wait;
use treaty_testkit::{Driver, WAIT_LIMIT};
use treaty_virtio_device::Features;
use treaty_virtio_spec::net::{Header, STATUS_ANNOUNCE, STATUS_LINK_UP, ctrl, feature as bit};

fn all(offered: Features) -> Features {
    offered
}

fn table(addresses: &[[u8; 6]]) -> Vec<u8> {
    let mut bytes = (addresses.len() as u32).to_le_bytes().to_vec();
    bytes.extend(addresses.iter().flatten());
    bytes
}

/// Sends to each destination, then to ourselves as an end mark; says which of them arrived.
fn arriving(bench: &mut Bench, destinations: &[[u8; 6]]) -> Vec<bool> {
    for (number, destination) in destinations.iter().enumerate() {
        bench.send(&Header::default(), &frame(*destination, number as u64, 60));
    }
    bench.send(&Header::default(), &frame(MAC, u64::MAX, 60));
    let mut arrived = vec![false; destinations.len()];
    loop {
        let (_, received) = bench.receive();
        let number = u64::from_le_bytes(received[14..22].try_into().unwrap());
        match arrived.get_mut(number as usize) {
            Some(slot) => *slot = true,
            None => return arrived,
        }
    }
}

#[test]
fn the_filter_follows_commands() {
    let mut bench = Bench::new(Loopback::echo(1).unwrap(), all);
    let (other, group) = ([0x52, 0x54, 0, 0, 0, 9], [0x01, 0, 0x5e, 0, 0, 1]);
    let destinations = [other, group, [0xff; 6]];
    assert_eq!(arriving(&mut bench, &destinations), [true; 3]);
    assert_eq!(bench.command(ctrl::RX, ctrl::RX_PROMISC, &[0]), ctrl::OK);
    assert_eq!(arriving(&mut bench, &destinations), [false, false, true]);
    let tables = [table(&[other]), table(&[group])].concat();
    assert_eq!(bench.command(ctrl::MAC, ctrl::MAC_TABLE_SET, &tables), ctrl::OK);
    assert_eq!(arriving(&mut bench, &destinations), [true; 3]);
    assert_eq!(bench.command(ctrl::RX, ctrl::RX_NOBCAST, &[1]), ctrl::OK);
    assert_eq!(arriving(&mut bench, &destinations), [true, true, false]);
    assert_eq!(bench.count("filtered"), 3);
    assert_eq!(bench.command(ctrl::MAC, ctrl::MAC_ADDR_SET, &other), ctrl::OK);
    assert_eq!(
        bench.driver.read_config::<6>(0),
        MAC,
        "the configuration keeps the default address"
    );
}

#[test]
fn vlans_pass_once_added() {
    let mut bench = Bench::new(Loopback::echo(1).unwrap(), all);
    let tagged = |number: u64| {
        let mut bytes = frame(MAC, number, 60);
        bytes.splice(12..12, [0x81, 0, 0, 42]);
        bytes
    };
    bench.send(&Header::default(), &tagged(1));
    assert_eq!(
        bench.command(ctrl::VLAN, ctrl::VLAN_ADD, &42u16.to_le_bytes()),
        ctrl::OK
    );
    bench.send(&Header::default(), &frame(MAC, 9, 0));
    // The first may have been looked at before or after the command.
    let first = bench.receive().1;
    if first == tagged(1) {
        assert_eq!(bench.receive().1, frame(MAC, 9, 0));
    } else {
        assert_eq!(first, frame(MAC, 9, 0));
    }
    bench.send(&Header::default(), &tagged(2));
    assert_eq!(bench.receive().1, tagged(2));
    assert_eq!(
        bench.command(ctrl::VLAN, ctrl::VLAN_DEL, &42u16.to_le_bytes()),
        ctrl::OK
    );
    bench.send(&Header::default(), &tagged(3));
    bench.send(&Header::default(), &frame(MAC, 4, 0));
    assert_eq!(bench.receive().1, frame(MAC, 4, 0));
}

/// virtio 1.3 §5.1.6.5.5: one pair at first; only what exists can be set.
#[test]
fn pairs_are_set_within_their_number() {
    let mut bench = Bench::new(Loopback::echo(4).unwrap(), all);
    assert_eq!(bench.driver.read_config::<2>(8), [4, 0]);
    for (count, answer) in [
        (4u16, ctrl::OK),
        (0, ctrl::ERR),
        (5, ctrl::ERR),
        (0x8000, ctrl::ERR),
        (0xffff, ctrl::ERR),
        (1, ctrl::OK),
    ] {
        assert_eq!(
            bench.command(ctrl::MQ, ctrl::MQ_VQ_PAIRS_SET, &count.to_le_bytes()),
            answer,
            "{count}"
        );
    }
    let mut single = Bench::new(Loopback::echo(1).unwrap(), all);
    assert_eq!(
        single.command(ctrl::MQ, ctrl::MQ_VQ_PAIRS_SET, &[1, 0]),
        ctrl::ERR,
        "not negotiated"
    );
}

/// Packets arrive on a pair from the moment it is switched on.
#[test]
fn a_pair_wakes_when_it_is_switched_on() {
    let (mut near, far) = Loopback::cable(2).unwrap();
    let mut sender = near.sender(1).unwrap();
    let mut bench = Bench::new(far, all);
    bench.driver.enable_queue(2);
    let buffer = bench.driver.offer(2, &[], &[2048]);
    bench.driver.kick(2);
    let bytes = frame(MAC, 1, 60);
    let block = treaty_buffers::AlignedBlock::new(bytes.len(), 8);
    let mut list = block.buffers();
    list.copy_from(&bytes);
    assert_eq!(sender.send(&Header::default(), &list), treaty_net::Sent::Taken);
    // Inactive: the packet stays where it is however often the driver rings.
    bench.driver.kick(2);
    bench.send(&Header::default(), &frame(MAC, 2, 60));
    bench.driver.reap(2);
    assert_eq!(bench.command(ctrl::MQ, ctrl::MQ_VQ_PAIRS_SET, &[2, 0]), ctrl::OK);
    assert_eq!(bench.driver.wait(buffer).data()[12..], bytes);
}

/// Front-ends of vhost-user answer the control queue themselves and leave its feature out; QEMU then runs the rings of
/// the pairs that are on.
#[test]
fn without_a_control_queue_the_pairs_are_those_that_run() {
    let set = Arc::new(Mutex::new(Vec::new()));
    let backend = Counting {
        inner: Null::new(4),
        set: set.clone(),
    };
    let control = bit::CTRL_VQ | bit::CTRL_RX | bit::CTRL_RX_EXTRA | bit::CTRL_VLAN;
    let control = control | bit::CTRL_MAC_ADDR | bit::GUEST_ANNOUNCE;
    let mut bench = Bench::without_buffers(backend, |offered| offered.without(control));
    for index in [2, 3, 6, 7, 4, 5] {
        bench.driver.enable_queue(index);
    }
    for index in [5, 4, 2] {
        assert!(bench.driver.reset_queue(index));
    }
    let mut set = set.lock().unwrap().clone();
    set.dedup();
    assert_eq!(set, [1, 2, 4, 2, 1], "pairs without a gap");
}

/// A back-end that remembers how many pairs it was told of.
struct Counting {
    inner: Null,
    set: Arc<Mutex<Vec<u16>>>,
}

impl PacketBackend for Counting {
    fn capabilities(&self) -> &Capabilities {
        self.inner.capabilities()
    }

    fn set_receive_offloads(&mut self, offloads: Offloads) -> Result<(), BackendError> {
        self.inner.set_receive_offloads(offloads)
    }

    fn set_pairs(&mut self, count: u16) -> Result<(), BackendError> {
        self.set.lock().unwrap().push(count);
        self.inner.set_pairs(count)
    }

    fn sender(&mut self, pair: u16) -> Result<Box<dyn PacketSender>, BackendError> {
        self.inner.sender(pair)
    }

    fn receiver(&mut self, pair: u16) -> Result<Box<dyn PacketReceiver>, BackendError> {
        self.inner.receiver(pair)
    }
}

#[test]
fn offloads_are_switched_within_what_was_accepted() {
    let mut bench = Bench::new(Loopback::echo(1).unwrap(), |offered| {
        offered.without(bit::GUEST_UFO)
    });
    let set = |bench: &mut Bench, bits: Features| {
        bench.command(
            ctrl::GUEST_OFFLOADS,
            ctrl::GUEST_OFFLOADS_SET,
            &bits.0.to_le_bytes(),
        )
    };
    assert_eq!(set(&mut bench, Features::NONE), ctrl::OK);
    assert_eq!(set(&mut bench, bit::GUEST_CSUM.with(bit::GUEST_TSO4)), ctrl::OK);
    assert_eq!(set(&mut bench, bit::GUEST_UFO), ctrl::ERR, "not accepted");
    assert_eq!(set(&mut bench, bit::MAC), ctrl::ERR, "no offload");
}

/// A back-end that remembers which receive offloads it was asked for.
struct Remembering {
    inner: Null,
    asked: Arc<Mutex<Offloads>>,
}

impl PacketBackend for Remembering {
    fn capabilities(&self) -> &Capabilities {
        self.inner.capabilities()
    }

    fn set_receive_offloads(&mut self, offloads: Offloads) -> Result<(), BackendError> {
        *self.asked.lock().unwrap() = offloads;
        Ok(())
    }

    fn set_pairs(&mut self, count: u16) -> Result<(), BackendError> {
        self.inner.set_pairs(count)
    }

    fn sender(&mut self, pair: u16) -> Result<Box<dyn PacketSender>, BackendError> {
        self.inner.sender(pair)
    }

    fn receiver(&mut self, pair: u16) -> Result<Box<dyn PacketReceiver>, BackendError> {
        self.inner.receiver(pair)
    }
}

/// Hardening row 9: the back-end is asked for what was accepted, whatever was offered; what the driver switched off stays
/// off over a restore.
#[test]
fn hardening_09_backends_are_asked_for_accepted_offloads() {
    let asked = Arc::new(Mutex::new(Offloads::NONE));
    let backend = || Remembering {
        inner: Null::new(1),
        asked: asked.clone(),
    };
    let now = || *asked.lock().unwrap();
    let mut bench = Bench::new(backend(), |offered| {
        offered.without(bit::GUEST_UFO.with(bit::GUEST_USO4))
    });
    let accepted = Offloads {
        ufo: false,
        uso: false,
        ..Offloads::ALL
    };
    assert_eq!(now(), accepted);
    let csum = bit::GUEST_CSUM.0.to_le_bytes();
    assert_eq!(
        bench.command(ctrl::GUEST_OFFLOADS, ctrl::GUEST_OFFLOADS_SET, &csum),
        ctrl::OK
    );
    let only_csum = Offloads {
        csum: true,
        ..Offloads::NONE
    };
    assert_eq!(now(), only_csum);
    let other = common::unused_rig(backend(), &bench.worker.handle(), bench.memory());
    *asked.lock().unwrap() = Offloads::ALL;
    assert!(bench.driver.migrate(other));
    assert_eq!(now(), only_csum);
    bench.driver.reset();
    assert_eq!(now(), Offloads::NONE);
}

fn announcing(driver: &mut Driver) -> bool {
    u16::from_le_bytes(driver.read_config(6)) & STATUS_ANNOUNCE != 0
}

/// virtio 1.3 §5.1.6.5.4: after a restore the driver is asked to announce itself, once.
#[test]
fn a_restored_card_asks_for_an_announcement() {
    let mut bench = Bench::new(Loopback::echo(1).unwrap(), all);
    assert_eq!(bench.status_bits(), STATUS_LINK_UP);
    assert_eq!(
        bench.command(ctrl::ANNOUNCE, ctrl::ANNOUNCE_ACK, &[]),
        ctrl::ERR,
        "nobody asked"
    );
    assert_eq!(bench.command(ctrl::RX, ctrl::RX_PROMISC, &[0]), ctrl::OK);
    let other = common::unused_rig(Loopback::echo(1).unwrap(), &bench.worker.handle(), bench.memory());
    assert!(bench.driver.migrate(other));
    assert!(bench.driver.rig().wait_interrupt(Wait::Config, WAIT_LIMIT));
    assert!(announcing(&mut bench.driver));
    assert_eq!(bench.command(ctrl::ANNOUNCE, ctrl::ANNOUNCE_ACK, &[]), ctrl::OK);
    assert!(!announcing(&mut bench.driver));
    assert_eq!(arriving(&mut bench, &[[2; 6]]), [false], "the filter moved along");
}

/// A card that was paused asks too: the network may have forgotten it.
#[test]
fn a_resumed_card_asks_for_an_announcement() {
    let mut bench = Bench::new(Loopback::echo(1).unwrap(), all);
    bench.driver.rig().pause();
    assert!(!announcing(&mut bench.driver));
    bench.driver.rig().resume();
    assert!(announcing(&mut bench.driver));
    assert_eq!(bench.command(ctrl::ANNOUNCE, ctrl::ANNOUNCE_ACK, &[]), ctrl::OK);
    bench.driver.rig().resume();
    assert!(!announcing(&mut bench.driver), "it was not paused in between");
    bench.driver.reset();
    bench.driver.negotiate(all);
    bench.driver.enable_queue(0);
    bench.driver.driver_ok();
    assert!(
        !announcing(&mut bench.driver),
        "a new driver announces itself anyhow"
    );
}

/// Hardening rows 12, 20: commands cut short, too long, unknown, without room for an answer, outside memory.
#[test]
fn hardening_20_bad_commands_are_refused() {
    let mut bench = Bench::new(Loopback::echo(1).unwrap(), all);
    let huge = [u32::MAX.to_le_bytes().to_vec(), vec![0; 64]].concat();
    let short_second = [table(&[]), 3u32.to_le_bytes().to_vec(), vec![0; 17]].concat();
    let cases: [(u8, u8, &[u8]); 14] = [
        (ctrl::RX, ctrl::RX_PROMISC, &[]),
        (ctrl::RX, ctrl::RX_PROMISC, &[2]),
        (ctrl::RX, 6, &[1]),
        (ctrl::MAC, ctrl::MAC_TABLE_SET, &[]),
        (ctrl::MAC, ctrl::MAC_TABLE_SET, &huge),
        (ctrl::MAC, ctrl::MAC_TABLE_SET, &short_second),
        (ctrl::MAC, ctrl::MAC_ADDR_SET, &[1, 2, 3, 4, 5]),
        (ctrl::MAC, 2, &[0; 6]),
        (ctrl::VLAN, ctrl::VLAN_ADD, &[1]),
        (ctrl::VLAN, ctrl::VLAN_ADD, &[0, 0x10]),
        (ctrl::VLAN, 2, &[1, 0]),
        (ctrl::ANNOUNCE, 1, &[]),
        (6, 0, &[0; 8]),
        (0xff, 0xff, &[]),
    ];
    for (class, command, data) in cases {
        assert_eq!(
            bench.command(class, command, data),
            ctrl::ERR,
            "{class} {command} {data:?}"
        );
    }
    assert_eq!(bench.count("refused"), cases.len() as u64);
    // A table of the greatest length that is read at all.
    let long = [table(&[[2; 6]; 4096]), table(&[[3; 6]; 100])].concat();
    assert_eq!(bench.command(ctrl::MAC, ctrl::MAC_TABLE_SET, &long), ctrl::OK);
    let done = bench.driver.transfer(2, &[&[ctrl::RX, ctrl::RX_PROMISC, 1]], &[]);
    assert_eq!(done.written, 0, "no room for an answer");
    let done = bench.driver.transfer(2, &[&[ctrl::RX]], &[1]);
    assert_eq!(done.bytes, [ctrl::ERR], "a header cut short");
    assert_eq!(bench.count("bad_chains"), 1);
}

/// virtio 1.3 §5.1.2: without MQ the control queue is queue 2, however many pairs there could be.
#[test]
fn without_mq_the_control_queue_is_the_third() {
    let mut bench = Bench::new(Loopback::echo(4).unwrap(), |offered| offered.without(bit::MQ));
    assert_eq!(bench.command(ctrl::RX, ctrl::RX_PROMISC, &[1]), ctrl::OK);
    bench.send(&Header::default(), &frame(MAC, 1, 60));
    assert_eq!(bench.receive().1, frame(MAC, 1, 60));
}
