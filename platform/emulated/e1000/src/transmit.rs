//! The transmit ring: from descriptors to frames. 8254x 4.0 §3.3, §3.4

use crate::mac::Mac;
use crate::registers::*;
use crate::ring::{DESCRIPTOR_BYTES, Ring};
use crate::segment::{self, Context, Work};

/// Descriptors looked at in one go. 8254x has no such bound; a guest's doorbell must have one.
const BURST: u32 = 64;
/// Bytes of one packet that are kept; what is longer is dropped whole.
const MAX_PACKET: usize = 256 * 1024;
/// Bytes after which a burst ends.
const BURST_BYTES: usize = 128 * 1024;

/// A packet that is being put together, and what later descriptors refer to.
#[derive(Default)]
pub(crate) struct Transmit {
    packet: Vec<u8>,
    /// Too long, or its memory is not there: dropped at its end.
    broken: bool,
    /// Set by the packet's first descriptor.
    work: Option<Work>,
    context: Context,
    /// Segmentation has a context of its own. 8254x 4.0 §3.3.5
    segment_context: Context,
    resets: u32,
}

/// A descriptor, read once.
#[derive(Clone, Copy)]
struct Descriptor {
    address: u64,
    command: u32,
    fields: u32,
}

impl Descriptor {
    fn of(bytes: [u8; 16]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = bytes;
        Self {
            address: u64::from_le_bytes([a, b, c, d, e, f, g, h]),
            command: u32::from_le_bytes([i, j, k, l]),
            fields: u32::from_le_bytes([m, n, o, p]),
        }
    }

    fn has(&self, bit: u32) -> bool {
        self.command & bit != 0
    }

    fn is_context(&self) -> bool {
        self.has(command::DEXT) && self.command & command::DTYP == 0
    }

    fn is_data(&self) -> bool {
        self.command & (command::DEXT | command::DTYP) == command::DEXT | command::DTYP_DATA
    }
}

impl Transmit {
    /// Takes descriptors, writes back those that ask for it, and appends whole frames to `frames`. True if there may be more
    /// at once.
    pub(crate) fn fetch(&mut self, mac: &mut Mac, frames: &mut Vec<Vec<u8>>) -> bool {
        if self.resets != mac.resets {
            *self = Self {
                resets: mac.resets,
                ..Self::default()
            };
        }
        if mac.registers.get(TCTL) & tctl::EN == 0 || !mac.bus_master {
            return false;
        }
        let Some(mut ring) = Ring::of(&mac.registers, TDBAL) else {
            return false;
        };
        let count = ring.available().min(BURST);
        if count == 0 {
            return false;
        }
        let mut taken = 0;
        let mut bytes = 0;
        while taken < count && bytes < BURST_BYTES {
            let before = self.packet.len();
            if !self.step(mac, ring.address(0), frames) {
                break;
            }
            bytes += self.packet.len().saturating_sub(before) + 64;
            ring.advance(1);
            taken += 1;
        }
        mac.registers.set(TDH, ring.head);
        if ring.available() == 0 {
            mac.interrupts.add(cause::TXQE);
        }
        mac.update_interrupt();
        ring.available() > 0 && taken > 0
    }

    /// One descriptor; false if it cannot be read, which stops the ring as a bus error does.
    fn step(&mut self, mac: &mut Mac, address: u64, frames: &mut Vec<Vec<u8>>) -> bool {
        let mut bytes = [0; 16];
        if mac.memory.read(address, &mut bytes).is_err() {
            return false;
        }
        let descriptor = Descriptor::of(bytes);
        if descriptor.is_context() {
            self.set_context(&descriptor, bytes);
        } else {
            self.add(mac, &descriptor);
            if descriptor.has(command::EOP) {
                self.end(mac, frames);
            }
        }
        write_back(mac, address, &descriptor);
        true
    }

    /// 8254x 4.0 §3.3.6
    fn set_context(&mut self, descriptor: &Descriptor, bytes: [u8; 16]) {
        let [
            ipcss,
            ipcso,
            ipcse0,
            ipcse1,
            tucss,
            tucso,
            tucse0,
            tucse1,
            ..,
            hdrlen,
            mss0,
            mss1,
        ] = bytes;
        let two = |low, high| usize::from(u16::from_le_bytes([low, high]));
        let context = Context {
            ip_start: usize::from(ipcss),
            ip_checksum: usize::from(ipcso),
            ip_end: two(ipcse0, ipcse1),
            payload_start: usize::from(tucss),
            payload_checksum: usize::from(tucso),
            payload_end: two(tucse0, tucse1),
            header: usize::from(hdrlen),
            segment: two(mss0, mss1),
            tcp: descriptor.has(command::TCP),
            ipv4: descriptor.has(command::IP),
        };
        if descriptor.has(command::TSE) {
            self.segment_context = context;
        } else {
            self.context = context;
        }
    }

    fn add(&mut self, mac: &Mac, descriptor: &Descriptor) {
        if self.work.is_none() {
            self.work = Some(self.work_of(mac, descriptor));
        }
        let mask = if descriptor.is_data() { 0xf_ffff } else { 0xffff };
        let len = (descriptor.command & mask) as usize;
        let start = self.packet.len();
        self.broken |= start + len > MAX_PACKET;
        if self.broken || len == 0 {
            return;
        }
        self.packet.resize(start + len, 0);
        let place = self.packet.get_mut(start..).unwrap_or_default();
        if mac.memory.read(descriptor.address, place).is_err() {
            self.broken = true;
        }
        // The last descriptor's command says whether there is a tag; an old one's also where the checksum goes.
        if descriptor.has(command::EOP) && !descriptor.is_data() {
            self.work = Some(self.work_of(mac, descriptor));
        }
    }

    /// What the descriptor asks for.
    fn work_of(&self, mac: &Mac, descriptor: &Descriptor) -> Work {
        let tags = mac.registers.get(CTRL) & ctrl::VME != 0 && descriptor.has(command::VLE);
        let vlan = tags.then(|| {
            let tag = (descriptor.fields >> 16) as u16;
            (mac.registers.get(VET) as u16, tag)
        });
        if descriptor.is_data() {
            let segments = descriptor.has(command::TSE);
            let options = descriptor.fields >> 8;
            return Work {
                context: if segments {
                    self.segment_context
                } else {
                    self.context
                },
                segments,
                ip_checksum: options & 1 != 0,
                payload_checksum: options & 2 != 0,
                vlan,
            };
        }
        // 8254x 4.0 §3.3.3: one checksum, from CSS to the end, put at CSO.
        let context = Context {
            payload_start: (descriptor.fields >> 8 & 0xff) as usize,
            payload_checksum: (descriptor.command >> 16 & 0xff) as usize,
            ..Context::default()
        };
        Work {
            context,
            payload_checksum: descriptor.has(command::IC),
            vlan,
            ..Work::default()
        }
    }

    fn end(&mut self, mac: &mut Mac, frames: &mut Vec<Vec<u8>>) {
        let packet = std::mem::take(&mut self.packet);
        let work = self.work.take().unwrap_or_default();
        let broken = std::mem::take(&mut self.broken);
        if broken || packet.is_empty() {
            return;
        }
        let first = frames.len();
        segment::finish(packet, &work, frames);
        if work.segments {
            crate::statistics::segmented(&mut mac.registers);
        }
        for frame in frames.iter_mut().skip(first) {
            pad(frame, mac);
            crate::statistics::sent(&mut mac.registers, frame);
        }
    }
}

/// Short frames are filled up on the wire. 8254x 4.0 §13.4.33
fn pad(frame: &mut Vec<u8>, mac: &Mac) {
    const SHORTEST: usize = 60;
    if frame.len() < SHORTEST && mac.registers.get(TCTL) & tctl::PSP != 0 {
        frame.resize(SHORTEST, 0);
    }
}

/// Sets DD, and tells of it, where the descriptor asks for that. 8254x 4.0 §3.3.3.2
fn write_back(mac: &mut Mac, address: u64, descriptor: &Descriptor) {
    const DD: u8 = 1;
    if !descriptor.has(command::RS) && !descriptor.has(command::RPS) {
        return;
    }
    let status = descriptor.fields as u8 | DD;
    // It was readable just now.
    let _ = mac.memory.write(address.wrapping_add(12), &[status]);
    if descriptor.has(command::IDE) {
        let (packet, absolute) = (mac.registers.get(TIDV), mac.registers.get(TADV));
        // A quarter of the ring.
        let most = mac.registers.get(TDLEN) / DESCRIPTOR_BYTES / 4;
        let now = mac.now();
        mac.interrupts.transmitted_later(now, packet, absolute, most);
    } else {
        mac.interrupts.transmitted();
    }
}
