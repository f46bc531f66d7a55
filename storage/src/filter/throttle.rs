use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use treaty_worker::Turn;

use super::inner::{Inner, NEVER};
use crate::{BlockImage, BlockQueue, Capabilities, Extent, Finished, Request, RequestKind, StorageError};

/// How much a second, of requests or bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rate {
    /// Over time; 0 is no limit.
    pub average: u64,
    /// After a pause: as much as this in one second. 0 is a tenth of the average.
    pub burst: u64,
}

/// The limits of a group. A request must be within all that apply to it. Flushes are not limited; a discard or zeroing is
/// one request without bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ThrottleLimits {
    /// Requests.
    pub iops: Rate,
    /// Reads.
    pub iops_rd: Rate,
    /// Requests that change something.
    pub iops_wr: Rate,
    /// Bytes.
    pub bps: Rate,
    /// Bytes read.
    pub bps_rd: Rate,
    /// Bytes written.
    pub bps_wr: Rate,
}

impl ThrottleLimits {
    /// True if nothing is limited.
    pub fn is_none(&self) -> bool {
        let rates = [
            self.iops,
            self.iops_rd,
            self.iops_wr,
            self.bps,
            self.bps_rd,
            self.bps_wr,
        ];
        rates.iter().all(|rate| rate.average == 0)
    }
}

const SECOND_NS: u64 = 1_000_000_000;

/// A token bucket, kept as the time at which it will be full again. Costs in time, so that no refill is ever needed.
#[derive(Debug, Default)]
struct Bucket {
    /// Units a second; 0 is no limit.
    rate: u64,
    /// How far ahead of its time the bucket may be: its capacity.
    tolerance_ns: u64,
    full_at_ns: u64,
}

impl Bucket {
    fn new(rate: u64, capacity: u64) -> Self {
        Self {
            rate,
            tolerance_ns: cost_ns(capacity, rate),
            full_at_ns: 0,
        }
    }

    /// Takes `units` out; answers when a request of that size may start.
    fn reserve(&mut self, now: u64, units: u64) -> u64 {
        if self.rate == 0 {
            return now;
        }
        let start = self.full_at_ns.saturating_sub(self.tolerance_ns).max(now);
        self.full_at_ns = self.full_at_ns.max(now).saturating_add(cost_ns(units, self.rate));
        start
    }
}

fn cost_ns(units: u64, rate: u64) -> u64 {
    let cost = u128::from(units) * u128::from(SECOND_NS) / u128::from(rate.max(1));
    u64::try_from(cost).unwrap_or(u64::MAX / 4)
}

/// A limit as two buckets: the average over the burst's size, and the burst's own rate over a tenth of a second.
#[derive(Debug, Default)]
struct Limit(Bucket, Bucket);

impl Limit {
    fn new(rate: Rate) -> Self {
        let Rate { average, burst } = rate;
        if average == 0 {
            return Self::default();
        }
        if burst <= average {
            return Self(Bucket::new(average, average / 10), Bucket::default());
        }
        Self(Bucket::new(average, burst), Bucket::new(burst, burst / 10))
    }

    fn reserve(&mut self, now: u64, units: u64) -> u64 {
        self.0.reserve(now, units).max(self.1.reserve(now, units))
    }
}

#[derive(Debug)]
struct Limits {
    /// Total, reads, changes.
    requests: [Limit; 3],
    bytes: [Limit; 3],
}

/// Limits that one or several disks share. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ThrottleGroup(Arc<Group>);

#[derive(Debug)]
struct Group {
    limits: ThrottleLimits,
    epoch: Instant,
    state: Mutex<Limits>,
}

impl ThrottleGroup {
    /// A group with these limits.
    pub fn new(limits: ThrottleLimits) -> Self {
        let state = Limits {
            requests: [limits.iops, limits.iops_rd, limits.iops_wr].map(Limit::new),
            bytes: [limits.bps, limits.bps_rd, limits.bps_wr].map(Limit::new),
        };
        Self(Arc::new(Group {
            limits,
            epoch: Instant::now(),
            state: Mutex::new(state),
        }))
    }

    /// Its limits.
    pub fn limits(&self) -> ThrottleLimits {
        self.0.limits
    }

    /// Charges a request; answers when it may start.
    fn reserve(&self, direction: Direction, bytes: u64, now: u64) -> u64 {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        let Limits {
            requests,
            bytes: transfer,
        } = &mut *state;
        let mut start = now;
        for which in [0, 1 + direction as usize] {
            start = start.max(requests[which].reserve(now, 1));
            start = start.max(transfer[which].reserve(now, bytes));
        }
        start
    }
}

/// What a throttled disk counts.
#[derive(Debug, Default)]
pub struct ThrottleCounts {
    requests: AtomicU64,
    ns: AtomicU64,
}

impl ThrottleCounts {
    /// Requests that had to wait.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Nanoseconds that they waited, all together.
    pub fn ns(&self) -> u64 {
        self.ns.load(Ordering::Relaxed)
    }
}

/// Holds requests back until their group's limits allow them. Each queue waits with one request of each direction at a
/// time, so that the disks of a group take turns.
pub struct Throttle {
    inner: Arc<dyn BlockImage>,
    group: ThrottleGroup,
    counts: Arc<ThrottleCounts>,
}

impl Throttle {
    /// Passes requests on to `inner`, as a member of `group`.
    pub fn new(inner: Arc<dyn BlockImage>, group: ThrottleGroup) -> Self {
        Self {
            inner,
            group,
            counts: Arc::default(),
        }
    }

    /// Its counts, readable while it runs.
    pub fn counts(&self) -> Arc<ThrottleCounts> {
        self.counts.clone()
    }
}

impl BlockImage for Throttle {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn queue(&self) -> Result<Box<dyn BlockQueue>, StorageError> {
        Ok(Box::new(ThrottleQueue {
            inner: Inner::new(&*self.inner)?,
            group: self.group.clone(),
            counts: self.counts.clone(),
            offset: None,
            waiting: Default::default(),
        }))
    }

    fn map(&self, offset: u64, len: u64) -> Result<Vec<Extent>, StorageError> {
        self.inner.map(offset, len)
    }
}

#[derive(Clone, Copy)]
enum Direction {
    Read,
    Write,
}

/// What a request counts as; `None` if it is not limited.
fn direction(kind: RequestKind) -> Option<Direction> {
    match kind {
        RequestKind::Read { .. } => Some(Direction::Read),
        RequestKind::Flush => None,
        _ => Some(Direction::Write),
    }
}

struct Waiting {
    request: Request,
    arrived_ns: u64,
    /// When it may start, once it is the first of its queue.
    start_ns: Option<u64>,
}

struct ThrottleQueue {
    inner: Inner,
    group: ThrottleGroup,
    counts: Arc<ThrottleCounts>,
    /// From the worker's clock to the group's, with which workers agree.
    offset: Option<u64>,
    /// Reads, changes.
    waiting: [VecDeque<Waiting>; 2],
}

impl ThrottleQueue {
    fn now(&mut self, turn: &Turn<'_>) -> u64 {
        let elapsed = || self.group.0.epoch.elapsed().as_nanos() as u64;
        let offset = *self
            .offset
            .get_or_insert_with(|| elapsed().wrapping_sub(turn.now()));
        turn.now().wrapping_add(offset)
    }

    /// Lets go of what may start. True if there was something.
    fn release(&mut self, turn: &mut Turn<'_>) -> bool {
        let now = self.now(turn);
        let mut released = false;
        for direction in [Direction::Read, Direction::Write] {
            while let Some(first) = self.waiting[direction as usize].front_mut() {
                let bytes = first.request.buffers.len() as u64;
                let group = &self.group;
                let start = *first
                    .start_ns
                    .get_or_insert_with(|| group.reserve(direction, bytes, now));
                if start > now && !turn.stopping() {
                    break;
                }
                let Some(first) = self.waiting[direction as usize].pop_front() else {
                    break;
                };
                self.counts.requests.fetch_add(1, Ordering::Relaxed);
                let waited = now.saturating_sub(first.arrived_ns);
                self.counts.ns.fetch_add(waited, Ordering::Relaxed);
                self.inner.submit(turn, first.request);
                released = true;
            }
        }
        released
    }

    /// When the next one may start, by the worker's clock.
    fn next_start(&self) -> u64 {
        let firsts = self.waiting.iter().filter_map(|queue| queue.front()?.start_ns);
        let offset = self.offset.unwrap_or_default();
        firsts
            .map(|start| start.wrapping_sub(offset))
            .min()
            .unwrap_or(NEVER)
    }
}

impl BlockQueue for ThrottleQueue {
    fn submit(&mut self, turn: &mut Turn<'_>, request: Request) {
        let Some(direction) = direction(request.kind) else {
            return self.inner.submit(turn, request);
        };
        let now = self.now(turn);
        let queue = &mut self.waiting[direction as usize];
        let mut start_ns = None;
        if queue.is_empty() {
            let start = self.group.reserve(direction, request.buffers.len() as u64, now);
            if start <= now || turn.stopping() {
                return self.inner.submit(turn, request);
            }
            start_ns = Some(start);
        }
        queue.push_back(Waiting {
            request,
            arrived_ns: now,
            start_ns,
        });
    }

    fn poll(&mut self, turn: &mut Turn<'_>, done: &mut Vec<Finished>) {
        self.inner.poll(turn, done);
        while self.release(turn) {
            self.inner.poll(turn, done);
        }
        let start = self.next_start();
        self.inner.set_timer(turn, start);
    }

    fn in_flight(&self) -> usize {
        self.inner.in_flight() + self.waiting.iter().map(VecDeque::len).sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// When each of `count` requests of `units`, all there at time 0, may start.
    fn starts(rate: Rate, units: u64, count: usize) -> Vec<u64> {
        let mut limit = Limit::new(rate);
        (0..count).map(|_| limit.reserve(0, units)).collect()
    }

    #[test]
    fn an_average_lets_a_tenth_of_a_second_through_and_then_its_rate() {
        let rate = Rate {
            average: 1000,
            burst: 0,
        };
        let starts = starts(rate, 1, 1101);
        assert!(starts[..=100].iter().all(|&start| start == 0));
        assert_eq!(
            (starts[101], starts[600], starts[1100]),
            (MS, 500 * MS, 1000 * MS)
        );
    }

    #[test]
    fn a_burst_has_its_own_rate_and_ends() {
        let rate = Rate {
            average: 100,
            burst: 1000,
        };
        let starts = starts(rate, 1, 1201);
        // The burst runs at 1000 a second, after its own first tenth; then the average holds.
        assert_eq!((starts[100], starts[600], starts[1000]), (0, 500 * MS, 900 * MS));
        assert_eq!(starts[1200], 2000 * MS);
    }

    #[test]
    fn a_request_larger_than_the_bucket_runs_and_is_paid_for_afterwards() {
        let rate = Rate {
            average: 1000,
            burst: 0,
        };
        assert_eq!(starts(rate, 5000, 3), [0, 4900 * MS, 9900 * MS]);
    }

    #[test]
    fn unused_time_is_not_saved_up() {
        let mut limit = Limit::new(Rate {
            average: 10,
            burst: 0,
        });
        assert_eq!(limit.reserve(0, 1), 0);
        let later = 100 * SECOND_NS;
        let starts: Vec<_> = (0..4).map(|_| limit.reserve(later, 1) - later).collect();
        assert_eq!(starts, [0, 0, 100 * MS, 200 * MS]);
    }

    #[test]
    fn no_rate_is_no_limit_and_huge_numbers_do_not_overflow() {
        assert_eq!(starts(Rate::default(), u64::MAX, 3), [0, 0, 0]);
        let rate = Rate {
            average: 1,
            burst: u64::MAX,
        };
        let mut limit = Limit::new(rate);
        for _ in 0..5 {
            limit.reserve(u64::MAX / 2, u64::MAX);
        }
    }
}
