//! Our drivers do not trust the device: whatever it answers, they neither panic nor touch memory that they were not given
//! (the DMA memory of these tests panics if they do), and no request comes back twice.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

use proptest::prelude::*;
use treaty_memory::GuestMemory;
use treaty_testkit::guest_memory;
use treaty_testkit::ours::RigDma;
use treaty_virtio_driver::{
    Blk, BlkOperation, Console, DmaMemory, Doorbell, DoorbellForm, DriverError, DriverOptions, Net,
    QueueAddresses, RING_FEATURES, Registers, Rng, Transport,
};
use treaty_virtio_ring::{Segment, Violation};
use treaty_virtio_spec::{DeviceId, Features, feature, status};

/// Doorbells that nobody hears.
#[derive(Clone)]
struct Silent;

impl Registers for Silent {
    fn len(&self) -> usize {
        4
    }
    fn read8(&self, _: usize) -> u8 {
        0xff
    }
    fn read16(&self, _: usize) -> u16 {
        0xffff
    }
    fn read32(&self, _: usize) -> u32 {
        0xffff_ffff
    }
    fn write8(&self, _: usize, _: u8) {}
    fn write16(&self, _: usize, _: u16) {}
    fn write32(&self, _: usize, _: u32) {}
}

/// A device that offers everything, says what it is told to, and whose queues the test plays.
#[derive(Clone)]
struct Liar {
    id: DeviceId,
    offers: Features,
    queue_max: u16,
    config: Vec<u8>,
    status: u8,
    queues: Rc<RefCell<Vec<QueueAddresses>>>,
}

impl Liar {
    fn new(id: DeviceId) -> Self {
        let mut config = vec![0; 60];
        // A disk of 4096 sectors; a card with some address.
        config[1] = 0x10;
        Self {
            id,
            offers: Features(u64::MAX),
            queue_max: 64,
            config,
            status: 0,
            queues: Rc::default(),
        }
    }

    /// A disk whose block size is 512.
    fn disk() -> Self {
        let mut disk = Self::new(DeviceId::BLK);
        disk.set(20, &512_u32.to_le_bytes());
        disk
    }

    fn set(&mut self, offset: usize, bytes: &[u8]) {
        self.config[offset..offset + bytes.len()].copy_from_slice(bytes);
    }
}

impl Transport for Liar {
    type Registers = Silent;

    fn device_id(&self) -> DeviceId {
        self.id
    }
    fn status(&mut self) -> u8 {
        self.status
    }
    fn set_status(&mut self, status: u8) -> Result<(), DriverError> {
        self.status = status;
        Ok(())
    }
    fn features(&mut self) -> Features {
        self.offers
    }
    fn accept(&mut self, _: Features) {}
    fn queue_size_max(&mut self, _: u16) -> u16 {
        self.queue_max
    }
    fn start_queue(
        &mut self,
        index: u16,
        addresses: &QueueAddresses,
        _: Option<u16>,
    ) -> Result<Doorbell<Silent>, DriverError> {
        self.queues.borrow_mut().push(*addresses);
        Doorbell::new(Silent, 0, index, DoorbellForm::Index32).ok_or(DriverError::NotifyAddress(index))
    }
    fn reset_queue(&mut self, _: u16) -> Result<(), DriverError> {
        Ok(())
    }
    fn read_config(&mut self, offset: usize, bytes: &mut [u8]) -> Result<(), DriverError> {
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = self.config.get(offset + at).copied().unwrap_or(0);
        }
        Ok(())
    }
    fn acknowledge_interrupt(&mut self) -> u8 {
        0xff
    }
}

fn options(ring_features: Features) -> DriverOptions {
    DriverOptions {
        ring_features,
        queue_size: 64,
        vector: None,
    }
}

/// A disk on a split ring without extras, with `count` reads in flight, and its memory.
fn reading(count: u64) -> (Blk<Liar, RigDma>, GuestMemory, QueueAddresses) {
    let memory = guest_memory();
    let liar = Liar::disk();
    let queues = liar.queues.clone();
    let dma = RigDma::new(memory.clone());
    let mut disk = Blk::start(liar, dma.clone(), &options(Features::NONE)).unwrap();
    let data = dma.allocate(4096, 4096).unwrap();
    for token in 0..count {
        assert_eq!(
            disk.submit(BlkOperation::Read(0), &[Segment { addr: data, len: 512 }], token),
            Ok(true)
        );
    }
    disk.notify();
    let addresses = queues.borrow()[0];
    (disk, memory, addresses)
}

/// Writes a used entry, and then the index.
fn use_entry(memory: &GuestMemory, queue: &QueueAddresses, index: u16, id: u32, len: u32) {
    let at = queue.device_area + 4 + 8 * u64::from(index % queue.size);
    memory.write(at, &id.to_le_bytes()).unwrap();
    memory.write(at + 4, &len.to_le_bytes()).unwrap();
    memory
        .write(queue.device_area + 2, &(index + 1).to_le_bytes())
        .unwrap();
}

/// The id of the `n`-th chain made available.
fn available(memory: &GuestMemory, queue: &QueueAddresses, n: u64) -> u32 {
    let mut id = [0; 2];
    memory.read(queue.driver_area + 4 + 2 * n, &mut id).unwrap();
    u16::from_le_bytes(id).into()
}

#[test]
fn a_request_the_device_did_not_answer_is_not_a_success() {
    let (mut disk, memory, queue) = reading(1);
    use_entry(&memory, &queue, 0, available(&memory, &queue, 0), 0);
    let done = disk.reap().unwrap().unwrap();
    assert!(!done.is_ok(), "the status byte was never written");
}

#[test]
fn hardening_02_a_request_used_twice_is_refused() {
    let (mut disk, memory, queue) = reading(3);
    let id = available(&memory, &queue, 0);
    use_entry(&memory, &queue, 0, id, 513);
    use_entry(&memory, &queue, 1, id, 513);
    assert_eq!(disk.reap().unwrap().unwrap().token, 0);
    assert_eq!(
        disk.reap(),
        Err(DriverError::Violation(Violation::UsedId(id as u16)))
    );
    assert_eq!(disk.reap(), Ok(None), "said once");
    assert_eq!(
        disk.submit(
            BlkOperation::Read(0),
            &[Segment {
                addr: 0x10_0000,
                len: 512
            }],
            9
        ),
        Ok(false)
    );
}

#[test]
fn hardening_17_ids_that_do_not_exist_are_refused() {
    for id in [63, 64, 65, 0xffff, 0x1_0000, u32::MAX] {
        let (mut disk, memory, queue) = reading(1);
        use_entry(&memory, &queue, 0, id, 1);
        assert!(
            matches!(disk.reap(), Err(DriverError::Violation(Violation::UsedId(_)))),
            "{id:#x}"
        );
    }
}

#[test]
fn more_bytes_than_the_buffers_hold_are_refused() {
    let (mut disk, memory, queue) = reading(1);
    let id = available(&memory, &queue, 0);
    use_entry(&memory, &queue, 0, id, 514);
    assert_eq!(
        disk.reap(),
        Err(DriverError::Violation(Violation::UsedLength(id as u16)))
    );
}

#[test]
fn a_used_index_that_runs_ahead_is_refused() {
    let (mut disk, memory, queue) = reading(2);
    memory.write(queue.device_area + 2, &3_u16.to_le_bytes()).unwrap();
    assert_eq!(disk.reap(), Err(DriverError::Violation(Violation::UsedIndex)));
}

#[test]
fn a_disk_that_describes_itself_impossibly_is_refused() {
    let start = |disk: Liar| {
        Blk::start(disk, RigDma::new(guest_memory()), &options(RING_FEATURES))
            .map(|disk| disk.capacity_sectors())
    };
    for size in [0_u32, 1, 511, 513, 256, u32::MAX] {
        let mut disk = Liar::disk();
        disk.set(20, &size.to_le_bytes());
        assert_eq!(start(disk), Err(DriverError::Nonsense("block size")), "{size}");
    }
    let mut disk = Liar::disk();
    disk.queue_max = 0;
    assert_eq!(start(disk), Err(DriverError::NoQueue(0)));
    let mut disk = Liar::disk();
    disk.offers = Features(u64::MAX).without(feature::VERSION_1);
    assert_eq!(start(disk), Err(DriverError::MissingFeature(feature::VERSION_1)));
    assert_eq!(
        start(Liar::new(DeviceId::NET)),
        Err(DriverError::NotVirtio("not a block device"))
    );
    // The end of the largest disk there can be.
    let mut disk = Liar::disk();
    disk.set(0, &[0xff; 8]);
    disk.queue_max = u16::MAX;
    let mut disk = Blk::start(disk, RigDma::new(guest_memory()), &options(RING_FEATURES)).unwrap();
    let data = [Segment {
        addr: 0x10_0000,
        len: 512,
    }];
    assert_eq!(
        disk.submit(BlkOperation::Read(u64::MAX), &data, 0),
        Err(DriverError::Request("beyond the end"))
    );
    assert_eq!(disk.submit(BlkOperation::Read(u64::MAX - 1), &data, 0), Ok(true));
}

#[test]
fn a_device_that_needs_a_reset_at_once_is_refused() {
    struct Broken(Liar);
    let mut liar = Liar::new(DeviceId::RNG);
    liar.status = status::DEVICE_NEEDS_RESET;
    impl Transport for Broken {
        type Registers = Silent;
        fn device_id(&self) -> DeviceId {
            self.0.device_id()
        }
        fn status(&mut self) -> u8 {
            0xff
        }
        fn set_status(&mut self, status: u8) -> Result<(), DriverError> {
            self.0.set_status(status)
        }
        fn features(&mut self) -> Features {
            self.0.features()
        }
        fn accept(&mut self, features: Features) {
            self.0.accept(features);
        }
        fn queue_size_max(&mut self, index: u16) -> u16 {
            self.0.queue_size_max(index)
        }
        fn start_queue(
            &mut self,
            index: u16,
            addresses: &QueueAddresses,
            vector: Option<u16>,
        ) -> Result<Doorbell<Silent>, DriverError> {
            self.0.start_queue(index, addresses, vector)
        }
        fn reset_queue(&mut self, index: u16) -> Result<(), DriverError> {
            self.0.reset_queue(index)
        }
        fn read_config(&mut self, offset: usize, bytes: &mut [u8]) -> Result<(), DriverError> {
            self.0.read_config(offset, bytes)
        }
        fn acknowledge_interrupt(&mut self) -> u8 {
            self.0.acknowledge_interrupt()
        }
    }
    let refused = Rng::start(
        Broken(liar),
        RigDma::new(guest_memory()),
        &options(Features::NONE),
    )
    .err();
    assert!(matches!(refused, Some(DriverError::Nonsense(_))));
}

#[test]
fn hardening_10_a_frame_shorter_than_its_header_is_refused() {
    let memory = guest_memory();
    let liar = Liar::new(DeviceId::NET);
    let queues = liar.queues.clone();
    let mut card = Net::start(liar, RigDma::new(memory.clone()), &options(Features::NONE)).unwrap();
    let queue = queues.borrow()[0];
    use_entry(&memory, &queue, 0, available(&memory, &queue, 0), 12);
    let mut frame = [0; 64];
    assert_eq!(card.receive(&mut frame), Ok(Some(0)), "a header and nothing else");
    use_entry(&memory, &queue, 1, available(&memory, &queue, 1), 11);
    assert!(matches!(card.receive(&mut frame), Err(DriverError::Nonsense(_))));
}

/// Bytes of a ring's areas, whichever the layout.
fn areas(queue: &QueueAddresses, packed: bool) -> [(u64, usize); 3] {
    let size = usize::from(queue.size);
    match packed {
        true => [
            (queue.descriptor_area, 16 * size),
            (queue.driver_area, 4),
            (queue.device_area, 4),
        ],
        false => [
            (queue.descriptor_area, 16 * size),
            (queue.driver_area, 6 + 2 * size),
            (queue.device_area, 6 + 8 * size),
        ],
    }
}

/// One hostile act: bytes written over some part of one area of one queue. Small values hit more often than large.
#[derive(Clone, Debug)]
struct Act {
    queue: prop::sample::Index,
    area: usize,
    at: prop::sample::Index,
    /// Near the start, where flags, indices and the first descriptor are.
    near: bool,
    bytes: Vec<u8>,
}

fn act() -> impl Strategy<Value = Act> {
    let byte = prop_oneof![3 => 0_u8..8, 1 => Just(0x80), 1 => any::<u8>()];
    let index = any::<prop::sample::Index>;
    (
        index(),
        0..3_usize,
        index(),
        any::<bool>(),
        prop::collection::vec(byte, 1..24),
    )
        .prop_map(|(queue, area, at, near, bytes)| Act {
            queue,
            area,
            at,
            near,
            bytes,
        })
}

fn commit(act: &Act, memory: &GuestMemory, queues: &[QueueAddresses], packed: bool) {
    let queue = &queues[act.queue.index(queues.len())];
    let (addr, len) = areas(queue, packed)[act.area];
    let at = act.at.index(if act.near { len.min(16) } else { len });
    let bytes = &act.bytes[..act.bytes.len().min(len - at)];
    memory.write(addr + at as u64, bytes).unwrap();
}

fn ring_features() -> impl Strategy<Value = Features> {
    any::<u64>().prop_map(|bits| Features(bits) & RING_FEATURES)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn hardening_16_no_scribbling_device_breaks_the_disk_driver(
        features in ring_features(),
        acts in prop::collection::vec(act(), 1..40),
    ) {
        let memory = guest_memory();
        let liar = Liar::disk();
        let queues = liar.queues.clone();
        let dma = RigDma::new(memory.clone());
        let mut disk = Blk::start(liar, dma.clone(), &options(features)).unwrap();
        let data = dma.allocate(64 * 512, 64).unwrap();
        let queues = queues.borrow().clone();
        let (mut in_flight, mut next) = (BTreeSet::new(), 0);
        for act in &acts {
            let segments = [Segment { addr: data + next % 64 * 512, len: 512 }];
            if disk.submit(BlkOperation::Read(next % 4096), &segments, next) == Ok(true) {
                in_flight.insert(next);
                next += 1;
            }
            disk.notify();
            commit(act, &memory, &queues, features.has(feature::RING_PACKED));
            disk.queue().arm();
            while let Ok(Some(done)) = disk.reap() {
                prop_assert!(in_flight.remove(&done.token), "{} came back twice", done.token);
            }
            disk.queue().disarm();
        }
        // After whatever it was, the device can be reset and used again.
        let liar = disk.stop().unwrap();
        prop_assert!(Blk::start(liar, dma, &options(features)).is_ok());
    }

    #[test]
    fn hardening_16_no_scribbling_device_breaks_the_card_and_console_drivers(
        features in ring_features(),
        acts in prop::collection::vec(act(), 1..20),
    ) {
        let memory = guest_memory();
        let packed = features.has(feature::RING_PACKED);
        let mut bytes = [0; 1600];
        let liar = Liar::new(DeviceId::NET);
        let queues = liar.queues.clone();
        let mut card = Net::start(liar, RigDma::new(memory.clone()), &options(features)).unwrap();
        for act in &acts {
            let _ = card.send(&[1; 60]);
            card.transmit_queue().notify();
            commit(act, &memory, &queues.borrow(), packed);
            while let Ok(Some(len)) = card.receive(&mut bytes) {
                prop_assert!(len <= 1600);
            }
            while let Ok(true) = card.reap_sent() {}
            card.receive_queue().notify();
        }
        let liar = Liar::new(DeviceId::CONSOLE);
        let queues = liar.queues.clone();
        let mut console = Console::start(liar, RigDma::new(memory.clone()), &options(features)).unwrap();
        for act in &acts {
            let _ = console.write(b"line");
            console.transmit_queue().notify();
            commit(act, &memory, &queues.borrow(), packed);
            while let Ok(Some(len)) = console.read(&mut bytes) {
                prop_assert!(len <= 256);
            }
            while let Ok(true) = console.reap_written() {}
        }
    }
}
