//! The status page: one page of HTML that a person reads, made anew for each request.

mod html;

use std::time::Duration;

use jiff::Timestamp;

use crate::admin::Readiness;
use crate::admin::history::Look;
use crate::metrics::Lookups;
use crate::metrics::RegionOverview;
use crate::metrics::TenantOverview;

use html::decimal;
use html::dollars;
use html::escaped;
use html::list;
use html::people;
use html::rate;
use html::table;

/// What the page tells besides the numbers.
pub(super) struct Facts {
    pub(super) readiness: Readiness,
    /// Since when the process runs.
    pub(super) uptime: Duration,
    /// The last moment at which the certificate that we serve is good, if we serve one.
    pub(super) certificate_expiry: Option<Timestamp>,
    /// When this is.
    pub(super) now: Timestamp,
}

/// The page of what was seen just now; rates are those since `before`.
pub(super) fn page(facts: &Facts, now: &Look, before: &Look) -> String {
    let span = now.at.saturating_duration_since(before.at);
    let body = [
        head(facts),
        cache(now, before, span),
        audit(now, before, span),
        store(now),
        regions(&now.overview.regions),
        tenants(now, before, span),
    ]
    .concat();
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n\
         <meta http-equiv=\"refresh\" content=\"{REFRESH}\">\n<title>keybroker: {}</title>\n\
         <style>{STYLE}</style>\n</head>\n<body>\n{body}<footer>keybroker {} at {}; rates are of the \
         last {} s. <a href=\"/metrics\">metrics</a> <a href=\"/readyz\">readiness</a></footer>\n\
         </body>\n</html>\n",
        facts.readiness.status.label(),
        env!("CARGO_PKG_VERSION"),
        facts.now.strftime("%Y-%m-%d %H:%M:%S UTC"),
        span.as_secs(),
    )
}

fn head(facts: &Facts) -> String {
    let Readiness { status, reasons } = &facts.readiness;
    let reasons = match reasons.as_slice() {
        [] => String::new(),
        reasons => format!(" <small>{}</small>", escaped(reasons.join(", "))),
    };
    let certificate = match facts.certificate_expiry {
        None => "none: Unix socket alone".to_owned(),
        Some(end) => {
            let left = end.duration_since(facts.now);
            let left = Duration::try_from(left).map_or_else(
                |_| "expired".into(),
                |left| format!("{} left", people(left)),
            );
            format!("{left}, until {}", end.strftime("%Y-%m-%d %H:%M UTC"))
        }
    };
    format!(
        "<h1 class=\"{0}\">{0}{reasons}</h1>\n{1}",
        status.label(),
        list(&[
            ("up", people(facts.uptime)),
            ("certificate served", certificate),
        ])
    )
}

fn cache(now: &Look, before: &Look, span: Duration) -> String {
    let (new, old) = (&now.overview, &before.overview);
    let recent = since(&new.lookups, &old.lookups);
    let avoided = |look: &Look| -> u64 {
        let tenants = look.overview.tenants.iter();
        tenants.map(|tenant| tenant.kms_calls_avoided).sum()
    };
    let calls = |look: &Look| -> u64 {
        let tenants = look.overview.tenants.iter();
        tenants.map(|tenant| tenant.kms_calls).sum()
    };
    let list = list(&[
        ("hit ratio", ratio(&recent)),
        ("hit ratio since the start", ratio(&new.lookups)),
        ("data keys", new.cache_entries.to_string()),
        ("memory", format!("{} KiB", new.cache_bytes >> 10)),
        ("calls waiting for KMS", new.waiters.to_string()),
        (
            "requests over a limit",
            rate(new.rate_limited, old.rate_limited, span),
        ),
        (
            "KMS calls made",
            format!("{} ({})", calls(now), rate(calls(now), calls(before), span)),
        ),
        (
            "KMS calls avoided",
            format!(
                "{} ({}), US${:.2} at US$0.03 for 10,000",
                avoided(now),
                rate(avoided(now), avoided(before), span),
                dollars(avoided(now)),
            ),
        ),
    ]);
    format!("<h2>Data-key cache</h2>\n{list}")
}

fn audit(now: &Look, before: &Look, span: Duration) -> String {
    let (new, old) = (&now.overview.audits, &before.overview.audits);
    let all = new.accepted + new.failed;
    let state = match (new.degraded, all) {
        (true, _) => "no sink takes records",
        (false, 0) => "nothing yet",
        (false, _) => "records are taken",
    };
    let list = list(&[
        ("state", state.to_owned()),
        (
            "records accepted",
            format!(
                "{} ({})",
                new.accepted,
                rate(new.accepted, old.accepted, span)
            ),
        ),
        ("not accepted", new.failed.to_string()),
        ("missed by one of several sinks", new.missed.to_string()),
    ]);
    format!("<h2>Audit</h2>\n{list}")
}

fn store(now: &Look) -> String {
    let overview = &now.overview;
    let list = list(&[
        ("last heard of", format!("{} s ago", overview.store_age)),
        (
            "tenants denied everything",
            overview.tenants_refused.to_string(),
        ),
    ]);
    format!("<h2>Store of tenants and grants</h2>\n{list}")
}

fn regions(regions: &[RegionOverview]) -> String {
    let mut regions: Vec<&RegionOverview> = regions.iter().collect();
    regions.sort_by_key(|region| &region.name);
    let rows = regions.into_iter().map(|region| {
        let circuit = match region.circuit_state {
            0 => "closed",
            1 => "half open",
            _ => "open",
        };
        [
            escaped(&region.name),
            circuit.to_owned(),
            region.requests.to_string(),
            region.throttled.to_string(),
            region.unavailable.to_string(),
            region.refused.to_string(),
            region.failovers.to_string(),
            match region.requests_per_second {
                limit if limit > 0.0 => format!("{limit:.0} / s"),
                _ => "none".into(),
            },
            region.queue_length.to_string(),
        ]
    });
    let columns = [
        "Region",
        "circuit",
        "requests",
        "throttled",
        "unavailable",
        "refused",
        "failed over",
        "budget",
        "queue",
    ];
    table("KMS", columns, rows)
}

fn tenants(now: &Look, before: &Look, span: Duration) -> String {
    let earlier = |name: &str| {
        let mut tenants = before.overview.tenants.iter();
        let found = tenants.find(|one| &*one.name == name);
        found.map_or((0, 0), |one| (one.kms_calls_avoided, one.kms_calls))
    };
    let recent = |tenant: &TenantOverview| {
        let (avoided, calls) = earlier(&tenant.name);
        (tenant.kms_calls_avoided - avoided) + (tenant.kms_calls - calls)
    };
    let mut tenants: Vec<(u64, &TenantOverview)> = now
        .overview
        .tenants
        .iter()
        .map(|tenant| (recent(tenant), tenant))
        .collect();
    tenants.sort_by(|(some, one), (more, other)| more.cmp(some).then(one.name.cmp(&other.name)));
    let hidden = tenants.len().saturating_sub(MOST_TENANTS);
    let rows = tenants.into_iter().take(MOST_TENANTS).map(|(_, tenant)| {
        let (avoided, calls) = earlier(&tenant.name);
        [
            escaped(&tenant.name),
            rate(tenant.kms_calls_avoided, avoided, span),
            rate(tenant.kms_calls, calls, span),
            tenant.kms_calls_avoided.to_string(),
            tenant.kms_calls.to_string(),
            format!("US${:.2}", dollars(tenant.kms_calls_avoided)),
        ]
    });
    let columns = [
        "tenant",
        "from the cache",
        "from KMS",
        "avoided in all",
        "called in all",
        "saved",
    ];
    let table = table("Tenants, busiest first", columns, rows);
    match hidden {
        0 => table,
        hidden => format!("{table}<p>{hidden} more: see the metrics.</p>\n"),
    }
}

fn since(new: &Lookups, old: &Lookups) -> Lookups {
    Lookups {
        coalesced: new.coalesced - old.coalesced,
        hits: new.hits - old.hits,
        misses: new.misses - old.misses,
        stale: new.stale - old.stale,
    }
}

fn ratio(lookups: &Lookups) -> String {
    let hits = lookups.hits + lookups.stale;
    let all = hits + lookups.misses + lookups.coalesced;
    match all {
        0 => "no look-ups".into(),
        all => format!("{:.2} %", 100.0 * decimal(hits) / decimal(all)),
    }
}

/// Seconds after which a browser asks again.
const REFRESH: u32 = 5;
/// Tenants with a row of their own.
const MOST_TENANTS: usize = 50;
const STYLE: &str = "body{font:15px/1.4 system-ui,sans-serif;max-width:64em;margin:1em auto;\
    padding:0 1em;color:#222;background:#fff}h1{padding:.3em .6em;border-radius:.3em;color:#fff}\
    h1.ready{background:#1a7f37}h1.degraded{background:#9a6700}h1.not_ready{background:#cf222e}\
    small{font-weight:normal;font-size:.6em}dl{display:grid;grid-template-columns:max-content 1fr;\
    gap:.2em 1.5em}dt{color:#666}dd{margin:0}table{border-collapse:collapse;width:100%}\
    th,td{text-align:right;padding:.25em .6em;border-bottom:1px solid #ddd;\
    font-variant-numeric:tabular-nums}th:first-child,td:first-child{text-align:left}\
    th{color:#666;font-weight:normal}footer{margin-top:2em;color:#666}";

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::time::Instant;

    use super::*;
    use crate::admin::Status;
    use crate::metrics::Audited;
    use crate::metrics::Dependency;
    use crate::metrics::Lookup;
    use crate::metrics::Metrics;

    fn facts() -> Facts {
        Facts {
            readiness: Readiness {
                status: Status::Degraded,
                reasons: vec!["kms"],
            },
            uptime: Duration::from_secs(93_784),
            certificate_expiry: Some(Timestamp::from_second(86_400).unwrap()),
            now: Timestamp::UNIX_EPOCH,
        }
    }

    #[test]
    fn rates_are_those_between_two_looks_and_the_busiest_tenant_comes_first() {
        let metrics = Metrics::unread();
        metrics.tenant("quiet").avoided(1_000_000);
        let at = Instant::now();
        let look = |seconds| Look {
            at: at + Duration::from_secs(seconds),
            overview: metrics.overview(),
        };
        let before = look(0);
        metrics.tenant("loud").avoided(50);
        metrics.tenant("loud").called_kms();
        for _ in 0..3 {
            metrics.lookup(Lookup::Hit);
        }
        metrics.lookup(Lookup::Miss);
        metrics.audited(Audited::Accepted, 70);
        metrics.audited(Audited::Missed, 2);
        metrics.store_age(Duration::from_secs(41));
        let page = page(&facts(), &look(10), &before);
        for part in [
            "<h1 class=\"degraded\">degraded <small>kms</small></h1>",
            "1 d 2 h",
            "1 d 0 h left, until 1970-01-02 00:00 UTC",
            "<dt>hit ratio</dt><dd>75.00 %</dd>",
            "1000050 (5.0 / s), US$3.00 at",
            "<tr><td>loud</td><td>5.0 / s</td><td>0.1 / s</td><td>50</td><td>1</td>",
            "<dt>state</dt><dd>records are taken</dd>",
            "<dt>records accepted</dt><dd>70 (7.0 / s)</dd>",
            "<dt>missed by one of several sinks</dt><dd>2</dd>",
            "<dt>last heard of</dt><dd>41 s ago</dd>",
            "nothing yet",
        ] {
            assert!(page.contains(part), "{part} is not in {page}");
        }
        let place = |name: &str| page.find(name).unwrap();
        assert!(place("<td>loud") < place("<td>quiet"));
    }

    #[test]
    fn sinks_that_take_nothing_show_until_one_does() {
        let metrics = Metrics::unread();
        let look = || Look {
            at: Instant::now(),
            overview: metrics.overview(),
        };
        let state = |words: &str| {
            let page = page(&facts(), &look(), &look());
            assert!(page.contains(&format!("<dd>{words}</dd>")), "{page}");
        };
        metrics.audited(Audited::Failed, 1);
        metrics.degraded(Dependency::Audit, true);
        state("no sink takes records");
        metrics.degraded(Dependency::Audit, false);
        state("records are taken");
    }

    #[test]
    fn names_are_text_and_no_markup() {
        let metrics = Metrics::unread();
        let name: Arc<str> = "<script>&\"".into();
        metrics.tenant(&name).avoided(1);
        let look = || Look {
            at: Instant::now(),
            overview: metrics.overview(),
        };
        let page = page(&facts(), &look(), &look());
        assert!(
            page.contains("<td>&lt;script&gt;&amp;&quot;</td>"),
            "{page}"
        );
    }
}
