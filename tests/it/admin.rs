//! The admin listener: what scrapers and probes are told, and that nobody holds it up.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;
use jiff::Timestamp;
use keybroker::clock;
use keybroker::datakeys::Scope;
use keybroker::kms;
use tokio::io::AsyncReadExt as _;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::harness::Broker;
use crate::harness::Start;
use crate::harness::WEB;
use crate::harness::reason;
use crate::harness::rpcs::encrypt;
use crate::harness::soon;
use crate::support::http1::Answer;
use crate::support::http1::get;
use crate::support::http1::send;
use crate::support::prometheus;

/// A broker with an admin listener.
fn watched() -> Start {
    Broker::start().with(|setup| setup.listen.admin = Some(([127, 0, 0, 1], 0).into()))
}

fn admin(broker: &Broker) -> SocketAddr {
    broker.admin_address().unwrap()
}

#[track_caller]
fn assert_ready(answer: &Answer, status: u16, body: &str) {
    assert_eq!((answer.status, answer.body.as_str()), (status, body));
    assert_eq!(answer.header("content-type"), Some("application/json"));
}

#[tokio::test]
async fn a_scrape_is_what_prometheus_reads() {
    let broker = watched().await;
    let mut web = broker.caller(WEB).await;
    for _ in 0..3 {
        let sealed = web.encrypt(encrypt("keys/orders", "x")).await;
        sealed.unwrap();
    }
    let purged = broker.inner().data_keys().purge(&Scope::All).await;
    assert!(purged > 0);
    let answer = get(admin(&broker), "/metrics").await;
    assert_eq!(answer.status, 200);
    let format = "text/plain; version=0.0.4; charset=utf-8";
    assert_eq!(answer.header("content-type"), Some(format));
    let series = prometheus::parse(&answer.body);
    for (name, value) in [
        (r#"keybroker_key_cache_requests_total{result="miss"}"#, 1.0),
        (r#"keybroker_key_cache_requests_total{result="hit"}"#, 2.0),
        (r#"keybroker_kms_calls_avoided_total{tenant="acme"}"#, 2.0),
        (r#"keybroker_degraded{dependency="kms"}"#, 0.0),
    ] {
        assert_eq!(series.get(name), Some(&value), "{name}");
    }
    let retired = series[r#"keybroker_data_key_retirements_total{reason="purge"}"#];
    assert!(retired >= 1.0);
    assert_eq!(series["keybroker_data_key_age_seconds_count"], retired);
    assert_eq!(broker.records().len(), 3, "a scrape is no call");
}

#[tokio::test]
async fn the_process_is_live_and_the_server_ready() {
    let broker = watched().await;
    let health = get(admin(&broker), "/healthz").await;
    assert_eq!((health.status, health.body.as_str()), (200, "ok\n"));
    let ready = get(admin(&broker), "/readyz?verbose").await;
    assert_ready(&ready, 200, r#"{"status":"ready","reasons":[]}"#);
}

#[tokio::test]
async fn people_have_a_page_of_what_happens_now() {
    let broker = watched().await;
    let mut web = broker.caller(WEB).await;
    for _ in 0..4 {
        web.encrypt(encrypt("keys/orders", "x")).await.unwrap();
    }
    let page = get(admin(&broker), "/").await;
    let format = "text/html; charset=utf-8";
    assert_eq!(
        (page.status, page.header("content-type")),
        (200, Some(format))
    );
    for part in [
        "<h1 class=\"ready\">ready</h1>",
        "<dt>hit ratio since the start</dt><dd>75.00 %</dd>",
        "<td>acme</td>",
        "<td>3</td><td>1</td>",
        "<dt>KMS calls avoided</dt><dd>3 (",
    ] {
        assert!(page.body.contains(part), "{part} is not in {}", page.body);
    }
    let version = get(admin(&broker), "/version").await;
    let wanted = format!("{{\"version\":\"{}\"}}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(version.body, wanted);
}

#[tokio::test]
async fn the_end_of_the_certificate_that_is_served_is_told() {
    let broker = watched().await;
    let scrape = get(admin(&broker), "/metrics").await;
    let series = prometheus::parse(&scrape.body);
    let end = series["keybroker_tls_certificate_expiry_timestamp_seconds"];
    assert!(end > Timestamp::now().as_second() as f64, "{end}");
}

#[tokio::test]
async fn who_is_degraded_is_still_ready() {
    let broker = watched().await;
    let mut web = broker.caller(WEB).await;
    broker.kms.fail(kms::Error::Unavailable("away".into()));
    let outcome = web.encrypt(encrypt("keys/orders", "x")).await;
    assert_eq!(reason(outcome), "KMS_UNAVAILABLE");
    broker.inner().data_keys().sweep();
    let degraded = get(admin(&broker), "/readyz").await;
    let body = r#"{"status":"degraded","reasons":["kms"]}"#;
    assert_ready(&degraded, 200, body);
    let scrape = get(admin(&broker), "/metrics").await;
    let series = prometheus::parse(&scrape.body);
    assert_eq!(series[r#"keybroker_degraded{dependency="kms"}"#], 1.0);

    broker.kms.heal();
    let sealed = web.encrypt(encrypt("keys/orders", "x")).await;
    sealed.unwrap();
    broker.inner().data_keys().sweep();
    let ready = get(admin(&broker), "/readyz").await;
    assert_ready(&ready, 200, r#"{"status":"ready","reasons":[]}"#);
}

#[tokio::test]
async fn an_expired_certificate_of_ours_is_not_ready() {
    let clock = Arc::new(clock::Manual::new(Timestamp::now()));
    let theirs = clock.clone();
    let broker = watched().with(|setup| setup.clock = theirs).await;
    clock.advance(Duration::from_hours(24 * 365 * 20));
    let unready = get(admin(&broker), "/readyz").await;
    let body = r#"{"status":"not_ready","reasons":["certificate_expired"]}"#;
    assert_ready(&unready, 503, body);
    assert_eq!(get(admin(&broker), "/healthz").await.status, 200);
}

#[tokio::test]
async fn a_server_that_stops_is_live_and_not_ready_until_it_has() {
    let mut broker = watched()
        .with(|setup| setup.limits.drain_pause = SignedDuration::from_millis(300))
        .await;
    let address = admin(&broker);
    broker.ask_to_stop();
    let body = r#"{"status":"not_ready","reasons":["stopping"]}"#;
    let unready = soon(async {
        loop {
            let answer = get(address, "/readyz").await;
            if answer.status != 200 {
                break answer;
            }
        }
    });
    assert_ready(&unready.await, 503, body);
    assert_eq!(get(address, "/healthz").await.status, 200);
    broker.stop().await;
    TcpStream::connect(address).await.unwrap_err();
}

#[tokio::test]
async fn there_is_nothing_else_to_see_or_to_do() {
    let broker = watched().await;
    for path in [
        "/index.html",
        "/metrics/",
        "/Metrics",
        "/debug",
        "//metrics",
    ] {
        assert_eq!(get(admin(&broker), path).await.status, 404, "{path}");
    }
    for path in ["/", "/metrics", "/healthz", "/readyz", "/version"] {
        for method in ["POST", "PUT", "DELETE", "HEAD", "OPTIONS"] {
            let request = format!("{method} {path} HTTP/1.1\r\nhost: broker\r\n\r\n");
            let refusal = send(admin(&broker), request.as_bytes()).await;
            assert_eq!(refusal.status, 405, "{method} {path}");
            assert_eq!(refusal.header("allow"), Some("GET"));
        }
    }
}

#[tokio::test]
async fn a_head_over_its_bound_is_refused() {
    let broker = watched().await;
    let long = format!(
        "GET /healthz HTTP/1.1\r\nx: {}\r\n\r\n",
        "x".repeat(64 << 10)
    );
    let many = format!("GET /healthz HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(100));
    for request in [long, many] {
        let answer = send(admin(&broker), request.as_bytes()).await;
        assert_eq!(answer.status, 431);
    }
}

#[tokio::test]
async fn who_says_nothing_or_half_of_it_holds_nobody_up_for_long() {
    let broker = watched().await;
    let mut slow = Vec::new();
    // Many more than there are seats.
    for number in 0..64 {
        let mut stream = TcpStream::connect(admin(&broker)).await.unwrap();
        if number % 2 == 0 {
            stream.write_all(b"GET /metrics HTT").await.unwrap();
        }
        slow.push(stream);
        if number == 0 {
            // One alone takes a seat of many.
            assert_eq!(get(admin(&broker), "/healthz").await.status, 200);
        }
    }
    assert_eq!(get(admin(&broker), "/healthz").await.status, 200);
    for mut stream in slow {
        let mut rest = Vec::new();
        // The end, or a reset: the connection is gone.
        let _ = soon(stream.read_to_end(&mut rest)).await;
    }
}
