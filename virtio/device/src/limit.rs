/// Lets through `per_second` units a second on average and `burst` at once. It reads no clock: callers bring the time.
#[derive(Clone, Debug)]
pub struct TokenBucket {
    per_second: u64,
    burst: u64,
    tokens: u64,
    filled_ns: u64,
}

const NS_PER_S: u128 = 1_000_000_000;

impl TokenBucket {
    /// Starts full. Both limits are at least 1.
    pub fn new(per_second: u64, burst: u64) -> Self {
        let burst = burst.max(1);
        Self {
            per_second: per_second.max(1),
            burst,
            tokens: burst,
            filled_ns: 0,
        }
    }

    /// Tokens there are at `now_ns`.
    pub fn available(&mut self, now_ns: u64) -> u64 {
        let passed = u128::from(now_ns.saturating_sub(self.filled_ns));
        let earned = passed * u128::from(self.per_second) / NS_PER_S;
        if earned > 0 {
            let earned_u64 = u64::try_from(earned).unwrap_or(u64::MAX);
            self.tokens = self.tokens.saturating_add(earned_u64).min(self.burst);
            let used_ns = earned * NS_PER_S / u128::from(self.per_second);
            self.filled_ns += u64::try_from(used_ns).unwrap_or(u64::MAX);
        }
        self.tokens
    }

    /// Takes `count` tokens, or what there is.
    pub fn take(&mut self, count: u64) {
        self.tokens = self.tokens.saturating_sub(count);
    }

    /// When `count` tokens (or the burst, if that is less) will be there.
    pub fn ready_ns(&self, count: u64) -> u64 {
        let missing = count.min(self.burst).saturating_sub(self.tokens);
        let wait_ns = (u128::from(missing) * NS_PER_S).div_ceil(u128::from(self.per_second));
        self.filled_ns
            .saturating_add(u64::try_from(wait_ns).unwrap_or(u64::MAX))
    }
}

/// Keeps a guest from filling the host's log: a few lines at once, then one every ten seconds.
#[derive(Clone, Debug)]
pub struct LogLimit {
    last_ns: Option<u64>,
    left: u32,
    suppressed: u64,
}

impl LogLimit {
    const BURST: u32 = 5;
    const EVERY_NS: u64 = 10_000_000_000;

    /// The burst is unused.
    pub fn new() -> Self {
        Self {
            last_ns: None,
            left: Self::BURST,
            suppressed: 0,
        }
    }

    /// `Some` if a line may be written now, with how many were not since the last one.
    pub fn allow(&mut self, now_ns: u64) -> Option<u64> {
        let rested = self
            .last_ns
            .is_some_and(|last| now_ns.saturating_sub(last) >= Self::EVERY_NS);
        if self.left == 0 && !rested {
            self.suppressed += 1;
            return None;
        }
        self.left = self.left.saturating_sub(1);
        self.last_ns = Some(now_ns);
        Some(std::mem::take(&mut self.suppressed))
    }
}

impl Default for LogLimit {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bucket_gives_the_burst_then_the_rate() {
        let mut bucket = TokenBucket::new(1000, 50);
        assert_eq!(bucket.available(5), 50);
        bucket.take(50);
        assert_eq!(bucket.available(5), 0);
        assert_eq!(bucket.ready_ns(10), 10_000_000);
        assert_eq!(bucket.available(10_000_000), 10);
        assert_eq!(bucket.ready_ns(10), 10_000_000, "they are there");
        assert_eq!(bucket.available(u64::MAX), 50, "never above the burst");
    }

    #[test]
    fn bucket_loses_no_fractions() {
        let mut bucket = TokenBucket::new(3, 10);
        bucket.take(10);
        let total: u64 = (0..=3_000u64)
            .map(|ms| {
                let there = bucket.available(ms * 1_000_000);
                bucket.take(there);
                there
            })
            .sum();
        assert_eq!(total, 9);
    }

    /// Hardening row 34: a guest that provokes an error at every request does not fill the log.
    #[test]
    fn hardening_34_log_lines_are_limited() {
        let mut limit = LogLimit::new();
        let written = (0..1_000_000u64)
            .filter(|us| limit.allow(us * 1000).is_some())
            .count();
        assert_eq!(written, 5);
        assert_eq!(limit.allow(20_000_000_000), Some(999_995));
        assert_eq!(limit.allow(20_000_000_001), None);
    }
}
