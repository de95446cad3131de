//! How the page writes what it has: lists, tables and numbers for people.

use std::fmt::Display;
use std::time::Duration;

pub(super) fn list(items: &[(&str, String)]) -> String {
    let items = items.iter();
    let items: String = items
        .map(|(name, value)| format!("<dt>{name}</dt><dd>{value}</dd>\n"))
        .collect();
    format!("<dl>\n{items}</dl>\n")
}

pub(super) fn table<const N: usize>(
    title: &str,
    columns: [&str; N],
    rows: impl Iterator<Item = [String; N]>,
) -> String {
    let head: String = columns.map(|name| format!("<th>{name}</th>")).concat();
    let rows: String = rows
        .map(|cells| {
            let cells = cells.map(|cell| format!("<td>{cell}</td>")).concat();
            format!("<tr>{cells}</tr>\n")
        })
        .collect();
    match rows.is_empty() {
        true => format!("<h2>{title}</h2>\n<p>nothing yet</p>\n"),
        false => format!("<h2>{title}</h2>\n<table>\n<tr>{head}</tr>\n{rows}</table>\n"),
    }
}

pub(super) fn rate(new: u64, old: u64, span: Duration) -> String {
    let seconds = span.as_secs_f64().max(1.0);
    format!("{:.1} / s", decimal(new.saturating_sub(old)) / seconds)
}

/// What so many requests to AWS KMS cost.
pub(super) fn dollars(requests: u64) -> f64 {
    decimal(requests) * 0.03 / 10_000.0
}

pub(super) fn decimal(count: u64) -> f64 {
    // Beyond 2^32 of anything, what is lost is not seen.
    let high = u32::try_from(count >> 32).unwrap_or(u32::MAX);
    let low = u32::try_from(count & u64::from(u32::MAX)).unwrap_or(u32::MAX);
    f64::from(high) * 4_294_967_296.0 + f64::from(low)
}

pub(super) fn people(span: Duration) -> String {
    let (days, hours, minutes) = (
        span.as_secs() / 86_400,
        span.as_secs() / 3600 % 24,
        span.as_secs() / 60 % 60,
    );
    match (days, hours) {
        (0, 0) => format!("{minutes} min"),
        (0, _) => format!("{hours} h {minutes} min"),
        (_, _) => format!("{days} d {hours} h"),
    }
}

pub(super) fn escaped(text: impl Display) -> String {
    let text = text.to_string();
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}
