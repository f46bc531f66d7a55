//! What a disk may hold when its power is cut while a tape of writes and flushes plays.

use std::collections::{HashMap, HashSet};

use treaty_worker::sim::Random;

use crate::recorder::{Event, SECTOR, Written, put};

/// The state of the disk while the tape plays.
#[derive(Default)]
pub struct Platter {
    durable: Vec<u8>,
    /// Handed over and not certainly on the disk, oldest first, and whether it was said to be done.
    volatile: Vec<(usize, u64, Vec<u8>, bool)>,
    /// What a flush under way will make durable.
    flushes: HashMap<usize, Vec<usize>>,
}

impl Platter {
    /// A disk with these contents.
    pub fn new(durable: Vec<u8>) -> Self {
        Self {
            durable,
            ..Self::default()
        }
    }

    /// The next thing happens.
    pub fn play(&mut self, event: &Event) {
        match event {
            Event::Write(id, Written { offset, bytes }) => {
                self.volatile.push((*id, *offset, bytes.clone(), false))
            }
            Event::Done(id) => {
                for write in self.volatile.iter_mut().filter(|write| write.0 == *id) {
                    write.3 = true;
                }
            }
            Event::Flush(id) => {
                let done = self
                    .volatile
                    .iter()
                    .filter(|write| write.3)
                    .map(|write| write.0)
                    .collect();
                self.flushes.insert(*id, done);
            }
            Event::Flushed(id) => {
                let done: HashSet<usize> = self.flushes.remove(id).unwrap_or_default().into_iter().collect();
                for (id, offset, bytes, _) in &self.volatile {
                    if done.contains(id) {
                        put(&mut self.durable, *offset, bytes);
                    }
                }
                self.volatile.retain(|write| !done.contains(&write.0));
            }
            Event::Mark(_) => {}
        }
    }

    /// What might be there after a cut now. Of every sector that was handed over any version may be there, or none.
    pub fn cut(&self, random: &mut Random) -> Vec<u8> {
        let mut image = self.durable.clone();
        let style = random.below(5);
        let only = random.below(self.volatile.len().max(1) as u64) as usize;
        for (index, (_, offset, bytes, _)) in self.volatile.iter().enumerate() {
            let whole = match style {
                0 => true,
                1 => index == only,
                2 => index != only,
                3 => random.chance(500),
                _ => {
                    for (number, sector) in bytes.chunks(SECTOR).enumerate() {
                        if random.chance(500) {
                            put(&mut image, offset + (number * SECTOR) as u64, sector);
                        }
                    }
                    continue;
                }
            };
            if whole {
                put(&mut image, *offset, bytes);
            }
        }
        image
    }
}
