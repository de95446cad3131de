//! A Region on the way of a call, and what its answers mean for the call and for the Region.

use std::sync::Arc;

use tokio::time::Instant;

use crate::kms::Error;
use crate::kms::KeyRef;
use crate::kms::guarded::guard::Guard;
use crate::kms::guarded::guard::outcome;
use crate::kms::guarded::health::Failover;
use crate::metrics::KmsOutcome;

/// A Region on the way of a call.
pub(super) struct Stop<'k> {
    /// The key there.
    pub(super) key: &'k KeyRef,
    pub(super) guard: Arc<Guard>,
    is_only: bool,
    /// Requests of the call in other Regions before this one.
    before: u32,
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

impl<'k> Stop<'k> {
    /// `key` on the way of a call that may ask `replicas`, which it is one of.
    pub(super) fn new(key: &'k KeyRef, guard: Arc<Guard>, replicas: &[KeyRef]) -> Self {
        Self {
            key,
            guard,
            is_only: replicas.len() == 1,
            before: 0,
        }
    }

    /// Whether the call may ask here after so many requests elsewhere, which brought nothing.
    pub(super) fn admits(&mut self, before: u32, now: Instant) -> bool {
        self.before = before;
        before == 0 || self.guard.region().welcomes(now)
    }

    /// What an answer from here means for a call of `key`. Whether the key is there and may be used
    /// is its preferred Region's to say: a replica that is not there, or not yet, refuses nothing.
    pub(super) fn judged<T>(&self, key: &KeyRef, answer: Result<T, Error>) -> Judged<T> {
        let preferred = key.preferred() == self.key;
        match answer {
            Err(error @ (Error::Disabled | Error::NotFound(_) | Error::PendingDeletion(_)))
                if !preferred =>
            {
                Judged::Useless(error)
            }
            Err(error) if error.is_undecided() => Judged::Undecided(error),
            Err(Error::AccessDenied(denial)) if !self.is_only => {
                Judged::Decided(Err(Error::AccessDenied(denial.by_replica(self.key))))
            }
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
        let outcome = answer.as_ref().err().map_or(KmsOutcome::Done, outcome);
        let region = self.guard.region();
        if self.before > 0 {
            region.received(outcome, now);
        }
        let change = region.diagnose(outcome, now);
        let region = region.name.as_str();
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
