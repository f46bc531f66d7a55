//! A device that writes anything anywhere at any time, against the driver half.
#![no_main]
use std::collections::HashMap;

use libfuzzer_sys::fuzz_target;
use treaty_fuzz::memory::{BASE, PlainMemory, place};
use treaty_fuzz::{Bytes, CheckedMemory};
use treaty_virtio_ring::{DriverRing, Layout, Segment};

const MAX_CHAIN: u16 = 4;

fuzz_target!(|data: &[u8]| {
    run(&mut Bytes(data));
});

fn run(bytes: &mut Bytes<'_>) -> Option<()> {
    let (layout, features, size) = bytes.ring()?;
    let place = place(layout, size, features, MAX_CHAIN);
    let memory = PlainMemory::new(place.bytes);
    let tables = features.indirect.then_some(place.indirect_area);
    let mut driver =
        DriverRing::start(CheckedMemory(memory.clone()), &place.config, tables).expect("a good place");
    let mut in_flight: HashMap<u64, u32> = HashMap::new();
    let (mut token, mut retired) = (0, false);
    let mut used = 0u16;
    while let Some(step) = bytes.u8() {
        let argument = step >> 3;
        match step % 8 {
            0 | 1 => {
                let (readable, writable) = (usize::from(argument & 3), usize::from(argument >> 2 & 3));
                let segments = [Segment {
                    addr: 0x1000,
                    len: 10,
                }; 3];
                let room = 10 * writable as u32;
                let offered = driver.offer(segments.get(..readable)?, segments.get(..writable)?, token);
                if offered.is_ok() {
                    assert!(!retired, "a retired ring takes nothing");
                    in_flight.insert(token, room);
                    token += 1;
                }
            }
            2 => drop(driver.publish()),
            3 => match driver.reap() {
                Ok(Some(used)) => {
                    assert!(!retired);
                    let room = in_flight.remove(&used.token).expect("a token that is in flight");
                    assert!(used.written <= room);
                }
                Ok(None) => {}
                Err(_) => {
                    assert!(!retired, "reported twice");
                    retired = true;
                }
            },
            4 if argument & 1 == 0 => assert!(!driver.arm() || !retired),
            4 => driver.disarm(),
            5 => memory.put(BASE + bytes.u16()? as u64 % place.bytes as u64, &[bytes.u8()?]),
            // A used entry or descriptor, likely a good one.
            _ => {
                let (id, len) = (u16::from(argument), bytes.u8()?);
                let slot = u64::from(used % size);
                match layout {
                    Layout::Split => {
                        let at = place.config.device_area + 4 + 8 * slot;
                        memory.put(at, &u32::from(id).to_le_bytes());
                        memory.put(at + 4, &[len, 0, 0, 0]);
                        memory.put(
                            place.config.device_area + 2,
                            &(used.wrapping_add(1)).to_le_bytes(),
                        );
                    }
                    Layout::Packed => {
                        let at = place.config.descriptor_area + 16 * slot;
                        let flags = if used / size % 2 == 0 { 0x8080u16 } else { 0 };
                        memory.put(at + 8, &[len, 0, 0, 0]);
                        memory.put(at + 12, &id.to_le_bytes());
                        memory.put(at + 14, &flags.to_le_bytes());
                    }
                }
                used = used.wrapping_add(1);
            }
        }
        assert_eq!(driver.in_flight(), in_flight.len());
        assert!(driver.free() <= usize::from(size));
    }
    Some(())
}
