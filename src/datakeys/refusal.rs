//! What KMS refused a moment ago: remembered for a few seconds at its own scope, so that callers
//! who insist do not become KMS calls. An outage is no refusal.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

use crate::clock::Instant;
use crate::datakeys::id::Id;
use crate::kms;
use crate::kms::KeyRef;
use crate::metrics::KmsOperation;
use crate::name::KeyId;
use crate::sync::Mutex;
use crate::sync::lock;

/// Refusals, each of what an `S` names.
pub(super) struct Refusals<S>(Mutex<HashMap<S, Refusal>>);

/// What a tenant was refused.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) enum Subject {
    /// This entry alone: a wrapped key and context, or a context to seal under.
    Entry(Id),
    /// All of the tenant's use of one of a key's KMS keys, for one operation.
    Use {
        key: KeyId,
        generation: u64,
        kms_key: KeyRef,
        operation: KmsOperation,
    },
}

/// What a refusal means to who asks.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It was long enough ago, and who hears this is the one to find out whether it still holds.
    Doubtful,
    /// It counts.
    Refused(kms::Error),
}

struct Refusal {
    error: kms::Error,
    until: Instant,
}

impl<S: Eq + Hash> Refusals<S> {
    /// Remembers `error` for 2 to 5 s after `now`, by the random `chance`. Whether there was no
    /// such refusal before.
    pub(super) fn remember(
        &self,
        subject: S,
        error: &kms::Error,
        now: Instant,
        chance: u8,
    ) -> News {
        let mut refusals = lock(&self.0);
        if refusals.len() >= MOST {
            refusals.retain(|_, refusal| now < refusal.until);
        }
        let until = now + SHORTEST + SPREAD * u32::from(chance) / 255;
        let error = error.clone();
        let refusal = Refusal { error, until };
        // Forgetting costs KMS calls alone.
        match refusals.len() < MOST || refusals.contains_key(&subject) {
            true if refusals.insert(subject, refusal).is_some() => News::Known,
            true | false => News::Fresh,
        }
    }

    /// What KMS said of `subject`, if that is remembered.
    pub(super) fn of(&self, subject: &S, now: Instant) -> Option<kms::Error> {
        let refusals = lock(&self.0);
        let refusal = refusals.get(subject).filter(|one| now < one.until)?;
        Some(refusal.error.clone())
    }

    /// What KMS said of `subject`, of which many entries are: when it is over, one asks, a second,
    /// before all do.
    pub(super) fn standing(&self, subject: &S, now: Instant) -> Option<Standing> {
        let mut refusals = lock(&self.0);
        let refusal = refusals.get_mut(subject)?;
        if now < refusal.until {
            return Some(Standing::Refused(refusal.error.clone()));
        }
        refusal.until = now + TRIAL;
        Some(Standing::Doubtful)
    }

    /// Forgets what KMS said of `subject`, which it does not say any more. Whether there was
    /// anything to forget.
    pub(super) fn forget(&self, subject: &S) -> bool {
        lock(&self.0).remove(subject).is_some()
    }

    /// Drops what has been over for long at `now`.
    pub(super) fn sweep(&self, now: Instant) {
        lock(&self.0).retain(|_, refusal| now < refusal.until + DOUBT);
    }

    /// Forgets everything.
    pub(super) fn clear(&self) {
        lock(&self.0).clear();
    }

    pub(super) fn is_empty(&self) -> bool {
        lock(&self.0).is_empty()
    }
}

impl<S> Default for Refusals<S> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

/// Whether something is news.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum News {
    Fresh,
    Known,
}

/// The call that is refused, and the probe that may follow, come to one call a second.
const SHORTEST: Duration = Duration::from_secs(2);
const SPREAD: Duration = Duration::from_secs(3);
/// For one to find out whether a refusal still holds.
const TRIAL: Duration = Duration::from_secs(1);
/// For so long after its end a refusal is in doubt, and then forgotten.
const DOUBT: Duration = Duration::from_secs(60);
/// Most refusals in one place.
const MOST: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock as _;
    use crate::clock::System;

    #[test]
    fn when_a_refusal_is_over_one_a_second_asks_again() {
        let refusals = Refusals::default();
        let start = System.now();
        let at = |millis| start + Duration::from_millis(millis);
        let refused = Some(Standing::Refused(kms::Error::Disabled));
        let remember = |now| refusals.remember("key", &kms::Error::Disabled, now, 0);
        assert_eq!(refusals.standing(&"key", start), None);
        assert_eq!(remember(start), News::Fresh);
        assert_eq!(refusals.standing(&"key", at(1999)), refused);
        assert_eq!(
            refusals.standing(&"key", at(2000)),
            Some(Standing::Doubtful)
        );
        assert_eq!(refusals.standing(&"key", at(2999)), refused);
        assert_eq!(
            refusals.standing(&"key", at(3000)),
            Some(Standing::Doubtful)
        );
        assert_eq!(remember(at(3100)), News::Known);
        assert_eq!(refusals.standing(&"key", at(5099)), refused);
        assert!(refusals.forget(&"key"));
        assert_eq!(refusals.standing(&"key", at(5099)), None);
        assert!(!refusals.forget(&"key"));
    }

    #[test]
    fn a_refusal_that_nobody_asks_about_is_forgotten() {
        let refusals = Refusals::default();
        let start = System.now();
        refusals.remember("key", &kms::Error::Disabled, start, 255);
        refusals.sweep(start + Duration::from_millis(64_999));
        assert!(!refusals.is_empty());
        refusals.sweep(start + Duration::from_secs(65));
        assert!(refusals.is_empty());
    }

    #[test]
    fn refusals_have_a_bound_and_those_that_hold_stay() {
        let refusals = Refusals::default();
        let start = System.now();
        for subject in 0..MOST + 1 {
            refusals.remember(subject, &kms::Error::Disabled, start, 255);
        }
        assert!(refusals.of(&0, start).is_some());
        assert!(refusals.of(&MOST, start).is_none());
        refusals.remember(0, &kms::Error::InvalidCiphertext, start, 255);
        let renewed = refusals.of(&0, start);
        assert_eq!(renewed, Some(kms::Error::InvalidCiphertext));
    }
}
