//! Where what the instruments count is collected, and written as Prometheus reads it; and from where
//! that and spans leave for an OpenTelemetry collector, if the environment asks for it. The types
//! of the exporters stay here.

mod export;
mod histograms;
mod plain;
mod records;
mod route;
mod variables;

use std::sync::atomic::Ordering;
use std::time::Duration;

use opentelemetry::metrics::MeterProvider as _;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::MeterProviderBuilder;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use opentelemetry_sdk::trace::SdkTracerProvider;
use prometheus::Registry;
use prometheus::TextEncoder;
use tokio::task::JoinSet;

use crate::audit::Address;
use crate::metrics::Metrics;
use crate::metrics::Timings;
use crate::trace::Tracer;

pub use records::Records;
pub use variables::Misset;

use export::Over;
use histograms::Histograms;
use variables::Variables;

/// The one collector of a process. Cheap to clone.
#[derive(Clone)]
pub struct Telemetry {
    provider: SdkMeterProvider,
    registry: Registry,
    timings: Timings,
    resource: Resource,
    over: Over,
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
        let timings = Timings::default();
        let (builder, registry) = Self::builder(&timings);
        Self {
            provider: builder.build(),
            registry,
            timings,
            resource: Resource::builder_empty().build(),
            over: Over::default(),
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
        let variables = environment();
        let over = Over::default();
        let resource = export::resource(variables.get("OTEL_SERVICE_NAME"));
        let timings = Timings::default();
        let (builder, registry) = Self::builder(&timings);
        let builder = builder.with_resource(resource.clone());
        let builder = match wanted(
            "metrics",
            export::series(&variables, &timings, &resource, &over),
        ) {
            Some(reader) => builder.with_reader(reader),
            None => builder,
        };
        let spans = export::spans(&variables, resource.clone(), &over);
        let (spans, tracer) = wanted("spans", spans).unzip();
        Self {
            provider: builder.build(),
            registry,
            timings,
            resource,
            over,
            tracer: tracer.unwrap_or_default(),
            spans,
        }
    }

    fn builder(timings: &Timings) -> (MeterProviderBuilder, Registry) {
        let registry = Registry::new();
        registry
            .register(Box::new(Histograms::new(timings.clone())))
            .expect("a new registry holds no other collector");
        let exporter = opentelemetry_prometheus::exporter()
            .with_registry(registry.clone())
            // One scope and one process: labels of theirs would say the same on every line.
            .scope_info_enabled(false)
            .without_target_info()
            .build()
            .expect("no other collector has its names");
        (SdkMeterProvider::builder().with_reader(exporter), registry)
    }

    /// Makes the instruments that are collected here: once.
    pub fn metrics(&self) -> Metrics {
        Metrics::new(&self.provider.meter("keybroker"), self.timings.clone())
    }

    /// Makes the spans that are exported here.
    pub fn tracer(&self) -> Tracer {
        self.tracer.clone()
    }

    /// Sends audit records to the collector at `address`.
    ///
    /// # Errors
    /// [`Misset`], for whatever the environment says about logs that can't be had.
    pub fn records(&self, address: &Address) -> Result<Records, Misset> {
        Records::new(&environment(), address, &self.resource)
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
        self.over.store(true, Ordering::Relaxed);
    }

    /// Collects everything, in the format [`FORMAT`]. Takes a millisecond or more with many
    /// tenants.
    ///
    /// # Errors
    /// [`Error`]: a fault of our own.
    pub fn text(&self) -> Result<String, Error> {
        let families = self.registry.gather();
        if !families.iter().any(|family| family.name() == ALWAYS) {
            return Err(Error::Empty);
        }
        TextEncoder::new()
            .encode_to_string(&families)
            .map_err(|error| Error::Encode(error.to_string()))
    }
}

impl Default for Telemetry {
    fn default() -> Self {
        Self::new()
    }
}

fn environment() -> Variables<impl Fn(&str) -> Option<String>> {
    Variables(|name: &str| std::env::var(name).ok())
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

/// What the SDK has for Prometheus whenever it collects.
const ALWAYS: &str = "keybroker_build_info";

/// The content type of [`Telemetry::text`].
pub const FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

#[cfg(test)]
mod tests;
