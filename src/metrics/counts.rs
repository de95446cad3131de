//! The numbers themselves: plain atomics, counted anywhere and read at collection.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use crate::metrics::Audited;
use crate::metrics::Countersigned;
use crate::metrics::Dependency;
use crate::metrics::Lookup;
use crate::metrics::RateScope;
use crate::metrics::Refresh;
use crate::metrics::Reload;
use crate::metrics::Retirement;
use crate::metrics::Shed;
use crate::metrics::Warming;

/// What is read at collection.
#[derive(Default)]
pub(super) struct Values {
    pub(super) lookups: LookupCounts,
    pub(super) retirements: RetirementCounts,
    pub(super) refreshes: RefreshCounts,
    pub(super) warmings: WarmingCounts,
    pub(super) rates_limited: RateCounts,
    pub(super) shed: ShedCounts,
    pub(super) tenants: Tenants,
    pub(super) cache_entries: AtomicU64,
    pub(super) cache_bytes: AtomicU64,
    pub(super) waiters: AtomicU64,
    pub(super) audited: AuditCounts,
    pub(super) audit_degraded: AtomicU64,
    pub(super) audit_kms_degraded: AtomicU64,
    pub(super) countersigned: CountersignedCounts,
    /// Records, and the age of the oldest in seconds.
    pub(super) not_countersigned: AtomicU64,
    pub(super) countersignature_lag: AtomicU64,
    pub(super) audit_best_effort: AtomicU64,
    pub(super) kms_degraded: AtomicU64,
    pub(super) store_degraded: AtomicU64,
    pub(super) kms_grants_overdue: AtomicU64,
    pub(super) kms_grant_failures: AtomicU64,
    pub(super) kms_grants_refused: AtomicU64,
    pub(super) kms_grants_stray: AtomicU64,
    pub(super) tenants_refused: AtomicU64,
    pub(super) store_age: AtomicU64,
    pub(super) store_skew: AtomicU64,
    pub(super) lock_degraded: AtomicU64,
    pub(super) swap_bytes: AtomicU64,
    pub(super) secrets_unlocked: AtomicU64,
    pub(super) tasks: AtomicU64,
    pub(super) reloads: ReloadCounts,
    /// In seconds since 1970; 0 before the first.
    pub(super) loaded: AtomicU64,
    /// In seconds since 1970; 0 when there is none.
    pub(super) certificate_expiry: AtomicU64,
}

impl Values {
    pub(super) fn degraded(&self, dependency: Dependency) -> &AtomicU64 {
        match dependency {
            Dependency::Audit => &self.audit_degraded,
            Dependency::AuditKms => &self.audit_kms_degraded,
            Dependency::Kms => &self.kms_degraded,
            Dependency::Store => &self.store_degraded,
        }
    }
}

#[derive(Default)]
pub(super) struct AuditCounts {
    accepted: AtomicU64,
    failed: AtomicU64,
    missed: AtomicU64,
}

impl AuditCounts {
    pub(super) fn of(&self, audited: Audited) -> &AtomicU64 {
        match audited {
            Audited::Accepted => &self.accepted,
            Audited::Failed => &self.failed,
            Audited::Missed => &self.missed,
        }
    }
}

#[derive(Default)]
pub(super) struct CountersignedCounts {
    done: AtomicU64,
    failed: AtomicU64,
}

impl CountersignedCounts {
    pub(super) fn of(&self, countersigned: Countersigned) -> &AtomicU64 {
        match countersigned {
            Countersigned::Done => &self.done,
            Countersigned::Failed => &self.failed,
        }
    }
}

#[derive(Default)]
pub(super) struct LookupCounts {
    coalesced: AtomicU64,
    hit: AtomicU64,
    miss: AtomicU64,
    stale: AtomicU64,
}

impl LookupCounts {
    pub(super) fn of(&self, lookup: Lookup) -> &AtomicU64 {
        match lookup {
            Lookup::Coalesced => &self.coalesced,
            Lookup::Hit => &self.hit,
            Lookup::Miss => &self.miss,
            Lookup::Stale => &self.stale,
        }
    }
}

#[derive(Default)]
pub(super) struct RetirementCounts {
    age: AtomicU64,
    bytes: AtomicU64,
    capacity: AtomicU64,
    denied: AtomicU64,
    idle: AtomicU64,
    incomplete: AtomicU64,
    messages: AtomicU64,
    purge: AtomicU64,
    rotated: AtomicU64,
}

impl RetirementCounts {
    pub(super) fn of(&self, reason: Retirement) -> &AtomicU64 {
        match reason {
            Retirement::Age => &self.age,
            Retirement::Bytes => &self.bytes,
            Retirement::Capacity => &self.capacity,
            Retirement::Denied => &self.denied,
            Retirement::Idle => &self.idle,
            Retirement::Incomplete => &self.incomplete,
            Retirement::Messages => &self.messages,
            Retirement::Purge => &self.purge,
            Retirement::Rotated => &self.rotated,
        }
    }
}

#[derive(Default)]
pub(super) struct RefreshCounts {
    done: AtomicU64,
    failed: AtomicU64,
    refused: AtomicU64,
}

impl RefreshCounts {
    pub(super) fn of(&self, refresh: Refresh) -> &AtomicU64 {
        match refresh {
            Refresh::Done => &self.done,
            Refresh::Failed => &self.failed,
            Refresh::Refused => &self.refused,
        }
    }
}

#[derive(Default)]
pub(super) struct WarmingCounts {
    done: AtomicU64,
    failed: AtomicU64,
    foreign: AtomicU64,
    full: AtomicU64,
    known: AtomicU64,
    refused: AtomicU64,
}

impl WarmingCounts {
    pub(super) fn of(&self, warming: Warming) -> &AtomicU64 {
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

#[derive(Default)]
pub(super) struct ReloadCounts {
    done: AtomicU64,
    failed: AtomicU64,
}

impl ReloadCounts {
    pub(super) fn of(&self, reload: Reload) -> &AtomicU64 {
        match reload {
            Reload::Done => &self.done,
            Reload::Failed => &self.failed,
        }
    }
}

#[derive(Default)]
pub(super) struct RateCounts {
    principal: AtomicU64,
    tenant: AtomicU64,
}

impl RateCounts {
    pub(super) fn of(&self, scope: RateScope) -> &AtomicU64 {
        match scope {
            RateScope::Principal => &self.principal,
            RateScope::Tenant => &self.tenant,
        }
    }
}

#[derive(Default)]
pub(super) struct ShedCounts {
    in_flight: AtomicU64,
    queue_delay: AtomicU64,
    streams: AtomicU64,
    waiters: AtomicU64,
}

impl ShedCounts {
    pub(super) fn of(&self, reason: Shed) -> &AtomicU64 {
        match reason {
            Shed::InFlight => &self.in_flight,
            Shed::QueueDelay => &self.queue_delay,
            Shed::Streams => &self.streams,
            Shed::Waiters => &self.waiters,
        }
    }
}

/// The tenants' tallies.
#[derive(Default)]
pub(super) struct Tenants {
    own: Mutex<HashMap<Arc<str>, Arc<TenantTally>>>,
    other: Arc<TenantTally>,
}

impl Tenants {
    pub(super) fn tally(&self, tenant: &str) -> Arc<TenantTally> {
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tally) = own.get(tenant) {
            return Arc::clone(tally);
        }
        if own.len() >= TENANTS {
            return Arc::clone(&self.other);
        }
        Arc::clone(own.entry(tenant.into()).or_default())
    }

    /// Label and tally of each, copied: whoever looks for a tally shall not wait for a scrape.
    pub(super) fn read(&self) -> Vec<(Arc<str>, Arc<TenantTally>)> {
        let own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        let own = own
            .iter()
            .map(|(name, tally)| (name.clone(), tally.clone()));
        own.chain([(OTHER.into(), self.other.clone())]).collect()
    }
}

/// What one tenant's calls came to.
#[derive(Default)]
pub struct TenantTally {
    avoided: AtomicU64,
    kms_calls: AtomicU64,
}

impl TenantTally {
    /// Counts messages that a cached key served, where without a cache KMS would have been called
    /// for each.
    pub fn avoided(&self, messages: u64) {
        self.avoided.fetch_add(messages, Relaxed);
    }

    /// KMS calls avoided so far.
    pub(super) fn kms_calls_avoided(&self) -> u64 {
        self.avoided.load(Relaxed)
    }

    /// Counts a call to KMS for a key of the tenant's.
    pub fn called_kms(&self) {
        self.kms_calls.fetch_add(1, Relaxed);
    }

    /// Calls to KMS so far.
    pub(super) fn kms_calls(&self) -> u64 {
        self.kms_calls.load(Relaxed)
    }
}

/// Most tenants with a series of their own.
pub const TENANTS: usize = 1000;

/// The label of the tenants beyond [`TENANTS`]; no tenant's id holds an underscore.
const OTHER: &str = "_other";
