//! A drive's state, and the transfers that its commands are made of.

use treaty_buffers::AlignedBlock;
use treaty_memory::GuestMemory;
use treaty_scsi_target::Unit;
use treaty_storage::RequestKind;

use crate::bus_master::BusMaster;
use crate::job::{Desk, Job, Outcome};
use crate::registers::{Geometry, TaskFile, error, status};

/// Bytes of a disk's sector.
pub(crate) const SECTOR: u64 = 512;
/// Bytes that one request for the image moves by PIO.
const PIO_BYTES: usize = 128 << 10;
/// Sectors that one request moves by DMA.
const DMA_SECTORS: u64 = 2048;

/// What is in a drive's place.
pub(crate) enum Media {
    Disk(Disk),
    Cdrom(Box<Unit>),
}

/// A hard disk.
pub(crate) struct Disk {
    pub(crate) sectors: u64,
    pub(crate) geometry: Geometry,
    /// Sectors of a block of READ MULTIPLE; 0 until it is set.
    pub(crate) multiple: u8,
    pub(crate) write_cache: bool,
    pub(crate) read_only: bool,
    pub(crate) discard: bool,
}

/// What the command at work still has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// No command is at work.
    None,
    /// Sectors go to the host by PIO. `next` and `left` count from the chunk that is in the buffer.
    Read { next: u64, left: u64, block: usize },
    /// Sectors come from the host by PIO.
    Write {
        next: u64,
        left: u64,
        block: usize,
        durable: bool,
    },
    /// Sectors go by DMA.
    Dma {
        next: u64,
        left: u64,
        write: Option<Durable>,
    },
    /// The image is being flushed.
    Flush,
    /// A list of ranges is to come by DMA.
    TrimList { bytes: u64 },
    /// Ranges are being discarded, last first.
    Trim { ranges: Vec<(u64, u64)> },
    /// A packet is coming.
    Packet { dma: bool, limit: usize },
    /// A packet's command is at work.
    Packeted(crate::atapi::Stage),
}

/// A write's promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Durable(pub(crate) bool);

/// Data between the host's port and the drive.
#[derive(Default)]
pub(crate) struct Pio {
    pub(crate) data: Vec<u8>,
    position: usize,
    /// Where the block ends that DRQ was set for.
    end: usize,
}

/// What a drive's work needs beside the drive.
pub(crate) struct Cx<'a> {
    pub(crate) memory: &'a GuestMemory,
    pub(crate) bus_master: &'a mut BusMaster,
    /// The guest lets the function reach memory.
    pub(crate) may_master: bool,
}

/// A drive.
pub(crate) struct Drive {
    pub(crate) serial: String,
    pub(crate) media: Media,
    pub(crate) registers: TaskFile,
    status: u8,
    pub(crate) error: u8,
    /// INTRQ.
    pub(crate) interrupt: bool,
    pub(crate) phase: Phase,
    pub(crate) desk: Desk,
    pub(crate) pio: Pio,
    pub(crate) block: AlignedBlock,
    /// Selected modes: multiword, ultra.
    modes: (u16, u16),
}

impl Drive {
    pub(crate) fn new(serial: String, media: Media) -> Self {
        let mut drive = Self {
            serial,
            media,
            registers: TaskFile::default(),
            status: 0,
            error: 0,
            interrupt: false,
            phase: Phase::None,
            desk: Desk::default(),
            pio: Pio::default(),
            block: AlignedBlock::new(PIO_BYTES, 4096),
            modes: (0, 1 << 13),
        };
        drive.reset();
        drive
    }

    /// A reset by hardware or software. What runs on the image ends first: the drive is busy until then.
    pub(crate) fn reset(&mut self) {
        self.desk.give_up();
        self.phase = Phase::None;
        self.interrupt = false;
        self.pio = Pio::default();
        self.registers = TaskFile::default();
        self.registers.device = crate::registers::device::OBSOLETE;
        self.registers.set_signature(self.is_packet());
        // Passed.
        self.error = 1;
        self.status = if self.is_packet() {
            0
        } else {
            status::DRDY | status::DSC
        };
        match &mut self.media {
            Media::Disk(disk) => disk.multiple = 0,
            Media::Cdrom(unit) => unit.reset(),
        }
    }

    pub(crate) fn is_packet(&self) -> bool {
        matches!(self.media, Media::Cdrom(_))
    }

    pub(crate) fn status(&self) -> u8 {
        if self.phase == Phase::None && self.desk.is_busy() {
            return status::BSY;
        }
        self.status
    }

    pub(crate) fn is_busy(&self) -> bool {
        self.status() & status::BSY != 0
    }

    pub(crate) fn wants_data(&self) -> bool {
        self.status() & status::DRQ != 0
    }

    pub(crate) fn set_busy(&mut self) {
        self.status = status::BSY | status::DRDY;
    }

    /// Multiword and ultra DMA: what there is, and what is selected.
    pub(crate) fn dma_modes(&self) -> (u16, u16) {
        (0x07 | self.modes.0, 0x3f | self.modes.1)
    }

    /// SET FEATURES: a transfer mode. False if there is none like that.
    pub(crate) fn set_mode(&mut self, mode: u8) -> bool {
        let number = u16::from(mode & 7);
        match mode >> 3 {
            0 | 1 => {}
            4 if number < 3 => self.modes = (0x100 << number, 0),
            8 if number < 6 => self.modes = (0, 0x100 << number),
            _ => return false,
        }
        true
    }

    /// The command is over, and the host is told.
    pub(crate) fn done(&mut self) {
        self.phase = Phase::None;
        self.status = status::DRDY | status::DSC;
        self.error = 0;
        self.interrupt = true;
    }

    /// The command failed.
    pub(crate) fn fail(&mut self, bits: u8) {
        self.desk.give_up();
        self.phase = Phase::None;
        self.status = status::DRDY | status::DSC | status::ERR;
        self.error = bits;
        self.interrupt = true;
    }

    /// A command's end as the packet interface has it.
    pub(crate) fn end_packet(&mut self, error_bits: u8) {
        self.done();
        self.error = error_bits;
        if error_bits != 0 {
            self.status |= status::ERR;
        }
    }

    /// The whole buffer is there: shows its first block to the host.
    pub(crate) fn offer(&mut self, data: Vec<u8>, block: usize, interrupt: bool) {
        self.pio = Pio {
            position: 0,
            end: block.min(data.len()),
            data,
        };
        self.status = status::DRDY | status::DSC | status::DRQ;
        self.interrupt |= interrupt;
    }

    /// The host has taken or given a block and there is more: shows the next; its length.
    pub(crate) fn next_block(&mut self, block: usize) -> usize {
        let left = self.pio.data.len().saturating_sub(self.pio.position);
        let len = block.min(left);
        self.pio.end = self.pio.position + len;
        self.status = status::DRDY | status::DSC | status::DRQ;
        self.interrupt = true;
        len
    }

    pub(crate) fn is_buffer_used(&self) -> bool {
        self.pio.position >= self.pio.data.len()
    }

    /// The host reads the data port. True if that was the end of a block.
    pub(crate) fn read_data(&mut self, data: &mut [u8]) -> bool {
        if !self.wants_data() {
            return false;
        }
        let from = self
            .pio
            .data
            .get(self.pio.position..self.pio.end)
            .unwrap_or_default();
        for (byte, new) in data.iter_mut().zip(from) {
            *byte = *new;
        }
        self.moved(data.len())
    }

    /// The host writes the data port.
    pub(crate) fn write_data(&mut self, data: &[u8]) -> bool {
        if !self.wants_data() {
            return false;
        }
        let to = self
            .pio
            .data
            .get_mut(self.pio.position..self.pio.end)
            .unwrap_or_default();
        for (byte, new) in to.iter_mut().zip(data) {
            *byte = *new;
        }
        self.moved(data.len())
    }

    fn moved(&mut self, bytes: usize) -> bool {
        self.pio.position = (self.pio.position + bytes).min(self.pio.end);
        self.pio.position == self.pio.end
    }

    /// A block is through: what comes next.
    pub(crate) fn block_ended(&mut self, cx: &mut Cx<'_>) {
        match self.phase.clone() {
            Phase::Read { next, left, block } if self.is_buffer_used() => {
                let moved = self.pio.data.len() as u64 / SECTOR;
                self.phase = Phase::Read {
                    next: next + moved,
                    left: left - moved.min(left),
                    block,
                };
                self.read_on();
            }
            Phase::Write { next, durable, .. } if self.is_buffer_used() => {
                let data = std::mem::take(&mut self.pio.data);
                self.leave_block(
                    &data,
                    RequestKind::Write {
                        offset: next * SECTOR,
                        durable,
                    },
                );
            }
            Phase::Read { block, .. } | Phase::Write { block, .. } => {
                self.next_block(block);
            }
            Phase::Packet { .. } | Phase::Packeted(_) => self.packet_block_ended(cx),
            // The data of IDENTIFY.
            _ => {
                self.phase = Phase::None;
                self.status = status::DRDY | status::DSC;
            }
        }
    }

    /// Reads the next chunk, or ends.
    pub(crate) fn read_on(&mut self) {
        let Phase::Read { next, left, .. } = self.phase else {
            return;
        };
        if left == 0 {
            self.phase = Phase::None;
            self.status = status::DRDY | status::DSC;
            return;
        }
        self.fetch(next * SECTOR, left * SECTOR);
    }

    /// Asks the image for the start of `len` bytes, as much as the buffer takes.
    pub(crate) fn fetch(&mut self, offset: u64, len: u64) {
        let mut buffers = self.block.buffers();
        buffers.truncate(len.min(PIO_BYTES as u64) as usize);
        self.desk.leave(Job {
            kind: RequestKind::Read { offset },
            buffers,
        });
        self.set_busy();
    }

    /// Asks the host for the next chunk of a write, or ends.
    pub(crate) fn write_on(&mut self, first: bool) {
        let Phase::Write { left, block, .. } = self.phase else {
            return;
        };
        if left == 0 {
            return self.done();
        }
        let bytes = (left * SECTOR).min(PIO_BYTES as u64) as usize;
        self.offer(vec![0; bytes], block, !first);
    }

    fn leave_block(&mut self, data: &[u8], kind: RequestKind) {
        let mut buffers = self.block.buffers();
        let len = buffers.copy_from(data);
        buffers.truncate(len);
        self.desk.leave(Job { kind, buffers });
        self.set_busy();
    }

    /// Leaves a request without data.
    pub(crate) fn leave(&mut self, kind: RequestKind, phase: Phase) {
        self.phase = phase;
        self.desk.leave(Job {
            kind,
            buffers: treaty_buffers::IoBuffers::new(),
        });
        self.set_busy();
    }

    /// The bus master was started, or a command of DMA has come.
    pub(crate) fn dma(&mut self, cx: &mut Cx<'_>) {
        let ready = cx.bus_master.is_started() && cx.may_master && !self.desk.is_busy();
        if !ready {
            return;
        }
        match self.phase.clone() {
            Phase::Dma { next, left, write } => {
                if cx.bus_master.to_memory() != write.is_none() {
                    return self.dma_failed(cx);
                }
                let bytes = left.min(DMA_SECTORS) * SECTOR;
                let offset = next * SECTOR;
                let kind = match write {
                    None => RequestKind::Read { offset },
                    Some(Durable(durable)) => RequestKind::Write { offset, durable },
                };
                self.dma_request(cx, kind, bytes);
            }
            Phase::TrimList { bytes } => self.trim_list(cx, bytes),
            Phase::Packeted(stage) => self.packet_dma(cx, stage),
            _ => {}
        }
    }

    /// A request with the guest's own memory.
    pub(crate) fn dma_request(&mut self, cx: &mut Cx<'_>, kind: RequestKind, bytes: u64) {
        let mut buffers = treaty_buffers::IoBuffers::new();
        if !cx.bus_master.next(cx.memory, bytes, &mut buffers) {
            return self.dma_failed(cx);
        }
        self.desk.leave(Job { kind, buffers });
        self.set_busy();
    }

    pub(crate) fn dma_failed(&mut self, cx: &mut Cx<'_>) {
        cx.bus_master.failed();
        self.fail(error::ABRT);
    }

    /// A job has ended, on the drive's task.
    pub(crate) fn ended(&mut self, outcome: Outcome, cx: &mut Cx<'_>) {
        if !self.desk.ended() {
            return;
        }
        if outcome != Outcome::Done {
            return self.job_failed(cx);
        }
        match self.phase.clone() {
            Phase::Read { left, block, .. } => {
                let mut data = vec![0; (left * SECTOR).min(PIO_BYTES as u64) as usize];
                self.block.buffers().copy_to(&mut data);
                self.offer(data, block, true);
            }
            Phase::Write {
                next,
                left,
                block,
                durable,
            } => {
                let moved = (left * SECTOR).min(PIO_BYTES as u64) / SECTOR;
                self.phase = Phase::Write {
                    next: next + moved,
                    left: left - moved,
                    block,
                    durable,
                };
                self.write_on(false);
            }
            Phase::Dma { next, left, write } => {
                let moved = left.min(DMA_SECTORS);
                let left = left - moved;
                if left == 0 {
                    cx.bus_master.ended();
                    return self.done();
                }
                self.phase = Phase::Dma {
                    next: next + moved,
                    left,
                    write,
                };
                self.dma(cx);
            }
            Phase::Trim { ranges } => self.trim_on(ranges),
            Phase::Packeted(stage) => self.packet_job_ended(cx, stage),
            _ => self.done(),
        }
    }

    fn job_failed(&mut self, cx: &mut Cx<'_>) {
        let write = match self.phase {
            Phase::Packeted(_) => return self.packet_job_failed(cx),
            Phase::Read { .. } | Phase::Dma { write: None, .. } => false,
            _ => true,
        };
        if matches!(self.phase, Phase::Dma { .. }) {
            cx.bus_master.failed();
        }
        self.fail(if write { error::ABRT } else { error::UNC });
        if write {
            self.status |= status::DF;
        }
    }
}
