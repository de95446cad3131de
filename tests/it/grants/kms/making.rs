//! Grants as they are made, and by whom.

use std::time::Duration;

use keybroker::grpc::pb;
use keybroker::grpc::pb::GrantOperation;
use serde_json::json;
use tonic::Code;

use super::ROLE;
use super::beside;
use super::create;
use super::intention;
use super::start;
use super::wish;
use crate::grants::ADMIN;
use crate::grants::GLOBEX;
use crate::grants::ORDERS;
use crate::grants::WORKER;
use crate::grants::subset;
use crate::harness::Refusal;
use crate::harness::WEB;
use crate::harness::reason;
use crate::support::fake_kms::BROKER;
use crate::support::fake_kms::FakeKms;
use crate::support::fake_kms::Operation;

#[tokio::test]
async fn a_grant_is_bound_to_the_tenant_and_named_after_its_id() {
    let fake = FakeKms::start().await;
    let key = fake.key("eu-west-1");
    let broker = start(&fake, &key).await;
    let grant = create(
        &broker,
        pb::CreateKmsGrantRequest {
            constraints: subset(&[("order", "7")]),
            ..wish()
        },
    )
    .await;
    let made = &fake.grants(&key)[0];
    assert_eq!(made.id, grant.kms_grant_id);
    let name = made.wanted["Name"].as_str().unwrap();
    let origin = name.strip_prefix("keybroker-").unwrap();
    let origin = origin.strip_suffix(&format!("-{}", grant.id)).unwrap();
    assert_eq!(origin.len(), 32, "{name}");
    assert_eq!(made.wanted["GranteePrincipal"], ROLE);
    assert_eq!(made.wanted["Operations"], json!(["Decrypt"]));
    let bound = json!({
        "EncryptionContextSubset": {
            "keybroker:tenant": "acme",
            "keybroker:key": "orders",
            "stage": "test",
            "order": "7",
        }
    });
    assert_eq!(made.wanted["Constraints"], bound);
    let lifetime = grant.expire_time.unwrap().seconds - grant.create_time.unwrap().seconds;
    assert_eq!(lifetime, 900);

    let mut admin = broker.granter(ADMIN).await;
    let list = pb::ListKmsGrantsRequest {
        key: ORDERS.into(),
        ..Default::default()
    };
    let listed = admin.list_kms_grants(list).await.unwrap().into_inner();
    assert_eq!(listed.grants, std::slice::from_ref(&grant));

    let revoke = pb::RevokeKmsGrantRequest {
        key: ORDERS.into(),
        grant_id: grant.id.clone(),
    };
    admin.revoke_kms_grant(revoke.clone()).await.unwrap();
    assert!(fake.grants(&key).is_empty());
    admin.revoke_kms_grant(revoke).await.unwrap();
    assert_eq!(fake.calls(Operation::RevokeGrant), 1);

    let records = broker.records();
    assert_eq!(records[0]["eventName"], "CreateKmsGrant");
    assert_eq!(records[0]["additionalEventData"]["grantId"], grant.id);
    assert!(records[0]["additionalEventData"]["kmsRequestID"].is_string());
    let named = json!({
        "id": made.id,
        "name": made.wanted["Name"],
        "granteePrincipal": ROLE,
        "issuingPrincipal": ADMIN,
    });
    assert_eq!(records[0]["additionalEventData"]["kmsGrant"], named);
    let ended = &records[2]["additionalEventData"]["kmsGrant"];
    assert_eq!(records[2]["eventName"], "RevokeKmsGrant");
    assert_eq!(
        (&ended["id"], &ended["ending"]),
        (&named["id"], &json!("revoked"))
    );
    assert_eq!(records.len(), 4, "{records:?}");
    let text = serde_json::to_string(&records).unwrap();
    assert!(!text.contains(&made.token), "the token is in the records");
}

#[tokio::test]
async fn only_administrators_make_list_and_end_them() {
    let fake = FakeKms::start().await;
    let key = fake.key("eu-west-1");
    let broker = start(&fake, &key).await;
    let grant = create(&broker, wish()).await;
    for who in [WEB, WORKER, GLOBEX] {
        let mut other = broker.granter(who).await;
        let refused = other.create_kms_grant(wish()).await.map(drop);
        assert_eq!(reason(refused), "POLICY_DENIED", "{who}");
        let list = pb::ListKmsGrantsRequest {
            key: ORDERS.into(),
            ..Default::default()
        };
        let refused = other.list_kms_grants(list).await.map(drop);
        assert_eq!(reason(refused), "POLICY_DENIED", "{who}");
        let revoke = pb::RevokeKmsGrantRequest {
            key: ORDERS.into(),
            grant_id: grant.id.clone(),
        };
        let refused = other.revoke_kms_grant(revoke).await.map(drop);
        assert_eq!(reason(refused), "POLICY_DENIED", "{who}");
    }
    assert_eq!(fake.grants(&key).len(), 1);
    assert_eq!(fake.calls(Operation::CreateGrant), 1);
}

#[tokio::test]
async fn what_no_such_grant_can_be_is_refused_before_kms_is_asked() {
    let fake = FakeKms::start().await;
    let key = fake.key("eu-west-1");
    let broker = start(&fake, &key).await;
    let mut admin = broker.granter(ADMIN).await;
    for (field, wrong) in [
        (
            "grantee_principal",
            pb::CreateKmsGrantRequest {
                grantee_principal: "arn:aws:iam::111122223333:root".into(),
                ..wish()
            },
        ),
        (
            "operations",
            pb::CreateKmsGrantRequest {
                operations: vec![GrantOperation::CreateGrant.into()],
                ..wish()
            },
        ),
        (
            "constraints",
            pb::CreateKmsGrantRequest {
                constraints: subset(&[("keybroker:tenant", "globex")]),
                ..wish()
            },
        ),
        (
            "constraints",
            pb::CreateKmsGrantRequest {
                constraints: subset(&[
                    ("a", "1"),
                    ("b", "1"),
                    ("c", "1"),
                    ("d", "1"),
                    ("e", "1"),
                    ("f", "1"),
                ]),
                ..wish()
            },
        ),
        (
            "lifetime_seconds",
            pb::CreateKmsGrantRequest {
                lifetime_seconds: 3601,
                ..wish()
            },
        ),
    ] {
        let refused = admin.create_kms_grant(wrong).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{field}");
        assert_eq!(Refusal::of(&refused).fields.concat(), field);
    }
    assert_eq!(fake.calls(Operation::CreateGrant), 0);
}

#[tokio::test]
async fn what_kms_denies_the_broker_is_the_brokers_fault() {
    let fake = FakeKms::start().await;
    let key = fake.key("eu-west-1");
    fake.deny(BROKER, Operation::CreateGrant, &key);
    let broker = start(&fake, &key).await;
    let mut admin = broker.granter(ADMIN).await;
    let refused = admin.create_kms_grant(wish()).await.map(drop);
    assert_eq!(reason(refused), "KMS_ACCESS_DENIED");
    let cause = broker.records()[0]["errorMessage"].to_string();
    assert!(cause.contains("kms:CreateGrant"), "{cause}");
    let left = beside(&broker).has_kms_grants().await.unwrap();
    assert!(!left, "what KMS has refused is over");
}

#[tokio::test]
async fn a_key_has_500_of_them_at_most() {
    let fake = FakeKms::start().await;
    let key = fake.key("eu-west-1");
    let broker = start(&fake, &key).await;
    let first = create(&broker, wish()).await;
    let store = beside(&broker);
    let fifteen = Duration::from_secs(900);
    for _ in 1..500 {
        let more = store.intend_kms_grant(intention(&key), fifteen);
        more.await.unwrap().unwrap();
    }
    let mut admin = broker.granter(ADMIN).await;
    let refused = admin.create_kms_grant(wish()).await.map(drop);
    assert_eq!(reason(refused), "GRANTS_EXHAUSTED");
    assert_eq!(fake.calls(Operation::CreateGrant), 1);
    let revoke = pb::RevokeKmsGrantRequest {
        key: ORDERS.into(),
        grant_id: first.id,
    };
    admin.revoke_kms_grant(revoke).await.unwrap();
    create(&broker, wish()).await;
}
