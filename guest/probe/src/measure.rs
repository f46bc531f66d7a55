//! One workload's figures: several runs, their median, one text line and one JSON line.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;

use treaty_virtio_driver::{DmaMemory, DriverError, Queue, Transport};
use treaty_virtio_spec::{Features, feature};

use crate::clock::{self, Clock};
use crate::params::{Load, Params};
use crate::{console, interrupts, say};

/// How completions are awaited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The processor looks at the ring all the time.
    Polled,
    /// It sleeps until the device interrupts.
    Interrupt,
}

/// What one run counted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Operations finished.
    pub operations: u64,
    /// TSC cycles it took.
    pub cycles: u64,
    /// Doorbells rung.
    pub notifications: u64,
    /// Interrupts taken.
    pub interrupts: u64,
    /// Median and 99th percentile of an operation's cycles; 0 if they were not taken.
    pub latency: (u64, u64),
}

/// What was measured, apart from the figures.
pub struct Case<'a> {
    /// Name of the workload.
    pub name: &'a str,
    /// Where the device is.
    pub place: &'a dyn fmt::Display,
    /// How completions were awaited.
    pub mode: Mode,
    /// False: it has no virtqueue.
    pub virtio: bool,
    /// What was negotiated.
    pub features: Features,
    /// How much at a time.
    pub load: Load,
}

/// A stretch of time that a loop may take: `is_over` after the run's milliseconds; `is_stuck` when nothing has come
/// back for two seconds.
pub struct Stretch {
    start: u64,
    end: u64,
    stuck_after: u64,
    last_progress: u64,
    interrupts: u32,
    /// Times of single operations, if they are wanted.
    latencies: Option<Box<Histogram>>,
}

/// Something went wrong with a device; the text says what.
#[derive(Debug)]
pub enum Failure {
    /// The driver gave up.
    Driver(DriverError),
    /// Nothing came back for two seconds.
    Stuck,
    /// What came back is wrong.
    Data(&'static str),
}

impl From<DriverError> for Failure {
    fn from(error: DriverError) -> Self {
        Self::Driver(error)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Driver(error) => write!(f, "{error}"),
            Self::Stuck => f.write_str("the device does not answer"),
            Self::Data(what) => f.write_str(what),
        }
    }
}

const STUCK_MS: u64 = 2000;

impl Stretch {
    /// Starts now.
    pub fn start(clock: &Clock, ms: u64) -> Self {
        let start = clock::now();
        Self {
            start,
            end: start + clock.cycles_in_ms(ms),
            stuck_after: clock.cycles_in_ms(STUCK_MS),
            last_progress: start,
            interrupts: interrupts::device_count(),
            latencies: clock.latency.then(Box::default),
        }
    }

    /// The time, if times of single operations are wanted; 0 if not.
    #[inline]
    pub fn now(&self) -> u64 {
        if self.latencies.is_some() { clock::now() } else { 0 }
    }

    /// An operation that began then has ended.
    #[inline]
    pub fn took(&mut self, begin: u64) {
        if let Some(latencies) = &mut self.latencies {
            latencies.add(clock::now().saturating_sub(begin));
        }
    }

    /// True when the time is up. Called when something has come back.
    #[inline]
    pub fn is_over(&mut self) -> bool {
        let now = clock::now();
        self.last_progress = now;
        now >= self.end
    }

    /// An error when nothing has come back for too long.
    pub fn check(&self) -> Result<(), Failure> {
        match clock::now() - self.last_progress > self.stuck_after {
            true => Err(Failure::Stuck),
            false => Ok(()),
        }
    }

    /// The figures, with the notifications that the queue counted meanwhile.
    pub fn counts(&self, operations: u64, notifications: u64) -> Counts {
        Counts {
            operations,
            cycles: clock::now() - self.start,
            notifications,
            interrupts: u64::from(interrupts::device_count().wrapping_sub(self.interrupts)),
            latency: self
                .latencies
                .as_ref()
                .map_or((0, 0), |times| (times.at(500), times.at(990))),
        }
    }
}

/// Waits a little for the device: spins, or arms the queue and sleeps. `acknowledge` quiets the interrupt.
#[inline]
pub fn wait<T: Transport, D: DmaMemory>(
    mode: Mode,
    queue: &mut Queue<T, D>,
    stretch: &Stretch,
    spins: &mut u32,
) -> Result<bool, Failure> {
    if mode == Mode::Interrupt {
        let ready = queue.arm();
        if !ready {
            interrupts::sleep();
        }
        queue.disarm();
        stretch.check()?;
        return Ok(!ready);
    }
    core::hint::spin_loop();
    *spins = spins.wrapping_add(1);
    if spins.is_multiple_of(1024) {
        stretch.check()?;
    }
    Ok(false)
}

/// Says where something begins or ends, and does nothing until the host, which reads its counters meanwhile, sends a byte.
pub fn mark(params: &Params, clock: &Clock, what: &str) {
    if !params.marks {
        return;
    }
    say!("PROBE {{\"mark\":\"{what}\"}}");
    console::wait_byte(clock);
}

/// Runs `run` as often as asked and reports.
pub fn report(
    params: &Params,
    clock: &Clock,
    case: &Case<'_>,
    mut run: impl FnMut() -> Result<Counts, Failure>,
) -> Result<(), Failure> {
    let mut counts = Vec::with_capacity(params.runs as usize);
    mark(params, clock, "begin");
    for _ in 0..params.runs {
        counts.push(run()?);
    }
    mark(params, clock, "end");
    let all = counts.iter().map(|count| count.operations).sum::<u64>();
    counts.sort_unstable_by_key(|count| rate(clock, count));
    let middle = counts[counts.len() / 2];
    let operations = middle.operations.max(1);
    let rates = [
        rate(clock, &counts[0]),
        rate(clock, &middle),
        rate(clock, &counts[counts.len() - 1]),
    ];
    let ring = if !case.virtio {
        "none"
    } else if case.features.has(feature::RING_PACKED) {
        "packed"
    } else {
        "split"
    };
    let mode = match case.mode {
        Mode::Polled => "polled",
        Mode::Interrupt => "interrupt",
    };
    let per_op = |count: u64| Thousandths(count * 1000 / operations);
    if !params.json {
        say!(
            "{:<10} {} {ring:<6} {mode:<9} {:>5} B x {:<3} {:>9}/s {:>7} ns {:>8} cycles {:>6} doorbells {:>6} interrupts",
            case.name,
            case.place,
            case.load.bytes,
            case.load.depth,
            rates[1],
            clock.ns(middle.cycles) / operations,
            middle.cycles / operations,
            per_op(middle.notifications),
            per_op(middle.interrupts),
        );
    }
    say!(
        "PROBE {{\"workload\":\"{}\",\"device\":\"{}\",\"ring\":\"{ring}\",\"features\":[{}],\"mode\":\"{mode}\",\"bytes\":{},\"depth\":{},\"batch\":{},\
         \"operations\":{},\"ops_per_s\":{},\"spread\":[{},{}],\"ns_per_op\":{},\"cycles_per_op\":{},\"notifications\":{},\
         \"interrupts\":{},\"notifications_per_op\":{},\"interrupts_per_op\":{},\"all_operations\":{all},\"p50_ns\":{},\"p99_ns\":{}}}",
        case.name,
        case.place,
        FeatureNames(case.features),
        case.load.bytes,
        case.load.depth,
        case.load.batch,
        middle.operations,
        rates[1],
        rates[0],
        rates[2],
        Thousandths(clock.ns(middle.cycles) * 1000 / operations),
        Thousandths(middle.cycles * 1000 / operations),
        middle.notifications,
        middle.interrupts,
        per_op(middle.notifications),
        per_op(middle.interrupts),
        clock.ns(middle.latency.0),
        clock.ns(middle.latency.1),
    );
    Ok(())
}

/// Operations in a second.
fn rate(clock: &Clock, count: &Counts) -> u64 {
    let ns = clock.ns(count.cycles).max(1);
    (u128::from(count.operations) * 1_000_000_000 / u128::from(ns)) as u64
}

const STEPS: usize = 16;

/// How often an operation took so many cycles: sixteen steps for each power of two.
struct Histogram {
    counts: [u32; STEPS * 40],
    total: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            counts: [0; STEPS * 40],
            total: 0,
        }
    }
}

impl Histogram {
    fn add(&mut self, cycles: u64) {
        let cycles = cycles.max(STEPS as u64);
        let power = cycles.ilog2() as usize;
        let step = (cycles >> (power - 4)) as usize - STEPS;
        let place = (power - 4) * STEPS + step;
        let last = self.counts.len() - 1;
        self.counts[place.min(last)] += 1;
        self.total += 1;
    }

    /// The middle of the step that holds the operation with `thousandths` of all below it.
    fn at(&self, thousandths: u64) -> u64 {
        let mut left = self.total * thousandths / 1000;
        for (place, count) in self.counts.iter().enumerate() {
            let count = u64::from(*count);
            if left < count {
                let (power, step) = (place / STEPS, place % STEPS);
                return ((2 * (STEPS + step) as u64 + 1) << power) / 2;
            }
            left -= count;
        }
        0
    }
}

/// A number with three decimals.
struct Thousandths(u64);

impl fmt::Display for Thousandths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03}", self.0 / 1000, self.0 % 1000)
    }
}

/// The ring features of a set, as JSON strings.
struct FeatureNames(Features);

impl fmt::Display for FeatureNames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = [
            (feature::INDIRECT_DESC, "indirect"),
            (feature::EVENT_IDX, "event_idx"),
            (feature::IN_ORDER, "in_order"),
            (feature::NOTIFICATION_DATA, "notification_data"),
        ];
        let mut separator = "";
        for (_, name) in names.iter().filter(|(bit, _)| self.0.has(*bit)) {
            write!(f, "{separator}\"{name}\"")?;
            separator = ",";
        }
        Ok(())
    }
}
