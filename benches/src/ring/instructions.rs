//! Instructions that the device side executes per chain.
use std::hint::black_box;

use anyhow::{Context, Result};
use treaty_memory::GuestMemory;
use treaty_virtio_device::QueueMemory;
use treaty_virtio_ring::{Burst, DeviceRing, Layout, Segment};
use vhost_user_backend::{VringRwLock, VringT};
use virtio_queue::{DescriptorChain, Queue, QueueT};
use vm_memory::{Bytes, GuestAddressSpace};

use super::rig::{PeerMemory, Rig, Shape, SharedMemory};
use crate::{Better, Case, callgrind};

const ROUNDS: u64 = 300;
const UNIT: &str = "instructions";

/// One measurement.
pub struct Count {
    pub name: &'static str,
    layout: Layout,
    in_order: bool,
    shape: Shape,
    batch: u64,
    bar: Option<f64>,
    /// What `--check` allows: the bar where it is reached, else what has been reached so far.
    pub ceiling: f64,
}

pub const COUNTS: [Count; 5] = [
    Count {
        name: "split-1desc-b1",
        layout: Layout::Split,
        in_order: false,
        shape: Shape::One,
        batch: 1,
        bar: None,
        ceiling: 340.0,
    },
    Count {
        name: "split-1desc-b32",
        layout: Layout::Split,
        in_order: false,
        shape: Shape::One,
        batch: 32,
        bar: Some(90.0),
        ceiling: 90.0,
    },
    Count {
        name: "split-3desc-b32",
        layout: Layout::Split,
        in_order: false,
        shape: Shape::Block,
        batch: 32,
        bar: Some(170.0),
        ceiling: 205.0,
    },
    Count {
        name: "packed-1desc-b32",
        layout: Layout::Packed,
        in_order: false,
        shape: Shape::One,
        batch: 32,
        bar: Some(70.0),
        ceiling: 90.0,
    },
    Count {
        name: "packed-inorder-1desc-b32",
        layout: Layout::Packed,
        in_order: true,
        shape: Shape::One,
        batch: 32,
        bar: Some(45.0),
        ceiling: 98.0,
    },
];

impl Count {
    /// Ours and, on the split layout, both peers, each in a process of its own.
    pub fn run(&self) -> Result<Vec<Case>> {
        let measure = |side: &str| {
            callgrind::count(
                &format!("*measured_{side}*"),
                &["ring", "--measure", self.name, side],
            )
        };
        let case = |name: &str, ours: f64, peer: (&str, &[f64])| {
            Case::new(name, UNIT, Better::Lower, &[ours], peer).with_bar(self.bar)
        };
        let ours = measure("ours")?;
        if self.layout == Layout::Packed {
            return Ok(vec![case(
                self.name,
                ours,
                ("none: virtio-queue has no packed rings", &[]),
            )]);
        }
        let vring = format!("{}-vring", self.name);
        Ok(vec![
            case(self.name, ours, ("virtio-queue 0.18", &[measure("queue")?])),
            case(&vring, ours, ("VringRwLock 0.24", &[measure("vring")?])),
        ])
    }

    /// In the process that callgrind watches: runs one side, prints how many chains went round.
    pub fn measure(&self, side: &str) -> Result<()> {
        let mut rig = Rig::new(self.layout, self.in_order, self.shape)?;
        match side {
            "ours" => {
                let (mut ring, mut burst) = (rig.device()?, Burst::new(128));
                let memory = rig.memory.clone();
                match self.shape {
                    Shape::One => self.rounds(&mut rig, || measured_ours(&mut ring, &mut burst)),
                    Shape::Block => {
                        self.rounds(&mut rig, || measured_ours_block(&mut ring, &mut burst, &memory))
                    }
                }
            }
            "queue" => {
                let (mut queue, memory) = (rig.queue()?, rig.peer_memory.clone());
                let block = self.shape == Shape::Block;
                self.rounds(&mut rig, || measured_queue(&mut queue, &memory, block))
            }
            _ => {
                let (vring, memory) = rig.vring()?;
                let block = self.shape == Shape::Block;
                self.rounds(&mut rig, || measured_vring(&vring, &memory, block))
            }
        }
    }

    fn rounds(&self, rig: &mut Rig, mut device: impl FnMut() -> Option<u64>) -> Result<()> {
        let mut chains = 0;
        for _ in 0..ROUNDS {
            for _ in 0..self.batch {
                rig.offer(chains);
                chains += 1;
            }
            rig.driver.publish();
            black_box(device().context("the device side failed")?);
            for _ in 0..self.batch {
                rig.driver.reap()?.context("a chain did not come back")?;
            }
        }
        println!("{chains}");
        Ok(())
    }
}

/// What every side does with a chain of one descriptor: look at its buffer's address.
#[inline(never)]
fn measured_ours(ring: &mut DeviceRing<QueueMemory>, burst: &mut Burst) -> Option<u64> {
    let mut sum = 0;
    ring.next_burst(burst, 64).ok()?;
    while let Some(chain) = burst.pop() {
        sum += chain.readable.first()?.addr;
        ring.complete(chain.head, 0);
    }
    ring.publish();
    Some(sum)
}

/// And with a block request: copy the header, write the status.
#[inline(never)]
fn measured_ours_block(
    ring: &mut DeviceRing<QueueMemory>,
    burst: &mut Burst,
    memory: &GuestMemory,
) -> Option<u64> {
    let mut sum = 0;
    ring.next_burst(burst, 64).ok()?;
    while let Some(chain) = burst.pop() {
        let (Segment { addr, .. }, data) = chain.readable.split_first()?;
        let mut header = [0; 16];
        memory.read(*addr, &mut header).ok()?;
        sum += u64::from(header[0]) + data.first()?.addr;
        let status = chain.writable.first()?;
        memory.write(status.addr, &[0]).ok()?;
        ring.complete(chain.head, 1);
    }
    ring.publish();
    Some(sum)
}

fn serve_peer(chain: DescriptorChain<&PeerMemory>, memory: &PeerMemory, block: bool) -> Option<u64> {
    let mut sum = 0;
    for (index, descriptor) in chain.enumerate() {
        sum += descriptor.addr().0;
        if block && index == 0 {
            let header: [u8; 16] = memory.read_obj(descriptor.addr()).ok()?;
            sum += u64::from(header[0]);
        }
        if block && index == 2 {
            memory.write_obj(0u8, descriptor.addr()).ok()?;
        }
    }
    Some(sum)
}

#[inline(never)]
fn measured_queue(queue: &mut Queue, memory: &PeerMemory, block: bool) -> Option<u64> {
    let mut sum = 0;
    while let Some(chain) = queue.pop_descriptor_chain(memory) {
        let head = chain.head_index();
        sum += serve_peer(chain, memory, block)?;
        queue.add_used(memory, head, 0).ok()?;
    }
    queue.needs_notification(memory).ok()?;
    Some(sum)
}

#[inline(never)]
fn measured_vring(vring: &VringRwLock<SharedMemory>, shared: &SharedMemory, block: bool) -> Option<u64> {
    let mut sum = 0;
    loop {
        let memory = shared.memory();
        let Some(chain) = vring.get_mut().get_queue_mut().pop_descriptor_chain(&*memory) else {
            break;
        };
        let head = chain.head_index();
        sum += serve_peer(chain, &memory, block)?;
        vring.add_used(head, 0).ok()?;
    }
    vring.needs_notification().ok()?;
    Some(sum)
}
