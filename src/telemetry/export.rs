//! The way of spans and metrics to a collector, over OTLP. It may be away or hang: what waits for it
//! is bounded, nothing else waits, and what is lost is told, once a minute at most.

use std::fmt;
use std::fmt::Debug;
use std::fmt::Display;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;

use opentelemetry::Context;
use opentelemetry::KeyValue;
use opentelemetry::global::BoxedTracer;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::MetricExporter;
use opentelemetry_otlp::WithTonicConfig as _;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkError;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::metrics::PeriodicReader;
use opentelemetry_sdk::metrics::Temporality;
use opentelemetry_sdk::metrics::data::ResourceMetrics;
use opentelemetry_sdk::metrics::exporter::PushMetricExporter;
use opentelemetry_sdk::resource::EnvResourceDetector;
use opentelemetry_sdk::resource::TelemetryResourceDetector;
use opentelemetry_sdk::trace::BatchConfigBuilder;
use opentelemetry_sdk::trace::BatchSpanProcessor;
use opentelemetry_sdk::trace::Sampler;
use opentelemetry_sdk::trace::SdkTracerProvider;
use opentelemetry_sdk::trace::Span;
use opentelemetry_sdk::trace::SpanData;
use opentelemetry_sdk::trace::SpanExporter;
use opentelemetry_sdk::trace::SpanProcessor;
use tokio::runtime::Handle;
use tokio::time::Instant;
use uuid::Uuid;

use crate::metrics::Timings;
use crate::sync::Mutex;
use crate::sync::lock;
use crate::telemetry::histograms::Push;
use crate::telemetry::plain;
use crate::telemetry::route::Route;
use crate::telemetry::variables::Misset;
use crate::telemetry::variables::Signal;
use crate::telemetry::variables::Variables;
use crate::trace::Tracer;

/// Who we are, to those who look at many: what the environment says, and else ourselves.
pub(super) fn resource(name: Option<String>) -> Resource {
    let own = [
        KeyValue::new("service.name", "keybroker"),
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        KeyValue::new("service.instance.id", Uuid::now_v7().to_string()),
    ];
    let resource = Resource::builder_empty()
        .with_detector(Box::new(TelemetryResourceDetector))
        .with_attributes(own)
        .with_detector(Box::new(EnvResourceDetector::new()));
    match name {
        Some(name) => resource.with_service_name(name).build(),
        None => resource.build(),
    }
}

/// Exports spans of `resource`, if that is asked for. The runtime that this is called in carries
/// them.
pub(super) fn spans<F: Fn(&str) -> Option<String>>(
    variables: &Variables<F>,
    resource: Resource,
    over: &Over,
) -> Result<Option<(SdkTracerProvider, Tracer)>, Misset> {
    let Some(spans) = variables.spans()? else {
        return Ok(None);
    };
    let mut exporter = opentelemetry_otlp::SpanExporter::builder().with_tonic();
    if let Some(tls) = variables.tls(Signal::Traces)? {
        exporter = exporter.with_tls_config(tls);
    }
    let line = Arc::new(Line {
        most: usize::try_from(spans.queue).unwrap_or(usize::MAX),
        waiting: AtomicUsize::new(0),
        fate: Fate::of("spans"),
    });
    let config = BatchConfigBuilder::default().with_max_queue_size(line.most);
    let exporter = Batches {
        exporter: exporter.build()?,
        limit: Limit::new(spans.timeout, over),
        line: Arc::clone(&line),
    };
    let processor = BatchSpanProcessor::builder(exporter)
        .with_batch_config(config.build())
        .build();
    let provider = SdkTracerProvider::builder()
        .with_resource(resource)
        // What is not to be a span is not made.
        .with_sampler(Sampler::AlwaysOn)
        .with_span_processor(Queue { processor, line })
        .build();
    let tracer = BoxedTracer::new(Box::new(provider.tracer("keybroker")));
    Ok(Some((provider, Tracer::new(tracer, spans.sampling))))
}

/// Exports metrics, likewise.
pub(super) fn series<F: Fn(&str) -> Option<String>>(
    variables: &Variables<F>,
    timings: &Timings,
    resource: &Resource,
    over: &Over,
) -> Result<Option<PeriodicReader<Collections>>, Misset> {
    let Some(series) = variables.series()? else {
        return Ok(None);
    };
    let mut exporter = MetricExporter::builder().with_tonic();
    if let Some(tls) = variables.tls(Signal::Metrics)? {
        exporter = exporter.with_tls_config(tls);
    }
    let address = variables.of(Signal::Metrics, "ENDPOINT");
    let address = address.map_or_else(|| USUAL.to_owned(), |(_, address)| address);
    let route = Route::new(variables, Signal::Metrics, &address)?;
    let exporter = Collections {
        exporter: exporter.build()?,
        push: Push::new(timings.clone(), plain::resource(resource), route),
        limit: Limit::new(series.timeout, over),
        fate: Fate::of("metrics"),
    };
    Ok(Some(PeriodicReader::builder(exporter).build()))
}

/// The spans that wait for the collector.
#[derive(Debug)]
struct Line {
    most: usize,
    waiting: AtomicUsize,
    fate: Fate,
}

/// Lets spans into the line while there is room, and knows when there is not, which the SDK keeps to
/// itself.
#[derive(Debug)]
struct Queue {
    processor: BatchSpanProcessor,
    line: Arc<Line>,
}

impl SpanProcessor for Queue {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        let waiting = &self.line.waiting;
        if waiting.fetch_add(1, Ordering::Relaxed) < self.line.most {
            self.processor.on_end(span);
        } else {
            waiting.fetch_sub(1, Ordering::Relaxed);
            self.line.fate.lost(1, "too many wait for the collector");
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.processor.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.processor.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.processor.set_resource(resource);
    }
}

/// Sends what has waited, from a thread of the SDK's.
#[derive(Debug)]
struct Batches {
    exporter: opentelemetry_otlp::SpanExporter,
    limit: Limit,
    line: Arc<Line>,
}

impl SpanExporter for Batches {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        self.line.waiting.fetch_sub(spans, Ordering::Relaxed);
        let sent = self.limit.within(self.exporter.export(batch)).await;
        self.line.fate.tell(spans, sent)
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

/// Sends what was collected, likewise.
pub(super) struct Collections {
    exporter: MetricExporter,
    push: Push,
    limit: Limit,
    fate: Fate,
}

impl PushMetricExporter for Collections {
    async fn export(&self, metrics: &ResourceMetrics) -> OTelSdkResult {
        let both = async {
            self.exporter.export(metrics).await?;
            self.push.send().await
        };
        let sent = self.limit.within(both).await;
        // The next time they are sent again.
        self.fate.tell(0, sent)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn temporality(&self) -> Temporality {
        self.exporter.temporality()
    }
}

/// Bounds an export as a whole. A request has a timeout of its own; to connect has none.
#[derive(Debug)]
struct Limit {
    span: Duration,
    runtime: Handle,
    over: Over,
}

/// Whether the runtime may be gone: then nothing can be sent, nor even waited for.
pub(super) type Over = Arc<AtomicBool>;

impl Limit {
    fn new(span: Duration, over: &Over) -> Self {
        Self {
            span,
            runtime: Handle::current(),
            over: Arc::clone(over),
        }
    }

    async fn within(&self, export: impl Future<Output = OTelSdkResult>) -> OTelSdkResult {
        if self.over.load(Ordering::Relaxed) {
            return Err(OTelSdkError::AlreadyShutdown);
        }
        let bounded = {
            let _entered = self.runtime.enter();
            tokio::time::timeout(self.span, export)
        };
        let late = Err(OTelSdkError::Timeout(self.span));
        bounded.await.unwrap_or(late)
    }
}

/// What becomes of what is sent.
struct Fate {
    what: &'static str,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// Since it was told last.
    lost: usize,
    told: Option<Instant>,
    failing: bool,
}

impl Fate {
    fn of(what: &'static str) -> Self {
        Self {
            what,
            known: Mutex::default(),
        }
    }

    fn tell(&self, carried: usize, sent: OTelSdkResult) -> OTelSdkResult {
        match &sent {
            Ok(()) => self.arrived(),
            Err(error) => self.lost(carried, error),
        }
        sent
    }

    fn lost(&self, more: usize, why: impl Display) {
        let what = self.what;
        let mut known = lock(&self.known);
        known.lost += more;
        known.failing = true;
        if known.told.is_some_and(|told| told.elapsed() < BETWEEN) {
            return;
        }
        known.told = Some(Instant::now());
        let lost = std::mem::take(&mut known.lost);
        drop(known);
        tracing::warn!(
            what,
            lost,
            %why,
            "telemetry does not reach its collector, which harms no call; look at \
             OTEL_EXPORTER_OTLP_ENDPOINT, and at the collector"
        );
    }

    fn arrived(&self) {
        let mut known = lock(&self.known);
        if std::mem::take(&mut known.failing) {
            let lost = std::mem::take(&mut known.lost);
            drop(known);
            tracing::info!(
                what = self.what,
                lost,
                "telemetry reaches its collector again"
            );
        }
    }
}

impl Debug for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what)
    }
}

/// How often it is told that something is lost.
const BETWEEN: Duration = Duration::from_mins(1);
/// Where a collector is unless somebody says so.
const USUAL: &str = "http://localhost:4317";
