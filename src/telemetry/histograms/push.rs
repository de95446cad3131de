//! The same histograms for a collector, over OTLP.

use jiff::Timestamp;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_client::MetricsServiceClient;
use opentelemetry_proto::tonic::metrics::v1::AggregationTemporality;
use opentelemetry_proto::tonic::metrics::v1::Histogram as Points;
use opentelemetry_proto::tonic::metrics::v1::HistogramDataPoint;
use opentelemetry_proto::tonic::metrics::v1::Metric;
use opentelemetry_proto::tonic::metrics::v1::ResourceMetrics;
use opentelemetry_proto::tonic::metrics::v1::ScopeMetrics;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_sdk::error::OTelSdkError;
use opentelemetry_sdk::error::OTelSdkResult;
use tonic::transport::Channel;

use crate::metrics::Histogram;
use crate::metrics::Series;
use crate::metrics::Timings;
use crate::telemetry::plain::attribute;
use crate::telemetry::plain::nanos;
use crate::telemetry::plain::scope;
use crate::telemetry::plain::text;
use crate::telemetry::route::Route;

/// Sends them to a collector.
pub(in crate::telemetry) struct Push {
    timings: Timings,
    resource: Resource,
    route: Route,
    client: MetricsServiceClient<Channel>,
    began: u64,
}

impl Push {
    /// Sends `timings` over `route`, as `resource`. The runtime that this is called in carries them.
    pub(in crate::telemetry) fn new(timings: Timings, resource: Resource, route: Route) -> Self {
        Self {
            timings,
            resource,
            client: MetricsServiceClient::new(route.channel()),
            route,
            began: nanos(Timestamp::now()),
        }
    }

    /// Sends what there is now.
    pub(in crate::telemetry) async fn send(&self) -> OTelSdkResult {
        let histograms = self.timings.histograms();
        let now = nanos(Timestamp::now());
        let metrics = histograms
            .iter()
            .filter(|histogram| !histogram.series.is_empty())
            .map(|histogram| self.metric(histogram, now));
        let message = ExportMetricsServiceRequest {
            resource_metrics: vec![ResourceMetrics {
                resource: Some(self.resource.clone()),
                scope_metrics: vec![ScopeMetrics {
                    scope: Some(scope("keybroker")),
                    metrics: metrics.collect(),
                    ..ScopeMetrics::default()
                }],
                ..ResourceMetrics::default()
            }],
        };
        let sent = self
            .client
            .clone()
            .export(self.route.request(message))
            .await;
        let failed = |status: tonic::Status| OTelSdkError::InternalFailure(status.to_string());
        sent.map(drop).map_err(failed)
    }

    fn metric(&self, histogram: &Histogram, now: u64) -> Metric {
        let points = histogram
            .series
            .iter()
            .map(|series| self.point(series, now));
        Metric {
            name: histogram.name.to_owned(),
            description: histogram.description.to_owned(),
            unit: "s".into(),
            data: Some(Data::Histogram(Points {
                data_points: points.collect(),
                aggregation_temporality: AggregationTemporality::Cumulative.into(),
            })),
            ..Metric::default()
        }
    }

    fn point(&self, series: &Series, now: u64) -> HistogramDataPoint {
        let Series { labels, spread } = series;
        let attributes = labels
            .iter()
            .map(|(name, value)| attribute(name, text(value)));
        let counts = spread.buckets.iter().map(|(_, count)| *count);
        HistogramDataPoint {
            attributes: attributes.collect(),
            start_time_unix_nano: self.began,
            time_unix_nano: now,
            count: spread.count(),
            sum: Some(spread.sum),
            bucket_counts: counts.chain([spread.rest]).collect(),
            explicit_bounds: spread.buckets.iter().map(|(bound, _)| *bound).collect(),
            ..HistogramDataPoint::default()
        }
    }
}
