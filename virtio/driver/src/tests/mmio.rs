use treaty_virtio_spec::{DeviceId, Features, feature, mmio, status};

use super::fakes::FakeRegisters;
use crate::{DriverError, MmioTransport, QueueAddresses, Transport, negotiate};

fn registers() -> FakeRegisters {
    let registers = FakeRegisters::new(0x200);
    registers.poke(mmio::MAGIC_VALUE, &mmio::MAGIC.to_le_bytes());
    registers.poke(mmio::VERSION, &mmio::VERSION_2.to_le_bytes());
    registers.poke(mmio::DEVICE_ID, &2_u32.to_le_bytes());
    registers
}

#[test]
fn a_device_is_recognised_by_magic_version_and_id() {
    let found = MmioTransport::probe(registers()).unwrap().unwrap();
    assert_eq!(found.device_id(), DeviceId::BLK);
    let empty = registers();
    empty.poke(mmio::DEVICE_ID, &[0; 4]);
    assert!(MmioTransport::probe(empty).unwrap().is_none());
    for (offset, value) in [(mmio::MAGIC_VALUE, 0), (mmio::VERSION, 1)] {
        let wrong = registers();
        wrong.poke(offset, &u32::to_le_bytes(value));
        assert!(matches!(
            MmioTransport::probe(wrong),
            Err(DriverError::NotVirtio(_))
        ));
    }
    assert!(matches!(
        MmioTransport::probe(FakeRegisters::new(0x80)),
        Err(DriverError::NotVirtio(_))
    ));
}

/// The fake's feature register says the same for both words: bits 0 and 32, or nothing.
#[test]
fn negotiation_needs_version_1_and_says_failed_without() {
    let old = registers();
    let mut device = MmioTransport::probe(old.clone()).unwrap().unwrap();
    let refused = negotiate(&mut device, Features::NONE);
    assert_eq!(refused, Err(DriverError::MissingFeature(feature::VERSION_1)));
    assert_eq!(device.status(), status::FAILED);

    let new = registers();
    new.poke(mmio::DEVICE_FEATURES, &1_u32.to_le_bytes());
    let mut device = MmioTransport::probe(new.clone()).unwrap().unwrap();
    assert_eq!(negotiate(&mut device, Features::NONE), Ok(feature::VERSION_1));
    assert_eq!(
        device.status(),
        status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK
    );
    let order: alloc::vec::Vec<u32> = new
        .writes
        .borrow()
        .iter()
        .filter(|w| w.0 == mmio::STATUS)
        .map(|w| w.1)
        .collect();
    assert_eq!(order, [0, 1, 3, 11], "virtio 1.3 §3.1.1");
}

/// Registers that keep the last status written never read as 0 again: here by reading a register that is not status.
#[test]
fn a_reset_that_never_ends_is_an_error_and_not_a_hang() {
    #[derive(Clone)]
    struct Stuck(FakeRegisters);
    impl crate::Registers for Stuck {
        fn len(&self) -> usize {
            self.0.len()
        }
        fn read8(&self, offset: usize) -> u8 {
            self.0.read8(offset)
        }
        fn read16(&self, offset: usize) -> u16 {
            self.0.read16(offset)
        }
        fn read32(&self, offset: usize) -> u32 {
            if offset == mmio::STATUS {
                0x40
            } else {
                self.0.read32(offset)
            }
        }
        fn write8(&self, _: usize, _: u8) {}
        fn write16(&self, _: usize, _: u16) {}
        fn write32(&self, _: usize, _: u32) {}
    }
    let mut device = MmioTransport::probe(Stuck(registers())).unwrap().unwrap();
    assert_eq!(device.set_status(0), Err(DriverError::ResetTimeout));
}

#[test]
fn a_queue_larger_than_the_device_allows_is_refused() {
    let registers = registers();
    registers.poke(mmio::QUEUE_SIZE_MAX, &64_u32.to_le_bytes());
    let mut device = MmioTransport::probe(registers.clone()).unwrap().unwrap();
    let mut addresses = QueueAddresses {
        size: 128,
        descriptor_area: 0x1_2345_6000,
        driver_area: 0x2000,
        device_area: 0x3000,
    };
    assert_eq!(
        device.start_queue(5, &addresses, None).err(),
        Some(DriverError::NoQueue(5))
    );
    addresses.size = 64;
    let doorbell = device.start_queue(5, &addresses, None).unwrap();
    doorbell.ring(9);
    let writes = registers.writes.borrow();
    assert!(writes.contains(&(mmio::QUEUE_DESC_LOW, 0x2345_6000)));
    assert!(writes.contains(&(mmio::QUEUE_DESC_HIGH, 1)));
    assert_eq!(
        writes.last(),
        Some(&(mmio::QUEUE_NOTIFY, 5)),
        "without NOTIFICATION_DATA: the index alone"
    );
}

/// virtio 1.3 §2.9: the queue index, and above it where the driver stands.
#[test]
fn notification_data_is_above_the_queue_index() {
    let registers = registers();
    registers.poke(mmio::QUEUE_SIZE_MAX, &64_u32.to_le_bytes());
    let mut device = MmioTransport::probe(registers.clone()).unwrap().unwrap();
    device.accept(feature::VERSION_1 | feature::NOTIFICATION_DATA);
    let addresses = QueueAddresses {
        size: 64,
        descriptor_area: 0x1000,
        driver_area: 0x2000,
        device_area: 0x3000,
    };
    device.start_queue(5, &addresses, None).unwrap().ring(0x8009);
    assert_eq!(
        registers.writes.borrow().last(),
        Some(&(mmio::QUEUE_NOTIFY, 0x8009_0005))
    );
}

/// virtio 1.3 §4.2.2.2: fields are read with their own width, and a space that is too short reads as zero.
#[test]
fn configuration_fields_beyond_the_window_read_as_zero() {
    let registers = registers();
    registers.poke(0x1f8, &[1, 2, 3, 4, 5, 6, 7, 8]);
    let mut device = MmioTransport::probe(registers).unwrap().unwrap();
    let mut whole = [0; 8];
    device.read_config(0xf8, &mut whole).unwrap();
    assert_eq!(whole, [1, 2, 3, 4, 5, 6, 7, 8]);
    let mut across = [0xff; 8];
    device.read_config(0xfc, &mut across).unwrap();
    assert_eq!(across, [5, 6, 7, 8, 0, 0, 0, 0]);
    let mut far = [0xff; 6];
    device.read_config(usize::MAX - 2, &mut far).unwrap();
    assert_eq!(far, [0; 6]);
}
