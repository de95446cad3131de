//! Where what the instruments count is collected, and written as Prometheus reads it; and from where
//! that and spans leave for an OpenTelemetry collector, if the environment asks for it. The types
//! of the exporters stay here.

mod export;
mod variables;

use std::time::Duration;

use opentelemetry::metrics::Meter;
use opentelemetry::metrics::MeterProvider as _;
use opentelemetry_sdk::metrics::MeterProviderBuilder;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use opentelemetry_sdk::trace::SdkTracerProvider;
use prometheus::Registry;
use prometheus::TextEncoder;
use tokio::task::JoinSet;

use crate::trace::Tracer;

use variables::Misset;
use variables::Variables;

/// The one collector of a process. Cheap to clone.
#[derive(Clone)]
pub struct Telemetry {
    provider: SdkMeterProvider,
    registry: Registry,
    tracer: Tracer,
    /// None where no spans are made.
    spans: Option<SdkTracerProvider>,
}

/// Why there is no text.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The encoder refuses what was collected.
    #[error("metrics cannot be written: {0}")]
    Encode(String),
    /// Nothing was collected, although there are instruments.
    #[error("metrics cannot be collected")]
    Empty,
}

impl Telemetry {
    /// A collector without instruments, which exports nothing by itself and makes no spans.
    pub fn new() -> Self {
        let (builder, registry) = Self::builder();
        Self {
            provider: builder.build(),
            registry,
            tracer: Tracer::off(),
            spans: None,
        }
    }

    /// A collector that also exports what the environment asks for. What it asks for in vain is told
    /// in the log.
    ///
    /// # Panics
    /// Outside of a Tokio runtime, which carries what is exported.
    pub fn from_environment() -> Self {
        let variables = Variables(|name: &str| std::env::var(name).ok());
        let resource = export::resource(variables.get("OTEL_SERVICE_NAME"));
        let (builder, registry) = Self::builder();
        let builder = builder.with_resource(resource.clone());
        let builder = match wanted("metrics", export::series(&variables)) {
            Some(reader) => builder.with_reader(reader),
            None => builder,
        };
        let (spans, tracer) = wanted("spans", export::spans(&variables, resource)).unzip();
        Self {
            provider: builder.build(),
            registry,
            tracer: tracer.unwrap_or_default(),
            spans,
        }
    }

    fn builder() -> (MeterProviderBuilder, Registry) {
        let registry = Registry::new();
        let exporter = opentelemetry_prometheus::exporter()
            .with_registry(registry.clone())
            // One scope and one process: labels of theirs would say the same on every line.
            .scope_info_enabled(false)
            .without_target_info()
            .build()
            .expect("a new registry holds no other collector");
        (SdkMeterProvider::builder().with_reader(exporter), registry)
    }

    /// Makes the instruments that are collected here.
    pub fn meter(&self) -> Meter {
        self.provider.meter("keybroker")
    }

    /// Makes the spans that are exported here.
    pub fn tracer(&self) -> Tracer {
        self.tracer.clone()
    }

    /// Exports what is left, and no more after that. A collector that does not take it holds this up
    /// for 5 s at most.
    pub async fn stop(self) {
        let mut ends = JoinSet::new();
        if let Some(spans) = self.spans {
            ends.spawn_blocking(move || spans.shutdown_with_timeout(LAST));
        }
        ends.spawn_blocking(move || self.provider.shutdown_with_timeout(LAST));
        while let Some(end) = ends.join_next().await {
            if let Ok(Err(error)) = end {
                tracing::warn!(%error, "the last of the telemetry has not reached its collector");
            }
        }
    }

    /// Collects everything, in the format [`FORMAT`]. Takes a millisecond or more with many
    /// tenants.
    ///
    /// # Errors
    /// [`Error`]: a fault of our own.
    pub fn text(&self) -> Result<String, Error> {
        let text = TextEncoder::new()
            .encode_to_string(&self.registry.gather())
            .map_err(|error| Error::Encode(error.to_string()))?;
        if text.is_empty() {
            return Err(Error::Empty);
        }
        Ok(text)
    }
}

impl Default for Telemetry {
    fn default() -> Self {
        Self::new()
    }
}

/// What is exported, unless it is asked for wrongly.
fn wanted<T>(what: &'static str, asked: Result<Option<T>, Misset>) -> Option<T> {
    asked.unwrap_or_else(|error| {
        tracing::warn!(what, %error, "telemetry is not exported until this is right");
        None
    })
}

/// What a collector has for what is left at the end; of metrics the SDK has its own idea, which is
/// the same.
const LAST: Duration = Duration::from_secs(5);

/// The content type of [`Telemetry::text`].
pub const FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::collections::BTreeSet;
    use std::time::Duration;

    use super::*;
    use crate::metrics::Circuit;
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
        let metrics = Metrics::new(&telemetry.meter());
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
            .map(String::as_str)
            .partition(|name| name.contains(r#"region="_other""#));
        // Four operations with seven outcomes; throttles, retries, failovers, missing wraps, the
        // circuit; rate, queue, shed.
        assert_eq!(regions.len(), 4 * 7 + 8, "{regions:?}");
        assert_eq!(
            names,
            [
                r#"keybroker_audit_records_total{outcome="accepted"}"#,
                r#"keybroker_audit_records_total{outcome="failed"}"#,
                r#"keybroker_audit_records_total{outcome="missed"}"#,
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
        let tally = metrics.kms("eu-west-1");
        tally.request(KmsOperation::Decrypt, KmsOutcome::Done, Duration::ZERO);
        let names: BTreeSet<String> = series(&telemetry)
            .keys()
            .filter_map(|series| series.split_once('{'))
            .flat_map(|(_, labels)| labels.trim_end_matches('}').split(','))
            .map(|label| label.split_once('=').unwrap().0.to_owned())
            .collect();
        let known = [
            "dependency",
            "le",
            "operation",
            "outcome",
            "reason",
            "region",
            "result",
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
        let tally = metrics.kms("eu-west-1");
        tally.request(KmsOperation::Decrypt, KmsOutcome::Done, Duration::ZERO);
        let text = telemetry.text().unwrap();
        let readme = include_str!("../README.md");
        let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        let mut known = 0;
        for name in types.map(|line| line.split_once(' ').unwrap().0) {
            assert!(readme.contains(&format!("| `{name}` |")), "{name}");
            known += 1;
        }
        let rows = readme
            .lines()
            .filter(|line| line.starts_with("| `keybroker_"));
        assert_eq!(rows.count(), known, "README.md has metrics that are none");
    }

    #[test]
    fn without_instruments_there_is_no_text() {
        assert!(matches!(Telemetry::new().text(), Err(Error::Empty)));
    }
}
