//! One question to KMS that decides for all contexts of a key: is it the key that KMS refuses us,
//! or one context of one caller?

use std::collections::HashMap;
use std::time::Duration;

use crate::clock::Instant;
use crate::metrics::KmsOperation;
use crate::name::KeyId;
use crate::sync::Mutex;
use crate::sync::lock;

/// When one tenant's keys were last probed.
#[derive(Default)]
pub(super) struct Probes(Mutex<HashMap<(KeyId, KmsOperation), Instant>>);

impl Probes {
    /// Whether `key` may be probed with `operation` at `now`, which then counts as done: once a
    /// second.
    pub(super) fn begin(&self, key: &KeyId, operation: KmsOperation, now: Instant) -> bool {
        let mut asked = lock(&self.0);
        let place = (key.clone(), operation);
        let due = asked
            .get(&place)
            .is_none_or(|asked| now.since(*asked) >= PAUSE);
        if due {
            asked.insert(place, now);
        }
        due
    }

    /// Forgets keys that have had no probe for long.
    pub(super) fn sweep(&self, now: Instant) {
        lock(&self.0).retain(|_, asked| now.since(*asked) < LONGEST);
    }
}

const PAUSE: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(300);
