//! What may stand in an encryption context, and who may open what was sealed under it.

use std::collections::BTreeMap;

use keybroker::grpc::pb;

use crate::harness::Broker;
use crate::harness::Client;
use crate::harness::GLOBEX;
use crate::harness::Refusal;
use crate::harness::TENANTS;
use crate::harness::WEB;
use crate::harness::reason;
use crate::harness::rpcs::decrypt;
use crate::harness::rpcs::encrypt;
use crate::harness::rpcs::pairs;

async fn encrypt_with(
    client: &mut Client,
    context: BTreeMap<String, String>,
) -> Result<pb::EncryptResponse, tonic::Status> {
    let request = pb::EncryptRequest {
        encryption_context: context,
        ..encrypt("keys/orders", "x")
    };
    Ok(client.encrypt(request).await?.into_inner())
}

fn numbered(count: usize) -> BTreeMap<String, String> {
    (0..count)
        .map(|number| (format!("n{number}"), "v".to_owned()))
        .collect()
}

fn one(name: usize, value: usize) -> BTreeMap<String, String> {
    BTreeMap::from([("n".repeat(name), "v".repeat(value))])
}

/// Pairs that make globex's whole context so many bytes long: 51 are the broker's own.
fn bytes_in_all(total: usize) -> BTreeMap<String, String> {
    let mut left = total - 51;
    let mut context = BTreeMap::new();
    for number in 0..8 {
        let value = (left - 6).min(512);
        context.insert(format!("n{number}"), "v".repeat(value));
        left -= 6 + value;
        if left == 0 {
            return context;
        }
    }
    panic!("{left} bytes are left over");
}

#[tokio::test]
async fn limits_hold_at_the_edge_and_one_beyond() {
    let broker = Broker::start().await;
    // Two of its sixteen pairs are the broker's: tenant and key.
    let mut globex = broker.caller(GLOBEX).await;
    for (what, good, bad) in [
        ("pairs", numbered(14), numbered(15)),
        ("name", one(128, 1), one(129, 1)),
        ("value", one(1, 512), one(1, 513)),
        ("in all", bytes_in_all(4096), bytes_in_all(4097)),
        ("an empty name", one(1, 1), one(0, 1)),
        ("an empty value", one(1, 1), one(1, 0)),
    ] {
        let sealed = encrypt_with(&mut globex, good.clone()).await.expect(what);
        let opened = globex
            .decrypt(pb::DecryptRequest {
                encryption_context: good,
                ..decrypt(&sealed.ciphertext)
            })
            .await;
        assert!(opened.is_ok(), "{what}");
        let refused = encrypt_with(&mut globex, bad).await.unwrap_err();
        let refusal = Refusal::of(&refused);
        assert_eq!(refusal.reason, "CONTEXT_INVALID", "{what}");
        assert_eq!(refusal.fields, ["encryption_context"], "{what}");
    }
}

#[tokio::test]
async fn names_that_are_not_the_callers_are_refused_both_ways() {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    let sealed = encrypt_with(&mut web, BTreeMap::new()).await.unwrap();
    for name in [
        "keybroker:tenant",
        "keybroker:anything",
        "Keybroker:Tenant",
        "aws-crypto-public-key",
        "AWS-Crypto-x",
        // acme's fixed pair
        "stage",
        "Stage",
        // captured by a rule that is not this caller's
        "app",
        "APP",
    ] {
        // Even with the value that the broker itself would set.
        let context = pairs([(name, "test")]);
        let refused = encrypt_with(&mut web, context.clone()).await;
        assert_eq!(reason(refused), "CONTEXT_INVALID", "{name}");
        let refused = web
            .decrypt(pb::DecryptRequest {
                encryption_context: context,
                ..decrypt(&sealed.ciphertext)
            })
            .await;
        assert_eq!(reason(refused), "CONTEXT_INVALID", "{name}");
    }
    // What one tenant fixes is another tenant's to use.
    let mut globex = broker.caller(GLOBEX).await;
    assert!(
        encrypt_with(&mut globex, pairs([("stage", "x")]))
            .await
            .is_ok()
    );
    assert_eq!(
        reason(encrypt_with(&mut globex, pairs([("app", "x")])).await),
        "CONTEXT_INVALID"
    );
}

#[tokio::test]
async fn names_that_differ_in_case_alone_are_refused() {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    let refused = encrypt_with(&mut web, pairs([("Table", "a"), ("table", "a")])).await;
    assert_eq!(reason(refused), "CONTEXT_INVALID");
}

#[tokio::test]
async fn values_are_compared_byte_by_byte() {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    // Composed and decomposed, which normalization would make one.
    let sealed = encrypt_with(&mut web, pairs([("who", "Ren\u{e9}")])).await;
    let sealed = sealed.unwrap().ciphertext;
    for (value, opens) in [
        ("Ren\u{e9}", true),
        ("Rene\u{301}", false),
        ("ren\u{e9}", false),
        ("Ren\u{e9} ", false),
    ] {
        let request = pb::DecryptRequest {
            encryption_context: pairs([("who", value)]),
            ..decrypt(&sealed)
        };
        assert_eq!(web.decrypt(request).await.is_ok(), opens, "{value:?}");
    }
}

const SHOP: &str = "spiffe://prod.example/tenant/acme/app/shop";
const PAY: &str = "spiffe://prod.example/tenant/acme/app/pay";

#[tokio::test]
async fn what_an_identity_brings_along_only_it_can_open() {
    let broker = Broker::start().await;
    let mut shop = broker.caller(SHOP).await;
    let sealed = encrypt_with(&mut shop, BTreeMap::new()).await.unwrap();
    assert!(shop.decrypt(decrypt(&sealed.ciphertext)).await.is_ok());
    for other in [PAY, WEB] {
        let mut other = broker.caller(other).await;
        let refused = other.decrypt(decrypt(&sealed.ciphertext)).await;
        assert_eq!(reason(refused), "CIPHERTEXT_INVALID");
    }
    // Nor the other way round: a caller with a capture does not open what has none.
    let mut web = broker.caller(WEB).await;
    let plain = encrypt_with(&mut web, BTreeMap::new()).await.unwrap();
    let refused = shop.decrypt(decrypt(&plain.ciphertext)).await;
    assert_eq!(reason(refused), "CIPHERTEXT_INVALID");
    let causes = broker.records();
    let captured = causes
        .iter()
        .filter(|record| record["errorMessage"] == "context_captured");
    assert_eq!(captured.count(), 3);
}

#[tokio::test]
async fn a_key_may_share_what_identities_bring_along() {
    let broker = Broker::start()
        .with(|setup| {
            setup.tenants = TENANTS.replacen(
                "kms = \"local:acme-orders\"",
                "kms = \"local:acme-orders\"\nshared_captures = [\"app\"]",
                1,
            );
        })
        .await;
    let mut shop = broker.caller(SHOP).await;
    let sealed = encrypt_with(&mut shop, BTreeMap::new()).await.unwrap();
    for other in [PAY, WEB] {
        let mut other = broker.caller(other).await;
        assert!(other.decrypt(decrypt(&sealed.ciphertext)).await.is_ok());
    }
}

#[tokio::test]
async fn a_condition_of_the_policy_binds_the_context() {
    let broker = Broker::start()
        .with(|setup| {
            setup.tenants = r#"
                [[tenant]]
                id = "acme"
                [[tenant.key]]
                id = "orders"
                kms = "local:acme-orders"
                users = [{ principal = "spiffe://prod.example/tenant/acme/sa/web", context = { table = "users" } }]
            "#
            .to_owned();
        })
        .await;
    let mut web = broker.caller(WEB).await;
    assert!(
        encrypt_with(&mut web, pairs([("table", "users")]))
            .await
            .is_ok()
    );
    for context in [BTreeMap::new(), pairs([("table", "orders")])] {
        let refused = encrypt_with(&mut web, context).await;
        assert_eq!(reason(refused), "POLICY_DENIED");
    }
}

#[tokio::test]
async fn a_changed_fixed_pair_makes_older_messages_unreadable() {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    let sealed = encrypt_with(&mut web, BTreeMap::new()).await.unwrap();
    broker.reload_policy(&TENANTS.replace("stage = \"test\"", "stage = \"live\""));
    let refused = web.decrypt(decrypt(&sealed.ciphertext)).await;
    assert_eq!(reason(refused), "CIPHERTEXT_INVALID");
    assert_eq!(broker.records()[1]["errorMessage"], "context_fixed");
    broker.reload_policy(TENANTS);
    assert!(web.decrypt(decrypt(&sealed.ciphertext)).await.is_ok());
}
