//! The command line: words separated by blanks, each `key` or `key=value`. Unknown words are ignored, because monitors
//! add words of their own.
//!
//! | word | meaning |
//! |---|---|
//! | `blk[=BYTES,DEPTH,BATCH]` | block reads: DEPTH in flight, new ones when BATCH have come back; may be given several times |
//! | `blkw[=BYTES,DEPTH,BATCH]` | block writes, on a range that is saved and put back |
//! | `net[=BYTES,DEPTH,BATCH]` | sent frames, and how many came back |
//! | `e1000[=BYTES,DEPTH,BATCH]` | frames by an emulated e1000, which first sends some to itself |
//! | `ide[=BYTES]`, `idew[=BYTES]` | reads and writes of the first IDE disk, by DMA, one at a time |
//! | `rng[=BYTES]`, `console[=LINES]` | entropy requests; lines of output |
//! | `ring=split\|packed\|both` | ring layouts, default both (packed where it is offered) |
//! | `mode=polled\|interrupt\|both` | how completions are awaited, default polled |
//! | `no=indirect,event_idx,in_order,notification_data` | ring features not to accept |
//! | `runs=N`, `ms=N` | runs of each workload, and how long one takes |
//! | `mmio=BASE,STRIDE,COUNT[,GSI]` | where to look for virtio-mmio devices; GSI is the first one's interrupt |
//! | `virtio_mmio.device=SIZE@BASE:GSI` | one virtio-mmio device |
//! | `ecam=ADDR`, `pci=off`, `bars=START,END` | PCI configuration memory; no PCI; where to put BARs without address |
//! | `latency` | times of single operations too |
//! | `marks` | says where the measured stretch of each workload begins and ends, and waits for a byte on the console each time |
//! | `queue=N` | the most entries of a queue, default 256 |
//! | `tsc_khz=N`, `json` | the TSC's frequency; JSON lines only |

use alloc::vec::Vec;

use treaty_virtio_spec::{Features, feature};

/// How much at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Bytes of one operation.
    pub bytes: u32,
    /// The most operations in flight.
    pub depth: u16,
    /// New operations wait until so many can be started with one notification.
    pub batch: u16,
}

impl Load {
    const fn new(bytes: u32, depth: u16) -> Self {
        Self {
            bytes,
            depth,
            batch: 1,
        }
    }
}

/// One thing to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Reads.
    BlkRead(Load),
    /// Writes.
    BlkWrite(Load),
    /// Frames.
    Net(Load),
    /// Frames, by an e1000.
    E1000(Load),
    /// Reads of an IDE disk.
    IdeRead(Load),
    /// Writes.
    IdeWrite(Load),
    /// Requests for so many random bytes.
    Rng(u32),
    /// Lines of output.
    Console(u32),
}

/// A row of places where virtio-mmio devices may be.
#[derive(Clone, Copy, Debug)]
pub struct MmioRow {
    /// Address of the first.
    pub base: u64,
    /// Bytes from one to the next.
    pub stride: u64,
    /// How many.
    pub count: u64,
    /// Global system interrupt of the first; the others follow.
    pub gsi: Option<u32>,
    /// Nobody said that there are devices.
    pub is_guess: bool,
}

/// What the command line asks for.
pub struct Params {
    /// In the order given.
    pub work: Vec<Work>,
    /// Layouts: split, packed.
    pub rings: (bool, bool),
    /// Modes: polled, interrupt.
    pub modes: (bool, bool),
    /// Ring features not to accept.
    pub refused: Features,
    /// Runs of each workload.
    pub runs: u32,
    /// Milliseconds of one run.
    pub ms: u64,
    /// Most entries of a queue.
    pub queue_size: u16,
    /// Where to look for virtio-mmio.
    pub mmio: Vec<MmioRow>,
    /// False: PCI is left alone.
    pub pci: bool,
    /// Configuration memory.
    pub ecam: Option<u64>,
    /// Where BARs without an address go.
    pub bars: (u64, u64),
    /// The TSC's frequency.
    pub tsc_khz: Option<u64>,
    /// JSON lines only.
    pub json: bool,
    /// Times of single operations are taken.
    pub latency: bool,
    /// Stops where a measured stretch begins and ends.
    pub marks: bool,
}

/// Of QEMU's microvm.
const MICROVM_MMIO: MmioRow = MmioRow {
    base: 0xfeb0_0000,
    stride: 0x200,
    count: 24,
    gsi: None,
    is_guess: true,
};

impl Params {
    /// Reads the command line.
    pub fn parse(line: &str) -> Self {
        let mut params = Self {
            work: Vec::new(),
            rings: (true, true),
            modes: (true, false),
            refused: Features::NONE,
            runs: 3,
            ms: 100,
            queue_size: 256,
            mmio: Vec::new(),
            pci: true,
            ecam: None,
            bars: (0xe800_0000, 0xf000_0000),
            tsc_khz: None,
            json: false,
            latency: false,
            marks: false,
        };
        for word in line.split_ascii_whitespace() {
            let (key, value) = word.split_once('=').unwrap_or((word, ""));
            params.word(key, value);
        }
        if params.work.is_empty() {
            let all = [
                Work::BlkRead(Load::new(4096, 1)),
                Work::BlkRead(Load::new(4096, 32)),
                Work::Net(Load::new(64, 32)),
                Work::Rng(64),
                Work::Console(32),
            ];
            params.work.extend(all);
        }
        if params.mmio.is_empty() {
            params.mmio.push(MICROVM_MMIO);
        }
        params
    }

    fn word(&mut self, key: &str, value: &str) {
        let numbers = Numbers::of(value);
        let bytes = |default: u64| numbers.at(0).unwrap_or(default).clamp(1, 1 << 20) as u32;
        let load = |bytes: u32| {
            let depth = numbers.at(1).unwrap_or(32).clamp(1, 1024);
            let batch = numbers.at(2).unwrap_or(1).clamp(1, depth);
            Load {
                bytes,
                depth: depth as u16,
                batch: batch as u16,
            }
        };
        match key {
            "blk" => self
                .work
                .push(Work::BlkRead(load(bytes(4096).next_multiple_of(512)))),
            "blkw" => self
                .work
                .push(Work::BlkWrite(load(bytes(4096).next_multiple_of(512)))),
            "net" => self.work.push(Work::Net(load(bytes(64).clamp(60, 1514)))),
            "e1000" => self.work.push(Work::E1000(load(bytes(64).clamp(60, 1514)))),
            "ide" => self
                .work
                .push(Work::IdeRead(load(bytes(4096).next_multiple_of(512)))),
            "idew" => self
                .work
                .push(Work::IdeWrite(load(bytes(4096).next_multiple_of(512)))),
            "latency" => self.latency = true,
            "marks" => self.marks = true,
            "rng" => self.work.push(Work::Rng(bytes(64).min(65536))),
            "console" => self.work.push(Work::Console(bytes(32).min(100_000))),
            "ring" => self.rings = (value != "packed", value != "split"),
            "mode" => self.modes = (value != "interrupt", value != "polled"),
            "no" => value
                .split(',')
                .for_each(|name| self.refused |= ring_feature(name)),
            "runs" => self.runs = numbers.at(0).unwrap_or(3).clamp(1, 99) as u32,
            "ms" => self.ms = numbers.at(0).unwrap_or(100).clamp(1, 10_000),
            "queue" => self.queue_size = numbers.at(0).unwrap_or(256).clamp(1, 1024) as u16,
            "mmio" => {
                if let (Some(base), Some(stride), Some(count)) = (numbers.at(0), numbers.at(1), numbers.at(2))
                {
                    let gsi = numbers.at(3).map(|gsi| gsi as u32);
                    self.mmio.push(MmioRow {
                        base,
                        stride,
                        count: count.min(64),
                        gsi,
                        is_guess: false,
                    });
                }
            }
            "virtio_mmio.device" => self.mmio.extend(kernel_style(value)),
            "pci" => self.pci = value != "off",
            "ecam" => self.ecam = numbers.at(0),
            "bars" => {
                if let (Some(start), Some(end)) = (numbers.at(0), numbers.at(1)) {
                    self.bars = (start, end);
                }
            }
            "tsc_khz" => self.tsc_khz = numbers.at(0),
            "json" => self.json = true,
            _ => {}
        }
    }
}

/// `SIZE@BASE:GSI[:ID]`, as Linux takes it.
fn kernel_style(value: &str) -> Option<MmioRow> {
    let (size, rest) = value.split_once('@')?;
    let (base, rest) = rest.split_once(':')?;
    let gsi = rest.split(':').next()?;
    Some(MmioRow {
        base: number(base)?,
        stride: number(size)?,
        count: 1,
        gsi: Some(number(gsi)? as u32),
        is_guess: false,
    })
}

fn ring_feature(name: &str) -> Features {
    match name {
        "indirect" => feature::INDIRECT_DESC,
        "event_idx" => feature::EVENT_IDX,
        "in_order" => feature::IN_ORDER,
        "notification_data" => feature::NOTIFICATION_DATA,
        _ => Features::NONE,
    }
}

/// The comma-separated numbers of a value.
struct Numbers([Option<u64>; 4]);

impl Numbers {
    fn of(value: &str) -> Self {
        let mut list = [None; 4];
        for (place, text) in list.iter_mut().zip(value.split(',')) {
            *place = number(text);
        }
        Self(list)
    }

    fn at(&self, index: usize) -> Option<u64> {
        self.0.get(index).copied().flatten()
    }
}

/// Decimal or `0x` hexadecimal, with K, M or G.
fn number(text: &str) -> Option<u64> {
    let (digits, shift) = match text.as_bytes().last()? {
        b'k' | b'K' => (&text[..text.len() - 1], 10),
        b'm' | b'M' => (&text[..text.len() - 1], 20),
        b'g' | b'G' => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let value = match digits.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => digits.parse(),
    };
    value.ok()?.checked_shl(shift)
}
