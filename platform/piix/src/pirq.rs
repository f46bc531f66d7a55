use std::sync::{Arc, Mutex, PoisonError};

use treaty_pci::IntxLine;

/// PIRQA# to PIRQD#.
pub const PIRQS: usize = 4;
/// Interrupts of the ISA bus.
pub const ISA_IRQS: usize = 16;

/// Interrupts that a PIRQ can be routed to: not the timer, keyboard, cascade, clock and coprocessor.
/// 82371SB 290550-001 §2.2.13
const ROUTABLE: u16 = 0b1101_1110_1111_1000;
/// The route register's bit that says "nowhere".
const DISABLED: u8 = 1 << 7;

/// The PIRQ that pin INTA# of the device in `slot` is wired to: shifted by one from slot to slot.
pub fn pirq_of(slot: u8) -> usize {
    (usize::from(slot) + PIRQS - 1) % PIRQS
}

/// Where PCI interrupts arrive: each at a pin of the I/O APIC of its own, and at the ISA interrupt that the guest has
/// chosen for it, which several can share.
pub struct PirqRouter {
    state: Mutex<State>,
    isa: [Arc<dyn IntxLine>; ISA_IRQS],
    apic: [Arc<dyn IntxLine>; PIRQS],
}

#[derive(Default)]
struct State {
    high: [bool; PIRQS],
    /// ISA interrupt of each, if any.
    routes: [Option<u8>; PIRQS],
    /// What the ISA lines were set to, a bit for each.
    isa: u16,
}

impl PirqRouter {
    /// Nothing is routed to the ISA bus yet.
    pub fn new(isa: [Arc<dyn IntxLine>; ISA_IRQS], apic: [Arc<dyn IntxLine>; PIRQS]) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            isa,
            apic,
        })
    }

    /// The line of one PIRQ. It is not shared: who has several devices on it joins their levels.
    pub fn line(self: &Arc<Self>, pirq: usize) -> PirqLine {
        PirqLine {
            router: self.clone(),
            pirq,
        }
    }

    /// The guest has written the PIRQ's route register.
    pub(crate) fn route(&self, pirq: usize, register: u8) {
        let irq = register & 0xf;
        let valid = register & DISABLED == 0 && ROUTABLE & 1 << irq != 0;
        self.change(|state| {
            if let Some(route) = state.routes.get_mut(pirq) {
                *route = valid.then_some(irq);
            }
        });
    }

    fn set(&self, pirq: usize, level: bool) {
        if let Some(line) = self.apic.get(pirq) {
            line.set(level);
        }
        self.change(|state| {
            if let Some(high) = state.high.get_mut(pirq) {
                *high = level;
            }
        });
    }

    /// The lock is held while the lines are set, so that two threads cannot set them in the wrong order.
    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut state);
        let pairs = state.high.iter().zip(&state.routes);
        let raised = pairs.filter(|(high, _)| **high).filter_map(|(_, route)| *route);
        let isa = raised.fold(0u16, |bits, irq| bits | 1 << irq);
        let changed = isa ^ state.isa;
        for (irq, line) in self.isa.iter().enumerate() {
            if changed & 1 << irq != 0 {
                line.set(isa & 1 << irq != 0);
            }
        }
        state.isa = isa;
    }
}

/// A PCI interrupt on its way to the router.
pub struct PirqLine {
    router: Arc<PirqRouter>,
    pirq: usize,
}

impl IntxLine for PirqLine {
    fn set(&self, level: bool) {
        self.router.set(self.pirq, level);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[derive(Default)]
    pub(crate) struct Lines(AtomicU32);

    impl Lines {
        pub(crate) fn high(&self) -> Vec<u32> {
            let bits = self.0.load(Ordering::Relaxed);
            (0..32).filter(|bit| bits & 1 << bit != 0).collect()
        }

        /// ISA lines are 0 to 15, those of the I/O APIC 16 to 19.
        pub(crate) fn router() -> (Arc<Self>, Arc<PirqRouter>) {
            let lines = Arc::new(Self::default());
            let line = |bit| -> Arc<dyn IntxLine> { Arc::new(Line(lines.clone(), bit)) };
            let router = PirqRouter::new(
                std::array::from_fn(line),
                std::array::from_fn(|pirq| line(ISA_IRQS + pirq)),
            );
            (lines, router)
        }
    }

    struct Line(Arc<Lines>, usize);

    impl IntxLine for Line {
        fn set(&self, level: bool) {
            let bit = 1 << self.1;
            let before = if level {
                self.0.0.fetch_or(bit, Ordering::Relaxed)
            } else {
                self.0.0.fetch_and(!bit, Ordering::Relaxed)
            };
            assert_ne!(before & bit != 0, level, "line {} is set twice", self.1);
        }
    }

    #[test]
    fn shared_interrupts_are_high_while_any_is() {
        let (lines, router) = Lines::router();
        let [a, b] = [0, 1].map(|pirq| router.line(pirq));
        a.set(true);
        assert_eq!(lines.high(), [16], "not routed yet");
        router.route(0, 10);
        router.route(1, 10);
        assert_eq!(lines.high(), [10, 16], "a level is not lost when it is routed");
        b.set(true);
        a.set(false);
        assert_eq!(lines.high(), [10, 17]);
        router.route(1, 11);
        assert_eq!(lines.high(), [11, 17]);
        router.route(1, DISABLED | 11);
        assert_eq!(lines.high(), [17]);
        for reserved in [0, 1, 2, 8, 13] {
            router.route(1, reserved);
            assert_eq!(lines.high(), [17], "{reserved} is not for PCI");
        }
        b.set(false);
        assert_eq!(lines.high(), []);
        router.route(4, 3);
        router.line(4).set(true);
    }

    #[test]
    fn slots_take_turns() {
        assert_eq!([1, 2, 3, 4, 5].map(pirq_of), [0, 1, 2, 3, 0]);
    }
}
