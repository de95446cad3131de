//! What KMS refuses ends data keys at the scope that the refusal is about, and is remembered
//! there for a moment.

use std::time::Duration;

use keybroker::grpc::pb;
use keybroker::kms::Error;
use keybroker::message::EncryptionContext;
use keybroker::metrics::Retirement;

use super::in_table;
use super::on_a_clock;
use crate::harness::Broker;
use crate::harness::GLOBEX;
use crate::harness::Start;
use crate::harness::TENANTS;
use crate::harness::WEB;
use crate::harness::reason;
use crate::harness::rpcs::decrypt;
use crate::harness::rpcs::encrypt;
use crate::harness::rpcs::pairs;
use crate::harness::rpcs::seal;
use crate::harness::until;

/// Longer than a refusal is remembered.
const MOMENT: Duration = Duration::from_secs(6);

/// Acme's and globex's keys `orders` are one KMS key.
fn on_one_kms_key(start: Start) -> Start {
    let tenants = TENANTS.replace("local:globex-orders", "local:acme-orders");
    start.with(|setup| setup.tenants = tenants)
}

fn denied() -> Error {
    Error::AccessDenied("no kms:GenerateDataKey".into())
}

fn is_base(context: &EncryptionContext) -> bool {
    context.value("table").is_none()
}

#[tokio::test]
async fn a_wrapped_key_that_kms_refuses_is_asked_about_once() {
    let (start, clock) = on_a_clock();
    let broker = start.await;
    let other = Broker::start()
        .with(|setup| setup.kms = Some(broker.kms.clone()))
        .await;
    let mut their_web = other.caller(WEB).await;
    let one = seal(&mut their_web, "keys/orders", "x").await;
    let request = pb::EncryptRequest {
        encryption_context: pairs([("table", "t")]),
        ..encrypt("keys/orders", "x")
    };
    let two = their_web.encrypt(request).await.unwrap().into_inner();

    let mut web = broker.caller(WEB).await;
    web.encrypt(encrypt("keys/orders", "x")).await.unwrap();
    let calls = broker.kms_calls();
    broker.kms.fail(Error::InvalidCiphertext);
    for _ in 0..3 {
        let refused = web.decrypt(decrypt(&one)).await;
        assert_eq!(reason(refused), "CIPHERTEXT_INVALID");
    }
    assert_eq!(broker.kms_calls(), calls + 1);
    broker.kms.heal();
    let request = pb::DecryptRequest {
        encryption_context: pairs([("table", "t")]),
        ..decrypt(&two.ciphertext)
    };
    web.decrypt(request).await.expect("another wrapped key");
    web.encrypt(encrypt("keys/orders", "x")).await.unwrap();
    assert_eq!(broker.kms_calls(), calls + 2, "nothing was evicted");
    clock.advance(MOMENT);
    web.decrypt(decrypt(&one)).await.expect("asked anew");
}

#[tokio::test]
async fn one_context_that_kms_refuses_leaves_the_others_alone() {
    let (start, clock) = on_a_clock();
    let broker = start.await;
    let mut web = broker.caller(WEB).await;
    web.encrypt(in_table("good")).await.unwrap();
    broker.kms.rule(|call| match call.context.value("table") {
        Some("odd") => Err(denied()),
        _ => Ok(()),
    });
    for _ in 0..5 {
        let refused = web.encrypt(in_table("odd")).await;
        assert_eq!(reason(refused), "KMS_ACCESS_DENIED");
    }
    // The call itself, and the probe.
    broker.kms.reached(3).await;
    assert_eq!(broker.kms.dry_runs(), 1);
    web.encrypt(in_table("good")).await.unwrap();
    assert_eq!(broker.kms_calls(), 3, "what is cached goes on");
    clock.advance(MOMENT);
    let refused = web.encrypt(in_table("odd")).await;
    assert_eq!(reason(refused), "KMS_ACCESS_DENIED");
}

#[tokio::test]
async fn a_tenant_that_kms_refuses_a_key_loses_its_own_data_keys_alone() {
    let (start, _clock) = on_a_clock();
    let broker = on_one_kms_key(start).await;
    let mut web = broker.caller(WEB).await;
    let mut globex = broker.caller(GLOBEX).await;
    for table in ["a", "b"] {
        web.encrypt(in_table(table)).await.unwrap();
    }
    web.encrypt(encrypt("keys/invoices", "x")).await.unwrap();
    globex.encrypt(encrypt("keys/orders", "x")).await.unwrap();
    broker
        .kms
        .rule(|call| match call.context.value("keybroker:tenant") {
            Some("acme") if call.key == "local:acme-orders" => Err(denied()),
            _ => Ok(()),
        });
    let calls = broker.kms_calls();
    let refused = web.encrypt(in_table("c")).await;
    assert_eq!(reason(refused), "KMS_ACCESS_DENIED");
    until(|| broker.metrics.retirements(Retirement::Denied) == 2).await;
    assert_eq!(broker.kms_calls(), calls + 2, "the call and one probe");
    for table in ["a", "b"] {
        let refused = web.encrypt(in_table(table)).await;
        assert_eq!(reason(refused), "KMS_ACCESS_DENIED");
    }
    assert_eq!(broker.kms_calls(), calls + 2, "remembered for the key");
    web.encrypt(encrypt("keys/invoices", "x")).await.unwrap();
    globex.encrypt(encrypt("keys/orders", "x")).await.unwrap();
    assert_eq!(broker.kms_calls(), calls + 2, "and for nobody else");
}

#[tokio::test]
async fn a_key_is_probed_once_a_second_at_most() {
    let (start, clock) = on_a_clock();
    let broker = start.await;
    let mut web = broker.caller(WEB).await;
    broker.kms.rule(|call| match is_base(call.context) {
        true => Ok(()),
        false => Err(denied()),
    });
    for table in 0..20 {
        let refused = web.encrypt(in_table(&table.to_string())).await;
        assert_eq!(reason(refused), "KMS_ACCESS_DENIED");
    }
    broker.kms.reached(21).await;
    clock.advance(Duration::from_secs(1));
    let refused = web.encrypt(in_table("one more")).await;
    assert_eq!(reason(refused), "KMS_ACCESS_DENIED");
    broker.kms.reached(23).await;
    assert_eq!(broker.kms_calls(), 23);
}

#[tokio::test]
async fn a_right_to_open_that_is_gone_is_found_by_opening() {
    let broker = Broker::start().await;
    let other = Broker::start()
        .with(|setup| setup.kms = Some(broker.kms.clone()))
        .await;
    let mut their_web = other.caller(WEB).await;
    let mut sealed = Vec::new();
    for table in ["a", "b"] {
        let message = their_web.encrypt(in_table(table)).await.unwrap();
        sealed.push(pb::DecryptRequest {
            encryption_context: pairs([("table", table)]),
            ..decrypt(&message.into_inner().ciphertext)
        });
    }
    let mut web = broker.caller(WEB).await;
    web.decrypt(sealed[0].clone()).await.unwrap();
    broker.kms.rule(|call| match call.operation {
        "Decrypt" => Err(denied()),
        _ => Ok(()),
    });
    let calls = broker.kms_calls() + 2;
    let refused = web.decrypt(sealed[1].clone()).await;
    assert_eq!(reason(refused), "KMS_ACCESS_DENIED");
    broker.kms.reached(calls).await;
    let gone = || async {
        let refused = web.clone().decrypt(sealed[0].clone()).await;
        refused.is_err()
    };
    crate::harness::soon(async { while !gone().await {} }).await;
    assert_eq!(
        broker.kms_calls(),
        calls,
        "the cached key went with the rest"
    );
    web.encrypt(in_table("a"))
        .await
        .expect("sealing is another right");
}

#[tokio::test]
async fn a_disabled_kms_key_ends_all_data_keys_under_it() {
    for error in [
        Error::Disabled,
        Error::PendingDeletion("PendingDeletion".into()),
        Error::NotFound("no such key".into()),
    ] {
        let broker = on_one_kms_key(Broker::start()).await;
        let mut web = broker.caller(WEB).await;
        let mut globex = broker.caller(GLOBEX).await;
        let sealed = seal(&mut globex, "keys/orders", "x").await;
        web.encrypt(in_table("a")).await.unwrap();
        web.encrypt(encrypt("keys/invoices", "x")).await.unwrap();
        let refusal = error.clone();
        broker.kms.rule(move |call| match call.key.as_str() {
            "local:acme-orders" => Err(refusal.clone()),
            _ => Ok(()),
        });
        assert!(web.encrypt(in_table("b")).await.is_err());
        assert_eq!(broker.metrics.retirements(Retirement::Denied), 2);
        assert!(web.encrypt(in_table("a")).await.is_err());
        assert!(globex.encrypt(encrypt("keys/orders", "x")).await.is_err());
        assert!(globex.decrypt(decrypt(&sealed)).await.is_err());
        web.encrypt(encrypt("keys/invoices", "x"))
            .await
            .expect("another KMS key's go on");
    }
}

#[tokio::test]
async fn an_outage_is_no_refusal() {
    for error in [
        Error::Throttled,
        Error::Unavailable("away".into()),
        Error::Credentials("none".into()),
        Error::Invalid("no sense in it".into()),
    ] {
        let broker = Broker::start().await;
        let mut web = broker.caller(WEB).await;
        web.encrypt(in_table("a")).await.unwrap();
        broker.kms.fail(error);
        for _ in 0..2 {
            assert!(web.encrypt(in_table("b")).await.is_err());
        }
        assert_eq!(broker.kms_calls(), 3, "each asks anew");
        web.encrypt(in_table("a"))
            .await
            .expect("what is cached goes on");
        broker.kms.heal();
        web.encrypt(in_table("b"))
            .await
            .expect("and the rest at once");
    }
}
