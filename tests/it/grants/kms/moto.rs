//! The real client against a KMS that we did not write.

use std::sync::Arc;

use keybroker::grpc::pb;
use keybroker::kms::Delegated;
use keybroker::kms::Delegation as _;
use keybroker::kms::Matching;
use keybroker::kms::Named;
use keybroker::message::EncryptionContext;
use serde_json::json;

use super::ROLE;
use super::create;
use super::records::ends;
use super::tenants;
use super::wish;
use crate::grants::ADMIN;
use crate::grants::ORDERS;
use crate::grants::subset;
use crate::harness::Broker;
use crate::harness::soon;
use crate::support::moto::Moto;

#[tokio::test]
async fn moto_has_what_is_made_until_it_is_revoked_or_expires() {
    let moto = Moto::start().await;
    let key = moto.key("eu-west-1").await;
    let broker = Broker::start()
        .with(|setup| {
            setup.tenants = tenants(&key);
            setup.delegation = Some(Arc::new(moto.aws()));
        })
        .await;
    let long = create(
        &broker,
        pb::CreateKmsGrantRequest {
            constraints: subset(&[("order", "7")]),
            ..wish()
        },
    )
    .await;
    let short = pb::CreateKmsGrantRequest {
        lifetime_seconds: 1,
        ..wish()
    };
    let short = create(&broker, short).await;
    let mut admin = broker.granter(ADMIN).await;
    let list = pb::ListKmsGrantsRequest {
        key: ORDERS.into(),
        ..Default::default()
    };
    let listed = admin.list_kms_grants(list).await.unwrap().into_inner();
    assert_eq!(listed.grants.len(), 2);

    let living = moto.grants(&key).await;
    let made = living
        .iter()
        .find(|one| one.grant_id() == Some(&long.kms_grant_id));
    let made = made.unwrap();
    assert_eq!(made.grantee_principal(), Some(ROLE));
    let bound = made
        .constraints()
        .unwrap()
        .encryption_context_subset()
        .unwrap();
    let bound = json!(bound);
    let expected = json!({
        "keybroker:tenant": "acme",
        "keybroker:key": "orders",
        "stage": "test",
        "order": "7",
    });
    assert_eq!(bound, expected);

    let rounds = async {
        while moto.grants(&key).await.len() > 1 {
            broker.end_due_kms_grants("one").await;
        }
    };
    soon(rounds).await;
    let record = &ends(&broker)[0]["additionalEventData"];
    assert_eq!(record["grantId"], short.id);
    assert_eq!(record["kmsGrant"]["id"], short.kms_grant_id);
    let left = moto.grants(&key).await;
    assert_eq!(left[0].grant_id(), Some(&*long.kms_grant_id));

    let revoke = pb::RevokeKmsGrantRequest {
        key: ORDERS.into(),
        grant_id: long.id,
    };
    admin.revoke_kms_grant(revoke).await.unwrap();
    assert!(moto.grants(&key).await.is_empty());
}

/// What the client makes of a grant that is gone, and how it finds one by its name.
#[tokio::test]
async fn moto_finds_by_name_and_says_what_is_gone() {
    let moto = Moto::start().await;
    let key = moto.key("eu-west-1").await;
    let aws = moto.aws();
    let context = EncryptionContext::new([("keybroker:tenant", "acme")]).unwrap();
    let make = async |name: &str| {
        let grantee = ROLE.parse().unwrap();
        let wanted = Delegated {
            name,
            grantee: &grantee,
            operations: &["Decrypt"],
            matching: Matching::Equals,
            context: &context,
        };
        aws.create_grant(&key, &wanted).await.unwrap().id
    };
    let (one, _other) = (make("keybroker-one").await, make("keybroker-other").await);
    assert_eq!(aws.grants_named(&key, "keybroker-").await.unwrap().len(), 2);
    let found = [Named {
        id: one.clone(),
        name: "keybroker-one".to_owned(),
    }];
    assert_eq!(
        aws.grants_named(&key, "keybroker-one").await.unwrap(),
        found
    );
    assert!(!aws.revoke_grant(&key, &one).await.unwrap().already_gone);
    assert!(aws.revoke_grant(&key, &one).await.unwrap().already_gone);
    assert!(
        aws.grants_named(&key, "keybroker-one")
            .await
            .unwrap()
            .is_empty()
    );
}
