use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::time::Duration;

use super::*;
use crate::metrics::Circuit;
use crate::metrics::Code;
use crate::metrics::Decision;
use crate::metrics::Dependency;
use crate::metrics::KmsOperation;
use crate::metrics::KmsOutcome;
use crate::metrics::Lookup;
use crate::metrics::Metrics;
use crate::metrics::Refresh;
use crate::metrics::Retirement;
use crate::metrics::TENANTS;

fn telemetry() -> (Telemetry, Metrics) {
    let telemetry = Telemetry::new();
    let metrics = telemetry.metrics();
    (telemetry, metrics)
}

/// Every series with its value.
fn series(telemetry: &Telemetry) -> BTreeMap<String, f64> {
    let text = telemetry.text().unwrap();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let series: Vec<(String, f64)> = lines
        .map(|line| line.rsplit_once(' ').unwrap())
        .map(|(name, value)| (name.to_owned(), value.parse().unwrap()))
        .collect();
    let count = series.len();
    let series: BTreeMap<_, _> = series.into_iter().collect();
    assert_eq!(series.len(), count, "a series stands there twice");
    series
}

const BUILD: &str = concat!(
    "keybroker_build_info{version=\"",
    env!("CARGO_PKG_VERSION"),
    "\"}"
);

#[test]
fn all_series_that_are_known_start_at_0() {
    let (telemetry, _metrics) = telemetry();
    let mut series = series(&telemetry);
    assert_eq!(series.remove(BUILD), Some(1.0));
    let (regions, names): (Vec<&str>, Vec<&str>) = series
        .keys()
        .filter(|name| !name.contains("_bucket{"))
        .map(String::as_str)
        .partition(|name| name.contains(r#"region="_other""#));
    // Four operations with seven outcomes; throttles, retries, failovers, missing wraps, the
    // circuit; rate, queue, shed.
    assert_eq!(regions.len(), 4 * 7 + 8, "{regions:?}");
    assert_eq!(
        names,
        [
            "keybroker_audit_countersignature_lag_seconds",
            r#"keybroker_audit_countersignatures_total{outcome="done"}"#,
            r#"keybroker_audit_countersignatures_total{outcome="failed"}"#,
            "keybroker_audit_not_countersigned",
            r#"keybroker_audit_records_total{outcome="accepted"}"#,
            r#"keybroker_audit_records_total{outcome="failed"}"#,
            r#"keybroker_audit_records_total{outcome="missed"}"#,
            r#"keybroker_authz_decisions_total{decision="allow"}"#,
            r#"keybroker_authz_decisions_total{decision="deny"}"#,
            r#"keybroker_authz_decisions_total{decision="invalid"}"#,
            "keybroker_authz_duration_seconds_count",
            "keybroker_authz_duration_seconds_sum",
            "keybroker_authz_errors_total",
            "keybroker_config_last_reload_success_timestamp_seconds",
            r#"keybroker_config_reloads_total{outcome="done"}"#,
            r#"keybroker_config_reloads_total{outcome="failed"}"#,
            r#"keybroker_data_key_refreshes_total{outcome="done"}"#,
            r#"keybroker_data_key_refreshes_total{outcome="failed"}"#,
            r#"keybroker_data_key_refreshes_total{outcome="refused"}"#,
            r#"keybroker_data_key_retirements_total{reason="age"}"#,
            r#"keybroker_data_key_retirements_total{reason="bytes"}"#,
            r#"keybroker_data_key_retirements_total{reason="capacity"}"#,
            r#"keybroker_data_key_retirements_total{reason="denied"}"#,
            r#"keybroker_data_key_retirements_total{reason="idle"}"#,
            r#"keybroker_data_key_retirements_total{reason="incomplete"}"#,
            r#"keybroker_data_key_retirements_total{reason="messages"}"#,
            r#"keybroker_data_key_retirements_total{reason="purge"}"#,
            r#"keybroker_data_key_retirements_total{reason="rotated"}"#,
            r#"keybroker_degraded{dependency="audit"}"#,
            r#"keybroker_degraded{dependency="audit_kms"}"#,
            r#"keybroker_degraded{dependency="kms"}"#,
            r#"keybroker_degraded{dependency="store"}"#,
            "keybroker_key_cache_bytes",
            "keybroker_key_cache_entries",
            r#"keybroker_key_cache_requests_total{result="coalesced"}"#,
            r#"keybroker_key_cache_requests_total{result="hit"}"#,
            r#"keybroker_key_cache_requests_total{result="miss"}"#,
            r#"keybroker_key_cache_requests_total{result="stale"}"#,
            "keybroker_key_cache_waiters",
            r#"keybroker_key_cache_warmed_total{outcome="done"}"#,
            r#"keybroker_key_cache_warmed_total{outcome="failed"}"#,
            r#"keybroker_key_cache_warmed_total{outcome="foreign"}"#,
            r#"keybroker_key_cache_warmed_total{outcome="full"}"#,
            r#"keybroker_key_cache_warmed_total{outcome="known"}"#,
            r#"keybroker_key_cache_warmed_total{outcome="refused"}"#,
            r#"keybroker_kms_calls_avoided_total{tenant="_other"}"#,
            r#"keybroker_kms_calls_total{tenant="_other"}"#,
            "keybroker_kms_grant_failures_total",
            "keybroker_kms_grants_overdue",
            "keybroker_kms_grants_refused",
            "keybroker_kms_grants_stray",
            "keybroker_memory_lock_degraded",
            "keybroker_memory_swap_bytes",
            r#"keybroker_rate_limited_total{scope="principal"}"#,
            r#"keybroker_rate_limited_total{scope="tenant"}"#,
            "keybroker_secrets_unlocked",
            r#"keybroker_shed_total{reason="in_flight"}"#,
            r#"keybroker_shed_total{reason="queue_delay"}"#,
            r#"keybroker_shed_total{reason="streams"}"#,
            r#"keybroker_shed_total{reason="waiters"}"#,
            "keybroker_store_age_seconds",
            "keybroker_store_skew_seconds",
            "keybroker_tasks",
            "keybroker_tenants_refused",
        ]
    );
    assert!(series.values().all(|value| *value == 0.0), "{series:?}");
}

#[test]
fn what_is_counted_and_set_is_collected() {
    let (telemetry, metrics) = telemetry();
    let before = series(&telemetry);
    metrics.lookup(Lookup::Hit);
    metrics.lookup(Lookup::Hit);
    metrics.lookup(Lookup::Miss);
    metrics.lookup(Lookup::Stale);
    metrics.lookup(Lookup::Coalesced);
    metrics.refreshed(Refresh::Done);
    metrics.refreshed(Refresh::Failed);
    metrics.refreshed(Refresh::Refused);
    metrics.tenant("acme").avoided(1);
    metrics.tenant("acme").avoided(1);
    metrics.tenant("acme").called_kms();
    metrics.cache_size(7, 4096);
    metrics.degraded(Dependency::Kms, true);
    metrics.memory(true, 8192, 3);
    let after = series(&telemetry);
    let changed: Vec<_> = after
        .iter()
        .filter(|(name, value)| before.get(*name) != Some(*value))
        .map(|(name, value)| (name.as_str(), *value))
        .collect();
    assert_eq!(
        changed,
        [
            (r#"keybroker_data_key_refreshes_total{outcome="done"}"#, 1.0),
            (
                r#"keybroker_data_key_refreshes_total{outcome="failed"}"#,
                1.0
            ),
            (
                r#"keybroker_data_key_refreshes_total{outcome="refused"}"#,
                1.0
            ),
            (r#"keybroker_degraded{dependency="kms"}"#, 1.0),
            ("keybroker_key_cache_bytes", 4096.0),
            ("keybroker_key_cache_entries", 7.0),
            (
                r#"keybroker_key_cache_requests_total{result="coalesced"}"#,
                1.0
            ),
            (r#"keybroker_key_cache_requests_total{result="hit"}"#, 2.0),
            (r#"keybroker_key_cache_requests_total{result="miss"}"#, 1.0),
            (r#"keybroker_key_cache_requests_total{result="stale"}"#, 1.0),
            (r#"keybroker_kms_calls_avoided_total{tenant="acme"}"#, 2.0),
            (r#"keybroker_kms_calls_total{tenant="acme"}"#, 1.0),
            ("keybroker_memory_lock_degraded", 1.0),
            ("keybroker_memory_swap_bytes", 8192.0),
            ("keybroker_secrets_unlocked", 3.0),
        ]
    );
}

#[test]
fn a_retired_key_is_counted_and_measured() {
    let (telemetry, metrics) = telemetry();
    for reason in Retirement::ALL {
        metrics.retired(reason, Duration::from_millis(240_500), 1500);
    }
    metrics.retired(Retirement::Age, Duration::from_secs(7200), 0);
    let series = series(&telemetry);
    let of = |name: &str| series[name];
    for reason in Retirement::ALL {
        let label = reason.label();
        let count = of(&format!(
            "keybroker_data_key_retirements_total{{reason=\"{label}\"}}"
        ));
        assert_eq!(count, if label == "age" { 2.0 } else { 1.0 }, "{label}");
    }
    assert_eq!(
        of(r#"keybroker_data_key_age_seconds_bucket{le="240"}"#),
        0.0
    );
    assert_eq!(
        of(r#"keybroker_data_key_age_seconds_bucket{le="300"}"#),
        9.0
    );
    assert_eq!(
        of(r#"keybroker_data_key_age_seconds_bucket{le="3600"}"#),
        9.0
    );
    assert_eq!(
        of(r#"keybroker_data_key_age_seconds_bucket{le="+Inf"}"#),
        10.0
    );
    assert_eq!(
        of("keybroker_data_key_age_seconds_sum"),
        9.0 * 240.5 + 7200.0
    );
    assert_eq!(of(r#"keybroker_data_key_uses_bucket{le="0"}"#), 1.0);
    assert_eq!(of(r#"keybroker_data_key_uses_bucket{le="1000"}"#), 1.0);
    assert_eq!(of(r#"keybroker_data_key_uses_bucket{le="10000"}"#), 10.0);
    assert_eq!(of("keybroker_data_key_uses_count"), 10.0);
}

#[test]
fn calls_are_counted_by_method_and_status_and_timed_below_a_millisecond() {
    let (telemetry, metrics) = telemetry();
    let tally = metrics.calls("a.v1.A/Encrypt");
    let before = series(&telemetry);
    tally.served(Duration::from_micros(60));
    tally.served(Duration::from_micros(200));
    tally.ended(Code::Internal, "INTERNAL", Duration::from_secs(20));
    metrics.decided(Decision::Deny, Duration::from_micros(3));
    metrics.undecided();
    let after = series(&telemetry);
    let changed: Vec<_> = after
        .iter()
        .filter(|(name, value)| before.get(*name) != Some(*value) && **value != 0.0)
        .filter(|(name, _)| !name.contains("_bucket{"))
        .map(|(name, value)| (name.as_str(), *value))
        .collect();
    assert_eq!(
        changed,
        [
            (r#"keybroker_authz_decisions_total{decision="deny"}"#, 1.0),
            ("keybroker_authz_duration_seconds_count", 1.0),
            ("keybroker_authz_duration_seconds_sum", 0.000_003),
            ("keybroker_authz_errors_total", 1.0),
            (
                r#"keybroker_operations_total{operation="Encrypt",outcome="done",reason=""}"#,
                2.0
            ),
            (
                r#"keybroker_operations_total{operation="Encrypt",outcome="failed",reason="INTERNAL"}"#,
                1.0
            ),
            (
                r#"rpc_server_call_duration_seconds_count{rpc_system_name="grpc",rpc_method="a.v1.A/Encrypt",rpc_response_status_code="INTERNAL",error_type="INTERNAL"}"#,
                1.0
            ),
            (
                r#"rpc_server_call_duration_seconds_count{rpc_system_name="grpc",rpc_method="a.v1.A/Encrypt",rpc_response_status_code="OK"}"#,
                2.0
            ),
            (
                r#"rpc_server_call_duration_seconds_sum{rpc_system_name="grpc",rpc_method="a.v1.A/Encrypt",rpc_response_status_code="INTERNAL",error_type="INTERNAL"}"#,
                20.0
            ),
            (
                r#"rpc_server_call_duration_seconds_sum{rpc_system_name="grpc",rpc_method="a.v1.A/Encrypt",rpc_response_status_code="OK"}"#,
                0.000_26
            ),
        ]
    );
    let below = |le: &str| {
        let labels =
            r#"rpc_system_name="grpc",rpc_method="a.v1.A/Encrypt",rpc_response_status_code="OK""#;
        after[&format!("rpc_server_call_duration_seconds_bucket{{{labels},le=\"{le}\"}}")]
    };
    let below = ["0.00005", "0.0001", "0.00025", "10", "+Inf"].map(below);
    assert_eq!(below, [0.0, 1.0, 2.0, 2.0, 2.0]);
}

#[test]
fn requests_to_kms_are_counted_by_region() {
    let (telemetry, metrics) = telemetry();
    let tally = metrics.kms("eu-west-1");
    let took = Duration::from_micros(400);
    for outcome in [KmsOutcome::Throttled, KmsOutcome::Done] {
        tally.request(KmsOperation::Decrypt, outcome, took);
    }
    tally.retried();
    tally.circuit(Circuit::Closed, Circuit::Open);
    let series = series(&telemetry);
    let touched: Vec<_> = series
        .iter()
        .filter(|(name, _)| name.contains("eu-west-1") && !name.contains("_bucket"))
        .filter(|(_, value)| **value != 0.0)
        .map(|(name, value)| (name.as_str(), *value))
        .collect();
    assert_eq!(
        touched,
        [
            (r#"keybroker_kms_circuit_state{region="eu-west-1"}"#, 2.0),
            (
                r#"keybroker_kms_request_duration_seconds_count{operation="Decrypt",region="eu-west-1"}"#,
                2.0
            ),
            (
                r#"keybroker_kms_request_duration_seconds_sum{operation="Decrypt",region="eu-west-1"}"#,
                0.0008
            ),
            (
                r#"keybroker_kms_requests_total{operation="Decrypt",outcome="done",region="eu-west-1"}"#,
                1.0
            ),
            (
                r#"keybroker_kms_requests_total{operation="Decrypt",outcome="throttled",region="eu-west-1"}"#,
                1.0
            ),
            (r#"keybroker_kms_retries_total{region="eu-west-1"}"#, 1.0),
            (r#"keybroker_kms_throttles_total{region="eu-west-1"}"#, 1.0),
        ]
    );
    let below = |le: &str| {
        let labels = format!(r#"operation="Decrypt",region="eu-west-1",le="{le}""#);
        series[&format!("keybroker_kms_request_duration_seconds_bucket{{{labels}}}")]
    };
    assert_eq!([below("0.00025"), below("0.0005")], [0.0, 2.0]);
}

#[test]
fn tenants_beyond_the_bound_share_a_series_and_no_count_is_lost() {
    let (telemetry, metrics) = telemetry();
    for number in 0..TENANTS + 5 {
        metrics.tenant(&format!("t{number}")).avoided(1);
    }
    // The last that fits keeps its own.
    metrics.tenant(&format!("t{}", TENANTS - 1)).avoided(1);
    let series = series(&telemetry);
    let of = |tenant: &str| {
        let name = format!("keybroker_kms_calls_avoided_total{{tenant=\"{tenant}\"}}");
        series.get(&name).copied()
    };
    assert_eq!(of("t0"), Some(1.0));
    assert_eq!(of(&format!("t{}", TENANTS - 1)), Some(2.0));
    assert_eq!(of(&format!("t{TENANTS}")), None);
    assert_eq!(of("_other"), Some(5.0));
    let name = "keybroker_kms_calls_avoided_total{";
    let tenants = series.keys().filter(|one| one.starts_with(name));
    assert_eq!(tenants.count(), TENANTS + 1);
    let sum: f64 = series
        .iter()
        .filter(|(one, _)| one.starts_with(name))
        .map(|(_, value)| value)
        .sum();
    assert_eq!(sum, f64::from(u32::try_from(TENANTS + 6).unwrap()));
}

#[test]
fn labels_have_no_other_names_than_those_of_closed_sets() {
    let (telemetry, metrics) = telemetry();
    metrics.tenant("acme").avoided(1);
    metrics.retired(Retirement::Idle, Duration::ZERO, 1);
    let calls = metrics.calls("a.v1.A/Encrypt");
    calls.ended(Code::Internal, "INTERNAL", Duration::ZERO);
    let tally = metrics.kms("eu-west-1");
    tally.request(KmsOperation::Decrypt, KmsOutcome::Done, Duration::ZERO);
    let names: BTreeSet<String> = series(&telemetry)
        .keys()
        .filter_map(|series| series.split_once('{'))
        .flat_map(|(_, labels)| labels.trim_end_matches('}').split(','))
        .map(|label| label.split_once('=').unwrap().0.to_owned())
        .collect();
    let known = [
        "decision",
        "dependency",
        "error_type",
        "le",
        "operation",
        "outcome",
        "reason",
        "region",
        "result",
        "rpc_method",
        "rpc_response_status_code",
        "rpc_system_name",
        "scope",
        "tenant",
        "version",
    ];
    assert_eq!(names, known.map(str::to_owned).into());
}

#[test]
fn the_readme_has_every_metric_and_its_labels() {
    let (telemetry, metrics) = telemetry();
    metrics.certificate_expiry(Some(jiff::Timestamp::now()));
    metrics.retired(Retirement::Idle, Duration::ZERO, 1);
    let calls = metrics.calls("a.v1.A/Encrypt");
    calls.ended(Code::Internal, "INTERNAL", Duration::ZERO);
    let tally = metrics.kms("eu-west-1");
    tally.request(KmsOperation::Decrypt, KmsOutcome::Done, Duration::ZERO);
    let text = telemetry.text().unwrap();
    let readme = include_str!("../../README.md");
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let mut known = 0;
    for name in types.map(|line| line.split_once(' ').unwrap().0) {
        assert!(readme.contains(&format!("| `{name}` |")), "{name}");
        known += 1;
    }
    let rows = readme
        .lines()
        .filter(|line| line.starts_with("| `keybroker_") || line.starts_with("| `rpc_"));
    assert_eq!(rows.count(), known, "README.md has metrics that are none");
}

#[test]
fn without_instruments_there_is_no_text() {
    assert!(matches!(Telemetry::new().text(), Err(Error::Empty)));
}
