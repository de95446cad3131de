//! The histograms that are not the SDK's, as Prometheus has them.

mod push;

use std::collections::HashMap;

use prometheus::core::Collector;
use prometheus::core::Desc;
use prometheus::proto::Bucket;
use prometheus::proto::Histogram as Values;
use prometheus::proto::LabelPair;
use prometheus::proto::Metric;
use prometheus::proto::MetricFamily;
use prometheus::proto::MetricType;

use crate::metrics::Histogram;
use crate::metrics::Spread;
use crate::metrics::Timings;

pub(super) use push::Push;

/// Collects them for a registry.
pub(super) struct Histograms {
    timings: Timings,
    descriptions: Vec<Desc>,
}

impl Histograms {
    pub(super) fn new(timings: Timings) -> Self {
        let histograms = timings.histograms();
        let descriptions = histograms.iter().map(|histogram| {
            let description = histogram.description.to_owned();
            Desc::new(name(histogram), description, Vec::new(), HashMap::new())
                .expect("our names are good, and there are no labels to doubt")
        });
        Self {
            descriptions: descriptions.collect(),
            timings,
        }
    }
}

impl Collector for Histograms {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let histograms = self.timings.histograms();
        histograms.iter().map(family).collect()
    }
}

fn family(histogram: &Histogram) -> MetricFamily {
    let metrics = histogram.series.iter().map(|series| {
        let labels = series.labels.iter().map(|(name, value)| {
            let mut pair = LabelPair::default();
            pair.set_name(plain(name));
            pair.set_value(value.to_string());
            pair
        });
        let mut metric = Metric::from_label(labels.collect());
        metric.set_histogram(values(&series.spread));
        metric
    });
    let mut family = MetricFamily::default();
    family.set_name(name(histogram));
    family.set_help(histogram.description.to_owned());
    family.set_field_type(MetricType::HISTOGRAM);
    family.set_metric(metrics.collect());
    family
}

/// Here a bucket holds those before it too.
fn values(spread: &Spread) -> Values {
    let mut so_far = 0;
    let buckets = spread.buckets.iter().map(|(bound, count)| {
        so_far += count;
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(*bound);
        bucket.set_cumulative_count(so_far);
        bucket
    });
    let mut values = Values::default();
    values.set_bucket(buckets.collect());
    values.set_sample_count(spread.count());
    values.set_sample_sum(spread.sum);
    values
}

/// With the unit, which all have.
fn name(histogram: &Histogram) -> String {
    format!("{}_seconds", plain(histogram.name))
}

fn plain(name: &str) -> String {
    name.replace('.', "_")
}
