//! Who may not use a key learns nothing of it, not even whether it exists.

use bytes::Bytes;
use tonic::Code;
use tonic::Status;

use crate::harness::ADMIN;
use crate::harness::Broker;
use crate::harness::GLOBEX;
use crate::harness::Refusal;
use crate::harness::STRANGER;
use crate::harness::WEB;
use crate::harness::rpcs;
use crate::harness::rpcs::seal;

/// RPCs that name no key, and so have nothing to deny.
const KEYLESS: [&str; 2] = ["GenerateRandom", "ListKeys"];

/// All that a client can see of a status, with one request id for all.
fn seen(status: &Status) -> (Code, String, Vec<u8>, Vec<String>) {
    let mut headers: Vec<String> = status
        .metadata()
        .as_ref()
        .iter()
        .filter(|(name, _)| *name != "date")
        .map(|(name, value)| format!("{name}: {value:?}"))
        .collect();
    headers.sort();
    let message = status.message().to_owned();
    (status.code(), message, status.details().to_vec(), headers)
}

#[tokio::test]
async fn absent_foreign_and_forbidden_keys_read_the_same_in_every_rpc() {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    let acmes = seal(&mut web, "keys/orders", "secret").await;
    let no_message = Bytes::from_static(b"no message");
    // Whose key, and who asks.
    let cases = [
        (STRANGER, "tenants/acme/keys/orders"),
        (STRANGER, "tenants/acme/keys/absent"),
        (STRANGER, "tenants/absent/keys/orders"),
        (STRANGER, "keys/orders"),
        (GLOBEX, "tenants/acme/keys/orders"),
        (GLOBEX, "tenants/acme/keys/absent"),
        (GLOBEX, "keys/absent"),
        (ADMIN, "keys/orders"),
        (ADMIN, "keys/absent"),
        (ADMIN, "tenants/globex/keys/orders"),
    ];
    let calls = broker.kms_calls();
    let mut expected = None;
    for (who, key) in cases {
        let mut caller = broker.caller(who).await;
        for rpc in rpcs::names() {
            if KEYLESS.contains(&rpc.as_str()) {
                continue;
            }
            for ciphertext in [&acmes, &no_message] {
                let refused = rpcs::call(&mut caller, &rpc, key, ciphertext).await;
                let status = refused.expect_err(&rpc);
                assert_eq!(Refusal::of(&status).reason, "POLICY_DENIED", "{rpc} {key}");
                let seen = seen(&status);
                let expected = expected.get_or_insert_with(|| seen.clone());
                assert_eq!(seen, *expected, "{rpc} by {who} on {key}");
            }
        }
    }
    assert_eq!(broker.kms_calls(), calls, "nobody asks KMS for a stranger");
}

#[tokio::test]
async fn every_rpc_serves_those_who_may() {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    let ciphertext = seal(&mut web, "keys/orders", "secret").await;
    for rpc in rpcs::names() {
        let served = rpcs::call(&mut web, &rpc, "keys/orders", &ciphertext).await;
        assert!(served.is_ok(), "{rpc}: {served:?}");
    }
}

#[tokio::test]
async fn whom_no_rule_maps_gets_nothing_at_all() {
    let broker = Broker::start().await;
    let mut unknown = broker.caller("spiffe://prod.example/ns/web").await;
    for rpc in rpcs::names() {
        let refused = rpcs::call(&mut unknown, &rpc, "keys/orders", &Bytes::new()).await;
        let refusal = Refusal::of(&refused.expect_err(&rpc));
        assert_eq!(refusal.reason, "IDENTITY_UNMAPPED", "{rpc}");
    }
    assert_eq!(broker.kms_calls(), 0);
}

#[tokio::test]
async fn an_administrator_may_see_a_key_and_not_use_it() {
    let broker = Broker::start().await;
    let mut admin = broker.caller(ADMIN).await;
    for rpc in rpcs::names() {
        let outcome = rpcs::call(&mut admin, &rpc, "keys/locked", &Bytes::new()).await;
        let may = KEYLESS.contains(&rpc.as_str()) || rpc == "DescribeKey";
        assert_eq!(outcome.is_ok(), may, "{rpc}");
    }
}

#[tokio::test]
async fn a_message_of_another_tenant_is_denied_without_a_name_as_well() {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    let acmes = seal(&mut web, "keys/orders", "secret").await;
    let mut globex = broker.caller(GLOBEX).await;
    for rpc in ["Decrypt", "DecryptStream", "ReEncrypt"] {
        let refused = rpcs::call(&mut globex, rpc, "", &acmes).await;
        // ReEncrypt's empty destination is a bad field before it is anything else.
        let reason = Refusal::of(&refused.unwrap_err()).reason;
        let expected = if rpc == "ReEncrypt" {
            "FIELD_INVALID"
        } else {
            "POLICY_DENIED"
        };
        assert_eq!(reason, expected, "{rpc}");
    }
}

#[tokio::test]
async fn the_record_says_why_it_was_denied() {
    let broker = Broker::start().await;
    let mut globex = broker.caller(GLOBEX).await;
    for key in ["tenants/acme/keys/orders", "tenants/acme/keys/absent"] {
        let refused = rpcs::call(&mut globex, "Encrypt", key, &Bytes::new()).await;
        assert!(refused.is_err());
    }
    let records = broker.records();
    assert_eq!(
        records[0]["errorMessage"],
        "denied: no statement of the key policy and no grant allows it"
    );
    assert_eq!(records[1]["errorMessage"], "denied: there is no such key");
    for (record, key) in records.iter().zip(["orders", "absent"]) {
        assert_eq!(record["errorCode"], "POLICY_DENIED");
        assert_eq!(record["tenant"], "globex", "the caller's, who used nothing");
        assert_eq!(
            record["requestParameters"]["key"],
            format!("tenants/acme/keys/{key}")
        );
    }
}

#[tokio::test]
async fn a_reload_takes_a_right_away_at_once_even_from_what_is_cached() {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    let sealed = seal(&mut web, "keys/invoices", "x").await;
    let without = crate::harness::TENANTS.replace(
        "id = \"invoices\"\nkms = \"local:acme-invoices\"\nusers = [\"spiffe://prod.example/tenant/acme/sa/web\"]",
        "id = \"invoices\"\nkms = \"local:acme-invoices\"",
    );
    assert_ne!(without, crate::harness::TENANTS);
    broker.reload_policy(&without);
    for rpc in [
        "Encrypt",
        "Decrypt",
        "EncryptStream",
        "DecryptStream",
        "DescribeKey",
    ] {
        let refused = rpcs::call(&mut web, rpc, "keys/invoices", &sealed).await;
        assert_eq!(Refusal::of(&refused.unwrap_err()).reason, "POLICY_DENIED");
    }
}
