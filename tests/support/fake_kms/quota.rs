//! How many calls a second an account may make in a Region.

use std::time::Duration;

use keybroker::clock::Instant;

/// A bucket of calls, full at first: a second's worth of them.
pub struct Quota {
    per_second: u32,
    retry_after: Option<Duration>,
    /// In calls × nanoseconds, so that no call is lost to rounding.
    credit: u128,
    last: Instant,
}

impl Quota {
    pub fn new(per_second: u32, retry_after: Option<Duration>, now: Instant) -> Self {
        Self {
            per_second,
            retry_after,
            credit: u128::from(per_second) * CALL,
            last: now,
        }
    }

    /// Takes a call at `now` in. One that is refused costs nothing, and gets to know how long to
    /// wait, if the quota tells that.
    pub fn admit(&mut self, now: Instant) -> Result<(), Option<Duration>> {
        let rate = u128::from(self.per_second);
        let earned = now.since(self.last).as_nanos() * rate;
        self.credit = (self.credit + earned).min(rate * CALL);
        self.last = now;
        self.credit = self.credit.checked_sub(CALL).ok_or(self.retry_after)?;
        Ok(())
    }
}

/// What a call costs, of which each second earns `per_second`.
const CALL: u128 = 1_000_000_000;
