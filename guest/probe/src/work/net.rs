use treaty_virtio_driver::{Net, Transport};

use super::Context;
use super::emulated::Begun;
use crate::dma::Arena;
use crate::measure::{Counts, Failure, Stretch, report, wait};
use crate::params::Load;
use crate::say;

const HEADER: usize = 14;
/// For local experiments: no other station answers it.
const ETHERTYPE: [u8; 2] = [0x88, 0xb5];
const MARK: [u8; 8] = *b"TreatyPr";

/// Sends frames for the time of a run; counts those that came back.
pub fn run<T: Transport>(context: &Context<'_>, transport: T, load: Load) -> Result<(), Failure> {
    let mut card = Net::start(transport, Arena, &context.options)?;
    let mut frame = [0_u8; 1514];
    let frame = &mut frame[..load.bytes as usize];
    // To the card itself, from a locally administered address that nobody has: no station on a real network answers,
    // and a wire that ends in a mirror brings it back.
    frame[..6].copy_from_slice(&card.mac());
    frame[6..12].copy_from_slice(&[0x02, 0x50, 0x72, 0x6f, 0x62, 0x65]);
    frame[12..HEADER].copy_from_slice(&ETHERTYPE);
    frame[HEADER..HEADER + 8].copy_from_slice(&MARK);
    for (index, byte) in frame.iter_mut().enumerate().skip(HEADER + 8) {
        *byte = index as u8;
    }
    let depth = load.depth.min(card.transmit_queue().size());
    let load = Load {
        depth,
        batch: load.batch.min(depth),
        ..load
    };
    let case = context.case("net-tx", card.features(), load);
    let mut echoes = 0_u64;
    report(context.params, context.clock, &case, || {
        timed(context, &mut card, frame, load, &mut echoes)
    })?;
    say!("PROBE {{\"device\":\"{}\",\"echoes\":{echoes}}}", context.place);
    card.stop()?;
    Ok(())
}

fn timed<T: Transport>(
    context: &Context<'_>,
    card: &mut Net<T, Arena>,
    frame: &[u8],
    load: Load,
    echoes: &mut u64,
) -> Result<Counts, Failure> {
    let before = card.transmit_queue().notifications();
    let mut stretch = Stretch::start(context.clock, context.params.ms);
    let mut begun = Begun::new(load.depth);
    let (mut in_flight, mut sent, mut over, mut spins) = (0_u16, 0, false, 0);
    loop {
        let refill = !over && load.depth - in_flight >= load.batch;
        while refill && in_flight < load.depth && card.send(frame)? {
            in_flight += 1;
            begun.push(stretch.now());
        }
        card.transmit_queue().notify();
        let mut progress = false;
        while card.reap_sent()? {
            stretch.took(begun.pop());
            in_flight -= 1;
            sent += 1;
            progress = true;
        }
        receive(card, frame, echoes)?;
        if progress {
            over |= stretch.is_over();
        } else if over && in_flight == 0 {
            break;
        } else if wait(context.mode, card.transmit_queue(), &stretch, &mut spins)? {
            card.transport().acknowledge_interrupt();
        }
    }
    let notifications = card.transmit_queue().notifications() - before;
    Ok(stretch.counts(sent, notifications))
}

/// Takes what was received. A frame with our mark must be the frame that was sent, whoever sent it back.
fn receive<T: Transport>(card: &mut Net<T, Arena>, frame: &[u8], echoes: &mut u64) -> Result<(), Failure> {
    let mut bytes = [0; 1514];
    let mut got = false;
    while let Some(len) = card.receive(&mut bytes)? {
        got = true;
        if len >= HEADER + 8 && bytes[12..HEADER] == ETHERTYPE && bytes[HEADER..HEADER + 8] == MARK {
            if bytes[HEADER..len.min(frame.len())] != frame[HEADER..len.min(frame.len())] {
                return Err(Failure::Data("a frame came back changed"));
            }
            *echoes += 1;
        }
    }
    if got {
        card.receive_queue().notify();
    }
    Ok(())
}
