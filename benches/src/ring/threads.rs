//! Two threads that poll, one the driver and one the device side: chains of one descriptor per second.
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::cores::{FAR_NS, Line, pin, round_trip_ns};
use crate::{Better, Case};
use anyhow::{Context, Result, bail};
use treaty_virtio_ring::{Burst, Layout};
use vhost_user_backend::VringT;
use virtio_queue::QueueT;
use vm_memory::GuestAddressSpace;

use super::rig::{Rig, Shape};

const SAMPLE: Duration = Duration::from_millis(60);
const SAMPLES: usize = 7;
/// Chains offered at a time.
const BATCH: usize = 32;
const UNIT: &str = "Mdesc/s";

/// Who serves the ring.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Ours,
    Queue,
    Vring,
}

/// One figure and how far apart the cores were while it was taken.
struct Sample {
    rate: f64,
    trip_ns: f64,
    steady: bool,
}

/// All cases, split by whether the cores were near or far: the host moves them.
pub fn run() -> Vec<Case> {
    let names = ["threads-split", "threads-packed", "threads-packed-inorder"];
    if std::thread::available_parallelism().map_or(1, usize::from) < 2 {
        let why = "needs two cores".to_owned();
        let skip = |name: &&str| Case::skipped(name, UNIT, Better::Higher, "virtio-queue 0.18", why.clone());
        return names.iter().map(skip).collect();
    }
    let mut sets: [(Vec<Sample>, Layout, bool, Side); 5] = [
        (Vec::new(), Layout::Split, false, Side::Ours),
        (Vec::new(), Layout::Split, false, Side::Queue),
        (Vec::new(), Layout::Split, false, Side::Vring),
        (Vec::new(), Layout::Packed, false, Side::Ours),
        (Vec::new(), Layout::Packed, true, Side::Ours),
    ];
    let mut failure = None;
    for _ in 0..SAMPLES {
        for (samples, layout, in_order, side) in &mut sets {
            match sample(*layout, *in_order, *side) {
                Ok(sample) => samples.push(sample),
                Err(error) => failure = Some(format!("{error:#}")),
            }
        }
    }
    if let Some(why) = failure {
        let skip = |name: &&str| Case::skipped(name, UNIT, Better::Higher, "virtio-queue 0.18", why.clone());
        return names.iter().map(skip).collect();
    }
    let [split, queue, vring, packed, in_order] = sets.map(|set| set.0);
    let mut cases = Vec::new();
    for far in [false, true] {
        let rates = |samples: &[Sample]| -> Vec<f64> {
            let here = samples
                .iter()
                .filter(|sample| sample.steady && (sample.trip_ns > FAR_NS) == far);
            here.map(|sample| sample.rate).collect()
        };
        let distance = if far { "far" } else { "near" };
        let bar = if far { 40.0 } else { 100.0 };
        let queue = rates(&queue);
        let mut add = |name: &str, ours: &[Sample], peer: (&str, &[f64])| {
            let ours = rates(ours);
            if !ours.is_empty() {
                let case = Case::new(name, UNIT, Better::Higher, &ours, peer);
                cases.push(case.with_bar(Some(bar)).with_bucket(distance));
            }
        };
        add("threads-split", &split, ("virtio-queue 0.18", &queue));
        add(
            "threads-split-vring",
            &split,
            ("VringRwLock 0.24", &rates(&vring)),
        );
        add(
            "threads-packed",
            &packed,
            ("virtio-queue 0.18 (split; it has no packed)", &queue),
        );
        add(
            "threads-packed-inorder",
            &in_order,
            ("virtio-queue 0.18 (split; it has no packed)", &queue),
        );
    }
    cases
}

/// Both threads probe the distance, run, and probe again.
fn sample(layout: Layout, in_order: bool, side: Side) -> Result<Sample> {
    let mut rig = Rig::new(layout, in_order, Shape::One)?;
    let line = Arc::new(Line::default());
    let stop = Arc::new(AtomicBool::new(false));
    let mut serve = server(&rig, side)?;
    let device = std::thread::spawn({
        let (line, stop) = (line.clone(), stop.clone());
        move || -> Option<()> {
            pin(1);
            round_trip_ns(&line, false);
            while !stop.load(Ordering::Relaxed) {
                serve()?;
            }
            round_trip_ns(&line, false);
            Some(())
        }
    });
    let driver = std::thread::spawn({
        let (line, stop) = (line.clone(), stop.clone());
        move || -> Result<(f64, f64, f64)> {
            pin(0);
            let before = round_trip_ns(&line, true);
            let rate = drive(&mut rig);
            stop.store(true, Ordering::Relaxed);
            let after = round_trip_ns(&line, true);
            Ok((rate?, before, after))
        }
    });
    let driven = driver.join();
    device.join().ok().flatten().context("the device side failed")?;
    let Ok(driven) = driven else {
        bail!("the driver side failed")
    };
    let (rate, before, after) = driven?;
    Ok(Sample {
        rate,
        trip_ns: before.max(after),
        steady: (before > FAR_NS) == (after > FAR_NS),
    })
}

/// Offers and reaps for the length of a sample; returns millions of chains per second.
fn drive(rig: &mut Rig) -> Result<f64> {
    let (mut offered, mut reaped) = (0, 0u64);
    let clock = Instant::now();
    while clock.elapsed() < SAMPLE {
        for _ in 0..16 {
            for _ in 0..BATCH {
                if !rig.offer(offered) {
                    break;
                }
                offered += 1;
            }
            rig.driver.publish();
            while rig.driver.reap()?.is_some() {
                reaped += 1;
            }
        }
    }
    Ok(reaped as f64 / clock.elapsed().as_secs_f64() / 1e6)
}

/// One turn of the device side, as each library is meant to be used.
fn server(rig: &Rig, side: Side) -> Result<Box<dyn FnMut() -> Option<()> + Send>> {
    Ok(match side {
        Side::Ours => {
            let (mut ring, mut burst) = (rig.device()?, Burst::new(128));
            Box::new(move || {
                ring.next_burst(&mut burst, 64).ok()?;
                while let Some(chain) = burst.pop() {
                    ring.complete(chain.head, 0);
                }
                ring.publish();
                Some(())
            })
        }
        Side::Queue => {
            let (mut queue, memory) = (rig.queue()?, rig.peer_memory.clone());
            Box::new(move || {
                while let Some(mut chain) = queue.pop_descriptor_chain(&memory) {
                    chain.next()?;
                    queue.add_used(&memory, chain.head_index(), 0).ok()?;
                }
                queue.needs_notification(&memory).ok()?;
                Some(())
            })
        }
        Side::Vring => {
            let (vring, shared) = rig.vring()?;
            Box::new(move || {
                loop {
                    let memory = shared.memory();
                    let Some(mut chain) = vring.get_mut().get_queue_mut().pop_descriptor_chain(&*memory)
                    else {
                        break;
                    };
                    chain.next()?;
                    vring.add_used(chain.head_index(), 0).ok()?;
                }
                vring.needs_notification().ok()?;
                Some(())
            })
        }
    })
}
