//! A tenant's share of the cache: its entries, its KMS calls under way and what KMS refused it.
//! Nothing in here is another tenant's, so neither eviction nor waiting crosses over.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::mem;
use std::sync::Arc;

use moka::notification::RemovalCause;
use moka::sync::Cache;

use crate::clock::Clock;
use crate::clock::Instant;
use crate::datakeys::flight::Flights;
use crate::datakeys::flight::LONGEST;
use crate::datakeys::id::Id;
use crate::datakeys::key::OpeningKey;
use crate::datakeys::key::SealingKey;
use crate::datakeys::origin::Origin;
use crate::datakeys::probe::Probes;
use crate::datakeys::refusal::Refusals;
use crate::datakeys::refusal::Subject;
use crate::datakeys::slot::Entry;
use crate::datakeys::slot::Look;
use crate::datakeys::slot::Slot;
use crate::datakeys::slot::Taken;
use crate::datakeys::slot::WeakEntry;
use crate::directory::Key;
use crate::directory::KmsKeys;
use crate::metrics::Metrics;
use crate::metrics::Retirement;
use crate::metrics::TenantTally;
use crate::name::KeyId;
use crate::sync::Mutex;
use crate::sync::atomic::AtomicU64;
use crate::sync::atomic::Ordering;
use crate::sync::lock;
use crate::sync::step;

/// What one tenant has in the cache.
pub(super) struct Share {
    entries: Cache<Id, Entry>,
    books: Arc<Books>,
    /// Entries to look at again, by the second of the boot clock.
    due: Mutex<BTreeMap<u64, Vec<WeakEntry>>>,
    /// By key, generation and version: the last one is in force unless it is cut off; those before
    /// it are until their data keys are wiped.
    origins: Mutex<HashMap<(KeyId, u64, usize), Line>>,
    pub(super) sealing_flights: Flights<Arc<SealingKey>>,
    pub(super) opening_flights: Flights<Arc<OpeningKey>>,
    pub(super) refusals: Refusals<Subject>,
    pub(super) probes: Probes,
    pub(super) tally: Arc<TenantTally>,
    /// Calls that wait for KMS.
    pub(super) waiters: AtomicU64,
}

/// Origins of one version of a key, one after the other.
type Line = Vec<Arc<Origin>>;

/// How much a tenant may have.
#[derive(Clone, Copy)]
pub(super) struct Allowance {
    pub(super) entries: u64,
    pub(super) bytes: u64,
}

/// Keeps count of entries that hold a key.
struct Books {
    /// Of all tenants.
    total: Arc<AtomicU64>,
    metrics: Metrics,
    clock: Arc<dyn Clock>,
    entries: AtomicU64,
    bytes: AtomicU64,
}

impl Share {
    pub(super) fn new(
        allowance: Allowance,
        total: &Arc<AtomicU64>,
        metrics: &Metrics,
        clock: &Arc<dyn Clock>,
        tally: Arc<TenantTally>,
    ) -> Self {
        let books = Arc::new(Books {
            total: Arc::clone(total),
            metrics: metrics.clone(),
            clock: Arc::clone(clock),
            entries: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        });
        // An entry weighs its bytes, and never less than an entry's part of the bytes: so one
        // capacity bounds both.
        let least = (allowance.bytes / allowance.entries).max(1);
        let weigh =
            move |_: &Id, entry: &Entry| entry.bytes().max(least).try_into().unwrap_or(u32::MAX);
        let evicting = Arc::clone(&books);
        let entries = Cache::builder()
            .max_capacity(least.saturating_mul(allowance.entries))
            .weigher(weigh)
            .eviction_listener(move |_, entry: Entry, cause| match cause {
                RemovalCause::Expired | RemovalCause::Size => {
                    step(|| evicting.retire(&entry, Retirement::Capacity));
                }
                // Whoever removes or replaces an entry retires it, and says why.
                RemovalCause::Explicit | RemovalCause::Replaced => {}
            })
            .build();
        Self {
            entries,
            books,
            due: Mutex::default(),
            origins: Mutex::default(),
            sealing_flights: Flights::new(LONGEST),
            opening_flights: Flights::new(LONGEST),
            refusals: Refusals::default(),
            probes: Probes::default(),
            tally,
            waiters: AtomicU64::new(0),
        }
    }

    /// The sealing entry `id`.
    pub(super) fn sealing(&self, id: &Id) -> Option<Arc<Slot<SealingKey>>> {
        match self.entries.get(id)? {
            Entry::Sealing(slot) => Some(slot),
            Entry::Opening(_) => None,
        }
    }

    /// The opening entry `id`.
    pub(super) fn opening(&self, id: &Id) -> Option<Arc<Slot<OpeningKey>>> {
        match self.entries.get(id)? {
            Entry::Opening(slot) => Some(slot),
            Entry::Sealing(_) => None,
        }
    }

    /// Puts `entry` in, in place of the one that has its id; that one is retired for `why`.
    pub(super) fn put(&self, entry: Entry, why: Retirement, now: Instant) {
        let Some(origin) = entry.origin() else {
            return;
        };
        let previous = self.entries.get(entry.id());
        self.books.enter(&entry);
        self.watch(&entry, now.millis());
        self.entries.insert(*entry.id(), entry.clone());
        if let Some(previous) = previous {
            self.books.retire(&previous, why);
        }
        // It may have been cut off on its way, after whoever did it had looked through the
        // entries.
        if let Some(why) = origin.cut_meanwhile() {
            self.retire(&entry, why);
        }
    }

    /// Takes `entry` out, unless another one has its place already, and empties it.
    pub(super) fn retire(&self, entry: &Entry, why: Retirement) {
        if self
            .entries
            .get(entry.id())
            .is_some_and(|current| current.is(entry))
        {
            self.entries.invalidate(entry.id());
        }
        self.books.retire(entry, why);
    }

    /// Takes out whatever entry `id` is.
    pub(super) fn remove(&self, id: &Id, why: Retirement) {
        if let Some(entry) = self.entries.remove(id) {
            self.books.retire(&entry, why);
        }
    }

    /// Takes out all entries whose origin is cut off.
    pub(super) fn remove_cut(&self) {
        for (_, entry) in &self.entries {
            if let Some(why) = entry.origin().and_then(|origin| origin.cut()) {
                self.retire(&entry, why);
            }
        }
        self.entries.run_pending_tasks();
    }

    /// All entries of this moment, those that are empty included, each after the time of its last
    /// use. That time is read once: callers move it, and to order by what moves may panic.
    pub(super) fn all(&self) -> Vec<(u64, Entry)> {
        let dated = |(_, entry): (_, Entry)| (entry.used(), entry);
        self.entries.iter().map(dated).collect()
    }

    /// Takes out the entries that have gone unused for longest: one part in sixteen.
    pub(super) fn shrink(&self) {
        let mut entries = self.all();
        let count = entries.len() / 16 + 1;
        if count < entries.len() {
            entries.select_nth_unstable_by_key(count, |(used, _)| *used);
        }
        for (_, entry) in entries.iter().take(count) {
            self.retire(entry, Retirement::Capacity);
        }
    }

    /// The origin of data keys under `version` of `key`, which is `kms_keys`.
    pub(super) fn origin(&self, key: &Arc<Key>, version: usize, kms_keys: &KmsKeys) -> Arc<Origin> {
        let mut origins = lock(&self.origins);
        let place = (key.name().key.clone(), key.generation(), version);
        let line = origins.entry(place).or_default();
        if let Some(origin) = line.last().filter(|origin| origin.cut().is_none()) {
            return Arc::clone(origin);
        }
        line.retain(|origin| Arc::strong_count(origin) > 1);
        let origin = Arc::new(Origin::new(Arc::clone(key), version, kms_keys.clone()));
        line.push(Arc::clone(&origin));
        origin
    }

    /// Cuts off the origins that `chosen` picks, and returns them. Their entries serve nobody
    /// from now on; [`Share::remove_cut`] takes them out.
    pub(super) fn cut_off(
        &self,
        why: Retirement,
        chosen: impl Fn(&Origin) -> bool,
    ) -> Vec<Arc<Origin>> {
        let origins = lock(&self.origins);
        let chosen: Vec<_> = origins
            .values()
            .flatten()
            .filter(|one| chosen(one))
            .cloned()
            .collect();
        for origin in &chosen {
            origin.cut_off(why);
        }
        chosen
    }

    /// Has the data keys of the origins that `chosen` picks serve nobody any more: KMS refused.
    pub(super) fn deny(&self, chosen: impl Fn(&Origin) -> bool) {
        if !self.cut_off(Retirement::Denied, chosen).is_empty() {
            self.remove_cut();
        }
    }

    /// Empties and takes out what has served by `now`, and returns the sealing entries that are
    /// past their soft age.
    pub(super) fn sweep(&self, now: Instant) -> Vec<Arc<Slot<SealingKey>>> {
        let mut refresh = Vec::new();
        for entry in self.watched(now).iter().filter_map(WeakEntry::upgrade) {
            match entry.look(now) {
                Look::Again(next) => self.watch(&entry, next),
                Look::Due(slot) => {
                    self.watch(&entry, now.millis());
                    refresh.push(slot);
                }
                Look::Gone => {}
                Look::Over(why) => self.retire(&entry, why),
            }
        }
        self.entries.run_pending_tasks();
        self.refusals.sweep(now);
        self.probes.sweep(now);
        lock(&self.origins).retain(|_, line| {
            line.retain(|origin| Arc::strong_count(origin) > 1);
            !line.is_empty()
        });
        refresh
    }

    /// How many entries hold a key.
    pub(super) fn entries(&self) -> u64 {
        self.books.entries.load(Ordering::Relaxed)
    }

    /// About how many bytes those take.
    pub(super) fn bytes(&self) -> u64 {
        self.books.bytes.load(Ordering::Relaxed)
    }

    /// Whether nothing would be lost with it.
    pub(super) fn is_empty(&self) -> bool {
        self.entries() == 0
            && self.sealing_flights.is_empty()
            && self.opening_flights.is_empty()
            && self.refusals.is_empty()
            && lock(&self.origins).is_empty()
    }

    /// Has `entry` looked at when `at` has passed, in milliseconds of the boot clock.
    fn watch(&self, entry: &Entry, at: u64) {
        let second = at / 1000 + 1;
        lock(&self.due)
            .entry(second)
            .or_default()
            .push(entry.downgrade());
    }

    fn watched(&self, now: Instant) -> Vec<WeakEntry> {
        let mut due = lock(&self.due);
        let later = due.split_off(&(now.millis() / 1000 + 1));
        let now = mem::replace(&mut *due, later);
        now.into_values().flatten().collect()
    }
}

impl Books {
    fn enter(&self, entry: &Entry) {
        self.total.fetch_add(1, Ordering::Relaxed);
        self.entries.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(entry.bytes(), Ordering::Relaxed);
    }

    fn retire(&self, entry: &Entry, why: Retirement) {
        let bytes = entry.bytes();
        let Some(taken) = entry.take() else {
            return;
        };
        self.total.fetch_sub(1, Ordering::Relaxed);
        self.entries.fetch_sub(1, Ordering::Relaxed);
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        if let Taken::Sealing(key) = taken {
            let age = self.clock.now().since(key.born());
            self.metrics.retired(why, age, key.uses());
            tracing::debug!(
                key = %key.origin().key().name(),
                reason = why.label(),
                age = age.as_secs(),
                messages = key.uses(),
                "retired a data key"
            );
        }
    }
}
