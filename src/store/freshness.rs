//! How fresh what is known of the store is: dated from before it was asked, and looked at when
//! something rests on it, so that neither a slow answer nor a process that stood still makes it look
//! fresher than it is.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::clock::Clock;
use crate::clock::Instant;

/// When the store was last heard of, and for how long that counts.
pub struct Freshness {
    clock: Arc<dyn Clock>,
    limit: Duration,
    /// In nanoseconds since boot; 0 before the first time.
    heard: AtomicU64,
}

impl Freshness {
    /// Never heard of, and then good for `limit`.
    pub fn new(clock: Arc<dyn Clock>, limit: Duration) -> Self {
        Self {
            clock,
            limit,
            heard: AtomicU64::new(0),
        }
    }

    /// All that the store says in answer to a question of `asked` is known. Never goes back.
    pub fn heard(&self, asked: Instant) {
        self.heard.fetch_max(asked.nanos(), Ordering::Release);
    }

    /// How old what is known is; since boot before the first time.
    pub fn age(&self) -> Duration {
        let heard = self.heard.load(Ordering::Acquire);
        Duration::from_nanos(self.clock.now().nanos().saturating_sub(heard))
    }

    /// Whether what is known counts, for something with a `limit` of its own.
    pub fn is_good(&self, limit: Option<Duration>) -> bool {
        self.age() < limit.map_or(self.limit, |limit| limit.min(self.limit))
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::clock::Manual;

    #[test]
    fn what_is_known_counts_to_its_limit_from_before_the_question() {
        let clock = Arc::new(Manual::new(Timestamp::UNIX_EPOCH));
        let limit = Duration::from_secs(60);
        let freshness = Freshness::new(clock.clone(), limit);
        assert!(!freshness.is_good(None), "never heard of");
        let asked = clock.now();
        clock.advance(Duration::from_secs(2));
        freshness.heard(asked);
        assert_eq!(freshness.age(), Duration::from_secs(2));
        let (short, long) = (Some(Duration::from_secs(5)), Some(limit * 2));
        assert!(freshness.is_good(None) && freshness.is_good(short));
        clock.advance(Duration::from_secs(3));
        assert!(freshness.is_good(None) && !freshness.is_good(short));
        clock.advance(Duration::from_secs(55));
        assert!(!freshness.is_good(None) && !freshness.is_good(long));
        // A late answer to an older question is no news.
        freshness.heard(clock.now());
        freshness.heard(asked);
        assert_eq!(freshness.age(), Duration::ZERO);
    }
}
