//! The instruments that are read at collection: names, units, help and labels.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use opentelemetry::KeyValue;
use opentelemetry::metrics::AsyncInstrument;
use opentelemetry::metrics::Meter;

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
use crate::metrics::counts::Values;

/// The instruments that read `values`. The meter keeps them.
pub(super) fn register(meter: &Meter, values: &Arc<Values>) {
    meter
        .u64_observable_counter("keybroker_audit_records")
        .with_description("Audit records, by what became of them.")
        .with_callback(reading(values, |values, instrument| {
            for one in Audited::ALL {
                let count = values.audited.of(one).load(Relaxed);
                instrument.observe(count, &[KeyValue::new("outcome", one.label())]);
            }
        }))
        .build();
    meter
        .u64_observable_counter("keybroker_audit_countersignatures")
        .with_description("Attempts to have audit records countersigned by KMS, by outcome.")
        .with_callback(reading(values, |values, instrument| {
            for one in Countersigned::ALL {
                let count = values.countersigned.of(one).load(Relaxed);
                instrument.observe(count, &[KeyValue::new("outcome", one.label())]);
            }
        }))
        .build();
    meter
        .u64_observable_gauge("keybroker_audit_not_countersigned")
        .with_description("Audit records of calls that KMS has not countersigned yet.")
        .with_callback(reading(values, |values, instrument| {
            instrument.observe(values.not_countersigned.load(Relaxed), &[]);
        }))
        .build();
    meter
        .u64_observable_gauge("keybroker_audit_countersignature_lag")
        .with_unit("s")
        .with_description("Age of the oldest audit record that KMS has not countersigned yet.")
        .with_callback(reading(values, |values, instrument| {
            instrument.observe(values.countersignature_lag.load(Relaxed), &[]);
        }))
        .build();
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
        .u64_observable_counter("keybroker_rate_limited")
        .with_description("Requests refused because they are over a limit, by whose it is.")
        .with_callback(reading(values, |values, instrument| {
            for one in RateScope::ALL {
                let count = values.rates_limited.of(one).load(Relaxed);
                instrument.observe(count, &[KeyValue::new("scope", one.label())]);
            }
        }))
        .build();
    meter
        .u64_observable_counter("keybroker_shed")
        .with_description("Calls refused because the broker has too much to do, by what is full.")
        .with_callback(reading(values, |values, instrument| {
            for one in Shed::ALL {
                let count = values.shed.of(one).load(Relaxed);
                instrument.observe(count, &[KeyValue::new("reason", one.label())]);
            }
        }))
        .build();
    meter
        .u64_observable_counter("keybroker_kms_calls_avoided")
        .with_description("Calls that a cached data key served instead of KMS, by tenant.")
        .with_callback(reading(values, |values, instrument| {
            for (tenant, tally) in values.tenants.read() {
                let label = KeyValue::new("tenant", tenant);
                instrument.observe(tally.kms_calls_avoided(), &[label]);
            }
        }))
        .build();
    meter
        .u64_observable_counter("keybroker_kms_calls")
        .with_description("Calls to KMS, whatever their number of requests, by tenant.")
        .with_callback(reading(values, |values, instrument| {
            for (tenant, tally) in values.tenants.read() {
                instrument.observe(tally.kms_calls(), &[KeyValue::new("tenant", tenant)]);
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
        .u64_observable_gauge("keybroker_key_cache_waiters")
        .with_description("Calls that wait for KMS.")
        .with_callback(reading(values, |values, instrument| {
            instrument.observe(values.waiters.load(Relaxed), &[]);
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
        .u64_observable_gauge("keybroker_store_age")
        .with_unit("s")
        .with_description("How old what is known of tenants is: time since the store was asked.")
        .with_callback(reading(values, |values, instrument| {
            instrument.observe(values.store_age.load(Relaxed), &[]);
        }))
        .build();
    meter
        .u64_observable_gauge("keybroker_store_skew")
        .with_unit("s")
        .with_description("How far the clocks of the store and of this machine are apart.")
        .with_callback(reading(values, |values, instrument| {
            instrument.observe(values.store_skew.load(Relaxed), &[]);
        }))
        .build();
    meter
        .u64_observable_gauge("keybroker_kms_grants_overdue")
        .with_description("Grants of AWS KMS that should have ended a minute ago and have not.")
        .with_callback(reading(values, |values, instrument| {
            instrument.observe(values.kms_grants_overdue.load(Relaxed), &[]);
        }))
        .build();
    meter
        .u64_observable_gauge("keybroker_kms_grants_refused")
        .with_description("Grants of AWS KMS that are due and that KMS refuses to end.")
        .with_callback(reading(values, |values, instrument| {
            instrument.observe(values.kms_grants_refused.load(Relaxed), &[]);
        }))
        .build();
    meter
        .u64_observable_gauge("keybroker_kms_grants_stray")
        .with_description("Grants of AWS KMS that the store has named and does not know.")
        .with_callback(reading(values, |values, instrument| {
            instrument.observe(values.kms_grants_stray.load(Relaxed), &[]);
        }))
        .build();
    meter
        .u64_observable_counter("keybroker_kms_grant_failures")
        .with_description("Times that a grant of AWS KMS could not be ended when it was due.")
        .with_callback(reading(values, |values, instrument| {
            instrument.observe(values.kms_grant_failures.load(Relaxed), &[]);
        }))
        .build();
    meter
        .u64_observable_gauge("keybroker_tenants_refused")
        .with_description("Tenants that are denied everything: what the store has is not usable.")
        .with_callback(reading(values, |values, instrument| {
            instrument.observe(values.tenants_refused.load(Relaxed), &[]);
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
        .u64_observable_gauge("keybroker_tasks")
        .with_description(
            "Tasks that are alive: what is under way, connections, and a few that last.",
        )
        .with_callback(reading(values, |values, instrument| {
            instrument.observe(values.tasks.load(Relaxed), &[]);
        }))
        .build();
    meter
        .u64_observable_counter("keybroker_config_reloads")
        .with_description("Reloads of the configuration, by outcome.")
        .with_callback(reading(values, |values, instrument| {
            for one in Reload::ALL {
                let count = values.reloads.of(one).load(Relaxed);
                instrument.observe(count, &[KeyValue::new("outcome", one.label())]);
            }
        }))
        .build();
    meter
        .u64_observable_gauge("keybroker_config_last_reload_success_timestamp")
        .with_unit("s")
        .with_description("When the configuration in force was loaded.")
        .with_callback(reading(values, |values, instrument| {
            instrument.observe(values.loaded.load(Relaxed), &[]);
        }))
        .build();
    meter
        .u64_observable_gauge("keybroker_tls_certificate_expiry_timestamp")
        .with_unit("s")
        .with_description("When the certificate that is served ends.")
        .with_callback(reading(values, |values, instrument| {
            let at = values.certificate_expiry.load(Relaxed);
            if at > 0 {
                instrument.observe(at, &[]);
            }
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
