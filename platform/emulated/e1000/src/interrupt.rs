//! Interrupt causes, their mask, and the timers that hold interrupts back. 8254x 4.0 §13.4.16 to §13.4.21, §3.2.7

use crate::registers::cause;

/// Nanoseconds of ITR's unit. 8254x 4.0 §13.4.18
const ITR_UNIT_NS: u64 = 256;
/// Nanoseconds of the unit of RDTR, RADV, TIDV and TADV: 1.024 us.
const DELAY_UNIT_NS: u64 = 1024;
/// A guest that lets its transmit interrupts be delayed (IDE) hears of sent frames no earlier than this after the last one, and
/// this after the first, whatever TIDV and TADV ask for beyond 0: their microseconds were meant for a card whose interrupt
/// costs one, not five exits. What sends more than a quarter of the ring meanwhile hears of it at once.
const TRANSMIT_IDLE_NS: u64 = 1_000_000;
const TRANSMIT_LONGEST_NS: u64 = 4_000_000;
/// Never.
pub(crate) const NEVER: u64 = u64::MAX;

/// Causes and when they may be told.
pub(crate) struct Interrupts {
    causes: u32,
    mask: u32,
    /// The pin is up.
    raised: bool,
    /// The pin stays down until then, in nanoseconds of the controller's clock.
    quiet_until: u64,
    receive: Delay,
    transmit: Delay,
    /// Descriptors written back whose TXDW waits.
    untold: u32,
}

/// A cause that waits for more of its kind: until nothing has come for a while, or since the first for longer.
struct Delay {
    cause: u32,
    packet: u64,
    absolute: u64,
}

impl Delay {
    const fn new(cause: u32) -> Self {
        Self {
            cause,
            packet: NEVER,
            absolute: NEVER,
        }
    }

    /// In nanoseconds; an `absolute` of 0 is none.
    fn start(&mut self, now: u64, packet: u64, absolute: u64) {
        self.packet = now + packet;
        if absolute != 0 {
            self.absolute = self.absolute.min(now + absolute);
        }
    }

    fn stop(&mut self) {
        (self.packet, self.absolute) = (NEVER, NEVER);
    }

    fn deadline(&self) -> u64 {
        self.packet.min(self.absolute)
    }

    /// The cause, if its time has come.
    fn expire(&mut self, now: u64) -> u32 {
        if self.deadline() > now {
            return 0;
        }
        self.stop();
        self.cause
    }
}

impl Interrupts {
    pub(crate) fn new() -> Self {
        Self {
            causes: 0,
            mask: 0,
            raised: false,
            quiet_until: 0,
            receive: Delay::new(cause::RXT0),
            transmit: Delay::new(cause::TXDW),
            untold: 0,
        }
    }

    pub(crate) fn reset(&mut self) {
        let raised = self.raised;
        *self = Self::new();
        self.raised = raised;
    }

    pub(crate) fn mask(&self) -> u32 {
        self.mask
    }

    pub(crate) fn add_mask(&mut self, bits: u32) {
        self.mask |= bits;
    }

    pub(crate) fn remove_mask(&mut self, bits: u32) {
        self.mask &= !bits;
    }

    pub(crate) fn add(&mut self, causes: u32) {
        self.causes |= causes;
    }

    /// A write of ICR.
    pub(crate) fn clear(&mut self, causes: u32) {
        self.causes &= !causes;
    }

    /// A read of ICR. 8254x 4.0 §13.4.17
    pub(crate) fn take(&mut self) -> u32 {
        let causes = self.causes;
        self.causes = 0;
        causes | if causes & self.mask != 0 { 1 << 31 } else { 0 }
    }

    /// Packets were received: tells it now, or after the delays of RDTR and RADV.
    pub(crate) fn received(&mut self, now: u64, packet: u32, absolute: u32) {
        if packet == 0 {
            self.add(cause::RXT0);
            self.receive.stop();
        } else {
            let ns = |units| u64::from(units) * DELAY_UNIT_NS;
            self.receive.start(now, ns(packet), ns(absolute));
        }
    }

    /// A descriptor was written back that asked for a delay; the others tell at once. `most` may wait.
    pub(crate) fn transmitted_later(&mut self, now: u64, packet: u32, absolute: u32, most: u32) {
        self.untold = self.untold.saturating_add(1);
        if packet == 0 || self.untold >= most {
            return self.transmitted();
        }
        let ns = |units| u64::from(units) * DELAY_UNIT_NS;
        let (idle, longest) = (
            ns(packet).max(TRANSMIT_IDLE_NS),
            ns(absolute).max(TRANSMIT_LONGEST_NS),
        );
        self.transmit.start(now, idle, longest);
    }

    pub(crate) fn transmitted(&mut self) {
        self.add(cause::TXDW);
        self.transmit.stop();
        self.untold = 0;
    }

    /// A write of RDTR with its flush bit: whatever waits is told now.
    pub(crate) fn flush_receive(&mut self) {
        if self.receive.deadline() != NEVER {
            self.receive.stop();
            self.add(cause::RXT0);
        }
    }

    /// What the pin must be now; `None` if it is that already.
    pub(crate) fn update(&mut self, now: u64, itr: u32) -> Option<bool> {
        let sent = self.transmit.expire(now);
        if sent != 0 {
            self.untold = 0;
        }
        let expired = self.receive.expire(now) | sent;
        self.add(expired);
        let wanted = self.causes & self.mask != 0;
        let level = wanted && (self.raised || now >= self.quiet_until);
        if level == self.raised {
            return None;
        }
        self.raised = level;
        if level {
            self.quiet_until = now + u64::from(itr) * ITR_UNIT_NS;
        }
        Some(level)
    }

    /// When [`update`](Self::update) has something to do without anybody's doing.
    pub(crate) fn deadline(&self) -> u64 {
        let held_back = self.causes & self.mask != 0 && !self.raised;
        let quiet = if held_back { self.quiet_until } else { NEVER };
        quiet.min(self.receive.deadline()).min(self.transmit.deadline())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pin_follows_causes_and_mask() {
        let mut interrupts = Interrupts::new();
        interrupts.add(cause::LSC);
        assert_eq!(interrupts.update(0, 0), None, "masked");
        interrupts.add_mask(cause::LSC | cause::RXT0);
        assert_eq!(interrupts.update(0, 0), Some(true));
        assert_eq!(interrupts.take(), cause::LSC | 1 << 31);
        assert_eq!(interrupts.update(0, 0), Some(false));
        assert_eq!(interrupts.take(), 0);
    }

    #[test]
    fn throttling_spaces_interrupts() {
        let mut interrupts = Interrupts::new();
        interrupts.add_mask(!0);
        interrupts.received(0, 0, 0);
        assert_eq!(interrupts.update(0, 100), Some(true));
        interrupts.take();
        assert_eq!(interrupts.update(10, 100), Some(false));
        interrupts.received(20, 0, 0);
        assert_eq!(interrupts.update(20, 100), None);
        assert_eq!(interrupts.deadline(), 25_600);
        assert_eq!(interrupts.update(25_600, 100), Some(true));
    }

    #[test]
    fn sent_frames_are_told_when_it_is_quiet_or_they_are_many() {
        let mut interrupts = Interrupts::new();
        interrupts.add_mask(cause::TXDW);
        interrupts.transmitted_later(0, 8, 32, 64);
        assert_eq!(interrupts.update(100_000, 0), None, "not yet");
        assert_eq!(interrupts.deadline(), TRANSMIT_IDLE_NS);
        assert_eq!(interrupts.update(TRANSMIT_IDLE_NS, 0), Some(true));
        interrupts.take();
        interrupts.update(TRANSMIT_IDLE_NS, 0);
        let told = (0..640_u64).filter(|index| {
            let now = 2_000_000 + index * 1000;
            interrupts.transmitted_later(now, 8, 32, 64);
            let raised = interrupts.update(now, 0) == Some(true);
            interrupts.take();
            interrupts.update(now, 0);
            raised
        });
        assert_eq!(told.count(), 10);
        assert_eq!(interrupts.deadline(), NEVER, "none is left untold");
        for now in [0, 900_000, 1_800_000, 2_700_000, 3_600_000] {
            interrupts.transmitted_later(now, 8, 32, 64);
        }
        assert_eq!(interrupts.deadline(), TRANSMIT_LONGEST_NS, "since the first");
        interrupts.transmitted_later(10_000_000, 0, 0, 64);
        assert_eq!(interrupts.update(10_000_000, 0), Some(true), "no delay is none");
    }

    #[test]
    fn delays_are_of_the_last_packet_but_not_beyond_the_absolute_one() {
        let mut interrupts = Interrupts::new();
        interrupts.add_mask(!0);
        for now in [0, 1000, 2000] {
            interrupts.received(now, 2, 3);
            assert_eq!(interrupts.update(now, 0), None);
        }
        assert_eq!(interrupts.deadline(), 3 * 1024);
        assert_eq!(interrupts.update(3072, 0), Some(true));
        assert_eq!(interrupts.take() & cause::RXT0, cause::RXT0);
        interrupts.received(4000, 5, 0);
        interrupts.flush_receive();
        assert_eq!(interrupts.take() & cause::RXT0, cause::RXT0);
        assert_eq!(interrupts.deadline(), NEVER);
    }
}
