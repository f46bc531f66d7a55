use treaty_virtio_ring::Segment;
use treaty_virtio_spec::Features;

use crate::slots::Slots;
use crate::{DmaMemory, DriverError, Queue, QueueOptions, Transport};

/// What both kinds of pool are made of: a queue, and one buffer of fixed size for each of its entries.
struct Pool<T: Transport, D: DmaMemory> {
    queue: Queue<T, D>,
    dma: D,
    area: u64,
    buffer_bytes: u32,
}

impl<T: Transport, D: DmaMemory> Pool<T, D> {
    fn start(
        transport: &mut T,
        dma: &D,
        index: u16,
        accepted: Features,
        options: &QueueOptions,
        buffer_bytes: u32,
    ) -> Result<Self, DriverError> {
        let queue = Queue::start(transport, dma, index, accepted, options)?;
        let bytes = usize::from(queue.size()) * buffer_bytes as usize;
        let area = dma.allocate(bytes, 64).ok_or(DriverError::OutOfMemory)?;
        Ok(Self {
            queue,
            dma: dma.clone(),
            area,
            buffer_bytes,
        })
    }

    fn addr(&self, slot: u64) -> u64 {
        self.area + slot * u64::from(self.buffer_bytes)
    }
}

/// A queue that carries bytes to the device, each send in one buffer with `headroom` zero bytes in front.
pub(crate) struct TransmitPool<T: Transport, D: DmaMemory> {
    pool: Pool<T, D>,
    slots: Slots<()>,
    headroom: u32,
}

impl<T: Transport, D: DmaMemory> TransmitPool<T, D> {
    /// Starts queue `index` with buffers of `headroom` and up to `payload` bytes.
    pub fn start(
        transport: &mut T,
        dma: &D,
        index: u16,
        accepted: Features,
        options: &QueueOptions,
        (headroom, payload): (u32, u32),
    ) -> Result<Self, DriverError> {
        let pool = Pool::start(transport, dma, index, accepted, options, headroom + payload)?;
        let slots = Slots::new(u32::from(pool.queue.size()));
        Ok(Self {
            pool,
            slots,
            headroom,
        })
    }

    /// Copies `bytes` into a free buffer and offers it. False if there is none now.
    #[inline]
    pub fn send(&mut self, bytes: &[u8]) -> Result<bool, DriverError> {
        let room = (self.pool.buffer_bytes - self.headroom) as usize;
        if bytes.is_empty() || bytes.len() > room {
            return Err(DriverError::Request("length"));
        }
        let Some(slot) = self.slots.next() else {
            return Ok(false);
        };
        let addr = self.pool.addr(u64::from(slot));
        self.pool.dma.store(addr + u64::from(self.headroom), bytes);
        let len = self.headroom + bytes.len() as u32;
        if self
            .pool
            .queue
            .offer(&[Segment { addr, len }], &[], u64::from(slot))
            .is_err()
        {
            return Ok(false);
        }
        self.slots.put(());
        Ok(true)
    }

    /// Takes back one buffer that the device is done with.
    #[inline]
    pub fn reap(&mut self) -> Result<bool, DriverError> {
        match self.pool.queue.reap()? {
            Some(used) => match self.slots.take(used.token) {
                Some(()) => Ok(true),
                None => Err(DriverError::Nonsense("a buffer that is not in flight")),
            },
            None => Ok(false),
        }
    }

    /// The queue.
    pub fn queue(&mut self) -> &mut Queue<T, D> {
        &mut self.pool.queue
    }
}

/// A queue whose buffers all wait for bytes from the device.
pub(crate) struct ReceivePool<T: Transport, D: DmaMemory>(Pool<T, D>);

impl<T: Transport, D: DmaMemory> ReceivePool<T, D> {
    /// Starts queue `index` and offers a buffer of `buffer_bytes` for each entry. They become visible at the next notify.
    pub fn start(
        transport: &mut T,
        dma: &D,
        index: u16,
        accepted: Features,
        options: &QueueOptions,
        buffer_bytes: u32,
    ) -> Result<Self, DriverError> {
        let mut this = Self(Pool::start(
            transport,
            dma,
            index,
            accepted,
            options,
            buffer_bytes,
        )?);
        for slot in 0..u64::from(this.0.queue.size()) {
            this.offer(slot)?;
        }
        Ok(this)
    }

    fn offer(&mut self, slot: u64) -> Result<(), DriverError> {
        let segment = Segment {
            addr: self.0.addr(slot),
            len: self.0.buffer_bytes,
        };
        let offered = self.0.queue.offer(&[], &[segment], slot);
        offered.map_err(|_| DriverError::Nonsense("a ring with more buffers than entries"))
    }

    /// Takes back one buffer, copies what follows the first `headroom` bytes to `bytes`, and offers the buffer again (the
    /// device sees it at the next notify). Says how many bytes were copied.
    #[inline]
    pub fn receive(&mut self, headroom: u32, bytes: &mut [u8]) -> Result<Option<usize>, DriverError> {
        let Some(used) = self.0.queue.reap()? else {
            return Ok(None);
        };
        let Some(len) = used.written.checked_sub(headroom) else {
            return Err(DriverError::Nonsense("a received buffer shorter than its header"));
        };
        let len = bytes.len().min(len as usize);
        let addr = self.0.addr(used.token) + u64::from(headroom);
        self.0.dma.load(addr, bytes.get_mut(..len).unwrap_or_default());
        self.offer(used.token)?;
        Ok(Some(len))
    }

    /// The queue.
    pub fn queue(&mut self) -> &mut Queue<T, D> {
        &mut self.0.queue
    }
}
