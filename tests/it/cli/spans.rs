//! What a server tells a collector of OpenTelemetry, and that no collector can hold it up.

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;
use std::process::Command;
use std::time::Duration;

use keybroker::grpc::pb;
use opentelemetry_proto::tonic::metrics::v1::Metric;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value;
use serde_json::Value as Json;
use tokio::time::Instant;
use tonic::IntoRequest as _;
use tonic::transport::ServerTlsConfig;

use super::house::House;
use super::house::KEYBROKER;
use super::site::Running;
use crate::harness::Authority;
use crate::harness::Client;
use crate::harness::rpcs;
use crate::harness::soon;
use crate::support::collector::Collector;
use crate::support::collector::Manner;
use crate::support::collector::Seen;
use crate::support::fake_kms::FakeKms;
use crate::support::fake_kms::Fault;
use crate::support::fake_kms::Operation;
use crate::support::http1;

/// A server with a fake KMS.
struct Stage {
    kms: FakeKms,
    house: House,
}

impl Stage {
    async fn set() -> Self {
        let kms = FakeKms::start().await;
        let house = House::new(&kms.key("eu-central-1"));
        house.use_kms(&kms);
        Self { kms, house }
    }

    /// The server with these variables.
    fn serve(&self, variables: &[(&str, &str)]) -> Running {
        let mut command = self.house.equip(Command::new(KEYBROKER));
        command.envs(variables.iter().copied());
        Running::logging(command)
    }

    async fn client(&self, server: &Running) -> Client {
        self.house.connect(server).await.client()
    }

    fn records(&self) -> Vec<Json> {
        let trail = fs::read_to_string(self.house.site.path("audit.jsonl")).unwrap();
        let lines = trail.lines();
        lines
            .map(|line| serde_json::from_str(line).unwrap())
            .filter(|record: &Json| record["eventCategory"] == "Data")
            .collect()
    }
}

/// As long as nobody says that it must be quick.
const EAGER: (&str, &str) = ("OTEL_BSP_SCHEDULE_DELAY", "20");
const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
const ENCRYPT: &str = "keybroker.v1.KeyBrokerService/Encrypt";

fn encrypt(trace: Option<&str>) -> tonic::Request<pb::EncryptRequest> {
    let mut request = rpcs::encrypt("keys/orders", "x").into_request();
    if let Some(trace) = trace {
        let headers = request.metadata_mut();
        headers.insert("traceparent", trace.parse().unwrap());
        headers.insert("tracestate", "vendor=mark".parse().unwrap());
    }
    request
}

/// A `traceparent` of this trace.
fn parent(trace: &str, flags: &str) -> String {
    format!("00-{trace}-b7ad6b7169203331-{flags}")
}

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

/// The one span of `spans` that `which` is about.
#[track_caller]
fn only(spans: &[Seen], which: impl Fn(&Seen) -> bool) -> Seen {
    let mut found = spans.iter().filter(|span| which(span));
    let span = found.next().unwrap_or_else(|| panic!("none: {spans:#?}"));
    assert_eq!(found.next(), None);
    span.clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_and_its_requests_to_kms_are_one_trace() {
    let stage = Stage::set().await;
    let collector = Collector::start().await;
    let server = stage.serve(&[
        (ENDPOINT, &collector.endpoint()),
        EAGER,
        ("OTEL_SERVICE_NAME", "keys of prod"),
        (
            "OTEL_RESOURCE_ATTRIBUTES",
            "deployment.environment.name=prod",
        ),
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-token=let-me-in"),
    ]);
    let mut client = stage.client(&server).await;
    let throttled = Fault::Code("ThrottlingException", 400);
    stage
        .kms
        .fail_next(1, Operation::GenerateDataKey, throttled);
    let sealed = client.encrypt(encrypt(Some(&parent(TRACE, "01")))).await;
    sealed.unwrap();
    let of_call = || {
        let mut spans = collector.spans();
        spans.retain(|span| span.trace == TRACE);
        spans
    };
    collector.until(|| of_call().len() == 3).await;
    let spans = of_call();
    let call = only(&spans, |span| span.is_server);
    assert_eq!(call.name, ENCRYPT);
    let place = (
        call.trace.as_str(),
        call.parent.as_str(),
        call.state.as_str(),
    );
    assert_eq!(place, (TRACE, "b7ad6b7169203331", "vendor=mark"));
    let attributes = [
        ("keybroker.cache", "miss"),
        ("keybroker.key", "tenants/acme/keys/orders"),
        ("keybroker.tenant", "acme"),
        ("rpc.method", ENCRYPT),
        ("rpc.response.status_code", "OK"),
        ("rpc.system.name", "grpc"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!(call.attributes, attributes.into());
    for (name, value) in [
        ("service.name", "keys of prod"),
        ("service.version", env!("CARGO_PKG_VERSION")),
        ("deployment.environment.name", "prod"),
    ] {
        assert_eq!(call.resource[name], value, "{name}");
    }
    assert_eq!(call.resource["service.instance.id"].len(), 36);
    assert!(!call.is_error);

    let record = &stage.records()[0];
    for (attempt, outcome) in [("1", "throttled"), ("2", "done")] {
        let request = only(&spans, |span| span.get("keybroker.kms.attempt") == attempt);
        assert_eq!(request.name, "KMS/GenerateDataKey");
        assert!(!request.is_server);
        assert_eq!((&request.trace, &request.parent), (&call.trace, &call.id));
        assert_eq!(request.get("keybroker.kms.outcome"), outcome);
        assert_eq!(request.get("rpc.system.name"), "aws-api");
        assert_eq!(request.get("rpc.method"), "KMS/GenerateDataKey");
        assert_eq!(request.get("cloud.region"), "eu-central-1");
        assert!(request.took < call.took);
        let done = outcome == "done";
        assert_eq!(request.is_error, !done);
        assert_eq!(request.get("error.type"), if done { "" } else { outcome });
        let named = request.attributes.get("aws.request_id").cloned();
        let expected = record["additionalEventData"]["kmsRequestID"].as_str();
        assert_eq!(named.as_deref(), expected.filter(|_| done));
    }
    assert_eq!(record["traceId"], TRACE);
    // What nobody's call asked.
    let is_ours = |span: &Seen| span.name == "KMS/DescribeKey" && span.parent.is_empty();
    collector
        .until(|| collector.spans().iter().any(is_ours))
        .await;
    let requests = collector.requests();
    let token = requests[0].get("x-token").unwrap();
    assert_eq!(token, "let-me-in");
    let (code, log) = server.finish();
    assert_eq!(code, Some(0));
    let log = String::from_utf8(log).unwrap();
    assert!(!log.contains("WARN") && !log.contains("let-me-in"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_span_says_how_its_call_ended() {
    let stage = Stage::set().await;
    let collector = Collector::start().await;
    let server = stage.serve(&[(ENDPOINT, &collector.endpoint()), EAGER]);
    let connection = stage.house.connect(&server).await;
    let mut client = connection.client();
    let sealed = client.encrypt(encrypt(None)).await.unwrap().into_inner();
    client.encrypt(encrypt(None)).await.unwrap();
    let denied = client.encrypt(rpcs::encrypt("keys/absent", "x")).await;
    denied.unwrap_err();
    let unknown = connection.wire.send("/nobody.v1.Knows/Me", &[], Vec::new());
    unknown.await;
    let outage = Fault::Code("KMSInternalException", 500);
    stage.kms.fail(Operation::GenerateDataKey, outage);
    let mut request = encrypt(None);
    request.get_mut().encryption_context = rpcs::pairs([("table", "other")]);
    client.encrypt(request).await.unwrap_err();
    stage.kms.heal();
    // A hanging KMS, and a client that does not wait for it.
    let held = stage.kms.hold();
    let mut request = encrypt(None);
    request.get_mut().encryption_context = rpcs::pairs([("table", "third")]);
    let asked = stage.kms.calls(Operation::GenerateDataKey);
    let mut leaving = client.clone();
    let calling = tokio::spawn(async move { leaving.encrypt(request).await });
    stage
        .kms
        .arrived(Operation::GenerateDataKey, asked + 1)
        .await;
    calling.abort();
    let is_end = |span: &Seen| span.get("rpc.response.status_code") == "CANCELLED";
    collector
        .until(|| collector.spans().iter().any(is_end))
        .await;
    drop(held);
    // A stream's lasts as long as the stream.
    let parts = rpcs::encrypt_parts(rpcs::encrypt_start("keys/orders"), ["x".into()]);
    let stream = client
        .encrypt_stream(futures_util::stream::iter(parts))
        .await;
    let mut answers = stream.unwrap().into_inner();
    while answers.message().await.unwrap().is_some() {}
    let torn = sealed.ciphertext.slice(..sealed.ciphertext.len() - 1);
    let parts = rpcs::decrypt_parts(pb::DecryptStreamStart::default(), [torn]);
    let stream = client
        .decrypt_stream(futures_util::stream::iter(parts))
        .await;
    let mut answers = stream.unwrap().into_inner();
    while let Ok(Some(_)) = answers.message().await {}
    drop((client, answers));
    connection.cut();
    assert_eq!(server.stop(), Some(0));

    let spans = collector.spans();
    let calls = spans.iter().filter(|span| span.is_server);
    let seen: Vec<_> = calls
        .map(|span| {
            assert_eq!(span.parent, "");
            let method = span.name.rsplit('/').next().unwrap().to_owned();
            let fields = ["rpc.response.status_code", "keybroker.reason", "error.type"];
            let [status, reason, error] = fields.map(|field| span.get(field).to_owned());
            assert_eq!(span.is_error, !error.is_empty());
            (
                method,
                status,
                reason,
                error,
                span.get("keybroker.cache").to_owned(),
            )
        })
        .collect();
    let expected = [
        ("Encrypt", "OK", "", "", "miss"),
        ("Encrypt", "OK", "", "", "hit"),
        ("Encrypt", "PERMISSION_DENIED", "POLICY_DENIED", "", ""),
        (
            "_OTHER",
            "UNIMPLEMENTED",
            "METHOD_UNKNOWN",
            "UNIMPLEMENTED",
            "",
        ),
        (
            "Encrypt",
            "UNAVAILABLE",
            "KMS_UNAVAILABLE",
            "UNAVAILABLE",
            "",
        ),
        ("Encrypt", "CANCELLED", "", "", ""),
        ("EncryptStream", "OK", "", "", "miss"),
        (
            "DecryptStream",
            "INVALID_ARGUMENT",
            "CIPHERTEXT_INVALID",
            "",
            "hit",
        ),
    ]
    .map(|(one, two, three, four, five)| [one, two, three, four, five].map(str::to_owned))
    .map(|[one, two, three, four, five]| (one, two, three, four, five));
    assert_eq!(seen, expected);
    // Each root's trace is its record's too.
    let records = stage.records();
    let calls = spans.iter().filter(|span| span.is_server);
    for call in calls {
        let of_trace = |record: &&Json| record["traceId"] == call.trace.as_str();
        assert!(records.iter().any(|record| of_trace(&record)), "{call:#?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_several_wait_for_is_of_the_call_that_began_it() {
    let stage = Stage::set().await;
    let collector = Collector::start().await;
    let listen = "[listen]\nadmin = \"127.0.0.1:0\"";
    stage.house.site.edit("keybroker.toml", "[listen]", listen);
    let server = stage.serve(&[(ENDPOINT, &collector.endpoint()), EAGER]);
    let connection = stage.house.connect(&server).await;
    let admin = server.await_line("serving metrics and readiness in plain text address=");
    let admin = admin.parse().unwrap();
    let held = stage.kms.hold();
    let call = |digit: &str| {
        let mut client = connection.client();
        let header = parent(&digit.repeat(32), "01");
        tokio::spawn(async move { client.encrypt(encrypt(Some(&header))).await })
    };
    let first = call("a");
    let operation = Operation::GenerateDataKey;
    stage.kms.arrived(operation, 1).await;
    let second = call("b");
    let both_wait = "\nkeybroker_key_cache_waiters 2\n";
    soon(async { while !http1::get(admin, "/metrics").await.body.contains(both_wait) {} }).await;
    drop(held);
    for call in [first, second] {
        call.await.unwrap().unwrap();
    }
    connection.cut();
    assert_eq!(server.stop(), Some(0));
    let spans = collector.spans();
    // There is a second one if it took long until both waited.
    let requests = spans
        .iter()
        .filter(|span| span.name == "KMS/GenerateDataKey");
    let traces: BTreeSet<_> = requests.map(|request| request.trace.clone()).collect();
    assert_eq!(traces, ["a".repeat(32)].into());
    for (digit, cache) in [("a", "miss"), ("b", "coalesced")] {
        let trace = digit.repeat(32);
        let call = only(&spans, |span| span.is_server && span.trace == trace);
        assert_eq!(call.get("keybroker.cache"), cache);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_sampled_is_not_told() {
    let stage = Stage::set().await;
    let collector = Collector::start().await;
    let endpoint = collector.endpoint();
    let server = stage.serve(&[
        (ENDPOINT, &endpoint),
        ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"),
        ("OTEL_TRACES_SAMPLER_ARG", "0"),
        // What comes, comes at the end.
        ("OTEL_BSP_SCHEDULE_DELAY", "600000"),
    ]);
    let mut client = stage.client(&server).await;
    for header in [
        None,
        Some(parent(TRACE, "00")),
        Some(parent(&TRACE.to_uppercase(), "01")),
        Some("nonsense".to_owned()),
        Some(parent(TRACE, "01")),
    ] {
        client.encrypt(encrypt(header.as_deref())).await.unwrap();
    }
    drop(client);
    assert_eq!(server.stop(), Some(0));
    // The request to KMS was made for a call without a span.
    let spans = collector.spans();
    assert_eq!(spans.len(), 1, "{spans:#?}");
    assert_eq!(
        (spans[0].trace.as_str(), spans[0].get("keybroker.cache")),
        (TRACE, "hit")
    );
    let traces: Vec<_> = stage
        .records()
        .iter()
        .map(|one| one["traceId"].clone())
        .collect();
    let known = Json::from(TRACE);
    let none = Json::Null;
    assert_eq!(
        traces,
        [none.clone(), known.clone(), none.clone(), none, known]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_share_of_the_traces_is_the_same_everywhere() {
    let stage = Stage::set().await;
    let collector = Collector::start().await;
    let server = stage.serve(&[
        (ENDPOINT, &collector.endpoint()),
        ("OTEL_TRACES_SAMPLER", "traceidratio"),
        ("OTEL_TRACES_SAMPLER_ARG", "0.25"),
        EAGER,
    ]);
    let mut client = stage.client(&server).await;
    for low in ["3ffffffffff00000", "4000000000000000", "ffffffffffffffff"] {
        for flags in ["00", "01"] {
            let header = parent(&format!("0af7651916cd43dd{low}"), flags);
            client.encrypt(encrypt(Some(&header))).await.unwrap();
        }
    }
    let many = 400;
    for _ in 0..many {
        client.encrypt(encrypt(None)).await.unwrap();
    }
    drop(client);
    assert_eq!(server.stop(), Some(0));
    let spans = collector.spans();
    let calls = spans.iter().filter(|span| span.is_server);
    let (roots, others): (Vec<_>, Vec<_>) = calls.partition(|span| span.parent.is_empty());
    let traces: Vec<_> = others.iter().map(|span| span.trace.as_str()).collect();
    assert_eq!(traces, ["0af7651916cd43dd3ffffffffff00000"; 2]);
    // Out of 400, 100 ± 9: far enough off.
    assert!((40..180).contains(&roots.len()), "{}", roots.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_told_anything_unasked() {
    let stage = Stage::set().await;
    let collector = Collector::start().await;
    let endpoint = collector.endpoint();
    let disabled = [
        (ENDPOINT, endpoint.as_str()),
        ("OTEL_METRICS_EXPORTER", "otlp"),
        ("OTEL_SDK_DISABLED", "true"),
    ];
    let none = [
        (ENDPOINT, endpoint.as_str()),
        ("OTEL_TRACES_EXPORTER", "none"),
    ];
    let http = [
        (ENDPOINT, endpoint.as_str()),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
    ];
    for (variables, complaint) in [
        (&disabled[..], None),
        (&none, None),
        (&http, Some("telemetry is not exported until this is right")),
    ] {
        let server = stage.serve(variables);
        if let Some(complaint) = complaint {
            let line = server.await_line(complaint);
            assert!(line.contains("OTEL_EXPORTER_OTLP_PROTOCOL"), "{line}");
        }
        let mut client = stage.client(&server).await;
        let sealed = client.encrypt(encrypt(Some(&parent(TRACE, "01")))).await;
        sealed.unwrap();
        drop(client);
        assert_eq!(server.stop(), Some(0));
    }
    assert_eq!(collector.connections(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_away_harms_no_call() {
    let stage = Stage::set().await;
    let nobody = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let endpoint = format!("http://{}", nobody.local_addr().unwrap());
    drop(nobody);
    let server = stage.serve(&[
        (ENDPOINT, &endpoint),
        ("OTEL_METRICS_EXPORTER", "otlp"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "20"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "100"),
        EAGER,
    ]);
    let mut client = stage.client(&server).await;
    client.encrypt(encrypt(None)).await.unwrap();
    // That metrics are lost may have been told before the server served.
    server.await_line("what=\"spans\"");
    for _ in 0..100 {
        client.encrypt(encrypt(None)).await.unwrap();
    }
    drop(client);
    let (code, log) = server.finish();
    assert_eq!(code, Some(0));
    let log = String::from_utf8(log).unwrap();
    let told = log
        .lines()
        .filter(|line| line.contains("telemetry does not reach"));
    assert_eq!(
        told.clone().count(),
        2,
        "once of spans, once of metrics: {log}"
    );
    for line in told {
        assert!(line.contains("OTEL_EXPORTER_OTLP_ENDPOINT"), "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_hangs_harms_no_call() {
    let stage = Stage::set().await;
    let collector = Collector::serve(Manner::Hangs, None).await;
    let server = stage.serve(&[
        (ENDPOINT, &collector.endpoint()),
        ("OTEL_METRICS_EXPORTER", "otlp"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "20"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "8"),
        EAGER,
    ]);
    let mut client = stage.client(&server).await;
    client.encrypt(encrypt(None)).await.unwrap();
    let both = || collector.requests().len() >= 2;
    collector.until(both).await;
    // More than may wait.
    for _ in 0..100 {
        soon(client.encrypt(encrypt(None))).await.unwrap();
    }
    let line = server.await_line("telemetry does not reach its collector");
    assert!(line.contains("too many wait for the collector"), "{line}");
    drop(client);
    let asked = Instant::now();
    let (code, log) = server.finish();
    assert_eq!(code, Some(0));
    let log = String::from_utf8(log).unwrap();
    assert!(!log.contains("panic"), "{log}");
    assert!(
        asked.elapsed() < Duration::from_secs(15),
        "{:?}",
        asked.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_are_told_too_where_that_is_asked_for() {
    let stage = Stage::set().await;
    let collector = Collector::start().await;
    let server = stage.serve(&[
        (ENDPOINT, &collector.endpoint()),
        ("OTEL_TRACES_EXPORTER", "none"),
        ("OTEL_METRICS_EXPORTER", "otlp"),
    ]);
    let mut client = stage.client(&server).await;
    for _ in 0..3 {
        client.encrypt(encrypt(None)).await.unwrap();
    }
    drop(client);
    assert_eq!(server.stop(), Some(0));
    assert_eq!(collector.spans(), []);
    // Those of the SDK, and those that are not.
    let told: [_; 2] = collector.metrics().try_into().unwrap();
    let [sums, histograms] = told.map(|told| {
        let [of_resource] = told.resource_metrics.try_into().unwrap();
        let [of_scope] = of_resource.scope_metrics.try_into().unwrap();
        (of_resource.resource.unwrap(), of_scope.metrics)
    });
    assert_eq!(sums.0, histograms.0, "of one resource");
    let data = |metrics: &[Metric], name: &str| {
        let found = metrics.iter().find(|metric| metric.name == name);
        found.and_then(|metric| metric.data.clone())
    };
    let Some(Data::Histogram(calls)) = data(&histograms.1, "rpc.server.call.duration") else {
        panic!("no histogram of calls");
    };
    let calls = calls.data_points.iter().find(|point| point.count > 0);
    let calls = calls.unwrap();
    assert_eq!((calls.count, calls.attributes.len()), (3, 3));
    assert_eq!(calls.bucket_counts.iter().sum::<u64>(), 3);
    assert_eq!(calls.bucket_counts.len(), calls.explicit_bounds.len() + 1);
    let Some(Data::Sum(sum)) = data(&sums.1, "keybroker_key_cache_requests") else {
        panic!("no sum of requests to the cache");
    };
    let hits = sum.data_points.iter().find(|point| {
        let value = point.attributes[0].value.as_ref().unwrap();
        format!("{value:?}").contains("\"hit\"")
    });
    assert_eq!(hits.unwrap().value, Some(Value::AsInt(2)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_proves_who_it_is() {
    let stage = Stage::set().await;
    let authority = Authority::new("collector.example");
    let own = authority.server("localhost");
    let identity = tonic::transport::Identity::from_pem(own.chain_pem(), own.key_pem());
    let tls = ServerTlsConfig::new().identity(identity);
    let collector = Collector::serve(Manner::Takes, Some(tls)).await;
    let endpoint = format!("https://localhost:{}", collector.port());
    stage.house.site.write("collector.pem", &authority.pem());
    for (file, trusted) in [("collector.pem", true), ("ca.pem", false)] {
        let path = stage.house.site.path(file);
        let server = stage.serve(&[
            (ENDPOINT, &endpoint),
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", path.to_str().unwrap()),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "100"),
        ]);
        let mut client = stage.client(&server).await;
        client.encrypt(encrypt(None)).await.unwrap();
        drop(client);
        let (code, log) = server.finish();
        assert_eq!(code, Some(0));
        let log = String::from_utf8(log).unwrap();
        assert_eq!(log.contains("telemetry does not reach"), !trusted, "{log}");
    }
    let calls = collector.spans();
    let calls = calls.iter().filter(|span| span.is_server);
    assert_eq!(calls.count(), 1, "of the first server alone");
}
