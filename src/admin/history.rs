//! The last minute, so that rates can be told.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use tokio::time::Instant;
use tokio::time::MissedTickBehavior;
use tokio::time::interval;

use crate::metrics::Metrics;
use crate::metrics::Overview;

/// The numbers of one moment.
pub(super) struct Look {
    pub(super) at: Instant,
    pub(super) overview: Overview,
}

impl Look {
    pub(super) fn at(metrics: &Metrics) -> Self {
        Self {
            at: Instant::now(),
            overview: metrics.overview(),
        }
    }
}

/// Looks of the last minute, oldest first.
#[derive(Default)]
pub(super) struct History(Mutex<VecDeque<Arc<Look>>>);

impl History {
    /// The oldest look.
    pub(super) fn oldest(&self) -> Option<Arc<Look>> {
        let looks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        looks.front().cloned()
    }

    /// Looks at `metrics` now and then.
    pub(super) async fn keep(&self, metrics: &Metrics) -> Infallible {
        let mut ticks = interval(PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let look = Arc::new(Look::at(metrics));
            let mut looks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            looks.push_back(look);
            while looks.len() > LOOKS {
                looks.pop_front();
            }
        }
    }
}

const PERIOD: Duration = Duration::from_secs(10);
/// The oldest is a minute old.
const LOOKS: usize = 7;
