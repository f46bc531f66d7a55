use std::io;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use treaty_bus::Access;

use crate::{MsiProvider, MsiVector};

/// Capability ID of MSI-X.
pub const MSIX_CAPABILITY: u8 = 0x11;
/// Message control: every vector is masked.
pub const MSIX_FUNCTION_MASK: u16 = 1 << 14;
/// Message control: MSI-X is on (and INTx is off).
pub const MSIX_ENABLE: u16 = 1 << 15;
/// Bytes of one entry of the vector table.
pub const MSIX_ENTRY_LEN: u64 = 16;

const ENTRY_MASKED: u32 = 1;

/// The MSI-X state of a function: its vector table, pending bits and message control. Cloning shares it.
///
/// [`signal`](Self::signal) comes from worker threads while vCPUs write the table. It takes no lock while the vector is live;
/// otherwise the vector's own small lock, which is never held while waiting.
#[derive(Clone)]
pub struct Msix(Arc<Inner>);

struct Inner {
    control: AtomicU16,
    vectors: Vec<Vector>,
}

struct Vector {
    /// The message is routed: enabled and neither function nor vector masked.
    live: AtomicBool,
    entry: Mutex<Entry>,
    msi: Box<dyn MsiVector>,
}

#[derive(Clone, Copy)]
struct Entry {
    address: u64,
    data: u32,
    masked: bool,
    pending: bool,
}

/// The MSI-X state of a function in a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct MsixState {
    /// Enable and function mask.
    pub control: u16,
    /// The vector table.
    pub vectors: Vec<MsixVectorState>,
}

/// One vector in a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct MsixVectorState {
    /// Message address.
    pub address: u64,
    /// Message data.
    pub data: u32,
    /// Masked in the table.
    pub masked: bool,
    /// Signalled while masked.
    pub pending: bool,
}

/// The saved table has another number of vectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("saved MSI-X table has {found} vectors, this function has {expected}")]
pub struct MsixStateError {
    /// In the state.
    pub found: usize,
    /// In the function.
    pub expected: usize,
}

impl Msix {
    /// `count` vectors (1 to 2048), all masked.
    pub fn new(count: u16, provider: &dyn MsiProvider) -> io::Result<Self> {
        let vector = |_| {
            Ok(Vector {
                live: AtomicBool::new(false),
                entry: Mutex::new(Entry {
                    address: 0,
                    data: 0,
                    masked: true,
                    pending: false,
                }),
                msi: provider.vector()?,
            })
        };
        let vectors = (0..count.clamp(1, 2048)).map(vector).collect::<io::Result<_>>()?;
        Ok(Self(Arc::new(Inner {
            control: AtomicU16::new(0),
            vectors,
        })))
    }

    /// Number of vectors.
    pub fn count(&self) -> u16 {
        self.0.vectors.len() as u16
    }

    /// The capability's body (after ID and next pointer) and its writable bits. Offsets are multiples of 8 in `bar`.
    pub fn capability(&self, bar: u8, table_offset: u32, pba_offset: u32) -> ([u8; 10], [u8; 2]) {
        let mut body = [0; 10];
        let [c0, c1] = (self.count() - 1).to_le_bytes();
        let [t0, t1, t2, t3] = (table_offset & !7 | u32::from(bar)).to_le_bytes();
        let [p0, p1, p2, p3] = (pba_offset & !7 | u32::from(bar)).to_le_bytes();
        body.copy_from_slice(&[c0, c1, t0, t1, t2, t3, p0, p1, p2, p3]);
        (body, (MSIX_ENABLE | MSIX_FUNCTION_MASK).to_le_bytes())
    }

    /// True once the guest has turned MSI-X on.
    pub fn is_enabled(&self) -> bool {
        self.0.control.load(SeqCst) & MSIX_ENABLE != 0
    }

    /// The guest wrote message control.
    pub fn set_control(&self, control: u16) {
        let control = control & (MSIX_ENABLE | MSIX_FUNCTION_MASK);
        if self.0.control.swap(control, SeqCst) != control {
            for vector in &self.0.vectors {
                let mut entry = vector.lock();
                self.update(vector, &mut entry, false);
            }
        }
    }

    /// Sends vector `index`, or keeps it pending while it is masked. No such vector: nothing happens.
    pub fn signal(&self, index: u16) {
        let Some(vector) = self.0.vectors.get(usize::from(index)) else {
            return;
        };
        if vector.live.load(SeqCst) {
            vector.msi.signal();
            // If it was masked meanwhile the message may be lost: keep it pending. A second one does no harm.
            if vector.live.load(SeqCst) {
                return;
            }
        }
        let mut entry = vector.lock();
        if vector.live.load(SeqCst) {
            vector.msi.signal();
        } else if self.is_enabled() {
            entry.pending = true;
        }
    }

    /// A read of the vector table: 4 or 8 aligned bytes.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) -> Access {
        let Some((vector, at)) = self.locate(offset, data.len()) else {
            return Access::Fault;
        };
        let entry = *vector.lock();
        let [a0, a1, a2, a3, a4, a5, a6, a7] = entry.address.to_le_bytes();
        let [d0, d1, d2, d3] = entry.data.to_le_bytes();
        let masked = u8::from(entry.masked);
        let bytes = [a0, a1, a2, a3, a4, a5, a6, a7, d0, d1, d2, d3, masked, 0, 0, 0];
        for (byte, value) in data.iter_mut().zip(bytes.iter().skip(at)) {
            *byte = *value;
        }
        Access::Done
    }

    /// A write to the vector table: 4 or 8 aligned bytes.
    pub fn write_table(&self, offset: u64, data: &[u8]) -> Access {
        let Some((vector, at)) = self.locate(offset, data.len()) else {
            return Access::Fault;
        };
        let mut entry = vector.lock();
        for (word, bytes) in data.as_chunks::<4>().0.iter().enumerate() {
            let value = u32::from_le_bytes(*bytes);
            match at / 4 + word {
                0 => entry.address = entry.address & !0xffff_ffff | u64::from(value),
                1 => entry.address = entry.address & 0xffff_ffff | u64::from(value) << 32,
                2 => entry.data = value,
                _ => entry.masked = value & ENTRY_MASKED != 0,
            }
        }
        self.update(vector, &mut entry, true);
        Access::Done
    }

    /// A read of the pending bit array: 4 or 8 aligned bytes. Bits beyond the last vector are 0.
    pub fn read_pba(&self, offset: u64, data: &mut [u8]) -> Access {
        if !matches!(data.len(), 4 | 8) || !offset.is_multiple_of(data.len() as u64) {
            return Access::Fault;
        }
        let Some(first) = usize::try_from(offset).ok().and_then(|at| at.checked_mul(8)) else {
            return Access::Fault;
        };
        for (at, byte) in data.iter_mut().enumerate() {
            let vectors = self.0.vectors.iter().skip(first.saturating_add(at * 8)).take(8);
            *byte = vectors.enumerate().fold(0, |bits, (bit, vector)| {
                bits | u8::from(vector.lock().pending) << bit
            });
        }
        Access::Done
    }

    /// For a snapshot.
    pub fn save(&self) -> MsixState {
        let save = |vector: &Vector| {
            let entry = *vector.lock();
            MsixVectorState {
                address: entry.address,
                data: entry.data,
                masked: entry.masked,
                pending: entry.pending,
            }
        };
        MsixState {
            control: self.0.control.load(SeqCst),
            vectors: self.0.vectors.iter().map(save).collect(),
        }
    }

    /// Fails if `state` does not fit this function; changes nothing.
    pub fn check(&self, state: &MsixState) -> Result<(), MsixStateError> {
        let (found, expected) = (state.vectors.len(), self.0.vectors.len());
        if found != expected {
            return Err(MsixStateError { found, expected });
        }
        Ok(())
    }

    /// Takes up a snapshot; pending vectors that are not masked are sent.
    pub fn restore(&self, state: &MsixState) -> Result<(), MsixStateError> {
        self.check(state)?;
        self.set_control(0);
        for (vector, saved) in self.0.vectors.iter().zip(&state.vectors) {
            *vector.lock() = Entry {
                address: saved.address,
                data: saved.data,
                masked: saved.masked,
                pending: saved.pending,
            };
        }
        self.set_control(state.control);
        Ok(())
    }

    fn locate(&self, offset: u64, len: usize) -> Option<(&Vector, usize)> {
        if !matches!(len, 4 | 8) || !offset.is_multiple_of(len as u64) {
            return None;
        }
        let index = usize::try_from(offset / MSIX_ENTRY_LEN).ok()?;
        let vector = self.0.vectors.get(index)?;
        Some((vector, (offset % MSIX_ENTRY_LEN) as usize))
    }

    /// Makes the route agree with control and entry. `changed`: the message may be another one.
    fn update(&self, vector: &Vector, entry: &mut Entry, changed: bool) {
        let on = self.0.control.load(SeqCst) & (MSIX_ENABLE | MSIX_FUNCTION_MASK) == MSIX_ENABLE;
        let wanted = on && !entry.masked;
        let live = vector.live.load(SeqCst);
        if wanted && (!live || changed) {
            if let Err(error) = vector.msi.route(entry.address, entry.data) {
                tracing::debug!(address = entry.address, %error, "MSI-X vector not routed");
                vector.live.store(false, SeqCst);
                return;
            }
            vector.live.store(true, SeqCst);
            if std::mem::take(&mut entry.pending) {
                vector.msi.signal();
            }
        } else if !wanted && live {
            vector.live.store(false, SeqCst);
            if let Err(error) = vector.msi.mask() {
                tracing::debug!(%error, "MSI-X vector not masked");
            }
        }
    }
}

impl Vector {
    fn lock(&self) -> MutexGuard<'_, Entry> {
        self.entry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[derive(Clone, Default)]
    struct Counting {
        sent: Arc<AtomicUsize>,
        routed: Arc<Mutex<Option<(u64, u32)>>>,
    }

    impl MsiProvider for Counting {
        fn vector(&self) -> io::Result<Box<dyn MsiVector>> {
            Ok(Box::new(self.clone()))
        }
    }

    impl MsiVector for Counting {
        fn route(&self, address: u64, data: u32) -> io::Result<()> {
            *self.routed.lock().unwrap() = Some((address, data));
            Ok(())
        }
        fn mask(&self) -> io::Result<()> {
            *self.routed.lock().unwrap() = None;
            Ok(())
        }
        fn signal(&self) {
            self.sent.fetch_add(1, SeqCst);
        }
    }

    fn unmask(msix: &Msix, vector: u64, masked: u32) {
        let access = msix.write_table(vector * 16 + 12, &masked.to_le_bytes());
        assert!(matches!(access, Access::Done));
    }

    #[test]
    fn masked_vectors_stay_pending_and_fire_on_unmask() {
        let host = Counting::default();
        let msix = Msix::new(3, &host).unwrap();
        msix.signal(1);
        let sent = || host.sent.load(SeqCst);
        let pending = || {
            let mut bits = [0xff; 8];
            assert!(matches!(msix.read_pba(0, &mut bits), Access::Done));
            u64::from_le_bytes(bits)
        };
        assert_eq!((sent(), pending()), (0, 0), "off: nothing is kept");
        msix.set_control(MSIX_ENABLE | MSIX_FUNCTION_MASK);
        msix.write_table(16, &0xfee0_1000u64.to_le_bytes());
        msix.write_table(24, &0x55u64.to_le_bytes());
        msix.signal(1);
        assert_eq!((sent(), pending()), (0, 0b10), "function mask");
        msix.set_control(MSIX_ENABLE);
        assert_eq!((sent(), pending()), (1, 0));
        assert_eq!(*host.routed.lock().unwrap(), Some((0xfee0_1000, 0x55)));
        msix.signal(1);
        assert_eq!(sent(), 2);
        unmask(&msix, 1, 1);
        assert_eq!(*host.routed.lock().unwrap(), None);
        msix.signal(1);
        assert_eq!((sent(), pending()), (2, 0b10), "vector mask");
        unmask(&msix, 1, 0);
        assert_eq!((sent(), pending()), (3, 0));
    }

    /// Hardening row 18: the table is as long as it says, and so is a restored one.
    #[test]
    fn hardening_18_msix_table_bounds() {
        let msix = Msix::new(2, &Counting::default()).unwrap();
        let mut data = [0; 8];
        for offset in [32, 40, 1 << 20, u64::MAX - 7] {
            assert!(matches!(msix.read_table(offset, &mut data), Access::Fault));
            assert!(matches!(msix.write_table(offset, &data), Access::Fault));
        }
        for (offset, len) in [(2, 4), (4, 8), (0, 1), (0, 2), (12, 8)] {
            assert!(matches!(msix.read_table(offset, &mut data[..len]), Access::Fault));
        }
        data.fill(0xff);
        assert!(matches!(msix.read_pba(u64::MAX - 7, &mut data), Access::Fault));
        msix.read_pba(1 << 40, &mut data);
        assert_eq!(data, [0; 8]);
        msix.signal(2);
        msix.signal(0xffff);
        let mut state = msix.save();
        state.vectors.pop();
        assert!(msix.restore(&state).is_err());
    }

    #[test]
    fn a_snapshot_keeps_the_table_and_the_pending_bits() {
        let host = Counting::default();
        let msix = Msix::new(2, &host).unwrap();
        msix.set_control(MSIX_ENABLE);
        msix.write_table(0, &0xfee0_0000u64.to_le_bytes());
        msix.write_table(8, &7u64.to_le_bytes());
        msix.signal(1);
        let other_host = Counting::default();
        let other = Msix::new(2, &other_host).unwrap();
        other.restore(&msix.save()).unwrap();
        assert_eq!(other.save(), msix.save());
        assert_eq!(*other_host.routed.lock().unwrap(), Some((0xfee0_0000, 7)));
        unmask(&other, 1, 0);
        assert_eq!(other_host.sent.load(SeqCst), 1);
    }

    /// A vector that a vCPU masks at the very moment a worker sends it: the message is lost, as through an irqfd.
    #[derive(Clone, Default)]
    struct MaskedMeanwhile {
        msix: Arc<std::sync::OnceLock<Msix>>,
        sent: Arc<AtomicUsize>,
        armed: Arc<AtomicBool>,
    }

    impl MsiProvider for MaskedMeanwhile {
        fn vector(&self) -> io::Result<Box<dyn MsiVector>> {
            Ok(Box::new(self.clone()))
        }
    }

    impl MsiVector for MaskedMeanwhile {
        fn route(&self, _address: u64, _data: u32) -> io::Result<()> {
            Ok(())
        }
        fn mask(&self) -> io::Result<()> {
            Ok(())
        }
        fn signal(&self) {
            if self.armed.swap(false, SeqCst) {
                unmask(self.msix.get().unwrap(), 0, 1);
            } else {
                self.sent.fetch_add(1, SeqCst);
            }
        }
    }

    #[test]
    fn an_interrupt_that_races_with_masking_stays_pending() {
        let host = MaskedMeanwhile::default();
        let msix = host.msix.get_or_init(|| Msix::new(1, &host).unwrap()).clone();
        msix.set_control(MSIX_ENABLE);
        unmask(&msix, 0, 0);
        msix.signal(0);
        assert_eq!(host.sent.load(SeqCst), 1);
        host.armed.store(true, SeqCst);
        msix.signal(0);
        assert_eq!(host.sent.load(SeqCst), 1, "lost with the route");
        unmask(&msix, 0, 0);
        assert_eq!(host.sent.load(SeqCst), 2, "and sent again");
    }
}
