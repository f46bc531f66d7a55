//! The commands of ATA disks, and those that packet drives share. ATA/ATAPI-7 §6

use treaty_storage::RequestKind;

use crate::drive::{Cx, Disk, Drive, Durable, Media, Phase, SECTOR};
use crate::identify::{self, MAX_MULTIPLE};
use crate::registers::{Geometry, error, status};

/// Ranges that one block of TRIM can name.
const TRIM_ENTRIES: usize = 64;

/// How a command moves sectors.
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    /// One sector for each interrupt.
    Pio,
    /// As many as SET MULTIPLE MODE says.
    Multiple,
    Dma,
    /// Nothing is moved: READ VERIFY.
    Nothing,
}

/// What a command of sectors does.
#[derive(Clone, Copy)]
struct Sectors {
    write: Option<Durable>,
    by: By,
    wide: bool,
}

/// Reads and writes, by opcode.
fn sectors(opcode: u8) -> Option<Sectors> {
    const READ: Option<Durable> = None;
    const WRITE: Option<Durable> = Some(Durable(false));
    const FUA: Option<Durable> = Some(Durable(true));
    let (write, by, wide) = match opcode {
        0x20 | 0x21 => (READ, By::Pio, false),
        0x24 => (READ, By::Pio, true),
        0x25 => (READ, By::Dma, true),
        0x29 => (READ, By::Multiple, true),
        0x30 | 0x31 => (WRITE, By::Pio, false),
        0x34 => (WRITE, By::Pio, true),
        0x35 => (WRITE, By::Dma, true),
        0x39 => (WRITE, By::Multiple, true),
        0x3d => (FUA, By::Dma, true),
        0x40 | 0x41 => (READ, By::Nothing, false),
        0x42 => (READ, By::Nothing, true),
        0xc4 => (READ, By::Multiple, false),
        0xc5 => (WRITE, By::Multiple, false),
        0xc8 | 0xc9 => (READ, By::Dma, false),
        0xca | 0xcb => (WRITE, By::Dma, false),
        0xce => (FUA, By::Multiple, true),
        _ => return None,
    };
    Some(Sectors { write, by, wide })
}

impl Drive {
    /// The host has written the command register.
    pub(crate) fn command(&mut self, opcode: u8, cx: &mut Cx<'_>) {
        const DEVICE_RESET: u8 = 0x08;
        if opcode == DEVICE_RESET && self.is_packet() {
            return self.device_reset();
        }
        if self.is_busy() {
            return;
        }
        self.interrupt = false;
        self.error = 0;
        match (&self.media, sectors(opcode)) {
            (Media::Disk(_), Some(sectors)) => self.move_sectors(sectors, cx),
            (Media::Disk(_), None) => self.disk_command(opcode, cx),
            (Media::Cdrom(_), _) => self.packet_drive_command(opcode),
        }
    }

    /// ATA/ATAPI-7 §6.12
    fn device_reset(&mut self) {
        let device = self.registers.device;
        self.reset();
        self.registers.device = device;
    }

    fn disk_command(&mut self, opcode: u8, cx: &mut Cx<'_>) {
        let Media::Disk(disk) = &mut self.media else {
            return;
        };
        match opcode {
            // DATA SET MANAGEMENT
            0x06 => self.trim(cx),
            // RECALIBRATE, SEEK, CHECK POWER MODE and the other power modes: there is nothing to move.
            0x10..=0x1f | 0x70..=0x7f | 0xe0..=0xe3 | 0xe6 => self.done(),
            0xe5 => {
                self.registers.count.now = 0xff;
                self.done();
            }
            0x27 | 0xf8 => self.native_max(opcode == 0x27),
            // INITIALIZE DEVICE PARAMETERS
            0x91 => {
                let (heads, sectors) = ((self.registers.device & 0xf) + 1, self.registers.count.now);
                if sectors == 0 {
                    return self.fail(error::ABRT);
                }
                disk.geometry = Geometry { heads, sectors };
                self.done();
            }
            // SET MULTIPLE MODE
            0xc6 => {
                let count = self.registers.count.now;
                if count > MAX_MULTIPLE || count != 0 && !count.is_power_of_two() {
                    return self.fail(error::ABRT);
                }
                disk.multiple = count;
                self.done();
            }
            0xe7 | 0xea => self.flush(),
            0xec => {
                let Media::Disk(disk) = &self.media else {
                    return;
                };
                let data = identify::disk(self, disk);
                self.phase = Phase::None;
                self.offer(data, SECTOR as usize, true);
            }
            0xef => self.set_features(),
            // NOP and all that is not there.
            _ => self.fail(error::ABRT),
        }
    }

    fn packet_drive_command(&mut self, opcode: u8) {
        match opcode {
            // EXECUTE DEVICE DIAGNOSTIC comes by way of the channel. IDENTIFY DEVICE fails with the signature.
            0xec | 0x20 => {
                self.registers.set_signature(true);
                self.fail(error::ABRT);
            }
            0xa0 => self.packet(),
            0xa1 => {
                let data = identify::cdrom(self);
                self.phase = Phase::None;
                self.offer(data, SECTOR as usize, true);
            }
            0xe0..=0xe3 | 0xe6 => self.done(),
            0xe5 => {
                self.registers.count.now = 0xff;
                self.done();
            }
            0xe7 | 0xea => self.done(),
            0xef => self.set_features(),
            _ => self.fail(error::ABRT),
        }
    }

    /// Ends with what tells a host which drive it is. ATA/ATAPI-7 §6.13
    pub(crate) fn diagnose(&mut self) {
        self.reset();
        self.interrupt = true;
    }

    fn move_sectors(&mut self, sectors: Sectors, cx: &mut Cx<'_>) {
        let Media::Disk(disk) = &self.media else {
            return;
        };
        let range = if sectors.wide {
            self.registers.range_48()
        } else {
            self.registers.range_28(disk.geometry)
        };
        let Some((next, left)) = range.filter(|range| disk.has(*range)) else {
            return self.fail(error::IDNF);
        };
        if sectors.write.is_some() && disk.read_only {
            return self.fail(error::ABRT);
        }
        let block = match sectors.by {
            By::Multiple if disk.multiple == 0 => return self.fail(error::ABRT),
            By::Multiple => usize::from(disk.multiple) * SECTOR as usize,
            _ => SECTOR as usize,
        };
        // Without its cache the disk answers a write when it is durable.
        let write = sectors
            .write
            .map(|Durable(durable)| Durable(durable || !disk.write_cache));
        match (sectors.by, write) {
            (By::Nothing, _) => self.done(),
            (By::Dma, write) => {
                self.phase = Phase::Dma { next, left, write };
                self.wait_for_dma();
                self.dma(cx);
            }
            (_, None) => {
                self.phase = Phase::Read { next, left, block };
                self.read_on();
            }
            (_, Some(Durable(durable))) => {
                self.phase = Phase::Write {
                    next,
                    left,
                    block,
                    durable,
                };
                self.write_on(true);
            }
        }
    }

    /// DRQ without a buffer: the bus master moves the data.
    pub(crate) fn wait_for_dma(&mut self) {
        self.offer(Vec::new(), 0, false);
    }

    fn flush(&mut self) {
        match &self.media {
            Media::Disk(disk) if !disk.read_only => self.leave(RequestKind::Flush, Phase::Flush),
            _ => self.done(),
        }
    }

    fn set_features(&mut self) {
        let feature = self.registers.feature.now;
        let mode = self.registers.count.now;
        if feature == 0x03 {
            return match self.set_mode(mode) {
                true => self.done(),
                false => self.fail(error::ABRT),
            };
        }
        match (feature, &mut self.media) {
            (0x02, Media::Disk(disk)) => {
                disk.write_cache = true;
                self.done();
            }
            (0x82, Media::Disk(disk)) => {
                disk.write_cache = false;
                self.flush();
            }
            // Read look-ahead, and whether settings survive a reset.
            (0x55 | 0xaa | 0x66 | 0xcc, Media::Disk(_)) => self.done(),
            _ => self.fail(error::ABRT),
        }
    }

    fn native_max(&mut self, wide: bool) {
        let Media::Disk(disk) = &self.media else {
            return;
        };
        let last = disk.sectors.saturating_sub(1);
        let last = if wide { last } else { last.min(0x0fff_ffff) };
        let [a, b, c, d, e, f, ..] = last.to_le_bytes();
        let older = if wide { [d, e, f] } else { [0; 3] };
        for (register, (now, before)) in self
            .registers
            .lba
            .iter_mut()
            .zip([a, b, c].into_iter().zip(older))
        {
            (register.now, register.before) = (now, before);
        }
        if !wide {
            self.registers.device = self.registers.device & 0xf0 | d;
        }
        self.done();
    }

    /// Only TRIM, only by DMA. ATA8-ACS 2 §7.10
    fn trim(&mut self, cx: &mut Cx<'_>) {
        let Media::Disk(disk) = &self.media else {
            return;
        };
        let blocks = u64::from(self.registers.count.before) << 8 | u64::from(self.registers.count.now);
        if !disk.discard || disk.read_only || self.registers.feature.now & 1 == 0 || blocks != 1 {
            return self.fail(error::ABRT);
        }
        self.phase = Phase::TrimList { bytes: SECTOR };
        self.wait_for_dma();
        self.dma(cx);
    }

    pub(crate) fn trim_list(&mut self, cx: &mut Cx<'_>, bytes: u64) {
        let mut buffers = treaty_buffers::IoBuffers::new();
        if cx.bus_master.to_memory() || !cx.bus_master.next(cx.memory, bytes, &mut buffers) {
            return self.dma_failed(cx);
        }
        cx.bus_master.ended();
        let mut list = [0; SECTOR as usize];
        buffers.copy_to(&mut list);
        let Media::Disk(disk) = &self.media else {
            return;
        };
        let mut ranges = Vec::with_capacity(TRIM_ENTRIES);
        for entry in list.as_chunks::<8>().0 {
            let entry = u64::from_le_bytes(*entry);
            let (first, count) = (entry & 0xffff_ffff_ffff, entry >> 48);
            if count == 0 {
                continue;
            }
            if !disk.has((first, count)) {
                return self.fail(error::IDNF);
            }
            ranges.push((first * SECTOR, count * SECTOR));
        }
        self.trim_on(ranges);
    }

    pub(crate) fn trim_on(&mut self, mut ranges: Vec<(u64, u64)>) {
        match ranges.pop() {
            None => self.done(),
            Some((offset, len)) => {
                self.leave(RequestKind::Discard { offset, len }, Phase::Trim { ranges });
            }
        }
    }
}

impl Disk {
    /// True if it has all these sectors.
    fn has(&self, (first, count): (u64, u64)) -> bool {
        first.checked_add(count).is_some_and(|end| end <= self.sectors)
    }
}

/// What both drives of a channel show while a reset is held.
pub(crate) const IN_RESET: u8 = status::BSY;
