use alloc::boxed::Box;
use alloc::vec;

use treaty_virtio_spec::ring::DESC_F_WRITE;

use crate::Violation;
use crate::layout::{Descriptor, is_writable};

/// A chain given back: written bytes in bits 0-31, the buffer ID above, and WRITE as in a packed descriptor's flags
/// if something was written. It is a packed used descriptor without AVAIL and USED. virtio 1.3 §2.8.9
#[derive(Clone, Copy, Default, PartialEq, Eq)]
#[repr(transparent)]
pub(crate) struct Done(pub u64);

impl Done {
    #[inline(always)]
    pub fn new(id: u16, written: u32) -> Self {
        let write = if written == 0 {
            0
        } else {
            u64::from(DESC_F_WRITE) << 48
        };
        Self(u64::from(written) | u64::from(id) << 32 | write)
    }

    /// Of a packed chain of one descriptor, completely written if it is writable.
    #[inline(always)]
    pub fn all_of(descriptor: Descriptor) -> Self {
        let writable = is_writable(descriptor.packed_flags());
        Self(descriptor.word & if writable { WRITTEN } else { NOT_WRITTEN })
    }

    #[inline(always)]
    pub fn id(self) -> u16 {
        (self.0 >> 32) as u16
    }

    #[inline(always)]
    pub fn written(self) -> u32 {
        self.0 as u32
    }
}

/// The parts of a descriptor's word that stay: length, ID and WRITE, or the ID alone.
const WRITTEN: u64 = 0xffff_ffff_ffff | (DESC_F_WRITE as u64) << 48;
const NOT_WRITTEN: u64 = 0xffff << 32;

/// A chain about to be entered.
#[derive(Clone, Copy)]
pub(crate) struct Taken {
    pub id: u16,
    /// Ring slots.
    pub slots: u16,
    /// What it will be if the device writes all that it may.
    pub full: Done,
}

/// The chains in flight: the ring slots of each buffer ID, 0 for those that are not in flight.
pub(crate) struct Table(Box<[u16]>);

impl Table {
    pub fn new(size: u16) -> Self {
        Self(vec![0; usize::from(size)].into_boxed_slice())
    }

    /// For one burst.
    #[inline(always)]
    pub fn view(&mut self) -> TableView<'_> {
        TableView(&mut self.0)
    }
}

/// A [`Table`] whose place in memory the compiler may keep in registers.
pub(crate) struct TableView<'a>(&'a mut [u16]);

/// Where chains are entered when they are taken.
pub(crate) trait Book {
    /// Refuses a buffer ID that does not exist or is in flight.
    fn check(&self, id: u16) -> Result<(), Violation>;

    /// Enters a chain that was checked.
    fn enter(&mut self, taken: Taken);

    /// The same book for one loop, which may keep it in registers.
    type Page<'a>: Book
    where
        Self: 'a;

    /// Opens the book for a loop.
    fn page(&mut self) -> Self::Page<'_>;

    /// Ends a loop in which `chains` were entered.
    fn turn_page(&mut self, chains: usize);
}

impl Book for TableView<'_> {
    #[inline(always)]
    fn check(&self, id: u16) -> Result<(), Violation> {
        match self.0.get(usize::from(id)) {
            Some(0) => Ok(()),
            Some(_) => Err(Violation::DuplicateHead(id)),
            None => Err(Violation::DescriptorIndex(id)),
        }
    }

    #[inline(always)]
    fn enter(&mut self, taken: Taken) {
        if let Some(slots) = self.0.get_mut(usize::from(taken.id)) {
            *slots = taken.slots;
        }
    }

    type Page<'a>
        = TableView<'a>
    where
        Self: 'a;

    #[inline(always)]
    fn page(&mut self) -> TableView<'_> {
        TableView(self.0)
    }

    fn turn_page(&mut self, _: usize) {}
}

impl TableView<'_> {
    /// Returns the chain's slots; 0 if it was not in flight.
    #[inline(always)]
    pub fn remove(&mut self, id: u16) -> u16 {
        let slots = self.0.get_mut(usize::from(id)).map_or(0, core::mem::take);
        debug_assert!(slots != 0, "a head of another ring");
        slots
    }
}

/// One place in the order of chains.
#[derive(Clone, Copy, Default)]
pub(crate) struct Place {
    /// What [`Done`] will be if the device writes all that it may.
    full: Done,
    /// What it became, if it was given back before its turn.
    early: Option<Done>,
    /// Ring slots of the chain.
    slots: u16,
}

/// The chains in flight in the order in which they were taken, for IN_ORDER. virtio 1.3 §2.7.8
pub(crate) struct Order {
    /// A power of two of places, at least the queue size; chain number `n` is at `n` modulo that.
    places: Box<[Place]>,
    /// The number of the oldest chain in flight.
    oldest: u64,
    /// The number of the next chain.
    next: u64,
    /// The number of the last chain of each buffer ID: it is in flight if that is `oldest` or later.
    numbers: Box<[u64]>,
    /// Chains that were given back before their turn.
    early: usize,
}

/// A chain whose turn it is.
#[derive(Clone, Copy)]
pub(crate) struct Turn {
    pub done: Done,
    pub slots: u16,
    /// The device wrote all that it might have.
    pub full: bool,
}

impl Order {
    pub fn new(size: u16) -> Self {
        Self {
            places: vec![Place::default(); usize::from(size.next_power_of_two())].into_boxed_slice(),
            oldest: 1,
            next: 1,
            numbers: vec![0; usize::from(size)].into_boxed_slice(),
            early: 0,
        }
    }

    pub fn in_flight(&self) -> usize {
        (self.next - self.oldest) as usize
    }

    fn slots(&self, id: usize) -> Option<u16> {
        let number = *self.numbers.get(id)?;
        let mask = self.places.len().wrapping_sub(1);
        self.places.get(number as usize & mask).map(|place| place.slots)
    }

    #[inline(always)]
    fn place(&mut self, number: u64) -> Option<&mut Place> {
        let mask = self.places.len().wrapping_sub(1);
        self.places.get_mut(number as usize & mask)
    }

    /// For one burst.
    #[inline(always)]
    pub fn view(&mut self) -> OrderView<'_> {
        OrderView {
            places: &mut self.places,
            numbers: &mut self.numbers,
            oldest: self.oldest,
            next: self.next,
        }
    }

    /// After a burst: what [`OrderView::next`] has become.
    #[inline(always)]
    pub fn set_next(&mut self, next: u64) {
        self.next = next;
    }

    /// Gives back as many of `list` as are the oldest chains, in order and completely written; returns how many, and
    /// their slots. This is what nearly always happens, and all of it.
    #[inline(always)]
    pub fn give_full(&mut self, list: &[Done]) -> (usize, u16) {
        if self.early != 0 {
            return (0, 0);
        }
        let start = self.oldest as usize & self.places.len().wrapping_sub(1);
        let places = self.places.get(start..).unwrap_or_default();
        let (mut count, mut slots) = (0, 0);
        for (done, place) in list.iter().zip(places).take(self.in_flight()) {
            if *done != place.full {
                break;
            }
            slots += place.slots;
            count += 1;
        }
        self.oldest += count as u64;
        (count, slots)
    }

    /// Gives back a chain; if it is not its turn, it is kept. Then ask for [`turn`](Self::turn)s.
    pub fn give(&mut self, done: Done) {
        let Some(&number) = self.numbers.get(usize::from(done.id())) else {
            return;
        };
        if number >= self.oldest
            && let Some(place) = self.place(number)
            && place.early.is_none()
        {
            place.early = Some(done);
            self.early += 1;
        }
    }

    /// The oldest chain, if it was given back.
    pub fn turn(&mut self) -> Option<Turn> {
        if self.oldest == self.next {
            return None;
        }
        let place = self.place(self.oldest)?;
        let done = place.early.take()?;
        let turn = Turn {
            done,
            slots: place.slots,
            full: done == place.full,
        };
        self.oldest += 1;
        self.early -= 1;
        Some(turn)
    }
}

/// An [`Order`] whose place in memory the compiler may keep in registers.
pub(crate) struct OrderView<'a> {
    places: &'a mut [Place],
    numbers: &'a mut [u64],
    oldest: u64,
    pub next: u64,
}

impl Book for OrderView<'_> {
    #[inline(always)]
    fn check(&self, id: u16) -> Result<(), Violation> {
        match self.numbers.get(usize::from(id)) {
            Some(number) if *number < self.oldest => Ok(()),
            Some(_) => Err(Violation::DuplicateHead(id)),
            None => Err(Violation::DescriptorIndex(id)),
        }
    }

    #[inline(always)]
    fn enter(&mut self, taken: Taken) {
        if let Some(number) = self.numbers.get_mut(usize::from(taken.id)) {
            *number = self.next;
        }
        let mask = self.places.len().wrapping_sub(1);
        if let Some(place) = self.places.get_mut(self.next as usize & mask) {
            debug_assert!(place.early.is_none());
            (place.full, place.slots) = (taken.full, taken.slots);
        }
        self.next += 1;
    }

    type Page<'a>
        = OrderView<'a>
    where
        Self: 'a;

    #[inline(always)]
    fn page(&mut self) -> OrderView<'_> {
        OrderView {
            places: self.places,
            numbers: self.numbers,
            ..*self
        }
    }

    fn turn_page(&mut self, chains: usize) {
        self.next += chains as u64;
    }
}

/// The in-flight table of a ring, with or without IN_ORDER.
pub(crate) enum InFlight {
    AnyOrder(Table),
    InOrder(Order),
}

impl InFlight {
    pub fn new(size: u16, in_order: bool) -> Self {
        if in_order {
            Self::InOrder(Order::new(size))
        } else {
            Self::AnyOrder(Table::new(size))
        }
    }

    /// Ring slots of a chain in flight.
    pub fn slots(&self, id: u16) -> u16 {
        let id = usize::from(id);
        let slots = match self {
            Self::AnyOrder(table) => table.0.get(id).copied(),
            Self::InOrder(order) => order.slots(id),
        };
        slots.unwrap_or(0)
    }
}
