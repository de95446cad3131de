//! What KMS refused a moment ago: remembered for a few seconds at its own scope, so that callers
//! who insist do not become KMS calls. An outage is no refusal.

use std::collections::HashMap;
use std::time::Duration;

use crate::clock::Instant;
use crate::datakeys::id::Id;
use crate::kms;
use crate::name::KeyId;
use crate::policy::Direction;
use crate::sync::Mutex;
use crate::sync::lock;

/// Refusals of one tenant.
#[derive(Default)]
pub(super) struct Refusals(Mutex<HashMap<Subject, Refusal>>);

/// What was refused.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) enum Subject {
    /// This entry alone: a wrapped key and context, or a context to seal under.
    Entry(Id),
    /// All of the tenant's use of a version of a key, in one direction.
    Version {
        key: KeyId,
        generation: u64,
        version: usize,
        direction: Direction,
    },
}

struct Refusal {
    error: kms::Error,
    until: Instant,
}

impl Refusals {
    /// Remembers `error` for 1 to 5 s after `now`, by the random `chance`.
    pub(super) fn remember(&self, subject: Subject, error: &kms::Error, now: Instant, chance: u8) {
        let mut refusals = lock(&self.0);
        if refusals.len() >= MOST {
            refusals.retain(|_, refusal| now < refusal.until);
        }
        // Forgetting costs KMS calls alone.
        if refusals.len() < MOST {
            let until = now + SHORTEST + SPREAD * u32::from(chance) / 255;
            let error = error.clone();
            refusals.insert(subject, Refusal { error, until });
        }
    }

    /// What KMS said of one of `subjects`, if that is remembered.
    pub(super) fn of(&self, subjects: &[Subject], now: Instant) -> Option<kms::Error> {
        let refusals = lock(&self.0);
        let mut known = subjects.iter().filter_map(|one| refusals.get(one));
        known
            .find(|refusal| now < refusal.until)
            .map(|refusal| refusal.error.clone())
    }

    /// Drops what is over at `now`.
    pub(super) fn sweep(&self, now: Instant) {
        lock(&self.0).retain(|_, refusal| now < refusal.until);
    }

    /// Forgets everything.
    pub(super) fn clear(&self) {
        lock(&self.0).clear();
    }

    pub(super) fn is_empty(&self) -> bool {
        lock(&self.0).is_empty()
    }
}

const SHORTEST: Duration = Duration::from_secs(1);
const SPREAD: Duration = Duration::from_secs(4);
/// Most refusals of one tenant in memory.
const MOST: usize = 1024;
