//! One question to KMS that decides for all contexts of a key: is it the key that KMS refuses us,
//! or one context of one caller?

use std::collections::HashMap;
use std::time::Duration;

use crate::clock::Instant;
use crate::message::EncryptedDataKey;
use crate::name::KeyId;
use crate::sync::Mutex;
use crate::sync::lock;

/// The probes of one tenant.
#[derive(Default)]
pub(super) struct Probes(Mutex<HashMap<KeyId, Probe>>);

struct Probe {
    asked: Instant,
    wrapped: Option<EncryptedDataKey>,
}

impl Probes {
    /// Whether `key` may be probed at `now`, which then counts as done: once a second.
    pub(super) fn begin(&self, key: &KeyId, now: Instant) -> bool {
        let mut probes = lock(&self.0);
        match probes.get_mut(key) {
            Some(probe) if now.since(probe.asked) < PAUSE => false,
            Some(probe) => {
                probe.asked = now;
                true
            }
            None => {
                let probe = Probe {
                    asked: now,
                    wrapped: None,
                };
                probes.insert(key.clone(), probe);
                true
            }
        }
    }

    /// Keeps what an earlier probe had KMS wrap, for a probe of the other direction.
    pub(super) fn keep(&self, key: &KeyId, wrapped: EncryptedDataKey) {
        if let Some(probe) = lock(&self.0).get_mut(key) {
            probe.wrapped = Some(wrapped);
        }
    }

    /// What [`Probes::keep`] kept.
    pub(super) fn kept(&self, key: &KeyId) -> Option<EncryptedDataKey> {
        lock(&self.0).get(key)?.wrapped.clone()
    }

    /// Forgets keys that have had no probe for long.
    pub(super) fn sweep(&self, now: Instant) {
        lock(&self.0).retain(|_, probe| now.since(probe.asked) < LONGEST);
    }
}

const PAUSE: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(300);
