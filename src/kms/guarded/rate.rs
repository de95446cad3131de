//! How many requests a second a KMS may be sent: a bucket of tokens, whose rate is lowered when the
//! service throttles and raised again slowly (AIMD). What time it is is an argument.

use std::time::Duration;

use tokio::time::Instant;

/// A rate that follows what the service takes, up to a limit.
pub(super) struct Rate {
    limit: f64,
    /// Requests a second.
    current: f64,
    tokens: f64,
    /// Up to when tokens are counted.
    counted: Instant,
    /// When the rate was last lowered.
    lowered: Option<Instant>,
}

impl Rate {
    /// At most `limit` requests a second.
    pub(super) fn new(limit: u32, now: Instant) -> Self {
        let limit = f64::from(limit.max(1));
        Self {
            limit,
            current: limit,
            tokens: burst(limit),
            counted: now,
            lowered: None,
        }
    }

    /// Takes a token, if there is one.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        let taken = self.pause(now).is_none();
        if taken {
            self.tokens -= 1.0;
        }
        taken
    }

    /// When there is a token, as things stand; none if there is one now.
    pub(super) fn pause(&mut self, now: Instant) -> Option<Instant> {
        self.count(now);
        let missing = (1.0 - self.tokens) / self.current;
        // A millisecond more: the next look finds it.
        let wait = |missing| Duration::from_secs_f64(missing) + Duration::from_millis(1);
        (missing > 0.0).then(|| now + wait(missing))
    }

    /// Gives back a token that was not used.
    pub(super) fn give_back(&mut self) {
        self.tokens = (self.tokens + 1.0).min(burst(self.current));
    }

    /// How long it takes from `now` on until there have been tokens for so many requests.
    pub(super) fn span(&mut self, requests: usize, now: Instant) -> Duration {
        self.count(now);
        let requests = f64::from(u32::try_from(requests).unwrap_or(u32::MAX));
        Duration::from_secs_f64((requests - self.tokens).max(0.0) / self.current)
    }

    /// The service throttled a request that was made at `made`. Those that were under way when the
    /// rate was lowered tell nothing new.
    pub(super) fn throttled(&mut self, made: Instant, now: Instant) {
        if self.lowered.is_some_and(|lowered| made <= lowered) {
            return;
        }
        self.count(now);
        self.current = (self.current * LOWER).max((self.limit * LOWEST).max(1.0).min(self.limit));
        self.tokens = self.tokens.min(0.0);
        self.lowered = Some(now);
    }

    /// Requests a second at the moment.
    pub(super) fn current(&self) -> f64 {
        self.current
    }

    /// Counts the tokens, and raises the rate, by what time has brought.
    fn count(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.counted).as_secs_f64();
        self.counted = self.counted.max(now);
        self.tokens = (self.tokens + self.current * passed).min(burst(self.current));
        self.current = (self.current + self.limit * RAISE * passed).min(self.limit);
    }
}

/// Most tokens that are kept at this rate: what comes at once, after a pause, shall not look like a
/// storm to the service.
fn burst(rate: f64) -> f64 {
    (rate * BURST).max(1.0)
}

/// What is left of the rate after a throttling.
const LOWER: f64 = 0.7;
/// Of the limit; never less than one request a second.
const LOWEST: f64 = 0.01;
/// Of the limit, in each second.
const RAISE: f64 = 0.01;
/// In seconds.
const BURST: f64 = 0.2;

#[cfg(test)]
mod tests {
    use super::*;

    /// Requests that are let through in the milliseconds from `from` to `to`.
    fn passed(rate: &mut Rate, start: Instant, from: u64, to: u64) -> u64 {
        let mut count = 0;
        for at in from..to {
            while rate.take(start + Duration::from_millis(at)) {
                count += 1;
            }
        }
        count
    }

    #[test]
    fn a_second_has_the_rate_and_never_much_more() {
        let start = Instant::now();
        let mut rate = Rate::new(100, start);
        assert_eq!(passed(&mut rate, start, 0, 1), 20);
        assert!((99..=100).contains(&passed(&mut rate, start, 1, 1001)));
        assert_eq!(passed(&mut rate, start, 60_000, 60_001), 20);
    }

    #[test]
    fn a_throttling_lowers_it_once_and_time_raises_it() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut rate = Rate::new(100, start);
        rate.throttled(at(0), at(10));
        rate.throttled(at(5), at(11));
        assert!((rate.current() - 70.0).abs() < 0.1);
        assert!(!rate.take(at(11)), "a pause");
        rate.throttled(at(12), at(13));
        assert!((rate.current() - 49.0).abs() < 0.1);
        assert!((48..=50).contains(&passed(&mut rate, start, 14, 1014)));
        rate.take(at(11_014));
        assert!((rate.current() - 60.0).abs() < 0.1);
        rate.take(at(600_000));
        assert!((rate.current() - 100.0).abs() < 0.1);
    }

    #[test]
    fn it_never_ends() {
        let start = Instant::now();
        for limit in [1, 2, 1000] {
            let mut rate = Rate::new(limit, start);
            for millis in 0..1000 {
                let now = start + Duration::from_millis(millis);
                rate.throttled(now, now);
            }
            assert!(rate.current() >= 1.0, "{limit}");
        }
    }

    #[test]
    fn the_next_token_is_there_when_it_is_said_to_be() {
        let start = Instant::now();
        let mut rate = Rate::new(3, start);
        let mut now = start;
        for _ in 0..10 {
            while rate.take(now) {}
            let next = rate.pause(now).expect("a pause");
            assert!(next > now && next <= now + Duration::from_millis(335));
            now = next;
            assert!(rate.take(now));
        }
    }
}
