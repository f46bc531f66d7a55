//! The packet interface: commands for a CD-ROM in twelve bytes. ATA/ATAPI-7 §6.24, §9.8

use treaty_scsi_target::{Action, Answer, Range, Sense, Unit};
use treaty_storage::RequestKind;

use crate::drive::{Cx, Drive, Media, Phase};
use crate::registers::{error, reason};

/// Bytes of a packet.
const PACKET: usize = 12;
/// Bytes that one request moves by DMA.
const DMA_BYTES: u64 = 1 << 20;
/// There is one initiator.
const NEXUS: u64 = 0;

/// Where a packet's command is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// An answer goes to the host.
    Answer { data: Vec<u8>, dma: bool, limit: usize },
    /// The medium is read.
    Read { range: Range, dma: bool, limit: usize },
    /// Parameters come from the host.
    Parameters {
        cdb: [u8; PACKET],
        bytes: usize,
        dma: bool,
        limit: usize,
    },
}

impl Drive {
    fn unit(&mut self) -> Option<&mut Unit> {
        match &mut self.media {
            Media::Cdrom(unit) => Some(unit),
            Media::Disk(_) => None,
        }
    }

    /// PACKET: asks for the twelve bytes.
    pub(crate) fn packet(&mut self) {
        let dma = self.registers.feature.now & 1 != 0;
        let limit = match self.registers.byte_count() {
            0 | 0xffff => 0xfffe,
            limit => (limit & !1).max(2),
        };
        self.registers.count.now = reason::COMMAND;
        self.phase = Phase::Packet { dma, limit };
        self.offer(vec![0; PACKET], PACKET, false);
    }

    /// The host has given or taken a block.
    pub(crate) fn packet_block_ended(&mut self, cx: &mut Cx<'_>) {
        match self.phase.clone() {
            Phase::Packet { dma, limit } => {
                let mut cdb = [0; PACKET];
                cdb.iter_mut()
                    .zip(&self.pio.data)
                    .for_each(|(to, from)| *to = *from);
                self.set_busy();
                let Some(unit) = self.unit() else { return };
                let action = unit.command(NEXUS, &cdb);
                self.act(cx, action, cdb, dma, limit);
            }
            Phase::Packeted(stage) if self.is_buffer_used() => match stage {
                Stage::Answer { .. } => self.packet_done(),
                Stage::Read { range, dma, limit } => {
                    let moved = self.pio.data.len() as u64;
                    self.read_medium(range.after(moved), dma, limit, cx);
                }
                Stage::Parameters { cdb, dma, limit, .. } => {
                    let data = std::mem::take(&mut self.pio.data);
                    self.parameters(cx, cdb, &data, dma, limit);
                }
            },
            Phase::Packeted(
                Stage::Answer { limit, .. } | Stage::Read { limit, .. } | Stage::Parameters { limit, .. },
            ) => {
                let len = self.next_block(limit);
                self.registers.set_byte_count(len);
            }
            _ => {}
        }
    }

    fn act(&mut self, cx: &mut Cx<'_>, action: Action, cdb: [u8; PACKET], dma: bool, limit: usize) {
        match action {
            Action::Answer(Answer {
                sense: Some(sense), ..
            }) => self.packet_failed(sense),
            Action::Answer(Answer { data, .. }) if data.is_empty() => self.packet_done(),
            Action::Answer(Answer { data, .. }) if dma => {
                self.phase = Phase::Packeted(Stage::Answer { data, dma, limit });
                self.wait_for_dma();
                self.dma(cx);
            }
            Action::Answer(Answer { data, .. }) => {
                self.phase = Phase::Packeted(Stage::Answer {
                    data: Vec::new(),
                    dma,
                    limit,
                });
                self.offer_packet(data, limit, reason::TO_HOST);
            }
            Action::Read(range) => self.read_medium(range, dma, limit, cx),
            Action::Parameters(bytes) => {
                let bytes = bytes as usize;
                self.phase = Phase::Packeted(Stage::Parameters {
                    cdb,
                    bytes,
                    dma,
                    limit,
                });
                if dma {
                    self.wait_for_dma();
                    self.dma(cx);
                } else {
                    self.offer_packet(vec![0; bytes], limit, 0);
                }
            }
            // A CD-ROM asks for nothing else.
            _ => self.packet_failed(Sense::INVALID_COMMAND),
        }
    }

    fn parameters(&mut self, cx: &mut Cx<'_>, cdb: [u8; PACKET], data: &[u8], dma: bool, limit: usize) {
        let Some(unit) = self.unit() else { return };
        let action = unit.parameters(NEXUS, &cdb, data);
        self.act(cx, action, cdb, dma, limit);
    }

    /// Reads on, or ends.
    fn read_medium(&mut self, range: Range, dma: bool, limit: usize, cx: &mut Cx<'_>) {
        if range.len == 0 {
            return self.packet_done();
        }
        self.phase = Phase::Packeted(Stage::Read { range, dma, limit });
        if dma {
            self.wait_for_dma();
            self.dma(cx);
        } else {
            self.fetch(range.offset, range.len);
        }
    }

    /// The bus master was started in the middle of a packet's command.
    pub(crate) fn packet_dma(&mut self, cx: &mut Cx<'_>, stage: Stage) {
        match stage {
            Stage::Read { range, dma: true, .. } if cx.bus_master.to_memory() => {
                let kind = RequestKind::Read { offset: range.offset };
                self.dma_request(cx, kind, range.len.min(DMA_BYTES));
            }
            Stage::Answer { data, dma: true, .. } if cx.bus_master.to_memory() => {
                let mut buffers = treaty_buffers::IoBuffers::new();
                if !cx.bus_master.next(cx.memory, data.len() as u64, &mut buffers) {
                    return self.dma_failed(cx);
                }
                buffers.copy_from(&data);
                cx.bus_master.ended();
                self.packet_done();
            }
            Stage::Parameters {
                cdb,
                bytes,
                dma: true,
                limit,
            } if !cx.bus_master.to_memory() => {
                let mut buffers = treaty_buffers::IoBuffers::new();
                if !cx.bus_master.next(cx.memory, bytes as u64, &mut buffers) {
                    return self.dma_failed(cx);
                }
                let mut data = vec![0; bytes];
                buffers.copy_to(&mut data);
                cx.bus_master.ended();
                self.parameters(cx, cdb, &data, true, limit);
            }
            Stage::Answer { dma: true, .. }
            | Stage::Read { dma: true, .. }
            | Stage::Parameters { dma: true, .. } => {
                self.dma_failed(cx);
            }
            _ => {}
        }
    }

    pub(crate) fn packet_job_ended(&mut self, cx: &mut Cx<'_>, stage: Stage) {
        let Stage::Read { range, dma, limit } = stage else {
            return self.packet_done();
        };
        if dma {
            let rest = range.after(range.len.min(DMA_BYTES));
            if rest.len == 0 {
                cx.bus_master.ended();
            }
            return self.read_medium(rest, dma, limit, cx);
        }
        let mut data = vec![0; range.len.min(self.block.len() as u64) as usize];
        self.block.buffers().copy_to(&mut data);
        self.offer_packet(data, limit, reason::TO_HOST);
    }

    pub(crate) fn packet_job_failed(&mut self, cx: &mut Cx<'_>) {
        if matches!(self.phase, Phase::Packeted(Stage::Read { dma: true, .. })) {
            cx.bus_master.failed();
        }
        if let Some(unit) = self.unit() {
            unit.failed(Sense::READ_ERROR);
        }
        self.packet_failed(Sense::READ_ERROR);
    }

    fn offer_packet(&mut self, data: Vec<u8>, limit: usize, direction: u8) {
        let first = limit.min(data.len());
        self.registers.set_byte_count(first);
        self.registers.count.now = direction;
        self.offer(data, limit, true);
    }

    fn packet_done(&mut self) {
        self.registers.count.now = reason::COMMAND | reason::TO_HOST;
        self.end_packet(0);
    }

    /// The error register has the sense key. ATA/ATAPI-7 §6.24.6
    fn packet_failed(&mut self, sense: Sense) {
        const ILLEGAL_REQUEST: u8 = 5;
        self.registers.count.now = reason::COMMAND | reason::TO_HOST;
        let abort = if sense.key == ILLEGAL_REQUEST {
            error::ABRT
        } else {
            0
        };
        self.end_packet(sense.key << 4 | abort);
    }
}

/// What is left of a range.
trait After {
    fn after(self, bytes: u64) -> Self;
}

impl After for Range {
    fn after(self, bytes: u64) -> Self {
        let moved = bytes.min(self.len);
        Self {
            offset: self.offset + moved,
            len: self.len - moved,
        }
    }
}
