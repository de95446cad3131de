//! Who waits for KMS: until when, and how many at once, so that one tenant whose KMS hangs takes
//! nobody else's place.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use crate::datakeys::Error;
use crate::datakeys::share::Share;
use crate::kms::Demand;
use crate::metrics::Metrics;
use crate::metrics::Shed;
use crate::policy::Permit;
use crate::sync::Mutex;
use crate::sync::atomic::AtomicU64;
use crate::sync::atomic::Ordering;
use crate::sync::lock;
use crate::trace::Cause;

/// How a call waits for KMS. It lives as long as the call.
pub struct Patience {
    until: Instant,
    cause: Cause,
    place: Mutex<Place>,
}

enum Place {
    /// Nowhere, or among the calls under way.
    Working(Option<OwnedSemaphorePermit>),
    /// Among those that wait.
    Waiting { _waiter: Waiter },
}

impl Patience {
    /// Of a call that ends then, whatever has come. When it begins to wait it gives `place` up,
    /// whose other holders shall not wait with it. `cause` is what it asks of KMS made for.
    pub fn new(until: Instant, place: Option<OwnedSemaphorePermit>, cause: Cause) -> Self {
        Self {
            until,
            cause,
            place: Mutex::new(Place::Working(place)),
        }
    }

    /// When the call ends.
    pub fn until(&self) -> Instant {
        self.until
    }

    /// From now on the call counts as one that waits for the KMS of a tenant, to its end: what it
    /// has to do then is little.
    pub(super) fn wait(&self, waiters: &Waiters, share: &Arc<Share>) -> Result<(), Error> {
        let mut place = lock(&self.place);
        if let Place::Working(given_up) = &mut *place {
            let entered = waiters.enter(share);
            let _waiter = entered.ok_or_else(|| {
                waiters.metrics.shed(Shed::Waiters);
                Error::Full
            })?;
            drop(given_up.take());
            *place = Place::Waiting { _waiter };
        }
        Ok(())
    }

    /// What KMS is asked for `permit`.
    pub(super) fn demand(&self, permit: &Permit) -> Demand {
        let tenant = permit.key().tenant();
        Demand::new(tenant.id().clone(), tenant.weight(), self.until).caused_by(self.cause.clone())
    }
}

impl Default for Patience {
    /// Of work that holds no place and waits as long as any call may.
    fn default() -> Self {
        Self::new(Instant::now() + LONGEST, None, Cause::Nobody)
    }
}

/// How many wait.
pub(super) struct Waiters {
    all: Arc<AtomicU64>,
    most: u64,
    metrics: Metrics,
}

/// One that waits.
struct Waiter {
    all: Arc<AtomicU64>,
    share: Arc<Share>,
}

impl Waiters {
    /// At most `most`, a quarter of them of one tenant.
    pub(super) fn new(most: u64, metrics: Metrics) -> Self {
        Self {
            all: Arc::default(),
            most,
            metrics,
        }
    }

    /// How many wait now.
    pub(super) fn count(&self) -> u64 {
        self.all.load(Ordering::Relaxed)
    }

    fn enter(&self, share: &Arc<Share>) -> Option<Waiter> {
        add(&share.waiters, self.most / 4)?;
        if add(&self.all, self.most).is_none() {
            share.waiters.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        Some(Waiter {
            all: Arc::clone(&self.all),
            share: Arc::clone(share),
        })
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.all.fetch_sub(1, Ordering::Relaxed);
        self.share.waiters.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One more, unless there are `most`.
fn add(count: &AtomicU64, most: u64) -> Option<u64> {
    let more = |count| (count < most).then_some(count + 1);
    count
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more)
        .ok()
}

/// The cap of every method.
const LONGEST: Duration = Duration::from_secs(30);
