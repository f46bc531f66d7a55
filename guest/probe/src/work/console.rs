use core::fmt::{self, Write};

use treaty_virtio_driver::{Console, Transport};

use super::Context;
use crate::dma::Arena;
use crate::measure::{Failure, Stretch, report, wait};
use crate::params::Load;

/// Writes numbered lines, one at a time in flight, so that the host can check that none is missing.
pub fn run<T: Transport>(context: &Context<'_>, transport: T, lines: u32) -> Result<(), Failure> {
    let mut console = Console::start(transport, Arena, &context.options)?;
    let case = context.case(
        "console",
        console.features(),
        Load {
            bytes: 24,
            depth: 1,
            batch: 1,
        },
    );
    let mut number = 0_u32;
    report(context.params, context.clock, &case, || {
        let before = console.transmit_queue().notifications();
        let mut stretch = Stretch::start(context.clock, 0);
        let mut spins = 0;
        for _ in 0..lines {
            let mut text = Text::default();
            let _ = writeln!(text, "treaty probe {number:010}");
            number += 1;
            if !console.write(text.bytes())? {
                return Err(Failure::Data("no room for one line"));
            }
            console.transmit_queue().notify();
            while !console.reap_written()? {
                if wait(context.mode, console.transmit_queue(), &stretch, &mut spins)? {
                    console.transport().acknowledge_interrupt();
                }
            }
            stretch.is_over();
        }
        let notifications = console.transmit_queue().notifications() - before;
        Ok(stretch.counts(u64::from(lines), notifications))
    })?;
    console.stop()?;
    Ok(())
}

/// A short text on the stack; what does not fit is cut off.
#[derive(Default)]
struct Text {
    bytes: [u8; 32],
    len: usize,
}

impl Text {
    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for (place, byte) in self.bytes[self.len..].iter_mut().zip(text.bytes()) {
            *place = byte;
            self.len += 1;
        }
        Ok(())
    }
}
