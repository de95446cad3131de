//! What the keys of a Region share, and those of an account in it.

use std::sync::Arc;

use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::kms::guarded::gate::Gate;
use crate::kms::guarded::health::Failover;
use crate::kms::guarded::health::Health;
use crate::kms::guarded::retries::Arrivals;
use crate::kms::guarded::retries::Budget;
use crate::metrics::KmsOutcome;
use crate::metrics::KmsTally;
use crate::sync::Mutex;
use crate::sync::lock;
use crate::trace::Tracer;

/// What the keys of a Region share.
pub(super) struct Region {
    pub(super) name: String,
    budget: Mutex<Budget>,
    arrivals: Mutex<Arrivals>,
    /// As the keys tell that other Regions have too.
    health: Mutex<Health>,
    pub(super) tally: Arc<KmsTally>,
    pub(super) tracer: Tracer,
}

/// What the keys of an account in a Region share, as they share its quota.
pub(super) struct Account {
    gate: Arc<Gate>,
    /// Lets those pass who wait.
    porter: JoinHandle<()>,
}

impl Region {
    pub(super) fn new(name: &str, tally: Arc<KmsTally>, tracer: Tracer) -> Self {
        Self {
            name: name.to_owned(),
            budget: Mutex::default(),
            arrivals: Mutex::default(),
            health: Mutex::default(),
            tally,
            tracer,
        }
    }

    /// As [`Health::is_hopeful`].
    pub(super) fn is_hopeful(&self, now: Instant) -> bool {
        lock(&self.health).is_hopeful(now)
    }

    /// As [`Health::comes_first`].
    pub(super) fn comes_first(&self, now: Instant) -> bool {
        lock(&self.health).comes_first(now)
    }

    /// Takes note of what came of an attempt for a key that other Regions have too.
    pub(super) fn diagnose(&self, outcome: KmsOutcome, now: Instant) -> Option<Failover> {
        let mut health = lock(&self.health);
        match outcome {
            KmsOutcome::Done | KmsOutcome::Refused => health.succeeded(now),
            KmsOutcome::Unavailable => health.failed(now),
            KmsOutcome::Abandoned
            | KmsOutcome::Credentials
            | KmsOutcome::Invalid
            | KmsOutcome::Throttled => None,
        }
    }

    /// An attempt succeeded.
    pub(super) fn earn(&self) {
        lock(&self.budget).earn();
    }

    /// Takes a retry from the budget, if one is left.
    pub(super) fn retry(&self, now: Instant) -> bool {
        lock(&self.budget).take(now)
    }

    /// Whether a call may come that another Region was asked for in vain: a retry unless most of
    /// those that came of late have succeeded.
    pub(super) fn welcomes(&self, now: Instant) -> bool {
        lock(&self.arrivals).are_well(now) || self.retry(now)
    }

    /// Takes note of what came of such a call.
    pub(super) fn received(&self, outcome: KmsOutcome, now: Instant) {
        let mut arrivals = lock(&self.arrivals);
        match outcome {
            KmsOutcome::Done | KmsOutcome::Refused => arrivals.succeeded(),
            KmsOutcome::Throttled | KmsOutcome::Unavailable => arrivals.failed(now),
            KmsOutcome::Abandoned | KmsOutcome::Credentials | KmsOutcome::Invalid => {}
        }
    }
}

impl Account {
    pub(super) fn new(limit: Option<u32>, region: &Region, now: Instant) -> Self {
        let gate = Arc::new(Gate::new(limit, POOL, Arc::clone(&region.tally), now));
        let porter = tokio::spawn(attend(Arc::clone(&gate)));
        Self { gate, porter }
    }

    /// What their requests pass.
    pub(super) fn gate(&self) -> &Arc<Gate> {
        &self.gate
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.porter.abort();
    }
}

/// Lets those who wait at `gate` pass when their time has come.
async fn attend(gate: Arc<Gate>) {
    loop {
        let rung = gate.bell.notified();
        match gate.look(Instant::now()) {
            None => rung.await,
            Some(at) => {
                // Whichever comes first.
                let _ = tokio::time::timeout_at(at, rung).await;
            }
        }
    }
}

/// Requests to an account in a Region under way at once.
const POOL: usize = 256;
