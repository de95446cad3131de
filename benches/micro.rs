//! What the message format costs by itself, what a cache hit adds, and what the broker makes of
//! both: one core, no network.
#![allow(missing_docs, clippy::unwrap_used, unreachable_pub)]

#[path = "audit/record.rs"]
mod record;
#[path = "load/stage.rs"]
mod stage;

use std::fs;
use std::future::poll_fn;
use std::hint::black_box;
use std::io;
use std::pin::pin;
use std::sync::Arc;

use criterion::BenchmarkId;
use criterion::Criterion;
use criterion::Throughput;
use criterion::criterion_group;
use criterion::criterion_main;
use futures_util::FutureExt as _;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use keybroker::audit;
use keybroker::audit::Audit;
use keybroker::audit::Sink;
use keybroker::audit::Stamp;
use keybroker::broker::Binding;
use keybroker::broker::Broker;
use keybroker::broker::Grants;
use keybroker::clock::Clock as _;
use keybroker::clock::System;
use keybroker::config::Config;
use keybroker::crypto::Secret;
use keybroker::crypto::digest::sha256_of;
use keybroker::datakeys;
use keybroker::datakeys::DataKeys;
use keybroker::datakeys::Patience;
use keybroker::grants::Backing;
use keybroker::grants::TokenKey;
use keybroker::grants::TokenKeys;
use keybroker::identity::Leaf;
use keybroker::identity::Peer;
use keybroker::identity::Rules;
use keybroker::identity::Session;
use keybroker::message::EncryptedDataKey;
use keybroker::message::EncryptionContext;
use keybroker::message::Envelope;
use keybroker::message::Message;
use keybroker::metrics::Lookup;
use keybroker::metrics::Metrics;
use keybroker::name::KeyName;
use keybroker::policy::Action;
use keybroker::policy::Policy;
use keybroker::quota;
use keybroker::quota::Known;
use keybroker::quota::Quotas;
use keybroker::quota::Terms;
use keybroker::store;
use keybroker::store::Store;
use keybroker::telemetry::Telemetry;
use keybroker::trace::Fault;
use keybroker::trace::Parent;
use keybroker::trace::Sampling;
use keybroker::trace::Tracer;
use opentelemetry::global::BoxedTracer;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_sdk::trace::SdkTracerProvider;
use record::record;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use stage::Stage;

const SIZES: [usize; 4] = [64, 1 << 10, 16 << 10, 1 << 20];

fn seal(criterion: &mut Criterion) {
    let (data_key, envelope) = material();
    let mut group = criterion.benchmark_group("seal");
    for size in SIZES {
        let plaintext = vec![0x5a; size];
        group.throughput(Throughput::Bytes(size.try_into().unwrap()));
        group.bench_function(BenchmarkId::from_parameter(size), |bencher| {
            bencher.iter(|| {
                keybroker::message::seal(&data_key, &envelope, b"", black_box(&plaintext))
            });
        });
    }
    group.finish();
}

/// Reading the header counts: every message of a caller arrives as bytes.
fn open(criterion: &mut Criterion) {
    let (data_key, envelope) = material();
    let mut group = criterion.benchmark_group("open");
    for size in SIZES {
        let plaintext = vec![0x5a; size];
        let message = keybroker::message::seal(&data_key, &envelope, b"", &plaintext).unwrap();
        group.throughput(Throughput::Bytes(size.try_into().unwrap()));
        group.bench_function(BenchmarkId::from_parameter(size), |bencher| {
            bencher.iter(|| {
                let message = Message::parse(black_box(&message)).unwrap();
                message.open(&data_key, b"").unwrap()
            });
        });
    }
    group.finish();
}

/// A data key as AWS KMS wraps it, and a context as tenants have it.
fn material() -> (Secret<32>, Envelope) {
    let pairs = [
        ("keybroker:key", "orders"),
        ("keybroker:tenant", "acme"),
        ("env", "prod"),
        ("service", "checkout"),
    ];
    let pairs = pairs.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let wrapped = EncryptedDataKey {
        provider_id: "aws-kms".to_owned(),
        provider_info:
            "arn:aws:kms:us-west-2:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab".to_owned(),
        ciphertext: vec![7; 184],
    };
    let context = EncryptionContext::new(pairs).unwrap();
    let envelope = Envelope::new(&context, &[wrapped]).unwrap();
    (Secret::filled(|cell| cell.fill(1)), envelope)
}

/// From a caller who is known to a data key that may be used: the permit, then the cache.
fn cache_hit(criterion: &mut Criterion) {
    let stage = Stage::set();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _entered = runtime.enter();
    let (broker, session) = broker(&stage);
    let policy = broker.policy();
    let caller = session.caller(policy.rules()).unwrap();
    let name = KeyName::parse("keys/orders", caller.tenant()).unwrap();
    let own = [("table".to_owned(), "orders".to_owned())];
    let sealing = || {
        let permit = policy.authorize_seal(&caller, Action::Encrypt, &name, &own, Backing::NONE);
        permit.unwrap()
    };
    let permit = sealing();
    let patience = Patience::default();
    let reserved = runtime.block_on(broker.data_keys().sealing(&permit, 1, &patience));
    let message = reserved.unwrap().seal(b"", b"x").unwrap();
    let message = Message::parse(&message).unwrap();

    let mut group = criterion.benchmark_group("cache hit");
    group.bench_function("permit to seal", |bencher| bencher.iter(sealing));
    group.bench_function("seal", |bencher| {
        bencher.iter(|| {
            let hit = broker.data_keys().sealing(&permit, 1, &patience);
            let hit = hit.now_or_never();
            black_box(hit.unwrap().unwrap());
        });
    });
    let opening = || {
        let context = message.context();
        let permit =
            policy.authorize_open(&caller, Action::Decrypt, None, context, &own, Backing::NONE);
        permit.unwrap()
    };
    let permit = opening();
    group.bench_function("permit to open", |bencher| bencher.iter(opening));
    group.bench_function("open", |bencher| {
        bencher.iter(|| {
            let hit = broker.data_keys().opening(&permit, &message, &patience);
            let hit = hit.now_or_never();
            black_box(hit.unwrap().unwrap());
        });
    });
    group.finish();
}

/// What counting adds to a cache hit.
fn count(criterion: &mut Criterion) {
    let telemetry = Telemetry::new();
    let metrics = telemetry.metrics();
    let tally = metrics.tenant("acme");
    criterion.bench_function("count a hit", |bencher| {
        bencher.iter(|| {
            black_box(&metrics).lookup(Lookup::Hit);
            black_box(&tally).avoided(1);
        });
    });
}

/// What it costs a call not to have a span, and to have one that nobody exports.
fn trace(criterion: &mut Criterion) {
    const UNSAMPLED: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";
    const SAMPLED: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let provider = SdkTracerProvider::builder().build();
    let tracer = |share: &str| {
        let made = BoxedTracer::new(Box::new(provider.tracer("keybroker")));
        Tracer::new(made, Sampling::parse(None, Some(share)).unwrap())
    };
    let mut group = criterion.benchmark_group("trace");
    for (name, tracer, parent) in [
        ("off", Tracer::off(), None),
        ("root that is not sampled", tracer("0"), None),
        ("parent that is not sampled", tracer("1"), Some(UNSAMPLED)),
        ("parent that is sampled", tracer("1"), Some(SAMPLED)),
    ] {
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let parent = black_box(parent).and_then(Parent::parse);
                let method = || "keybroker.v1.KeyBrokerService/Encrypt".to_owned();
                let span = tracer.call(parent.as_ref(), || None, method);
                span.answered("OK", Fault::None);
                span.cause()
            });
        });
    }
    group.finish();
}

/// What it costs a call to stay within its limits.
fn spend(criterion: &mut Criterion) {
    let rule = "[[rule]]\nmatch = \"unix:uid=1\"\ntenant = \"acme\"";
    let rules = Rules::new(&toml::from_str(rule).unwrap()).unwrap();
    let caller = rules.map(&Peer::unix(1, 1)).unwrap();
    let terms = Terms {
        rate: None,
        weight: 1,
    };
    let account = unlimited().account(&Known::default(), 1, &caller, terms);
    criterion.bench_function("spend", |bencher| {
        // It is faster than any rate: what is over it costs about the same.
        bencher.iter(|| account.spend(black_box(quota::CALL)));
    });
}

/// Limits that no benchmark reaches.
fn unlimited() -> Quotas {
    let config = quota::Config {
        tenant_rate: quota::Rate::MOST,
        principal_rate: quota::Rate::MOST,
    };
    Quotas::new(&config, Metrics::unread(), Arc::new(System))
}

/// What a usual record costs: its line, and its way to a sink that takes all, the begin of the
/// entry and the notes included. The latter alone and with 16 in one turn of a connection.
fn audit(criterion: &mut Criterion) {
    let note = record();
    let stamp = Stamp {
        instance: uuid::Uuid::now_v7(),
        id: uuid::Uuid::now_v7(),
        began: System.wall(),
        micros: 87,
    };
    let mut group = criterion.benchmark_group("audit");
    let mut line = Vec::new();
    group.bench_function("line", |bencher| {
        bencher.iter(|| {
            line.clear();
            note().line(black_box(&stamp), &mut line);
        });
    });
    // All but a little of what links a line to the one before.
    group.throughput(Throughput::Bytes(line.len().try_into().unwrap()));
    group.bench_function("hash", |bencher| {
        bencher.iter(|| sha256_of([&[0x5a; 32], black_box(&line)]));
    });
    let folder = tempfile::tempdir().unwrap();
    let file = audit::Config {
        file: Some(folder.path().join("audit.jsonl")),
        ..audit::Config::default()
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for (name, sink) in [
        ("hand over", Sink::to(io::sink())),
        (
            "hand over to a file",
            Sink::open(&file, None, Metrics::unread()).unwrap(),
        ),
    ] {
        let trail = Audit::new(sink, Arc::new(System));
        for calls in [1, 16] {
            let call = || {
                let entry = trail.begin();
                entry.notes().add(|record| *record = note());
                entry.finish_gathered()
            };
            group.throughput(Throughput::Elements(calls));
            group.bench_function(BenchmarkId::new(name, calls), |bencher| {
                bencher.iter(|| {
                    let all: FuturesUnordered<_> = (0..calls).map(|_| call()).collect();
                    let mut all = pin!(all.map(Result::unwrap).count());
                    runtime.block_on(poll_fn(|cx| {
                        let polled = all.as_mut().poll(cx);
                        trail.flush();
                        polled
                    }))
                });
            });
        }
    }
    group.finish();
}

/// A whole call without gRPC and without its audit record's line.
fn encrypt(criterion: &mut Criterion) {
    let stage = Stage::set();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _entered = runtime.enter();
    let (broker, session) = broker(&stage);
    let known = Known::default();
    let entry = Audit::new(Sink::to(io::sink()), Arc::new(System)).begin();
    let plaintext = [0x5a; 1024];
    let run = || async {
        let visitor = broker.visitor(&session, &known, &entry.notes()).unwrap();
        visitor.account().spend(quota::CALL).unwrap();
        let patience = Arc::new(Patience::default());
        let call = broker.call(&visitor, entry.notes(), patience);
        let to = Binding {
            name: "keys/orders".into(),
            context: vec![("table".into(), "orders".into())],
            associated_data: Default::default(),
            tokens: Vec::new(),
        };
        call.encrypt(to, black_box(&plaintext)).await.unwrap()
    };
    runtime.block_on(run());
    criterion.bench_function("broker encrypt/1024", |bencher| {
        bencher.iter(|| run().now_or_never().unwrap());
    });
}

/// No grants.
fn grants(stage: &Stage) -> Grants {
    let config = store::Config {
        file: stage.folder().join("store.db"),
        ..store::Config::default()
    };
    let store = Store::new(&config, None).unwrap();
    let keys = TokenKeys::new(TokenKey::new(Secret::random().unwrap()), None);
    Grants::new(Arc::new(store), keys, Arc::new(System))
}

/// A broker on `stage`'s keyring, and a session of the stage's one client.
fn broker(stage: &Stage) -> (Broker, Session) {
    // The usual limits would have the benchmark wait for the KMS now and then.
    let tenants = stage.folder().join("tenants.toml");
    let text = fs::read_to_string(&tenants).unwrap() + "cache.max_messages = 4_294_967_296\n";
    fs::write(tenants, text).unwrap();
    let path = stage.config();
    let config = Config::load(&path).unwrap();
    let state = config.state(&path, System.wall()).unwrap();
    let directory = state.tenants.unwrap().directory;
    let policy = Policy::new(directory.into(), state.rules.into()).unwrap();
    let data_keys = DataKeys::new(
        Arc::new(stage.keyring()),
        Arc::new(System),
        Metrics::unread(),
        &datakeys::Config::default(),
    );
    let certificate = stage.folder().join(stage::CLIENT.certificate);
    let certificate = CertificateDer::from_pem_file(certificate).unwrap();
    let peer = Peer::certified(Leaf::parse(&certificate).unwrap());
    (
        Broker::new(policy, unlimited(), data_keys, grants(stage)),
        Session::new(peer),
    )
}

criterion_group!(
    benches, seal, open, cache_hit, count, trace, spend, audit, encrypt
);
criterion_main!(benches);
