//! Time, as an argument: ages on a clock that counts suspend, and the wall clock for people.
//!
//! Whatever bounds a secret's life reads [`Clock::now`]. Waiting and timeouts are tokio's.

use std::ops::Add;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use jiff::Timestamp;

/// A point on the machine's boot clock, which goes on while the machine is suspended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Instant(Duration);

impl Instant {
    /// The time since `earlier`, zero if `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    /// Nanoseconds since boot.
    pub fn nanos(self) -> u64 {
        self.0.as_nanos().try_into().unwrap_or(u64::MAX)
    }

    /// Whole milliseconds since boot.
    pub fn millis(self) -> u64 {
        self.0.as_millis().try_into().unwrap_or(u64::MAX)
    }
}

impl Add<Duration> for Instant {
    type Output = Self;

    fn add(self, span: Duration) -> Self {
        Self(self.0.saturating_add(span))
    }
}

/// Where the program reads the time.
pub trait Clock: Send + Sync + 'static {
    /// Now, on the boot clock: never jumps back, counts suspend.
    fn now(&self) -> Instant;

    /// Now, on the wall: for records and certificates, never for the age of a key.
    fn wall(&self) -> Timestamp;
}

/// The machine's own clocks: `CLOCK_BOOTTIME` and `CLOCK_REALTIME`.
#[derive(Clone, Copy, Debug, Default)]
pub struct System;

impl Clock for System {
    fn now(&self) -> Instant {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
        let nanos = u32::try_from(time.tv_nsec).unwrap_or_default();
        Instant(Duration::new(seconds, nanos))
    }

    fn wall(&self) -> Timestamp {
        Timestamp::now()
    }
}

/// A clock that stands still until it is moved: for tests and models.
#[derive(Debug)]
pub struct Manual(Mutex<(Instant, Timestamp)>);

impl Manual {
    /// Starts one hour after boot, with the wall at `wall`.
    pub fn new(wall: Timestamp) -> Self {
        Self(Mutex::new((Instant(Duration::from_secs(3600)), wall)))
    }

    /// Moves both clocks forward by `span`.
    pub fn advance(&self, span: Duration) {
        let mut hands = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        hands.0 = hands.0 + span;
        hands.1 = hands.1.saturating_add(span).unwrap_or(Timestamp::MAX);
    }
}

impl Clock for Manual {
    fn now(&self) -> Instant {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0
    }

    fn wall(&self) -> Timestamp {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boot_clock_does_not_run_backwards() {
        let earlier = System.now();
        assert!(System.now() >= earlier);
        assert_eq!(
            earlier.since(earlier + Duration::from_secs(1)),
            Duration::ZERO
        );
    }

    #[test]
    fn a_manual_clock_moves_only_when_told() {
        let clock = Manual::new(Timestamp::UNIX_EPOCH);
        let start = clock.now();
        assert_eq!(clock.now(), start);
        clock.advance(Duration::from_secs(90));
        assert_eq!(clock.now().since(start), Duration::from_secs(90));
        assert_eq!(clock.wall().as_second(), 90);
    }
}
