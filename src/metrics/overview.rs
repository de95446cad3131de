//! The numbers of one moment, as people look at them.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use crate::metrics::Audited;
use crate::metrics::Dependency;
use crate::metrics::KmsOperation;
use crate::metrics::KmsOutcome;
use crate::metrics::Lookups;
use crate::metrics::Metrics;
use crate::metrics::RateScope;

/// What there is to see at a glance. Counts are since the start of the process.
pub struct Overview {
    /// Look-ups of data keys.
    pub lookups: Lookups,
    /// Data keys in the cache.
    pub cache_entries: u64,
    /// Bytes that they take.
    pub cache_bytes: u64,
    /// Calls that wait for KMS now.
    pub waiters: u64,
    /// Requests refused because they were over a limit.
    pub rate_limited: u64,
    /// Audit records.
    pub audits: AuditOverview,
    /// How long ago the store was last asked and answered, in seconds.
    pub store_age: u64,
    /// Tenants that are denied everything, because what the store has of them is not usable.
    pub tenants_refused: u64,
    /// Those that have called, in no order.
    pub tenants: Vec<TenantOverview>,
    /// Those that were called, in no order.
    pub regions: Vec<RegionOverview>,
}

/// What is seen of the audit trail.
pub struct AuditOverview {
    /// Records that a sink has.
    pub accepted: u64,
    /// Records that none has, or none in time.
    pub failed: u64,
    /// Records that one of several sinks will never have.
    pub missed: u64,
    /// Whether no sink takes records at present.
    pub degraded: bool,
}

/// What is seen of a tenant.
pub struct TenantOverview {
    /// The tenant, `_other` for those beyond [`super::TENANTS`].
    pub name: Arc<str>,
    /// Calls that the cache served instead of KMS.
    pub kms_calls_avoided: u64,
    /// Calls to KMS.
    pub kms_calls: u64,
}

/// What is seen of KMS in a Region.
pub struct RegionOverview {
    /// The Region, `_other` for those beyond [`super::REGIONS`].
    pub name: Arc<str>,
    /// Requests sent.
    pub requests: u64,
    /// Of them those that were throttled.
    pub throttled: u64,
    /// Of them those that were not answered, or with a failure of the service.
    pub unavailable: u64,
    /// Of them those that were refused.
    pub refused: u64,
    /// Calls that went on to another Region.
    pub failovers: u64,
    /// Calls that wait for their turn now.
    pub queue_length: u64,
    /// Requests a second that may be sent now.
    pub requests_per_second: f64,
    /// The worst circuit of its keys: 0 closed, 1 half open, 2 open.
    pub circuit_state: u64,
}

impl Overview {
    pub(super) fn of(metrics: &Metrics) -> Self {
        let values = &metrics.0.values;
        let limited = RateScope::ALL.map(|scope| metrics.rates_limited(scope));
        let tenants = values.tenants.read().into_iter();
        let tenants = tenants.map(|(name, tally)| TenantOverview {
            name,
            kms_calls_avoided: tally.kms_calls_avoided(),
            kms_calls: tally.kms_calls(),
        });
        let regions = metrics.0.regions.read().into_iter();
        let regions = regions.map(|tally| {
            let ended = |outcome| {
                let of = |operation| tally.requests(operation, outcome);
                KmsOperation::ALL.map(of).into_iter().sum::<u64>()
            };
            RegionOverview {
                name: Arc::clone(tally.region()),
                requests: KmsOutcome::ALL.map(ended).into_iter().sum(),
                throttled: tally.throttles(),
                unavailable: ended(KmsOutcome::Unavailable),
                refused: ended(KmsOutcome::Refused),
                failovers: tally.failovers(),
                queue_length: tally.queue_length(),
                requests_per_second: tally.requests_per_second(),
                circuit_state: tally.circuit_state(),
            }
        });
        Self {
            lookups: metrics.lookups(),
            cache_entries: values.cache_entries.load(Relaxed),
            cache_bytes: values.cache_bytes.load(Relaxed),
            waiters: values.waiters.load(Relaxed),
            rate_limited: limited.into_iter().sum(),
            audits: AuditOverview {
                accepted: metrics.audits(Audited::Accepted),
                failed: metrics.audits(Audited::Failed),
                missed: metrics.audits(Audited::Missed),
                degraded: values.degraded(Dependency::Audit).load(Relaxed) != 0,
            },
            store_age: values.store_age.load(Relaxed),
            tenants_refused: values.tenants_refused.load(Relaxed),
            tenants: tenants
                .filter(|one| one.kms_calls_avoided + one.kms_calls > 0)
                .collect(),
            regions: regions.filter(|one| one.requests > 0).collect(),
        }
    }
}
