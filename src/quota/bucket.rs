//! A token bucket in one atomic (the generic cell rate algorithm). Whoever shares it, shares no lock.

use std::time::Duration;

use crate::clock::Instant;
use crate::quota::Rate;
use crate::sync::atomic::AtomicU64;
use crate::sync::atomic::Ordering;

/// Starts full. What is taken beyond what it holds is a debt.
#[derive(Debug)]
pub(super) struct Bucket {
    /// When it is full again if nothing more is taken: nanoseconds on the boot clock.
    full: AtomicU64,
    size: Size,
}

/// How large a bucket is, in time of its rate.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    /// What it holds when it is full.
    pub(super) burst: Duration,
    /// Most debt. Nobody is locked out for longer, whatever was under way at once.
    pub(super) debt: Duration,
}

impl Bucket {
    /// A full one.
    pub(super) fn new(size: Size) -> Self {
        Self {
            full: AtomicU64::new(0),
            size,
        }
    }

    /// Takes `units`, which may be more than there are, unless it is empty.
    ///
    /// # Errors
    /// The time until it is not.
    pub(super) fn take(&self, units: u64, rate: Rate, now: Instant) -> Result<(), Duration> {
        let now = now.nanos();
        let taken = self.change(|full| match self.size.owed(full, now) {
            None => Some(self.size.later(full, units, rate, now)),
            Some(_) => None,
        });
        taken
            .map(drop)
            .map_err(|full| self.size.owed(full, now).unwrap_or_default())
    }

    /// Takes `units` whatever there is: they are spent already.
    pub(super) fn charge(&self, units: u64, rate: Rate, now: Instant) {
        let now = now.nanos();
        // Err: never, the closure always has a value.
        let _ = self.change(|full| Some(self.size.later(full, units, rate, now)));
    }

    /// How long it is empty; none when it is not.
    pub(super) fn owed(&self, now: Instant) -> Option<Duration> {
        self.size
            .owed(self.full.load(Ordering::Relaxed), now.nanos())
    }

    /// Whether nothing is missing, so that a new one is no different.
    pub(super) fn is_full(&self, now: Instant) -> bool {
        self.full.load(Ordering::Relaxed) <= now.nanos()
    }

    // Relaxed: the number says all that there is to say, nothing else is published by it.
    fn change(&self, next: impl FnMut(u64) -> Option<u64>) -> Result<u64, u64> {
        self.full
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, next)
    }
}

impl Size {
    /// How long a bucket that is full again at `full` has nothing.
    fn owed(self, full: u64, now: u64) -> Option<Duration> {
        let missing = Duration::from_nanos(full.saturating_sub(now));
        // At exactly nothing it takes an instant until there is something.
        let owed = missing.checked_sub(self.burst)?;
        Some(owed.max(Duration::from_nanos(1)))
    }

    /// When a bucket that would be full at `full` is so after `units` more.
    fn later(self, full: u64, units: u64, rate: Rate, now: u64) -> u64 {
        let most = u64::try_from((self.burst + self.debt).as_nanos()).unwrap_or(u64::MAX);
        full.max(now)
            .saturating_add(rate.nanos(units))
            .min(now.saturating_add(most))
    }
}
