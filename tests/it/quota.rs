//! What tenants and principals may spend, as their clients see it.

mod noise;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use keybroker::clock::Manual;
use keybroker::grpc::pb;
use keybroker::metrics::RateScope;
use tokio::time::Instant;
use tonic::Code;
use tonic::IntoRequest as _;
use tonic::Status;
use tonic_types::StatusExt as _;

use crate::harness::Broker;
use crate::harness::Client;
use crate::harness::GLOBEX;
use crate::harness::Refusal;
use crate::harness::TENANTS;
use crate::harness::WEB;
use crate::harness::framed;
use crate::harness::reason;
use crate::harness::rpcs::encrypt;
use crate::harness::rpcs::encrypt_parts;
use crate::harness::rpcs::encrypt_start;
use crate::harness::rpcs::pairs;
use crate::harness::soon;

/// A broker whose clock stands still, where a tenant and a principal may spend so much.
async fn broker(tenant_rate: u32, principal_rate: u32) -> (Broker, Arc<Manual>) {
    let clock = Arc::new(Manual::new(Timestamp::now()));
    let broker = Broker::start().with(|setup| {
        setup.clock = Arc::clone(&clock) as _;
        setup.quota.tenant_rate = tenant_rate;
        setup.quota.principal_rate = principal_rate;
    });
    (broker.await, clock)
}

/// May encrypt under acme's key `orders`.
const WRITER: &str = "spiffe://prod.example/tenant/acme/sa/writer";

/// So many small items under one data key.
fn batch(items: usize) -> pb::EncryptBatchRequest {
    let items = vec![encrypt("keys/orders", "x"); items];
    pb::EncryptBatchRequest { items }
}

/// Calls that are let in, until one is not.
async fn calls(client: &mut Client) -> (usize, Status) {
    for calls in 0.. {
        if let Err(status) = client.encrypt(encrypt("keys/orders", "x")).await {
            return (calls, status);
        }
    }
    unreachable!("numbers do not end")
}

/// A call over its principal's limit.
pub async fn refused() -> Status {
    let (broker, _clock) = broker(1000, 100).await;
    let mut web = broker.caller(WEB).await;
    web.encrypt_batch(batch(200)).await.unwrap();
    calls(&mut web).await.1
}

#[tokio::test]
async fn a_call_over_the_limit_is_told_which_and_for_how_long() {
    let (broker, clock) = broker(1000, 100).await;
    let mut web = broker.caller(WEB).await;
    // 200 items and a call to KMS: 9 more than there are.
    web.encrypt_batch(batch(200)).await.unwrap();
    let status = web.encrypt(encrypt("keys/orders", "x")).await.unwrap_err();
    let refusal = Refusal::of(&status);
    assert_eq!(refusal.code, Code::ResourceExhausted);
    assert_eq!(refusal.reason, "RATE_LIMITED");
    assert_eq!(refusal.retry, Some(Duration::from_millis(91)));
    assert_eq!(refusal.pushback, Some(91));
    assert!(refusal.message.contains("100 units"), "{}", refusal.message);
    let details = status.get_error_details();
    let metadata = &details.error_info().unwrap().metadata;
    assert_eq!(metadata["scope"], "principal");
    assert_eq!(metadata["limit"], "100");
    assert_eq!(
        details.quota_failure().unwrap().violations[0].subject,
        "principal"
    );
    assert_eq!(broker.metrics.rates_limited(RateScope::Principal), 1);
    assert_eq!(broker.metrics.rates_limited(RateScope::Tenant), 0);
    let record = &broker.records()[1];
    assert_eq!(record["errorCode"], "RATE_LIMITED");
    assert_eq!(record["tenant"], "acme");

    clock.advance(Duration::from_millis(91));
    web.encrypt(encrypt("keys/orders", "x")).await.unwrap();
}

#[tokio::test]
async fn a_tenant_that_has_spent_all_is_alone_in_that() {
    let (broker, _clock) = broker(100, 1000).await;
    let mut web = broker.caller(WEB).await;
    let mut writer = broker.caller(WRITER).await;
    web.encrypt_batch(batch(200)).await.unwrap();
    for acme in [&mut web, &mut writer] {
        let refused = acme.encrypt(encrypt("keys/orders", "x")).await;
        assert_eq!(reason(refused), "RATE_LIMITED");
    }
    assert_eq!(broker.metrics.rates_limited(RateScope::Tenant), 2);
    let mut globex = broker.caller(GLOBEX).await;
    globex.encrypt(encrypt("keys/orders", "x")).await.unwrap();
}

#[tokio::test]
async fn the_directory_gives_a_tenant_a_rate_of_its_own() {
    let (broker, clock) = broker(10_000, 10_000).await;
    let mut web = broker.caller(WEB).await;
    let mut globex = broker.caller(GLOBEX).await;
    web.encrypt_batch(batch(200)).await.unwrap();
    let own = TENANTS.replacen("id = \"acme\"", "id = \"acme\"\nrate = 100", 1);
    broker.reload_policy(&own);
    clock.advance(Duration::from_secs(1));
    for client in [&mut web, &mut globex] {
        client.encrypt_batch(batch(200)).await.unwrap();
    }
    let refused = web.encrypt(encrypt("keys/orders", "x")).await.unwrap_err();
    assert!(refused.message().contains("100 units"), "{refused}");
    globex.encrypt(encrypt("keys/orders", "x")).await.unwrap();
    broker.reload_policy(TENANTS);
    clock.advance(Duration::from_secs(1));
    web.encrypt(encrypt("keys/orders", "x")).await.unwrap();
}

#[tokio::test]
async fn bytes_and_kms_calls_cost_more_than_a_call() {
    let (broker, clock) = broker(10_000, 100).await;
    let mut web = broker.caller(WEB).await;
    let fill = || clock.advance(Duration::from_secs(12));
    let small = || encrypt("keys/orders", "x");
    web.encrypt(small()).await.unwrap();
    fill();
    assert_eq!(calls(&mut web).await.0, 200);
    fill();
    // 800 KiB and a bit, in units of 8.
    let large = encrypt("keys/orders", vec![0; 800 << 10]);
    web.encrypt(large).await.unwrap();
    assert_eq!(calls(&mut web).await.0, 99);
    fill();
    for n in 0..10 {
        let mut request = small();
        request.encryption_context = pairs([("n", &n.to_string())]);
        web.encrypt(request).await.unwrap();
    }
    assert_eq!(calls(&mut web).await.0, 100);
    fill();
    // An outage takes nothing away from what is cached.
    broker
        .kms
        .fail(keybroker::kms::Error::Unavailable("gone".into()));
    for n in 10..20 {
        let mut request = small();
        request.encryption_context = pairs([("n", &n.to_string())]);
        web.encrypt(request).await.unwrap_err();
    }
    assert_eq!(calls(&mut web).await.0, 190);
}

#[tokio::test]
async fn who_is_over_the_limit_is_refused_before_its_body_is_looked_at() {
    let (broker, _clock) = broker(1000, 100).await;
    let connection = broker.connect(&broker.authority.client(WEB)).await.unwrap();
    let path = "/keybroker.v1.KeyBrokerService/Encrypt";
    let send = || connection.wire.send(path, &[], vec![0, 0, 0, 0, 1, 7]);
    let answer = send().await;
    assert_eq!(Refusal::of(&answer.status).reason, "REQUEST_MALFORMED");
    connection.client().encrypt_batch(batch(200)).await.unwrap();
    let answer = send().await;
    assert_eq!(Refusal::of(&answer.status).reason, "RATE_LIMITED");
    // Nor is it read: this one never comes.
    let promised = framed(&[0; 64]);
    let answer = soon(connection.wire.send(path, &[], promised[..20].to_vec())).await;
    assert_eq!(Refusal::of(&answer.status).reason, "RATE_LIMITED");
    let calls = broker.kms_calls();
    let mut other = encrypt("keys/orders", "x");
    other.encryption_context = pairs([("n", "new")]);
    connection.client().encrypt(other).await.unwrap_err();
    assert_eq!(broker.kms_calls(), calls);
}

#[tokio::test]
async fn a_refusal_takes_its_time_but_comes_before_the_deadline() {
    let (broker, _clock) = broker(1000, 100).await;
    let mut web = broker.caller(WEB).await;
    web.encrypt_batch(batch(200)).await.unwrap();
    let began = Instant::now();
    let refused = web.encrypt(encrypt("keys/orders", "x")).await;
    assert_eq!(reason(refused), "RATE_LIMITED");
    assert!(began.elapsed() >= Duration::from_millis(40));
    let mut request = encrypt("keys/orders", "x").into_request();
    request.set_timeout(Duration::from_millis(60));
    assert_eq!(reason(web.encrypt(request).await), "RATE_LIMITED");
}

#[tokio::test]
async fn a_stream_over_the_limit_is_slow_and_not_refused() {
    let (broker, clock) = broker(1000, 100).await;
    let mut web = broker.caller(WEB).await;
    // The call, and 40 chunks of 16 KiB: 121 units, and another 9 for KMS.
    let chunks = vec![Bytes::from(vec![0; 16 << 10]); 40];
    let parts = encrypt_parts(encrypt_start("keys/orders"), chunks);
    let mut answers = web
        .encrypt_stream(futures_util::stream::iter(parts))
        .await
        .unwrap()
        .into_inner();
    while soon(answers.message()).await.unwrap().is_some() {}
    assert_eq!(calls(&mut web).await.0, 61, "9 for another data key");

    clock.advance(Duration::from_secs(12));
    web.encrypt_batch(batch(180)).await.unwrap();
    let chunks = vec![Bytes::from_static(b"x"); 20];
    let parts = encrypt_parts(encrypt_start("keys/orders"), chunks);
    let mut answers = web
        .encrypt_stream(futures_util::stream::iter(parts))
        .await
        .unwrap()
        .into_inner();
    let whole = async { while soon(answers.message()).await.unwrap().is_some() {} };
    let mut whole = std::pin::pin!(whole);
    // 10 units more than there were, and each chunk waits until its caller can pay.
    let mut ticks = tokio::time::interval(Duration::from_millis(1));
    let mut millis = 0;
    loop {
        tokio::select! {
            () = &mut whole => break,
            _ = ticks.tick() => {
                clock.advance(Duration::from_millis(1));
                millis += 1;
            }
        }
    }
    assert!(millis >= 90, "{millis} ms");
    // It owes nothing that a call would have to wait for.
    clock.advance(Duration::from_millis(20));
    web.encrypt(encrypt("keys/orders", "x")).await.unwrap();
}

#[tokio::test]
async fn another_connection_is_no_new_start() {
    let (broker, _clock) = broker(1000, 100).await;
    let mut web = broker.caller(WEB).await;
    web.encrypt_batch(batch(200)).await.unwrap();
    drop(web);
    let mut again = broker.caller(WEB).await;
    assert_eq!(calls(&mut again).await.0, 0);
}
