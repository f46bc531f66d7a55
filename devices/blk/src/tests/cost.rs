//! What one request costs the device, storage left out. Under callgrind, with the turn as the collected function, it gives the
//! instructions per request: `valgrind --tool=callgrind --toggle-collect='*BlkQueue*turn*' TEST-BINARY cost`.

use treaty_storage::{BlockImage, BlockQueue, Capabilities, Finished, Request, StorageError};
use treaty_virtio_spec::blk::status;
use treaty_worker::Turn;

use super::rig::{Ask, Options, Rig};

const DEPTH: u64 = 32;
const ROUNDS: u64 = 1000;

/// Finishes everything at once and moves no data.
struct Null;

#[derive(Default)]
struct NullQueue(Vec<Finished>);

impl BlockImage for Null {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            len: 1 << 40,
            block_size: 512,
            optimal_size: 4096,
            read_only: false,
            discard: true,
            write_zeroes: true,
            max_transfer: 1 << 20,
        }
    }

    fn queue(&self) -> Result<Box<dyn BlockQueue>, StorageError> {
        Ok(Box::new(NullQueue::default()))
    }
}

impl BlockQueue for NullQueue {
    fn submit(&mut self, _turn: &mut Turn<'_>, request: Request) {
        self.0.push(Finished {
            tag: request.tag,
            result: Ok(()),
            buffers: request.buffers,
        });
    }

    fn poll(&mut self, _turn: &mut Turn<'_>, done: &mut Vec<Finished>) {
        done.append(&mut self.0);
    }

    fn in_flight(&self) -> usize {
        self.0.len()
    }
}

#[test]
fn four_kib_reads_at_depth_32() {
    let options = Options {
        size: 128,
        ..Options::default()
    };
    let mut rig = Rig::new(Null, options);
    for _ in 0..ROUNDS {
        for page in 0..DEPTH {
            rig.offer(&Ask::read(page * 8, 4096)).unwrap();
        }
        rig.driver.publish();
        rig.run();
        let back = rig.reap();
        assert!(back.len() == DEPTH as usize && back.iter().all(|back| back.status == status::OK));
    }
    assert_eq!(rig.count("reads"), DEPTH * ROUNDS);
    println!("{} requests in {} turns", rig.count("reads"), rig.turns);
}
