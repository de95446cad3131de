//! Tokio's time as our own: what a paused runtime has waited for has passed on this clock too.

use std::time::Duration;

use jiff::Timestamp;
use keybroker::clock::Clock;
use keybroker::clock::Instant;
use keybroker::clock::Manual;

/// A clock that began when it was made.
pub struct Virtual {
    start: Manual,
    began: tokio::time::Instant,
}

impl Virtual {
    pub fn new() -> Self {
        Self {
            start: Manual::new(Timestamp::now()),
            began: tokio::time::Instant::now(),
        }
    }

    fn passed(&self) -> Duration {
        self.began.elapsed()
    }
}

impl Clock for Virtual {
    fn now(&self) -> Instant {
        self.start.now() + self.passed()
    }

    fn wall(&self) -> Timestamp {
        self.start.wall() + self.passed()
    }
}
