//! What is known of the Regions and keys that were called: health and a budget of retries for each
//! Region, a gate for each account in it, a breaker for each key.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::crypto::random;
use crate::kms::DataKey;
use crate::kms::Demand;
use crate::kms::Error;
use crate::kms::KeyRef;
use crate::kms::Unwrapped;
use crate::kms::Wrapped;
use crate::kms::guarded::breaker::Breaker;
use crate::kms::guarded::breaker::Change;
use crate::kms::guarded::breaker::Pass;
use crate::kms::guarded::breaker::Verdict;
use crate::kms::guarded::gate::Gate;
use crate::kms::guarded::health::Failover;
use crate::kms::guarded::health::Health;
use crate::kms::guarded::retries::Budget;
use crate::metrics::Circuit;
use crate::metrics::KmsOperation;
use crate::metrics::KmsOutcome;
use crate::metrics::KmsTally;
use crate::metrics::Metrics;
use crate::sync::Mutex;
use crate::sync::lock;
use crate::trace;
use crate::trace::Cause;
use crate::trace::Fault;
use crate::trace::Span;
use crate::trace::Tracer;

/// All that were called of late.
pub(super) struct Regions {
    metrics: Metrics,
    tracer: Tracer,
    /// Requests a second to an account of AWS in a Region.
    limit: u32,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    regions: HashMap<String, Arc<Region>>,
    accounts: HashMap<(String, String), Arc<Account>>,
    keys: HashMap<KeyRef, Arc<Guard>>,
}

/// What the keys of a Region share.
struct Region {
    name: String,
    budget: Mutex<Budget>,
    /// As the keys tell that other Regions have too.
    health: Mutex<Health>,
    tally: Arc<KmsTally>,
    tracer: Tracer,
}

/// What the keys of an account in a Region share, as they share its quota.
struct Account {
    gate: Arc<Gate>,
    /// Lets those pass who wait.
    porter: JoinHandle<()>,
}

/// What stands before one key.
pub(super) struct Guard {
    key: KeyRef,
    region: Arc<Region>,
    account: Arc<Account>,
    breaker: Breaker,
    /// What the gauge counts this key as.
    shown: Mutex<Circuit>,
}

/// A Region on the way of a call.
pub(super) struct Stop<'k> {
    /// The key there.
    pub(super) key: &'k KeyRef,
    pub(super) guard: Arc<Guard>,
    is_only: bool,
}

/// One request to a KMS. Dropped before it has ended it is counted as abandoned.
pub(super) struct Request<'a> {
    guard: &'a Guard,
    operation: KmsOperation,
    began: Instant,
    pass: Option<Pass<'a>>,
    span: Span,
}

impl Regions {
    /// Regions whose accounts are sent at most `limit` requests a second each.
    pub(super) fn new(limit: u32, metrics: Metrics, tracer: Tracer) -> Self {
        Self {
            metrics,
            tracer,
            limit,
            known: Mutex::default(),
        }
    }

    /// The guard of `key`.
    pub(super) fn guard(&self, key: &KeyRef, now: Instant) -> Arc<Guard> {
        let Known {
            regions,
            accounts,
            keys,
        } = &mut *lock(&self.known);
        if let Some(guard) = keys.get(key) {
            return Arc::clone(guard);
        }
        let name = key.region();
        let region = regions.entry(name.to_owned()).or_insert_with(|| {
            Arc::new(Region {
                name: name.to_owned(),
                budget: Mutex::default(),
                health: Mutex::default(),
                tally: self.metrics.kms(name),
                tracer: self.tracer.clone(),
            })
        });
        let place = (name.to_owned(), key.account().to_owned());
        let account = accounts.entry(place).or_insert_with(|| {
            let limit = match key {
                KeyRef::Aws(_) | KeyRef::MultiRegion(_) => Some(self.limit),
                // Nobody counts them.
                KeyRef::Local(_) => None,
            };
            Arc::new(Account::new(limit, region, now))
        });
        let guard = Arc::new(Guard {
            key: key.clone(),
            region: Arc::clone(region),
            account: Arc::clone(account),
            breaker: Breaker::new(now),
            shown: Mutex::new(Circuit::Closed),
        });
        keys.insert(key.clone(), Arc::clone(&guard));
        guard
    }

    /// The Regions of `key`, in the order in which a call shall ask them: first the preferred one of
    /// those that are well, or that it is time to try again.
    pub(super) fn route<'k>(&self, key: &'k KeyRef, now: Instant) -> Vec<Stop<'k>> {
        let replicas = key.in_regions();
        let stop = |key| Stop {
            key,
            guard: self.guard(key, now),
            is_only: replicas.len() == 1,
        };
        let mut route: Vec<_> = replicas.iter().map(stop).collect();
        if route.len() == 1 {
            return route;
        }
        let first = route
            .iter()
            .position(|stop| lock(&stop.guard.region.health).comes_first(now));
        if let Some(first) = first {
            let first = route.remove(first);
            let is_well = |stop: &Stop<'_>| lock(&stop.guard.region.health).is_well();
            // The last one is asked again and again: that would be lost on one that is not well.
            if is_well(&first) || route.iter().any(is_well) {
                route.retain(is_well);
            }
            route.insert(0, first);
        }
        route
    }

    /// Forgets the keys that nobody has asked for during the last minute, and the Regions and
    /// accounts that have no others.
    pub(super) fn forget(&self, now: Instant) {
        let Known {
            regions,
            accounts,
            keys,
        } = &mut *lock(&self.known);
        keys.retain(|_, guard| {
            // Who has it will ask it.
            let kept = Arc::strong_count(guard) > 1 || !guard.breaker.is_idle(now);
            if !kept {
                guard.show(|_| Circuit::Closed);
            }
            kept
        });
        accounts.retain(|_, account| {
            account.gate.tend(now);
            Arc::strong_count(account) > 1
        });
        regions.retain(|_, region| Arc::strong_count(region) > 1);
    }
}

impl Account {
    fn new(limit: Option<u32>, region: &Region, now: Instant) -> Self {
        let gate = Arc::new(Gate::new(limit, POOL, Arc::clone(&region.tally), now));
        let porter = tokio::spawn(attend(Arc::clone(&gate)));
        Self { gate, porter }
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

/// What an answer means for a call.
pub(super) enum Judged<T> {
    /// It is the call's.
    Decided(Result<T, Error>),
    /// Another Region may have an answer.
    Undecided(Error),
    /// As [`Judged::Undecided`], and it tells nothing of the key.
    Useless(Error),
}

impl Stop<'_> {
    /// What an answer from here means for a call of `key`. Whether the key is there and may be used
    /// is its preferred Region's to say: a replica that is not there, or not yet, refuses nothing.
    pub(super) fn judged<T>(&self, key: &KeyRef, answer: Result<T, Error>) -> Judged<T> {
        let preferred = key.in_regions().first() == Some(self.key);
        match answer {
            Err(error @ (Error::Disabled | Error::NotFound(_) | Error::PendingDeletion(_)))
                if !preferred =>
            {
                Judged::Useless(error)
            }
            Err(error) if error.is_undecided() => Judged::Undecided(error),
            answer => Judged::Decided(answer),
        }
    }

    /// Why there is no answer in an outage, when this Region's replica is of no use.
    pub(super) fn useless(&self, error: &Error) -> Error {
        let replica = self.key;
        Error::Unavailable(format!("{replica} is of no use: {error}"))
    }

    /// Takes note of what came of an attempt, if it might have been made in another Region.
    pub(super) fn diagnose<T>(&self, answer: &Result<T, Error>, now: Instant) {
        if self.is_only {
            return;
        }
        let change = {
            let mut health = lock(&self.guard.region.health);
            match answer.as_ref().err().map_or(KmsOutcome::Done, outcome) {
                KmsOutcome::Done | KmsOutcome::Refused => health.succeeded(now),
                KmsOutcome::Unavailable => health.failed(now),
                KmsOutcome::Abandoned
                | KmsOutcome::Credentials
                | KmsOutcome::Invalid
                | KmsOutcome::Throttled => None,
            }
        };
        let region = self.guard.region.name.as_str();
        match change {
            None => {}
            Some(Failover::Begins) => tracing::warn!(
                region,
                key = %self.key,
                error = answer.as_ref().err().map(tracing::field::display),
                "KMS fails in this Region: keys with replicas are called in their next Region, \
                 until this one has been well for a while; look at the error, at the way to KMS in \
                 this Region, and at its provider's health page"
            ),
            Some(Failover::Ends) => tracing::info!(
                region,
                key = %self.key,
                "KMS is well in this Region: keys with replicas are called here again"
            ),
        }
    }
}

impl Guard {
    /// Counts a call that goes on to another Region.
    pub(super) fn failed_over(&self) {
        self.region.tally.failed_over();
    }

    /// The gate that requests for the key pass.
    pub(super) fn gate(&self) -> &Arc<Gate> {
        &self.account.gate
    }

    /// Whether [`Guard::begin`] would begin none.
    pub(super) fn refuses(&self, now: Instant) -> bool {
        self.breaker.refuses(now)
    }

    /// Begins the request of a call's `attempt`, unless the breaker is open.
    pub(super) fn begin(
        &self,
        operation: KmsOperation,
        demand: Option<&Demand>,
        attempt: u32,
        now: Instant,
    ) -> Option<Request<'_>> {
        let pass = self.breaker.admit(now)?;
        self.show(Breaker::circuit);
        let request = trace::Request {
            system: match &self.key {
                KeyRef::Aws(_) | KeyRef::MultiRegion(_) => "aws-api",
                KeyRef::Local(_) => self.key.provider_id(),
            },
            operation: operation.label(),
            region: &self.region.name,
            attempt,
        };
        let cause = demand.map_or(&Cause::Nobody, Demand::cause);
        Some(Request {
            guard: self,
            operation,
            began: now,
            pass: Some(pass),
            span: self.region.tracer.request(cause, &request),
        })
    }

    /// Takes a retry from the Region's budget, if one is left.
    pub(super) fn retry(&self, now: Instant) -> bool {
        lock(&self.region.budget).take(now)
    }

    /// Counts a retry that is made.
    pub(super) fn retried(&self) {
        self.region.tally.retried();
    }

    fn show(&self, of: fn(&Breaker) -> Circuit) {
        let mut shown = lock(&self.shown);
        // Under the lock: who comes last shows what is last.
        let circuit = of(&self.breaker);
        self.region.tally.circuit(*shown, circuit);
        *shown = circuit;
    }

    fn tell(&self, change: Change, error: Option<&Error>) {
        let (region, key) = (self.region.name.as_str(), &self.key);
        match change {
            Change::Open { failures, attempts } => tracing::warn!(
                region,
                %key,
                failures,
                attempts,
                error = error.map(tracing::field::display),
                "KMS fails for this key: from now on it is asked by one call every few seconds, until \
                 that succeeds, and callers get what is cached or KMS_UNAVAILABLE; look at the error, \
                 at the way to KMS in this Region, and at its provider's health page"
            ),
            Change::Close => tracing::info!(region, %key, "KMS answers for this key again"),
        }
    }
}

impl Request<'_> {
    /// Ends the request with its answer.
    pub(super) fn end<T: Answered>(mut self, answer: &Result<T, Error>, now: Instant) {
        let error = answer.as_ref().err();
        let outcome = error.map_or(KmsOutcome::Done, outcome);
        let request_id = answer.as_ref().ok().and_then(Answered::request_id);
        self.span.note(trace::REQUEST_ID, request_id);
        let fault = match error {
            None => Fault::None,
            Some(_) => Fault::Own,
        };
        self.span.came_to(outcome.label(), fault);
        let guard = self.guard;
        let took = now.saturating_duration_since(self.began);
        guard.region.tally.request(self.operation, outcome, took);
        if outcome == KmsOutcome::Done {
            lock(&guard.region.budget).earn();
        }
        let pass = self.pass.take();
        if let Some(change) = pass.and_then(|pass| pass.settle(verdict(outcome), now, chance())) {
            guard.tell(change, error);
        }
        guard.show(Breaker::circuit);
    }
}

/// An answer of KMS.
pub(super) trait Answered {
    /// How KMS names the request, as far as it says.
    fn request_id(&self) -> Option<&str>;
}

impl Answered for DataKey {
    fn request_id(&self) -> Option<&str> {
        self.request_id.as_deref()
    }
}

impl Answered for Unwrapped {
    fn request_id(&self) -> Option<&str> {
        self.request_id.as_deref()
    }
}

impl Answered for Wrapped {
    fn request_id(&self) -> Option<&str> {
        self.request_id.as_deref()
    }
}

impl Answered for () {
    fn request_id(&self) -> Option<&str> {
        None
    }
}

impl Drop for Request<'_> {
    fn drop(&mut self) {
        if self.pass.is_some() {
            let took = self.began.elapsed();
            let tally = &self.guard.region.tally;
            tally.request(self.operation, KmsOutcome::Abandoned, took);
        }
    }
}

fn outcome(error: &Error) -> KmsOutcome {
    match error {
        Error::AccessDenied(_)
        | Error::Disabled
        | Error::IncorrectKey
        | Error::InvalidCiphertext
        | Error::NotFound(_)
        | Error::PendingDeletion(_) => KmsOutcome::Refused,
        Error::Credentials(_) => KmsOutcome::Credentials,
        Error::Invalid(_) => KmsOutcome::Invalid,
        Error::Crowded { .. } | Error::Throttled => KmsOutcome::Throttled,
        Error::Unavailable(_) => KmsOutcome::Unavailable,
    }
}

fn verdict(outcome: KmsOutcome) -> Verdict {
    match outcome {
        KmsOutcome::Done => Verdict::Success,
        // Of credentials too: without them no call gets anywhere, and each would ask for them anew.
        KmsOutcome::Credentials | KmsOutcome::Unavailable => Verdict::Failure,
        // A single caller may bring about an answer that we can't read, or a request that KMS
        // can't: it shall not close the door on others.
        KmsOutcome::Abandoned
        | KmsOutcome::Invalid
        | KmsOutcome::Refused
        | KmsOutcome::Throttled => Verdict::Neutral,
    }
}

/// A random number. Without randomness pauses are at their longest.
pub(super) fn chance() -> u16 {
    let mut bytes = [0; 2];
    random::fill(&mut bytes).map_or(u16::MAX, |()| u16::from_be_bytes(bytes))
}

/// Requests to an account in a Region under way at once.
const POOL: usize = 256;
