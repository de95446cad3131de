//! Every instrument of the product: names, units, help and labels in one place.
//!
//! What a request touches is a plain atomic that is read at collection, so counting costs one
//! relaxed increment and builds no attributes. Labels come from closed sets, or are tenants up to
//! a bound: never a principal, a request id or an ARN. Counters start at 0 with all their labels.
//! Names stand here as OpenTelemetry has them: the exporter appends the unit, and `_total` to
//! counters.

mod code;
mod counts;
mod durations;
mod kms;
mod labels;
mod overview;
mod register;
mod timings;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use jiff::Timestamp;
use opentelemetry::metrics::Meter;
use opentelemetry::metrics::MeterProvider as _;
use opentelemetry::metrics::noop::NoopMeterProvider;

pub use code::CallOutcome;
pub use code::Code;
pub use counts::TENANTS;
pub use counts::TenantTally;
pub use durations::Spread;
pub use kms::KmsTally;
pub use kms::REGIONS;
pub use labels::Audited;
pub use labels::Circuit;
pub use labels::Countersigned;
pub use labels::Decision;
pub use labels::Dependency;
pub use labels::KmsOperation;
pub use labels::KmsOutcome;
pub use labels::Lookup;
pub use labels::RateScope;
pub use labels::Refresh;
pub use labels::Reload;
pub use labels::Retirement;
pub use labels::Shed;
pub use labels::Warming;
pub use overview::AuditOverview;
pub use overview::Overview;
pub use overview::RegionOverview;
pub use overview::TenantOverview;
pub use timings::CallTally;
pub use timings::Histogram;
pub use timings::Series;
pub use timings::Timings;

use counts::Values;
use kms::Regions;
use register::register;

/// The instruments, made once and handed to whoever counts. Cheap to clone.
#[derive(Clone)]
pub struct Metrics(Arc<Instruments>);

struct Instruments {
    values: Arc<Values>,
    regions: Arc<Regions>,
    timings: Timings,
    age: opentelemetry::metrics::Histogram<f64>,
    uses: opentelemetry::metrics::Histogram<u64>,
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
    /// Makes all instruments in `meter`, but for `timings`, which are collected beside it. Once a
    /// process: a second set would count beside the first under the same names.
    pub fn new(meter: &Meter, timings: Timings) -> Self {
        let values = Arc::new(Values::default());
        register(meter, &values);
        timings.register(meter);
        let regions = Regions::new(meter);
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
        Self(Arc::new(Instruments {
            values,
            regions,
            timings,
            age,
            uses,
        }))
    }

    /// Instruments that nobody collects: for tests, and for commands that serve nobody. What is
    /// counted can still be read from here.
    pub fn unread() -> Self {
        Self::new(
            &NoopMeterProvider::new().meter("keybroker"),
            Timings::default(),
        )
    }

    /// Instruments that leave out what every call passes: for a benchmark of what counting it
    /// costs. No setting leads here.
    pub fn uncounted() -> Self {
        let meter = NoopMeterProvider::new().meter("keybroker");
        Self::new(&meter, Timings::uncounted())
    }

    /// Whether what every call passes is counted.
    pub fn counting(&self) -> bool {
        self.0.timings.counting()
    }

    /// The tally of the calls of `method`, which is named with its service; to be kept by whoever
    /// counts: finding it takes a lock.
    pub fn calls(&self, method: &str) -> Arc<CallTally> {
        self.0.timings.calls(method)
    }

    /// Counts a decision about a caller and a key, which `took` so long.
    pub fn decided(&self, decision: Decision, took: Duration) {
        self.0.timings.decided(decision, took);
    }

    /// Counts a decision about a caller and a key that could not be made.
    pub fn undecided(&self) {
        self.0.timings.undecided();
    }

    /// Counts so many audit records.
    pub fn audited(&self, audited: Audited, records: u64) {
        self.0
            .values
            .audited
            .of(audited)
            .fetch_add(records, Relaxed);
    }

    /// Counts an attempt to have audit records countersigned.
    pub fn countersigned(&self, countersigned: Countersigned) {
        let count = self.0.values.countersigned.of(countersigned);
        count.fetch_add(1, Relaxed);
    }

    /// Attempts to have audit records countersigned so far.
    pub fn countersignatures(&self, countersigned: Countersigned) -> u64 {
        self.0.values.countersigned.of(countersigned).load(Relaxed)
    }

    /// Sets how many audit records are not countersigned yet, and the age of the oldest.
    pub fn not_countersigned(&self, records: u64, age: Duration) {
        let values = &self.0.values;
        values.not_countersigned.store(records, Relaxed);
        values.countersignature_lag.store(age.as_secs(), Relaxed);
    }

    /// Says that calls go on without an audit record, for readiness to name it.
    pub fn audit_best_effort(&self) {
        self.0.values.audit_best_effort.store(1, Relaxed);
    }

    /// Audit records so far.
    pub fn audits(&self, audited: Audited) -> u64 {
        self.0.values.audited.of(audited).load(Relaxed)
    }

    /// Counts a look-up in the data-key cache.
    pub fn lookup(&self, lookup: Lookup) {
        self.0.values.lookups.of(lookup).fetch_add(1, Relaxed);
    }

    /// Counts `more` look-ups that one of the same kind served.
    pub fn lookups_of(&self, lookup: Lookup, more: u64) {
        self.0.values.lookups.of(lookup).fetch_add(more, Relaxed);
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

    /// Counts a request that is refused because it is over a limit.
    pub fn rate_limited(&self, scope: RateScope) {
        self.0.values.rates_limited.of(scope).fetch_add(1, Relaxed);
    }

    /// Requests refused because of the limits of `scope` so far.
    pub fn rates_limited(&self, scope: RateScope) -> u64 {
        self.0.values.rates_limited.of(scope).load(Relaxed)
    }

    /// Counts a call that is refused for want of room.
    pub fn shed(&self, reason: Shed) {
        self.0.values.shed.of(reason).fetch_add(1, Relaxed);
    }

    /// Calls refused for `reason` so far.
    pub fn sheds(&self, reason: Shed) -> u64 {
        self.0.values.shed.of(reason).load(Relaxed)
    }

    /// The tally of `tenant`, to be kept by whoever counts often: finding it takes a lock. The
    /// first [`TENANTS`] tenants have one each until the process ends, and later ones share one,
    /// so that no counter ever falls.
    pub fn tenant(&self, tenant: &str) -> Arc<TenantTally> {
        self.0.values.tenants.tally(tenant)
    }

    /// The tally of the requests to KMS in `region`, to be kept by whoever makes them. The first
    /// [`REGIONS`] Regions have one each until the process ends, and later ones share one.
    pub fn kms(&self, region: &str) -> Arc<KmsTally> {
        self.0.regions.tally(region)
    }

    /// KMS calls avoided so far, by all tenants.
    pub fn avoided(&self) -> u64 {
        let tenants = self.0.values.tenants.read();
        let avoided = |(_, tally): (_, Arc<TenantTally>)| tally.kms_calls_avoided();
        tenants.into_iter().map(avoided).sum()
    }

    /// Sets how many data keys are in the cache, and the memory that they take.
    pub fn cache_size(&self, entries: u64, bytes: u64) {
        self.0.values.cache_entries.store(entries, Relaxed);
        self.0.values.cache_bytes.store(bytes, Relaxed);
    }

    /// Sets how many calls wait for KMS.
    pub fn waiters(&self, waiters: u64) {
        self.0.values.waiters.store(waiters, Relaxed);
    }

    /// Sets whether we do without `dependency` at present.
    pub fn degraded(&self, dependency: Dependency, degraded: bool) {
        let gauge = self.0.values.degraded(dependency);
        gauge.store(degraded.into(), Relaxed);
    }

    /// Sets how many grants of KMS should have ended a minute ago and have not, and how many beside
    /// them KMS refuses to end.
    pub fn kms_grants_overdue(&self, grants: u64, refused: u64) {
        self.0.values.kms_grants_overdue.store(grants, Relaxed);
        self.0.values.kms_grants_refused.store(refused, Relaxed);
    }

    /// Sets how many grants of KMS have a name of the store's, and no row there.
    pub fn stray_kms_grants(&self, grants: u64) {
        self.0.values.kms_grants_stray.store(grants, Relaxed);
    }

    /// Counts a grant of KMS that could not be ended when it was due.
    pub fn kms_grant_failed(&self) {
        self.0.values.kms_grant_failures.fetch_add(1, Relaxed);
    }

    /// Sets how many tenants of the store are not usable, and so are denied everything.
    pub fn refused_tenants(&self, tenants: usize) {
        let tenants = tenants.try_into().unwrap_or(u64::MAX);
        self.0.values.tenants_refused.store(tenants, Relaxed);
    }

    /// Sets how far the clocks of the store and of this machine are apart.
    pub fn store_skew(&self, skew: Duration) {
        self.0.values.store_skew.store(skew.as_secs(), Relaxed);
    }

    /// Sets how old what is known of the store is.
    pub fn store_age(&self, age: Duration) {
        self.0.values.store_age.store(age.as_secs(), Relaxed);
    }

    /// Sets what became of keeping secrets out of swap: whether memory that should be locked is
    /// not, the bytes of this process in swap, and how many secrets lie in ordinary memory.
    pub fn memory(&self, lock_degraded: bool, swap_bytes: u64, secrets_unlocked: u64) {
        let values = &self.0.values;
        values.lock_degraded.store(lock_degraded.into(), Relaxed);
        values.swap_bytes.store(swap_bytes, Relaxed);
        values.secrets_unlocked.store(secrets_unlocked, Relaxed);
    }

    /// Sets how many tasks there are.
    pub fn tasks(&self, alive: u64) {
        self.0.values.tasks.store(alive, Relaxed);
    }

    /// Notes that a configuration is in force from `now` on.
    pub fn loaded(&self, now: Timestamp) {
        self.0.values.loaded.store(seconds(now), Relaxed);
    }

    /// Counts a reload of the configuration.
    pub fn reloaded(&self, reload: Reload) {
        self.0.values.reloads.of(reload).fetch_add(1, Relaxed);
    }

    /// Sets the last moment at which the certificate that we serve is good, if we serve one.
    pub fn certificate_expiry(&self, at: Option<Timestamp>) {
        let at = at.map(seconds).unwrap_or_default();
        self.0.values.certificate_expiry.store(at, Relaxed);
    }

    /// The numbers of this moment, for people.
    pub fn overview(&self) -> Overview {
        Overview::of(self)
    }

    /// What is degraded at present, for readiness: labels of dependencies,
    /// `audit_best_effort` and `memory_lock`.
    pub fn reasons(&self) -> Vec<&'static str> {
        let values = &self.0.values;
        let set = |gauge: &AtomicU64| gauge.load(Relaxed) != 0;
        let mut reasons: Vec<_> = Dependency::ALL
            .into_iter()
            .filter(|dependency| set(values.degraded(*dependency)))
            .map(Dependency::label)
            .collect();
        if set(&values.audit_best_effort) {
            reasons.push("audit_best_effort");
        }
        if set(&values.lock_degraded) {
            reasons.push("memory_lock");
        }
        reasons
    }
}

fn seconds(time: Timestamp) -> u64 {
    time.as_second().try_into().unwrap_or_default()
}

/// Of data keys, in seconds: they may live from 1 s to 1 h, 5 min by default, and their successors
/// come at about 80 % of that.
const AGES: [f64; 11] = [
    1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 240.0, 300.0, 600.0, 1800.0, 3600.0,
];

/// Of data keys, in messages. The first bucket holds those that KMS was asked for in vain.
const USES: [f64; 9] = [0.0, 1.0, 10.0, 100.0, 1e3, 1e4, 1e5, 1e6, 1e7];

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
        metrics.tenant("acme").avoided(1);
        metrics.tenant("globex").avoided(1);
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
        assert_eq!(retired, [0, 0, 0, 0, 0, 0, 0, 1, 0]);
        assert_eq!(metrics.avoided(), 2);
    }

    #[test]
    fn reasons_come_and_go() {
        let metrics = Metrics::unread();
        assert_eq!(metrics.reasons(), [""; 0]);
        metrics.degraded(Dependency::Kms, true);
        metrics.memory(true, 0, 0);
        assert_eq!(metrics.reasons(), ["kms", "memory_lock"]);
        metrics.degraded(Dependency::Audit, true);
        assert_eq!(metrics.reasons(), ["audit", "kms", "memory_lock"]);
        metrics.degraded(Dependency::Audit, false);
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
