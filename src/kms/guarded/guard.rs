//! What stands before one key, and the requests that are made for it: what is counted and logged.

use std::sync::Arc;

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
use crate::kms::guarded::region::Account;
use crate::kms::guarded::region::Region;
use crate::metrics::Circuit;
use crate::metrics::KmsOperation;
use crate::metrics::KmsOutcome;
use crate::sync::Mutex;
use crate::sync::lock;
use crate::trace;
use crate::trace::Cause;
use crate::trace::Fault;
use crate::trace::Span;

/// What stands before one key.
pub(super) struct Guard {
    key: KeyRef,
    region: Arc<Region>,
    account: Arc<Account>,
    breaker: Breaker,
    /// What the gauge counts this key as.
    shown: Mutex<Circuit>,
}

/// One request to a KMS. Dropped before it has ended it is counted as abandoned.
pub(super) struct Request<'a> {
    guard: &'a Guard,
    operation: KmsOperation,
    began: Instant,
    pass: Option<Pass<'a>>,
    span: Span,
}

impl Guard {
    pub(super) fn new(
        key: KeyRef,
        region: Arc<Region>,
        account: Arc<Account>,
        now: Instant,
    ) -> Self {
        Self {
            key,
            region,
            account,
            breaker: Breaker::new(now),
            shown: Mutex::new(Circuit::Closed),
        }
    }

    /// Its Region.
    pub(super) fn region(&self) -> &Region {
        &self.region
    }

    /// Whether nobody has asked for the key for so long that what is known of it is of no use.
    pub(super) fn is_idle(&self, now: Instant) -> bool {
        self.breaker.is_idle(now)
    }

    /// The gauge counts the key no more.
    pub(super) fn leave(&self) {
        self.show(|_| Circuit::Closed);
    }

    /// Counts a call that goes on to another Region.
    pub(super) fn failed_over(&self) {
        self.region.tally.failed_over();
    }

    /// The gate that requests for the key pass.
    pub(super) fn gate(&self) -> &Arc<Gate> {
        self.account.gate()
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
            guard.region.earn();
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

/// How an attempt is counted that ended so.
pub(super) fn outcome(error: &Error) -> KmsOutcome {
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
