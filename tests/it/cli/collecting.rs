//! Audit records that go to a collector of OpenTelemetry: what it has not acknowledged is not there,
//! and what it keeps can be proved.

use std::fs;
use std::process::Command;

use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::logs::v1::LogRecord;

use super::house::House;
use super::house::KEYBROKER;
use super::site::Running;
use super::site::command;
use super::site::good;
use crate::harness::Client;
use crate::harness::reason;
use crate::harness::rpcs::encrypt;
use crate::support::collector::Collector;
use crate::support::collector::Manner;
use crate::support::fake_kms::FakeKms;

/// A server with a fake KMS and a collector.
struct Scene {
    house: House,
    collector: Collector,
    _kms: FakeKms,
}

impl Scene {
    /// Whose `[audit]` says this too, beside the collector and instead of a file.
    async fn new(manner: Manner, settings: &str) -> Self {
        let kms = FakeKms::start().await;
        let house = House::new(&kms.key("eu-central-1"));
        house.use_kms(&kms);
        let collector = Collector::serve(manner, None).await;
        let otlp = format!("otlp = \"{}\"\n{settings}\n", collector.endpoint());
        house.site.edit("keybroker.toml", FILE, &otlp);
        Self {
            house,
            collector,
            _kms: kms,
        }
    }

    fn serve(&self) -> Running {
        let mut command = self.house.equip(Command::new(KEYBROKER));
        command.env("OTEL_EXPORTER_OTLP_LOGS_HEADERS", "x-token=let%20me%20in");
        Running::logging(command)
    }

    async fn client(&self, server: &Running) -> Client {
        self.house.connect(server).await.client()
    }
}

/// Where the records go otherwise.
const FILE: &str = "file = \"audit.jsonl\"\n";

fn body(log: &LogRecord) -> &str {
    match log.body.as_ref().and_then(|body| body.value.as_ref()) {
        Some(Value::StringValue(text)) => text,
        other => panic!("{other:?}"),
    }
}

/// An attribute, as text.
fn attribute(log: &LogRecord, key: &str) -> String {
    let found = log.attributes.iter().find(|one| one.key == key);
    match found.and_then(|one| one.value.as_ref()?.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        other => panic!("{key}: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_collector_keeps_is_the_trail_and_can_be_proved() {
    let scene = Scene::new(Manner::Takes, FILE).await;
    let server = scene.serve();
    let mut web = scene.client(&server).await;
    for _ in 0..3 {
        web.encrypt(encrypt("keys/orders", "x")).await.unwrap();
    }
    assert_eq!(server.stop(), Some(0));
    // Start, three calls, end.
    scene
        .collector
        .until(|| scene.collector.logs().len() == 5)
        .await;
    let logs = scene.collector.logs();
    let site = &scene.house.site;
    let kept: String = logs.iter().map(|log| format!("{}\n", body(log))).collect();
    assert_eq!(kept, fs::read_to_string(site.path("audit.jsonl")).unwrap());
    site.write("kept.jsonl", &kept);
    let last = logs.last().unwrap();
    assert_eq!(
        attribute(last, "keybroker.audit.event_name"),
        "AuditStopped"
    );
    assert!(last.time_unix_nano > 0 && last.time_unix_nano <= last.observed_time_unix_nano);
    let place = format!(
        "{}:{}",
        attribute(last, "keybroker.audit.seq"),
        attribute(last, "keybroker.audit.hash")
    );
    // Either proves the other.
    for file in ["audit.jsonl", "kept.jsonl"] {
        let mut verify = command(&["audit", "verify", "--expect", &place]);
        verify.arg(site.path(file));
        good(verify, b"");
    }
    let requests = scene.collector.requests();
    let tokens = requests.iter().map(|request| request.get("x-token"));
    assert!(tokens.clone().count() > 0);
    assert!(tokens.flatten().all(|token| token == "let me in"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_hangs_holds_up_no_other_sink() {
    let scene = Scene::new(Manner::Hangs, FILE).await;
    let server = scene.serve();
    let mut web = scene.client(&server).await;
    for _ in 0..50 {
        web.encrypt(encrypt("keys/orders", "x")).await.unwrap();
    }
    let trail = fs::read_to_string(scene.house.site.path("audit.jsonl")).unwrap();
    assert_eq!(trail.matches("\"eventName\":\"Encrypt\"").count(), 50);
    assert_eq!(scene.collector.logs(), []);
    assert_eq!(server.stop(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_collector_rejects_is_not_recorded_and_not_released() {
    let scene = Scene::new(Manner::Takes, "").await;
    let server = scene.serve();
    let mut web = scene.client(&server).await;
    web.encrypt(encrypt("keys/orders", "x")).await.unwrap();
    scene.collector.behave(Manner::Rejects);
    let refused = web.encrypt(encrypt("keys/orders", "x")).await;
    assert_eq!(reason(refused), "AUDIT_UNAVAILABLE");
    let line = server.await_line("an audit sink failed: it is tried again");
    assert!(line.contains("the collector rejects"), "{line}");
    scene.collector.behave(Manner::Takes);
    // What was rejected comes first.
    scene
        .collector
        .until(|| scene.collector.logs().len() == 3)
        .await;
    let mut again = web.encrypt(encrypt("keys/orders", "x")).await;
    while again.is_err() {
        again = web.encrypt(encrypt("keys/orders", "x")).await;
    }
    assert_eq!(server.stop(), Some(0));
    let logs = scene.collector.logs();
    let kept: String = logs.iter().map(|log| format!("{}\n", body(log))).collect();
    scene.house.site.write("kept.jsonl", &kept);
    let mut verify = command(&["audit", "verify"]);
    verify.arg(scene.house.site.path("kept.jsonl"));
    good(verify, b"");
}

#[tokio::test(flavor = "multi_thread")]
async fn best_effort_waits_for_no_collector() {
    let scene = Scene::new(Manner::Hangs, "mode = \"best_effort\"").await;
    let server = scene.serve();
    let mut web = scene.client(&server).await;
    web.encrypt(encrypt("keys/orders", "x")).await.unwrap();
    assert_eq!(scene.collector.logs(), []);
    assert_eq!(server.stop(), Some(0));
}

#[tokio::test]
async fn what_cannot_be_had_of_a_collector_ends_the_start() {
    let scene = Scene::new(Manner::Takes, "").await;
    for (name, value, said) in [
        (
            "OTEL_EXPORTER_OTLP_HEADERS",
            "let-me-in",
            "holds no headers",
        ),
        (
            "OTEL_EXPORTER_OTLP_LOGS_PROTOCOL",
            "http/protobuf",
            "keybroker speaks grpc",
        ),
    ] {
        let mut command = scene.house.equip(Command::new(KEYBROKER));
        let output = command.env(name, value).output().unwrap();
        let log = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(78), "{log}");
        assert!(log.contains(name) && log.contains(said), "{log}");
        assert!(!log.contains("let-me-in"), "{log}");
    }
}
