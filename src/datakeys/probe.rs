//! One question to KMS that decides for all contexts of a key: is it the key that KMS refuses us,
//! or one context of one caller?

use std::collections::HashMap;
use std::time::Duration;

use crate::clock::Instant;
use crate::name::KeyId;
use crate::policy::Direction;
use crate::sync::Mutex;
use crate::sync::lock;

/// The probes of one tenant.
#[derive(Default)]
pub(super) struct Probes(Mutex<HashMap<KeyId, Probe>>);

#[derive(Default)]
struct Probe {
    /// When it was last asked whether the key opens.
    open: Option<Instant>,
    /// When it was last asked whether it seals.
    seal: Option<Instant>,
}

impl Probes {
    /// Whether `key` may be probed in `direction` at `now`, which then counts as done: once a second.
    pub(super) fn begin(&self, key: &KeyId, direction: Direction, now: Instant) -> bool {
        let mut probes = lock(&self.0);
        let probe = probes.entry(key.clone()).or_default();
        let asked = match direction {
            Direction::Open => &mut probe.open,
            Direction::Seal => &mut probe.seal,
        };
        let due = asked.is_none_or(|asked| now.since(asked) >= PAUSE);
        if due {
            *asked = Some(now);
        }
        due
    }

    /// Forgets keys that have had no probe for long.
    pub(super) fn sweep(&self, now: Instant) {
        let recent = |asked: Option<Instant>| asked.is_some_and(|at| now.since(at) < LONGEST);
        lock(&self.0).retain(|_, probe| recent(probe.open) || recent(probe.seal));
    }
}

const PAUSE: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(300);
