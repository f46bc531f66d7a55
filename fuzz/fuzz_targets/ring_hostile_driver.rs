//! A driver that writes anything anywhere at any time, against the device half.
#![no_main]
use libfuzzer_sys::fuzz_target;
use treaty_fuzz::memory::{BASE, PlainMemory, place};
use treaty_fuzz::{Bytes, CheckedMemory};
use treaty_virtio_ring::{Burst, DeviceRing, Head, QueueState};

const MAX_CHAIN: u16 = 6;
/// For indirect tables, behind the ring.
const SPARE: usize = 256;

fuzz_target!(|data: &[u8]| {
    run(&mut Bytes(data));
});

fn run(bytes: &mut Bytes<'_>) -> Option<()> {
    let (layout, features, size) = bytes.ring()?;
    let place = place(layout, size, features, 0);
    let memory = PlainMemory::new(place.bytes + SPARE);
    let mut config = place.config;
    config.max_chain = MAX_CHAIN;
    let device = CheckedMemory(memory.clone());
    let mut device = DeviceRing::start(device, &config, QueueState::fresh(layout)).expect("a good place");
    let mut burst = Burst::new(MAX_CHAIN);
    let mut held: Vec<Head> = Vec::new();
    let mut retired = false;
    let mut available = 0u16;
    while let Some(step) = bytes.u8() {
        match step % 8 {
            0 | 1 => {
                let max = usize::from(step >> 3);
                match device.next_burst(&mut burst, max) {
                    Ok(count) => assert!(count <= max && (count == 0 || !retired)),
                    Err(_) => {
                        assert!(!retired, "reported twice");
                        retired = true;
                    }
                }
                let count = burst.remaining();
                let before = held.len();
                while let Some(chain) = burst.pop() {
                    let segments = chain.readable.len() + chain.writable.len();
                    assert!((1..=usize::from(MAX_CHAIN)).contains(&segments));
                    for segment in chain.readable.iter().chain(chain.writable) {
                        assert!(
                            segment.len > 0 && segment.addr.checked_add(u64::from(segment.len)).is_some()
                        );
                    }
                    assert!(chain.head.index() < usize::from(size));
                    assert!(!held.contains(&chain.head), "in flight twice");
                    held.push(chain.head);
                }
                assert_eq!(held.len(), before + count);
                assert!(held.len() <= usize::from(size));
            }
            2 if !held.is_empty() => {
                let head = held.swap_remove(usize::from(step >> 3) % held.len());
                device.complete(head, u32::from(step));
            }
            2 => {
                device.publish();
                assert!(features.in_order || device.in_flight() == held.len());
            }
            3 if step & 8 == 0 => assert!(!device.arm() || !retired),
            3 => device.disarm(),
            4 => memory.put(
                BASE + bytes.u16()? as u64 % (place.bytes + SPARE) as u64,
                &[bytes.u8()?],
            ),
            // A whole descriptor, in the ring or in the spare memory.
            5 | 6 => {
                let slot = u64::from(step >> 3);
                let at = match step % 8 {
                    5 => config.descriptor_area + 16 * (slot % u64::from(size)),
                    _ => BASE + place.bytes as u64 + 16 * (slot % (SPARE as u64 / 16)),
                };
                memory.put(at, &bytes.address(place.bytes + SPARE)?.to_le_bytes());
                memory.put(at + 8, &[bytes.u8()?, 0, 0, 0]);
                memory.put(at + 12, &[bytes.u8()?, 0]);
                memory.put(at + 14, &[bytes.u8()?, 0]);
            }
            // A head, and the index.
            _ => {
                if layout == treaty_virtio_ring::Layout::Split {
                    let slot = u64::from(available % size);
                    memory.put(
                        config.driver_area + 4 + 2 * slot,
                        &u16::from(step >> 3).to_le_bytes(),
                    );
                    available = available.wrapping_add(1);
                    memory.put(config.driver_area + 2, &available.to_le_bytes());
                }
            }
        }
    }
    for head in held.drain(..) {
        device.complete(head, 1);
    }
    device.publish();
    assert_eq!(device.in_flight(), 0);
    Some(())
}
