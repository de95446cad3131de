//! Which failed attempts are made again, when, and how many of them.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use crate::kms::Error;

/// How long to wait before an attempt that failed with `error` is made again, after so many
/// `retries` of the call before; none if it shall not be. `chance` is random.
pub(super) fn pause(error: &Error, retries: u32, chance: u16) -> Option<Duration> {
    let base = match error {
        Error::Throttled => THROTTLED,
        Error::Unavailable(_) => FAILED,
        // A decision stands, and what is broken is not mended by haste.
        Error::AccessDenied(_)
        | Error::Credentials(_)
        | Error::Crowded { .. }
        | Error::Disabled
        | Error::IncorrectKey
        | Error::InvalidCiphertext
        | Error::Invalid(_)
        | Error::NotFound(_)
        | Error::PendingDeletion(_) => return None,
    };
    let most = base.saturating_mul(1 << retries.min(MOST)).min(LONGEST);
    (retries < MOST).then(|| most * u32::from(chance) / u32::from(u16::MAX))
}

/// How many retries the calls of a Region have left: 10 in any second, and beyond them 10 % of what
/// succeeds.
///
/// When everything fails, 10 a second are left: retries never become the load that keeps a service
/// down.
#[derive(Default)]
pub(super) struct Budget {
    /// The latest of the retries that time gives.
    given: VecDeque<Instant>,
    /// In tenths of a retry.
    earned: u32,
}

impl Budget {
    /// An attempt succeeded.
    pub(super) fn earn(&mut self) {
        self.earned = (self.earned + 1).min(CEILING);
    }

    /// Takes a retry, if one is left.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        let over = |given: &Instant| now.saturating_duration_since(*given) >= SECOND;
        if self.given.front().is_some_and(over) {
            self.given.pop_front();
        }
        if self.given.len() < FLOOR {
            self.given.push_back(now);
            return true;
        }
        match self.earned.checked_sub(RETRY) {
            Some(earned) => {
                self.earned = earned;
                true
            }
            None => false,
        }
    }
}

/// The calls that come to a Region because another has failed them.
///
/// While most of them succeed they are free: all calls come when a Region is lost. When they fail too
/// they are retries as others are.
#[derive(Default)]
pub(super) struct Arrivals {
    /// By how many more of the latest have failed than succeeded, at most [`WORST`].
    failures: u32,
    failed: Option<Instant>,
}

impl Arrivals {
    /// Whether most of the latest have succeeded. What failed long ago tells nothing.
    pub(super) fn are_well(&mut self, now: Instant) -> bool {
        let old = |failed| now.saturating_duration_since(failed) >= MEMORY;
        if self.failed.is_some_and(old) {
            *self = Self::default();
        }
        self.failures < BAD
    }

    pub(super) fn succeeded(&mut self) {
        self.failures = self.failures.saturating_sub(1);
    }

    pub(super) fn failed(&mut self, now: Instant) {
        self.failures = (self.failures + 1).min(WORST);
        self.failed = Some(now);
    }
}

/// So many more failures than successes are no accident.
const BAD: u32 = 8;
/// Most that are counted: it is soon made up for.
const WORST: u32 = 16;
/// For so long after the last of them, failures count.
const MEMORY: Duration = Duration::from_secs(10);

/// Most retries of a call.
const MOST: u32 = 2;
/// The longest first pause after a failure, doubled for the next; all of it is random.
const FAILED: Duration = Duration::from_millis(50);
/// As [`FAILED`], after the service has asked for less.
const THROTTLED: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(1);

/// Retries that a second gives.
const FLOOR: usize = 10;
const SECOND: Duration = Duration::from_secs(1);
/// In successes.
const RETRY: u32 = 10;
/// Most that is kept, in successes: long good times are no reason to storm.
const CEILING: u32 = 1000;
