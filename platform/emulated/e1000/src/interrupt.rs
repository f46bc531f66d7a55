//! Interrupt causes, their mask, and the timers that hold interrupts back. 8254x 4.0 §13.4.16 to §13.4.21, §3.2.7

use crate::registers::cause;

/// Nanoseconds of ITR's unit. 8254x 4.0 §13.4.18
const ITR_UNIT_NS: u64 = 256;
/// Nanoseconds of the unit of RDTR, RADV, TIDV and TADV: 1.024 us.
const DELAY_UNIT_NS: u64 = 1024;
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

    fn start(&mut self, now: u64, packet: u32, absolute: u32) {
        self.packet = now + u64::from(packet) * DELAY_UNIT_NS;
        if absolute != 0 {
            self.absolute = self.absolute.min(now + u64::from(absolute) * DELAY_UNIT_NS);
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
            self.receive.start(now, packet, absolute);
        }
    }

    /// Descriptors were written back that asked for a delay; the others tell at once.
    pub(crate) fn transmitted_later(&mut self, now: u64, packet: u32, absolute: u32) {
        if packet == 0 {
            self.add(cause::TXDW);
        } else {
            self.transmit.start(now, packet, absolute);
        }
    }

    pub(crate) fn transmitted(&mut self) {
        self.add(cause::TXDW);
        self.transmit.stop();
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
        let expired = self.receive.expire(now) | self.transmit.expire(now);
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
