//! Every instrument of the product: names, units, help and labels in one place.
//!
//! What a request touches is a plain atomic that is read at collection, so counting costs one
//! relaxed increment and builds no attributes. Labels come from closed sets, or are tenants up to
//! a bound: never a principal, a request id or an ARN. Counters start at 0 with all their labels.
//! Names stand here as OpenTelemetry has them: the exporter appends the unit, and `_total` to
//! counters.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::metrics::AsyncInstrument;
use opentelemetry::metrics::Histogram;
use opentelemetry::metrics::Meter;
use opentelemetry::metrics::MeterProvider as _;
use opentelemetry::metrics::noop::NoopMeterProvider;

/// The instruments, made once and handed to whoever counts. Cheap to clone.
#[derive(Clone)]
pub struct Metrics(Arc<Instruments>);

struct Instruments {
    values: Arc<Values>,
    age: Histogram<f64>,
    uses: Histogram<u64>,
}

/// How a look-up in the data-key cache was served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// By the KMS call of another look-up.
    Coalesced,
    /// By a cached key within its limits.
    Hit,
    /// By a KMS call of its own.
    Miss,
    /// By a cached key past its soft limit, whose successor is due.
    Stale,
}

impl Lookup {
    const ALL: [Self; 4] = [Self::Coalesced, Self::Hit, Self::Miss, Self::Stale];

    /// The value of the label `result`.
    pub fn label(self) -> &'static str {
        match self {
            Self::Coalesced => "coalesced",
            Self::Hit => "hit",
            Self::Miss => "miss",
            Self::Stale => "stale",
        }
    }
}

/// Why a data key left the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retirement {
    /// Of its limit of age: reached, or so near that a successor came.
    Age,
    /// Of its limit of bytes, likewise.
    Bytes,
    /// The cache, or its tenant's share of it, was full.
    Capacity,
    /// KMS refused the key behind it.
    Denied,
    /// Nobody used it for long.
    Idle,
    /// Of its limit of messages, likewise.
    Messages,
    /// Somebody had it purged.
    Purge,
    /// The directory changed: its key is gone, or is not what it was.
    Rotated,
}

impl Retirement {
    /// Every reason that there is.
    pub const ALL: [Self; 8] = [
        Self::Age,
        Self::Bytes,
        Self::Capacity,
        Self::Denied,
        Self::Idle,
        Self::Messages,
        Self::Purge,
        Self::Rotated,
    ];

    /// The value of the label `reason`.
    pub fn label(self) -> &'static str {
        match self {
            Self::Age => "age",
            Self::Bytes => "bytes",
            Self::Capacity => "capacity",
            Self::Denied => "denied",
            Self::Idle => "idle",
            Self::Messages => "messages",
            Self::Purge => "purge",
            Self::Rotated => "rotated",
        }
    }
}

/// How fetching a data key's successor ahead of time ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refresh {
    /// The successor is in the cache.
    Done,
    /// KMS did not answer: the key serves on within its hard limits.
    Failed,
    /// KMS refused.
    Refused,
}

impl Refresh {
    const ALL: [Self; 3] = [Self::Done, Self::Failed, Self::Refused];

    /// The value of the label `outcome`.
    pub fn label(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Refused => "refused",
        }
    }
}

/// What became of an entry that a restart began with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Warming {
    /// KMS gave its data key again.
    Done,
    /// KMS did not answer.
    Failed,
    /// It belongs to no key of the directory any more.
    Foreign,
    /// There is no room for it.
    Full,
    /// A caller was faster.
    Known,
    /// KMS refused.
    Refused,
}

impl Warming {
    const ALL: [Self; 6] = [
        Self::Done,
        Self::Failed,
        Self::Foreign,
        Self::Full,
        Self::Known,
        Self::Refused,
    ];

    /// The value of the label `outcome`.
    pub fn label(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Foreign => "foreign",
            Self::Full => "full",
            Self::Known => "known",
            Self::Refused => "refused",
        }
    }
}

/// What we need and can do without for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dependency {
    /// The key management service.
    Kms,
}

impl Dependency {
    const ALL: [Self; 1] = [Self::Kms];

    /// The value of the label `dependency`.
    pub fn label(self) -> &'static str {
        match self {
            Self::Kms => "kms",
        }
    }
}

/// What one tenant's calls came to.
#[derive(Default)]
pub struct TenantTally {
    avoided: AtomicU64,
}

impl TenantTally {
    /// Counts a call that a cached key served, where without a cache KMS would have been called.
    pub fn avoided(&self) {
        self.avoided.fetch_add(1, Relaxed);
    }
}

/// Look-ups in the data-key cache so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lookups {
    /// Served by another look-up's KMS call.
    pub coalesced: u64,
    /// Served from the cache.
    pub hits: u64,
    /// Served by a KMS call of their own.
    pub misses: u64,
    /// Served from the cache past the soft limit.
    pub stale: u64,
}

/// Successors of data keys fetched ahead of time so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Refreshes {
    /// Fetched.
    pub done: u64,
    /// Not to be had.
    pub failed: u64,
    /// Refused.
    pub refused: u64,
}

impl Metrics {
    /// Makes all instruments in `meter`. Once a process: a second set would count beside the first
    /// under the same names.
    pub fn new(meter: &Meter) -> Self {
        let values = Arc::new(Values::default());
        register(meter, &values);
        let age = meter
            .f64_histogram("keybroker_data_key_age")
            .with_unit("s")
            .with_description("Age of data keys when they left the cache.")
            .with_boundaries(AGES.to_vec())
            .build();
        let uses = meter
            .u64_histogram("keybroker_data_key_uses")
            .with_description("Messages that data keys had served when they left the cache.")
            .with_boundaries(USES.to_vec())
            .build();
        Self(Arc::new(Instruments { values, age, uses }))
    }

    /// Instruments that nobody collects: for tests, and for commands that serve nobody. What is
    /// counted can still be read from here.
    pub fn unread() -> Self {
        Self::new(&NoopMeterProvider::new().meter("keybroker"))
    }

    /// Counts a look-up in the data-key cache.
    pub fn lookup(&self, lookup: Lookup) {
        self.0.values.lookups.of(lookup).fetch_add(1, Relaxed);
    }

    /// Look-ups so far.
    pub fn lookups(&self) -> Lookups {
        let read = |lookup| self.0.values.lookups.of(lookup).load(Relaxed);
        Lookups {
            coalesced: read(Lookup::Coalesced),
            hits: read(Lookup::Hit),
            misses: read(Lookup::Miss),
            stale: read(Lookup::Stale),
        }
    }

    /// Counts a data key that leaves the cache, `age` old, after `uses` messages.
    pub fn retired(&self, reason: Retirement, age: Duration, uses: u64) {
        self.0.values.retirements.of(reason).fetch_add(1, Relaxed);
        self.0.age.record(age.as_secs_f64(), &[]);
        self.0.uses.record(uses, &[]);
    }

    /// Data keys that have left the cache for `reason` so far.
    pub fn retirements(&self, reason: Retirement) -> u64 {
        self.0.values.retirements.of(reason).load(Relaxed)
    }

    /// Counts how fetching a data key's successor ended.
    pub fn refreshed(&self, refresh: Refresh) {
        self.0.values.refreshes.of(refresh).fetch_add(1, Relaxed);
    }

    /// Successors fetched so far.
    pub fn refreshes(&self) -> Refreshes {
        let read = |refresh| self.0.values.refreshes.of(refresh).load(Relaxed);
        Refreshes {
            done: read(Refresh::Done),
            failed: read(Refresh::Failed),
            refused: read(Refresh::Refused),
        }
    }

    /// Counts what became of an entry that a restart began with.
    pub fn warmed(&self, warming: Warming) {
        self.0.values.warmings.of(warming).fetch_add(1, Relaxed);
    }

    /// The tally of `tenant`, to be kept by whoever counts often: finding it takes a lock. The
    /// first [`TENANTS`] tenants have one each until the process ends, and later ones share one,
    /// so that no counter ever falls.
    pub fn tenant(&self, tenant: &str) -> Arc<TenantTally> {
        self.0.values.tenants.tally(tenant)
    }

    /// KMS calls avoided so far, by all tenants.
    pub fn avoided(&self) -> u64 {
        let tenants = self.0.values.tenants.read();
        tenants.into_iter().map(|(_, avoided)| avoided).sum()
    }

    /// Sets how many data keys are in the cache, and the memory that they take.
    pub fn cache_size(&self, entries: u64, bytes: u64) {
        self.0.values.cache_entries.store(entries, Relaxed);
        self.0.values.cache_bytes.store(bytes, Relaxed);
    }

    /// Sets whether we do without `dependency` at present.
    pub fn degraded(&self, dependency: Dependency, degraded: bool) {
        let gauge = self.0.values.degraded(dependency);
        gauge.store(degraded.into(), Relaxed);
    }

    /// Sets what became of keeping secrets out of swap: whether memory that should be locked is
    /// not, the bytes of this process in swap, and how many secrets lie in ordinary memory.
    pub fn memory(&self, lock_degraded: bool, swap_bytes: u64, secrets_unlocked: u64) {
        let values = &self.0.values;
        values.lock_degraded.store(lock_degraded.into(), Relaxed);
        values.swap_bytes.store(swap_bytes, Relaxed);
        values.secrets_unlocked.store(secrets_unlocked, Relaxed);
    }

    /// What is degraded at present, for readiness: labels of dependencies, and `memory_lock`.
    pub fn reasons(&self) -> Vec<&'static str> {
        let values = &self.0.values;
        let set = |gauge: &AtomicU64| gauge.load(Relaxed) != 0;
        let mut reasons: Vec<_> = Dependency::ALL
            .into_iter()
            .filter(|dependency| set(values.degraded(*dependency)))
            .map(Dependency::label)
            .collect();
        if set(&values.lock_degraded) {
            reasons.push("memory_lock");
        }
        reasons
    }
}

/// Most tenants with a series of their own.
pub const TENANTS: usize = 1000;

/// The label of the tenants beyond [`TENANTS`]; no tenant's id holds an underscore.
const OTHER: &str = "_other";

/// Of data keys, in seconds: they may live from 1 s to 1 h, 5 min by default, and their successors
/// come at about 80 % of that.
const AGES: [f64; 11] = [
    1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 240.0, 300.0, 600.0, 1800.0, 3600.0,
];

/// Of data keys, in messages. The first bucket holds those that KMS was asked for in vain.
const USES: [f64; 9] = [0.0, 1.0, 10.0, 100.0, 1e3, 1e4, 1e5, 1e6, 1e7];

/// What is read at collection.
#[derive(Default)]
struct Values {
    lookups: LookupCounts,
    retirements: RetirementCounts,
    refreshes: RefreshCounts,
    warmings: WarmingCounts,
    tenants: Tenants,
    cache_entries: AtomicU64,
    cache_bytes: AtomicU64,
    kms_degraded: AtomicU64,
    lock_degraded: AtomicU64,
    swap_bytes: AtomicU64,
    secrets_unlocked: AtomicU64,
}

impl Values {
    fn degraded(&self, dependency: Dependency) -> &AtomicU64 {
        match dependency {
            Dependency::Kms => &self.kms_degraded,
        }
    }
}

#[derive(Default)]
struct LookupCounts {
    coalesced: AtomicU64,
    hit: AtomicU64,
    miss: AtomicU64,
    stale: AtomicU64,
}

impl LookupCounts {
    fn of(&self, lookup: Lookup) -> &AtomicU64 {
        match lookup {
            Lookup::Coalesced => &self.coalesced,
            Lookup::Hit => &self.hit,
            Lookup::Miss => &self.miss,
            Lookup::Stale => &self.stale,
        }
    }
}

#[derive(Default)]
struct RetirementCounts {
    age: AtomicU64,
    bytes: AtomicU64,
    capacity: AtomicU64,
    denied: AtomicU64,
    idle: AtomicU64,
    messages: AtomicU64,
    purge: AtomicU64,
    rotated: AtomicU64,
}

impl RetirementCounts {
    fn of(&self, reason: Retirement) -> &AtomicU64 {
        match reason {
            Retirement::Age => &self.age,
            Retirement::Bytes => &self.bytes,
            Retirement::Capacity => &self.capacity,
            Retirement::Denied => &self.denied,
            Retirement::Idle => &self.idle,
            Retirement::Messages => &self.messages,
            Retirement::Purge => &self.purge,
            Retirement::Rotated => &self.rotated,
        }
    }
}

#[derive(Default)]
struct RefreshCounts {
    done: AtomicU64,
    failed: AtomicU64,
    refused: AtomicU64,
}

impl RefreshCounts {
    fn of(&self, refresh: Refresh) -> &AtomicU64 {
        match refresh {
            Refresh::Done => &self.done,
            Refresh::Failed => &self.failed,
            Refresh::Refused => &self.refused,
        }
    }
}

#[derive(Default)]
struct WarmingCounts {
    done: AtomicU64,
    failed: AtomicU64,
    foreign: AtomicU64,
    full: AtomicU64,
    known: AtomicU64,
    refused: AtomicU64,
}

impl WarmingCounts {
    fn of(&self, warming: Warming) -> &AtomicU64 {
        match warming {
            Warming::Done => &self.done,
            Warming::Failed => &self.failed,
            Warming::Foreign => &self.foreign,
            Warming::Full => &self.full,
            Warming::Known => &self.known,
            Warming::Refused => &self.refused,
        }
    }
}

/// The tenants' tallies.
#[derive(Default)]
struct Tenants {
    own: Mutex<HashMap<Arc<str>, Arc<TenantTally>>>,
    other: Arc<TenantTally>,
}

impl Tenants {
    fn tally(&self, tenant: &str) -> Arc<TenantTally> {
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tally) = own.get(tenant) {
            return Arc::clone(tally);
        }
        if own.len() >= TENANTS {
            return Arc::clone(&self.other);
        }
        Arc::clone(own.entry(tenant.into()).or_default())
    }

    /// Label and count of each, copied: whoever looks for a tally shall not wait for a scrape.
    fn read(&self) -> Vec<(Arc<str>, u64)> {
        let own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        let count = |tally: &TenantTally| tally.avoided.load(Relaxed);
        let own = own.iter().map(|(name, tally)| (name.clone(), count(tally)));
        own.chain([(OTHER.into(), count(&self.other))]).collect()
    }
}

/// The instruments that read `values`. The meter keeps them.
fn register(meter: &Meter, values: &Arc<Values>) {
    meter
        .u64_observable_counter("keybroker_key_cache_requests")
        .with_description("Look-ups of data keys in the cache, by how they were served.")
        .with_callback(reading(values, |values, instrument| {
            for one in Lookup::ALL {
                let count = values.lookups.of(one).load(Relaxed);
                instrument.observe(count, &[KeyValue::new("result", one.label())]);
            }
        }))
        .build();
    meter
        .u64_observable_counter("keybroker_data_key_retirements")
        .with_description("Data keys that left the cache, by reason.")
        .with_callback(reading(values, |values, instrument| {
            for one in Retirement::ALL {
                let count = values.retirements.of(one).load(Relaxed);
                instrument.observe(count, &[KeyValue::new("reason", one.label())]);
            }
        }))
        .build();
    meter
        .u64_observable_counter("keybroker_data_key_refreshes")
        .with_description("Successors of data keys fetched ahead of time, by outcome.")
        .with_callback(reading(values, |values, instrument| {
            for one in Refresh::ALL {
                let count = values.refreshes.of(one).load(Relaxed);
                instrument.observe(count, &[KeyValue::new("outcome", one.label())]);
            }
        }))
        .build();
    meter
        .u64_observable_counter("keybroker_key_cache_warmed")
        .with_description("Data keys that a restart began with, by what became of them.")
        .with_callback(reading(values, |values, instrument| {
            for one in Warming::ALL {
                let count = values.warmings.of(one).load(Relaxed);
                instrument.observe(count, &[KeyValue::new("outcome", one.label())]);
            }
        }))
        .build();
    meter
        .u64_observable_counter("keybroker_kms_calls_avoided")
        .with_description("Calls that a cached data key served instead of KMS, by tenant.")
        .with_callback(reading(values, |values, instrument| {
            for (tenant, count) in values.tenants.read() {
                instrument.observe(count, &[KeyValue::new("tenant", tenant)]);
            }
        }))
        .build();
    meter
        .u64_observable_gauge("keybroker_key_cache_entries")
        .with_description("Data keys in the cache.")
        .with_callback(reading(values, |values, instrument| {
            instrument.observe(values.cache_entries.load(Relaxed), &[]);
        }))
        .build();
    meter
        .u64_observable_gauge("keybroker_key_cache")
        .with_unit("By")
        .with_description("Memory that the data keys in the cache take.")
        .with_callback(reading(values, |values, instrument| {
            instrument.observe(values.cache_bytes.load(Relaxed), &[]);
        }))
        .build();
    meter
        .u64_observable_gauge("keybroker_degraded")
        .with_description("1 while the broker does without this dependency.")
        .with_callback(reading(values, |values, instrument| {
            for one in Dependency::ALL {
                let degraded = values.degraded(one).load(Relaxed);
                instrument.observe(degraded, &[KeyValue::new("dependency", one.label())]);
            }
        }))
        .build();
    meter
        .u64_observable_gauge("keybroker_memory_lock_degraded")
        .with_description("1 if memory for secrets could not be locked.")
        .with_callback(reading(values, |values, instrument| {
            instrument.observe(values.lock_degraded.load(Relaxed), &[]);
        }))
        .build();
    meter
        .u64_observable_gauge("keybroker_memory_swap")
        .with_unit("By")
        .with_description("Memory of this process in swap; should be 0.")
        .with_callback(reading(values, |values, instrument| {
            instrument.observe(values.swap_bytes.load(Relaxed), &[]);
        }))
        .build();
    meter
        .u64_observable_gauge("keybroker_secrets_unlocked")
        .with_description("Secrets that lie in ordinary memory, for want of locked memory.")
        .with_callback(reading(values, |values, instrument| {
            instrument.observe(values.secrets_unlocked.load(Relaxed), &[]);
        }))
        .build();
    meter
        .u64_observable_gauge("keybroker_build_info")
        .with_description("1, labelled with the version that runs.")
        .with_callback(|instrument| {
            let version = KeyValue::new("version", env!("CARGO_PKG_VERSION"));
            instrument.observe(1, &[version]);
        })
        .build();
}

/// A callback that gives `observe` the values.
fn reading(
    values: &Arc<Values>,
    observe: fn(&Values, &dyn AsyncInstrument<u64>),
) -> impl Fn(&dyn AsyncInstrument<u64>) + Send + Sync + use<> {
    let values = Arc::clone(values);
    move |instrument| observe(&values, instrument)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_collects_can_be_read() {
        let metrics = Metrics::unread();
        assert_eq!(metrics.lookups(), Lookups::default());
        for lookup in [Lookup::Hit, Lookup::Hit, Lookup::Stale] {
            metrics.clone().lookup(lookup);
        }
        metrics.refreshed(Refresh::Failed);
        metrics.retired(Retirement::Purge, Duration::from_secs(1), 1);
        metrics.tenant("acme").avoided();
        metrics.tenant("globex").avoided();
        let lookups = Lookups {
            hits: 2,
            stale: 1,
            ..Lookups::default()
        };
        assert_eq!(metrics.lookups(), lookups);
        let refreshes = Refreshes {
            failed: 1,
            ..Refreshes::default()
        };
        assert_eq!(metrics.refreshes(), refreshes);
        let retired = Retirement::ALL.map(|reason| metrics.retirements(reason));
        assert_eq!(retired, [0, 0, 0, 0, 0, 0, 1, 0]);
        assert_eq!(metrics.avoided(), 2);
    }

    #[test]
    fn reasons_come_and_go() {
        let metrics = Metrics::unread();
        assert_eq!(metrics.reasons(), [""; 0]);
        metrics.degraded(Dependency::Kms, true);
        metrics.memory(true, 0, 0);
        assert_eq!(metrics.reasons(), ["kms", "memory_lock"]);
        metrics.degraded(Dependency::Kms, false);
        assert_eq!(metrics.reasons(), ["memory_lock"]);
    }

    #[test]
    fn a_tenant_has_one_tally_and_those_beyond_the_bound_share_one() {
        let metrics = Metrics::unread();
        let first = metrics.tenant("t0");
        for number in 0..TENANTS {
            metrics.tenant(&format!("t{number}"));
        }
        assert!(Arc::ptr_eq(&first, &metrics.tenant("t0")));
        let other = metrics.tenant("late");
        assert!(Arc::ptr_eq(&other, &metrics.tenant("later")));
        assert!(!Arc::ptr_eq(&other, &first));
    }
}
