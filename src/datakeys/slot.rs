//! An entry's place in the cache. Its key can be taken out of it, so that the key is wiped when
//! its last user is done, however long the map behind keeps the empty place.

use std::sync::Arc;
use std::sync::Weak;
use std::time::Duration;

use arc_swap::ArcSwapOption;

use crate::clock::Instant;
use crate::datakeys::id::Id;
use crate::datakeys::key::OpeningKey;
use crate::datakeys::key::SealingKey;
use crate::datakeys::origin::Origin;
use crate::metrics::Retirement;
use crate::sync::atomic::AtomicU64;
use crate::sync::atomic::Ordering;

/// Holds one key until that is taken, once and for all.
pub(super) struct Slot<K> {
    id: Id,
    key: ArcSwapOption<K>,
    /// In milliseconds of the boot clock.
    used: AtomicU64,
}

impl<K> Slot<K> {
    /// A slot that was last used at `used`, in milliseconds of the boot clock.
    pub(super) fn new(id: Id, key: Arc<K>, used: u64) -> Self {
        Self {
            id,
            key: ArcSwapOption::from(Some(key)),
            used: AtomicU64::new(used),
        }
    }

    pub(super) fn id(&self) -> &Id {
        &self.id
    }

    /// The key, for a use at `now`.
    pub(super) fn of_use(&self, now: Instant) -> Option<Arc<K>> {
        let now = now.millis();
        // Read first: a line that many cores only read stays with all of them.
        if now.saturating_sub(self.used.load(Ordering::Relaxed)) >= USED_STEP {
            self.used.store(now, Ordering::Relaxed);
        }
        self.key.load_full()
    }

    /// The key, looked at without a use.
    pub(super) fn key(&self) -> Option<Arc<K>> {
        self.key.load_full()
    }

    /// When it was last used, in milliseconds of the boot clock.
    pub(super) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Makes `used` its last use, in milliseconds of the boot clock: an entry that nobody asked
    /// for keeps the rank that it had.
    pub(super) fn rank(&self, used: u64) {
        self.used.store(used, Ordering::Relaxed);
    }

    fn take(&self) -> Option<Arc<K>> {
        self.key.swap(None)
    }
}

/// A slot for either direction.
#[derive(Clone)]
pub(super) enum Entry {
    Opening(Arc<Slot<OpeningKey>>),
    Sealing(Arc<Slot<SealingKey>>),
}

/// An [`Entry`] that may be gone.
pub(super) enum WeakEntry {
    Opening(Weak<Slot<OpeningKey>>),
    Sealing(Weak<Slot<SealingKey>>),
}

/// What became of a key that was taken out.
pub(super) enum Taken {
    /// One that opened.
    Opening,
    /// One that sealed.
    Sealing(Arc<SealingKey>),
}

impl Entry {
    pub(super) fn id(&self) -> &Id {
        match self {
            Self::Opening(slot) => &slot.id,
            Self::Sealing(slot) => &slot.id,
        }
    }

    /// Whether both are one entry.
    pub(super) fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Opening(one), Self::Opening(two)) => Arc::ptr_eq(one, two),
            (Self::Sealing(one), Self::Sealing(two)) => Arc::ptr_eq(one, two),
            (Self::Opening(_), Self::Sealing(_)) | (Self::Sealing(_), Self::Opening(_)) => false,
        }
    }

    /// About how much memory it takes, in bytes, the map's own share included.
    pub(super) fn bytes(&self) -> u64 {
        let variable = match self {
            Self::Opening(slot) => slot
                .key()
                .and_then(|key| Some(key.kept()?.size()))
                .unwrap_or(0),
            Self::Sealing(slot) => slot.key().map_or(0, |key| key.envelope().size()),
        };
        FIXED_BYTES.saturating_add(variable.try_into().unwrap_or(u64::MAX))
    }

    /// When it was last used, in milliseconds of the boot clock.
    pub(super) fn used(&self) -> u64 {
        match self {
            Self::Opening(slot) => slot.used(),
            Self::Sealing(slot) => slot.used(),
        }
    }

    /// The origin of the key in it; none when it is empty.
    pub(super) fn origin(&self) -> Option<Arc<Origin>> {
        match self {
            Self::Opening(slot) => Some(Arc::clone(slot.key()?.origin())),
            Self::Sealing(slot) => Some(Arc::clone(slot.key()?.origin())),
        }
    }

    /// Empties it.
    pub(super) fn take(&self) -> Option<Taken> {
        match self {
            Self::Opening(slot) => slot.take().map(|_| Taken::Opening),
            Self::Sealing(slot) => slot.take().map(Taken::Sealing),
        }
    }

    pub(super) fn downgrade(&self) -> WeakEntry {
        match self {
            Self::Opening(slot) => WeakEntry::Opening(Arc::downgrade(slot)),
            Self::Sealing(slot) => WeakEntry::Sealing(Arc::downgrade(slot)),
        }
    }

    /// What is to be done about it at `now`.
    pub(super) fn look(&self, now: Instant) -> Look {
        match self {
            Self::Opening(slot) => match slot.key() {
                None => Look::Gone,
                // Age alone: what was wrapped here is opened without KMS, however late that is
                // asked for.
                Some(key) => match key.ended(now) {
                    Some(why) => Look::Over(why),
                    None => Look::Again(key.hard().millis()),
                },
            },
            Self::Sealing(slot) => match slot.key() {
                None => Look::Gone,
                Some(key) => slot.look(&key, now),
            },
        }
    }
}

impl Slot<SealingKey> {
    fn look(self: &Arc<Self>, key: &SealingKey, now: Instant) -> Look {
        if let Some(why) = key.ended(now) {
            return Look::Over(why);
        }
        let idle = self.used().saturating_add(millis(IDLE));
        if idle <= now.millis() {
            return Look::Over(Retirement::Idle);
        }
        let soon = idle.min(key.hard().millis());
        // A key that nobody used gets no successor: it ages out.
        let wanted = self.used() >= key.born().millis();
        match key.pace().next().filter(|_| wanted) {
            Some(at) if at <= now.millis() => Look::Due(Arc::clone(self)),
            Some(at) => Look::Again(soon.min(at)),
            None => Look::Again(soon),
        }
    }
}

impl WeakEntry {
    pub(super) fn upgrade(&self) -> Option<Entry> {
        match self {
            Self::Opening(slot) => slot.upgrade().map(Entry::Opening),
            Self::Sealing(slot) => slot.upgrade().map(Entry::Sealing),
        }
    }
}

/// What a look at an entry finds.
pub(super) enum Look {
    /// Nothing before this time, in milliseconds of the boot clock.
    Again(u64),
    /// Its key is past its soft age.
    Due(Arc<Slot<SealingKey>>),
    /// It is empty already.
    Gone,
    /// Its key has served.
    Over(Retirement),
}

fn millis(span: Duration) -> u64 {
    span.as_millis().try_into().unwrap_or(u64::MAX)
}

/// Unused for so long, an entry goes: its tenant is idle.
const IDLE: Duration = Duration::from_secs(60);
/// How exactly the last use is known, in milliseconds.
const USED_STEP: u64 = 100;
/// What an entry takes beside its envelope: key, slot, and the map's bookkeeping, as measured by
/// the cache benchmark.
const FIXED_BYTES: u64 = 600;
