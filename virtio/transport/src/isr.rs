use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use treaty_pci::IntxLine;

/// Interrupt status bits and the line that follows them: virtio-mmio's InterruptStatus, virtio-pci's ISR with INTx.
///
/// Bits and line change together under one small lock that is never held while waiting, so that an acknowledgement cannot
/// lower the line after a worker has raised it again. An edge-triggered line sees one rising call per interrupt.
pub(crate) struct InterruptStatus {
    inner: Mutex<Inner>,
    line: Option<Arc<dyn IntxLine>>,
}

#[derive(Default)]
struct Inner {
    bits: u8,
    blocked: bool,
    high: bool,
}

impl InterruptStatus {
    /// Bits clear. Without a line there are only the bits.
    pub fn new(line: Option<Arc<dyn IntxLine>>) -> Self {
        Self {
            inner: Mutex::default(),
            line,
        }
    }

    /// Sets bits and raises the line.
    pub fn raise(&self, bits: u8) {
        let mut inner = self.lock();
        inner.bits |= bits;
        let high = !inner.blocked;
        inner.high = high;
        if let (true, Some(line)) = (high, &self.line) {
            line.set(true);
        }
    }

    pub fn bits(&self) -> u8 {
        self.lock().bits
    }

    /// Clears bits; the line falls with the last one.
    pub fn acknowledge(&self, bits: u8) {
        let mut inner = self.lock();
        inner.bits &= !bits;
        self.follow(&mut inner);
    }

    /// Reads all bits and clears them.
    pub fn take(&self) -> u8 {
        let mut inner = self.lock();
        let bits = std::mem::take(&mut inner.bits);
        self.follow(&mut inner);
        bits
    }

    /// Holds the line down whatever the bits are (MSI-X on, INTx disabled), or lets it follow them.
    pub fn block(&self, blocked: bool) {
        let mut inner = self.lock();
        inner.blocked = blocked;
        self.follow(&mut inner);
    }

    /// Takes up saved bits.
    pub fn replace(&self, bits: u8) {
        let mut inner = self.lock();
        inner.bits = bits;
        self.follow(&mut inner);
    }

    /// The line is high.
    pub fn is_high(&self) -> bool {
        self.lock().high
    }

    fn follow(&self, inner: &mut Inner) {
        let high = inner.bits != 0 && !inner.blocked;
        if high != inner.high {
            inner.high = high;
            if let Some(line) = &self.line {
                line.set(high);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Recorded(Mutex<Vec<bool>>);

    impl IntxLine for Recorded {
        fn set(&self, level: bool) {
            self.0.lock().unwrap().push(level);
        }
    }

    #[test]
    fn the_line_follows_the_bits() {
        let line = Arc::new(Recorded::default());
        let status = InterruptStatus::new(Some(line.clone()));
        let calls = || std::mem::take(&mut *line.0.lock().unwrap());
        status.raise(1);
        status.raise(2);
        assert_eq!(calls(), [true, true], "an edge for each");
        status.acknowledge(1);
        assert_eq!((calls(), status.is_high()), (vec![], true));
        assert_eq!(status.take(), 2);
        assert_eq!((calls(), status.take()), (vec![false], 0));
        status.block(true);
        status.raise(1);
        assert_eq!((calls(), status.bits()), (vec![], 1));
        status.block(false);
        assert_eq!(calls(), [true]);
        status.block(true);
        assert_eq!(calls(), [false]);
    }

    #[test]
    fn the_line_is_low_when_the_last_bit_has_been_taken() {
        const ROUNDS: usize = 20_000;
        let line = Arc::new(Recorded::default());
        let status = Arc::new(InterruptStatus::new(Some(line.clone())));
        let worker = {
            let status = status.clone();
            std::thread::spawn(move || (0..ROUNDS).for_each(|_| status.raise(1)))
        };
        let mut taken = 0;
        while !worker.is_finished() {
            taken += usize::from(status.take());
        }
        worker.join().unwrap();
        taken += usize::from(status.take());
        let calls = line.0.lock().unwrap();
        assert_eq!(calls.last(), Some(&false));
        assert_eq!(calls.iter().filter(|level| **level).count(), ROUNDS);
        assert_eq!(calls.iter().filter(|level| !**level).count(), taken);
    }
}
