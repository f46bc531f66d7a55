use treaty_virtio_driver::{DmaMemory, DriverError, Rng, Transport};
use treaty_virtio_ring::Segment;

use super::Context;
use crate::dma::Arena;
use crate::measure::{Counts, Failure, Stretch, report, wait};
use crate::params::Load;

const DEPTH: u16 = 4;

/// Asks for entropy; looks whether it could be any.
pub fn run<T: Transport>(context: &Context<'_>, transport: T, bytes: u32) -> Result<(), Failure> {
    let mut source = Rng::start(transport, Arena, &context.options)?;
    let depth = DEPTH.min(source.queue().size());
    let stride = u64::from(bytes).next_multiple_of(64);
    let area = Arena.allocate(stride as usize * usize::from(depth), 64);
    let area = area.ok_or(Failure::Driver(DriverError::OutOfMemory))?;
    let buffer = |slot: u64| Segment {
        addr: area + slot * stride,
        len: bytes,
    };
    let case = context.case(
        "rng",
        source.features(),
        Load {
            bytes,
            depth,
            batch: 1,
        },
    );
    let mut ones = (0_u64, 0_u64);
    report(context.params, context.clock, &case, || {
        timed(context, &mut source, depth, buffer, &mut ones)
    })?;
    // Half of the bits of random bytes are ones; of a few thousand, never less than a third.
    let (set, all) = ones;
    if all >= 4096 && !(all / 3..all - all / 3).contains(&set) {
        return Err(Failure::Data("the entropy source's bytes are not random"));
    }
    source.stop()?;
    Ok(())
}

fn timed<T: Transport>(
    context: &Context<'_>,
    source: &mut Rng<T, Arena>,
    depth: u16,
    buffer: impl Fn(u64) -> Segment,
    ones: &mut (u64, u64),
) -> Result<Counts, Failure> {
    let before = source.queue().notifications();
    let mut stretch = Stretch::start(context.clock, context.params.ms);
    let (mut in_flight, mut operations, mut over, mut spins) = (0_u16, 0, false, 0);
    for slot in 0..u64::from(depth) {
        in_flight += u16::from(source.request(buffer(slot), slot));
    }
    while in_flight > 0 {
        source.queue().notify();
        let mut progress = false;
        while let Some((slot, len)) = source.reap()? {
            count_ones(buffer(slot).addr, len, ones);
            operations += 1;
            progress = true;
            in_flight -= 1;
            if !over && source.request(buffer(slot), slot) {
                in_flight += 1;
            }
        }
        if progress {
            over |= stretch.is_over();
        } else if wait(context.mode, source.queue(), &stretch, &mut spins)? {
            source.transport().acknowledge_interrupt();
        }
    }
    let notifications = source.queue().notifications() - before;
    Ok(stretch.counts(operations, notifications))
}

/// Adds the one bits, and all bits, of a buffer.
fn count_ones(addr: u64, len: u32, ones: &mut (u64, u64)) {
    for offset in 0..u64::from(len) {
        let mut byte = [0];
        Arena.load(addr + offset, &mut byte);
        ones.0 += u64::from(byte[0].count_ones());
        ones.1 += 8;
    }
}
