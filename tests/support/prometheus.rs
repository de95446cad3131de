//! Reads Prometheus' text format 0.0.4, and refuses what Prometheus would refuse or misread.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

/// Every series as it is written, with its value.
pub type Series = BTreeMap<String, f64>;

/// Reads `text`; panics at the first line that is wrong.
pub fn parse(text: &str) -> Series {
    let mut families = BTreeSet::new();
    let mut series = Series::new();
    let (mut family, mut kind) = (String::new(), String::new());
    let mut help = None;
    let body = text.strip_suffix('\n').expect("the last line ends");
    for line in body.split('\n') {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, sentence) = rest.split_once(' ').unwrap();
            assert!(!sentence.is_empty(), "{line}");
            assert_eq!(help.replace(name), None, "two HELP: {line}");
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, stated) = rest.split_once(' ').unwrap();
            assert_eq!(help.take(), Some(name), "no HELP: {line}");
            assert!(families.insert(name.to_owned()), "again: {line}");
            assert!(
                ["counter", "gauge", "histogram"].contains(&stated),
                "{line}"
            );
            assert_eq!(stated == "counter", name.ends_with("_total"), "{line}");
            (family, kind) = (name.to_owned(), stated.to_owned());
        } else {
            let (name, labels, value) = sample(line);
            let member = match kind.as_str() {
                "histogram" => ["_bucket", "_sum", "_count"]
                    .map(|suffix| format!("{family}{suffix}"))
                    .contains(&name),
                _ => name == family,
            };
            assert!(member, "of no family: {line}");
            assert_eq!(
                name.ends_with("_bucket"),
                labels.contains_key("le"),
                "{line}"
            );
            let (written, _) = line.rsplit_once(' ').unwrap();
            assert_eq!(series.insert(written.to_owned(), value), None, "{line}");
        }
    }
    assert_eq!(help, None, "HELP without TYPE");
    buckets_grow(&series);
    series
}

fn sample(line: &str) -> (String, BTreeMap<String, String>, f64) {
    let (written, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line:?}"));
    let value: f64 = value.parse().unwrap_or_else(|_| panic!("{line:?}"));
    let (name, rest) = written.split_once('{').unwrap_or((written, "}"));
    assert!(is_name(name), "{line}");
    let mut labels = BTreeMap::new();
    let mut rest = rest.strip_suffix('}').unwrap_or_else(|| panic!("{line:?}"));
    while !rest.is_empty() {
        let (label, quoted) = rest.split_once("=\"").unwrap_or_else(|| panic!("{line:?}"));
        assert!(is_name(label), "{line}");
        // No value of ours holds a quote or a backslash.
        let (value, next) = quoted.split_once('"').unwrap_or_else(|| panic!("{line:?}"));
        assert!(!value.contains('\\'), "{line}");
        assert_eq!(
            labels.insert(label.to_owned(), value.to_owned()),
            None,
            "{line}"
        );
        rest = next.strip_prefix(',').unwrap_or(next);
        assert!(next.is_empty() || !rest.is_empty(), "{line}");
    }
    (name.to_owned(), labels, value)
}

fn is_name(name: &str) -> bool {
    let begun = name.starts_with(|c: char| c.is_ascii_lowercase());
    begun
        && name
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

/// For histograms without labels of their own, in the order of their bounds.
fn buckets_grow(series: &Series) {
    let mut histograms: BTreeMap<&str, Vec<(f64, f64)>> = BTreeMap::new();
    for (written, count) in series {
        if let Some((name, bound)) = written.split_once("_bucket{le=\"") {
            let bound = bound.trim_end_matches("\"}").parse().unwrap();
            histograms.entry(name).or_default().push((bound, *count));
        }
    }
    for (name, mut buckets) in histograms {
        buckets.sort_by(|one, other| one.0.total_cmp(&other.0));
        assert!(
            buckets.is_sorted_by_key(|(_, count)| *count),
            "{name}: {buckets:?}"
        );
        let last = buckets.last().copied();
        let count = series[&format!("{name}_count")];
        assert_eq!(last, Some((f64::INFINITY, count)), "{name}");
        assert!(series.contains_key(&format!("{name}_sum")), "{name}");
    }
}
