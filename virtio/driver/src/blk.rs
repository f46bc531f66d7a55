use core::mem::offset_of;

use treaty_virtio_ring::{Full, Segment};
use treaty_virtio_spec::blk::{
    Config, RequestHeader, SECTOR_SIZE, feature as blk_feature, request_type, status,
};
use treaty_virtio_spec::{DeviceId, Features};
use zerocopy::IntoBytes;

use crate::negotiate::go;
use crate::slots::Slots;
use crate::{DmaMemory, DriverError, DriverOptions, Queue, QueueOptions, Transport, negotiate};

/// The most buffers of one request's data.
pub const MAX_DATA_SEGMENTS: usize = 16;
/// Header, data, status.
const MAX_CHAIN: u16 = MAX_DATA_SEGMENTS as u16 + 2;

/// Request header and status byte of one slot share a cache line: the device touches both in one request.
const SLOT_BYTES: u64 = 64;
const STATUS_OFFSET: u64 = size_of::<RequestHeader>() as u64;
/// In the status byte until the device writes it; no device may write it. virtio 1.3 §5.2.6
const STATUS_PENDING: u8 = 0xff;

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlkOperation {
    /// Reads from the given sector.
    Read(u64),
    /// Writes at the given sector.
    Write(u64),
    /// Makes earlier writes durable; takes no data.
    Flush,
}

/// A request that the device has finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlkCompletion {
    /// What [`Blk::submit`] was given.
    pub token: u64,
    /// 0 is success. virtio 1.3 §5.2.6
    pub status: u8,
}

impl BlkCompletion {
    /// True if the device says that it did what was asked.
    pub fn is_ok(&self) -> bool {
        self.status == status::OK
    }
}

/// The driver of a block device, over its first queue. virtio 1.3 §5.2
pub struct Blk<T: Transport, D: DmaMemory> {
    transport: T,
    dma: D,
    queue: Queue<T, D>,
    features: Features,
    capacity_sectors: u64,
    block_size: u32,
    slot_area: u64,
    slots: Slots<u64>,
    max_data_segments: usize,
}

impl<T: Transport, D: DmaMemory> Blk<T, D> {
    /// Resets the device, negotiates and starts it.
    pub fn start(mut transport: T, dma: D, options: &DriverOptions) -> Result<Self, DriverError> {
        if transport.device_id() != DeviceId::BLK {
            return Err(DriverError::NotVirtio("not a block device"));
        }
        let wanted = blk_feature::RO | blk_feature::BLK_SIZE | blk_feature::FLUSH | blk_feature::SEG_MAX;
        let features = negotiate(&mut transport, wanted | options.ring_features)?;
        let capacity_sectors = u64::from_le_bytes(field(&mut transport, offset_of!(Config, capacity))?);
        let block_size = match features.has(blk_feature::BLK_SIZE) {
            true => u32::from_le_bytes(field(&mut transport, offset_of!(Config, blk_size))?),
            false => SECTOR_SIZE as u32,
        };
        if !block_size.is_power_of_two() || u64::from(block_size) < SECTOR_SIZE {
            return Err(DriverError::Nonsense("block size"));
        }
        let max_data_segments = match features.has(blk_feature::SEG_MAX) {
            true => u32::from_le_bytes(field(&mut transport, offset_of!(Config, seg_max))?).max(1) as usize,
            false => 1,
        };
        let queue_options = QueueOptions {
            size: options.queue_size,
            max_chain: MAX_CHAIN,
            vector: options.vector,
        };
        let queue = Queue::start(&mut transport, &dma, 0, features, &queue_options)?;
        let count = u32::from(options.queue_size);
        let slot_area = dma
            .allocate(SLOT_BYTES as usize * count as usize, SLOT_BYTES as usize)
            .ok_or(DriverError::OutOfMemory)?;
        go(&mut transport)?;
        Ok(Self {
            transport,
            dma,
            queue,
            features,
            capacity_sectors,
            block_size,
            slot_area,
            slots: Slots::new(count),
            max_data_segments: max_data_segments.min(MAX_DATA_SEGMENTS),
        })
    }

    /// What was negotiated.
    pub fn features(&self) -> Features {
        self.features
    }

    /// Length in sectors of 512 bytes.
    pub fn capacity_sectors(&self) -> u64 {
        self.capacity_sectors
    }

    /// Bytes of a block: requests start and end at multiples of it.
    pub fn block_size(&self) -> u32 {
        self.block_size
    }

    /// True if writes are refused.
    pub fn is_read_only(&self) -> bool {
        self.features.has(blk_feature::RO)
    }

    /// True if the device has a cache that [`BlkOperation::Flush`] empties.
    pub fn has_flush(&self) -> bool {
        self.features.has(blk_feature::FLUSH)
    }

    /// Queues a request on `data`, which the device reads or writes until the request comes back. `Ok(false)` if there is
    /// no room now. The device sees it after [`notify`](Self::notify).
    #[inline]
    pub fn submit(
        &mut self,
        operation: BlkOperation,
        data: &[Segment],
        token: u64,
    ) -> Result<bool, DriverError> {
        let (kind, sector) = match operation {
            BlkOperation::Read(sector) => (request_type::IN, sector),
            BlkOperation::Write(sector) => (request_type::OUT, sector),
            BlkOperation::Flush => (request_type::FLUSH, 0),
        };
        self.check(operation, sector, data)?;
        let Some(slot) = self.slots.next() else {
            return Ok(false);
        };
        let header_addr = self.slot_area + u64::from(slot) * SLOT_BYTES;
        let header = RequestHeader {
            kind: kind.into(),
            reserved: 0.into(),
            sector: sector.into(),
        };
        self.dma.store(header_addr, header.as_bytes());
        self.dma.store(header_addr + STATUS_OFFSET, &[STATUS_PENDING]);
        let header = Segment {
            addr: header_addr,
            len: STATUS_OFFSET as u32,
        };
        let status = Segment {
            addr: header_addr + STATUS_OFFSET,
            len: 1,
        };
        let write = matches!(operation, BlkOperation::Write(_));
        let offered = match (data, write) {
            // By far the most requests.
            ([data], true) => self.queue.offer(&[header, *data], &[status], u64::from(slot)),
            ([data], false) => self.queue.offer(&[header], &[*data, status], u64::from(slot)),
            _ => self.offer_many(header, data, status, write, u64::from(slot)),
        };
        if offered.is_err() {
            return Ok(false);
        }
        self.slots.put(token);
        Ok(true)
    }

    fn offer_many(
        &mut self,
        header: Segment,
        data: &[Segment],
        status: Segment,
        write: bool,
        slot: u64,
    ) -> Result<(), Full> {
        // A write's readable part is header and data; a read's writable part is data and status.
        let mut list = [if write { header } else { status }; MAX_DATA_SEGMENTS + 1];
        for (place, segment) in list.iter_mut().skip(usize::from(write)).zip(data) {
            *place = *segment;
        }
        let list = list.get(..=data.len()).unwrap_or_default();
        match write {
            true => self.queue.offer(list, &[status], slot),
            false => self.queue.offer(&[header], list, slot),
        }
    }

    fn check(&self, operation: BlkOperation, sector: u64, data: &[Segment]) -> Result<(), DriverError> {
        if data.len() > self.max_data_segments {
            return Err(DriverError::Request("too many buffers"));
        }
        let bytes: u64 = data.iter().map(|segment| u64::from(segment.len)).sum();
        if !bytes.is_multiple_of(SECTOR_SIZE) || (bytes == 0) != (operation == BlkOperation::Flush) {
            return Err(DriverError::Request("length"));
        }
        match sector.checked_add(bytes / SECTOR_SIZE) {
            Some(end) if end <= self.capacity_sectors => Ok(()),
            _ => Err(DriverError::Request("beyond the end")),
        }
    }

    /// Makes submitted requests visible, and tells the device if it wants to be told.
    #[inline]
    pub fn notify(&mut self) {
        self.queue.notify();
    }

    /// Takes back one finished request.
    #[inline]
    pub fn reap(&mut self) -> Result<Option<BlkCompletion>, DriverError> {
        let Some(used) = self.queue.reap()? else {
            return Ok(None);
        };
        let token = self
            .slots
            .take(used.token)
            .ok_or(DriverError::Nonsense("a request that is not in flight"))?;
        let mut status = [STATUS_PENDING];
        self.dma.load(
            self.slot_area + used.token * SLOT_BYTES + STATUS_OFFSET,
            &mut status,
        );
        let [status] = status;
        Ok(Some(BlkCompletion { token, status }))
    }

    /// The queue, for arming and counting.
    pub fn queue(&mut self) -> &mut Queue<T, D> {
        &mut self.queue
    }

    /// The transport, for acknowledging interrupts.
    pub fn transport(&mut self) -> &mut T {
        &mut self.transport
    }

    /// Resets the device and gives the transport back.
    pub fn stop(mut self) -> Result<T, DriverError> {
        self.transport.set_status(0)?;
        Ok(self.transport)
    }
}

/// One field of the configuration space.
fn field<T: Transport, const N: usize>(transport: &mut T, offset: usize) -> Result<[u8; N], DriverError> {
    let mut bytes = [0; N];
    transport.read_config(offset, &mut bytes)?;
    Ok(bytes)
}
