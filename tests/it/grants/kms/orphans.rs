//! Grants whose makers died before they knew whether KMS has made them.

use std::collections::BTreeSet;
use std::time::Duration;

use keybroker::grpc::pb;
use serde_json::json;

use super::LONG_AGO;
use super::beside;
use super::create;
use super::intention;
use super::meddle;
use super::records::ends;
use super::start;
use super::wish;
use crate::grants::ADMIN;
use crate::grants::ORDERS;
use crate::harness::reason;
use crate::support::fake_kms::FakeKms;
use crate::support::fake_kms::Fault;
use crate::support::fake_kms::Operation;

/// The store as it is left by one who dies after KMS has made the grant, and before it is written
/// down that it has.
#[tokio::test]
async fn a_grant_that_its_maker_never_heard_of_is_found_by_name_and_ended() {
    let fake = FakeKms::start().await;
    let key = fake.key("eu-west-1");
    let broker = start(&fake, &key).await;
    // On the second page: others have grants of this key, too.
    for _ in 0..12 {
        create(&broker, wish()).await;
    }
    fake.fail_next(1, Operation::CreateGrant, Fault::Truncate);
    let mut admin = broker.granter(ADMIN).await;
    let refused = admin.create_kms_grant(wish()).await.map(drop);
    assert_eq!(reason(refused), "KMS_UNAVAILABLE");
    assert_eq!(fake.grants(&key).len(), 13);
    // As if its maker's time were up.
    let store = beside(&broker);
    let names: BTreeSet<String> = fake
        .grants(&key)
        .iter()
        .map(|one| one.wanted["Name"].as_str().unwrap().to_owned())
        .collect();
    let name = keybroker::name::KeyName::parse(ORDERS, &"acme".parse().unwrap()).unwrap();
    let known = store.kms_grants_of_key(&name, None, 100).await.unwrap();
    let known: BTreeSet<String> = known.into_iter().map(|one| one.name).collect();
    let lost: Vec<&String> = names.difference(&known).collect();
    let [lost] = lost[..] else { panic!("{lost:?}") };
    meddle(
        broker.folder(),
        "UPDATE kms_grants SET due = 1 WHERE kms_id = ''",
    )
    .await;
    broker.end_due_kms_grants("one").await;
    let left = fake.grants(&key);
    assert_eq!(left.len(), 12);
    assert!(left.iter().all(|one| one.wanted["Name"] != lost.as_str()));
    let [record] = &ends(&broker)[..] else {
        panic!("{:?}", ends(&broker))
    };
    let named = &record["additionalEventData"]["kmsGrant"];
    assert_eq!(
        (&named["name"], &named["ending"]),
        (&json!(lost), &json!("orphaned"))
    );
}

/// As many of a key may be looked for as have been asked for while KMS was out of reach.
#[tokio::test]
async fn a_key_is_listed_once_whoever_is_looked_for() {
    let fake = FakeKms::start().await;
    let key = fake.key("eu-west-1");
    let broker = start(&fake, &key).await;
    let mut admin = broker.granter(ADMIN).await;
    for fault in [Fault::Truncate, Fault::Close, Fault::Truncate] {
        fake.fail_next(1, Operation::CreateGrant, fault);
        let refused = admin.create_kms_grant(wish()).await.map(drop);
        assert_eq!(reason(refused), "KMS_UNAVAILABLE");
    }
    let made = fake.grants(&key).len();
    meddle(broker.folder(), "UPDATE kms_grants SET due = 1").await;
    let store = beside(&broker);
    let due = store.due_kms_grants(9).await.unwrap();
    assert_eq!((due.grants.len(), due.overdue), (3, 0), "none is late yet");
    broker.end_due_kms_grants("one").await;
    assert_eq!(fake.calls(Operation::ListGrants), 1);
    assert_eq!((made, fake.grants(&key).len()), (2, 0));
    meddle(broker.folder(), LONG_AGO).await;
    let due = store.due_kms_grants(9).await.unwrap();
    assert_eq!((due.grants.len(), due.overdue), (1, 1));
    broker.end_due_kms_grants("one").await;
    assert!(!store.has_kms_grants().await.unwrap());
}

/// What KMS has told the reason of there is not.
#[tokio::test]
async fn a_refusal_leaves_nothing_to_look_for() {
    let fake = FakeKms::start().await;
    let key = fake.key("eu-west-1");
    let broker = start(&fake, &key).await;
    let mut admin = broker.granter(ADMIN).await;
    let store = beside(&broker);
    for (code, expected) in [
        ("ThrottlingException", "KMS_THROTTLED"),
        ("ValidationException", "INTERNAL"),
        ("LimitExceededException", "GRANTS_EXHAUSTED"),
    ] {
        fake.fail_next(1, Operation::CreateGrant, Fault::Code(code, 400));
        let refused = admin.create_kms_grant(wish()).await.map(drop);
        assert_eq!(reason(refused), expected, "{code}");
        assert!(!store.has_kms_grants().await.unwrap(), "{code}");
    }
}

#[tokio::test]
async fn the_end_of_what_kms_may_have_made_is_promised_and_not_claimed() {
    let fake = FakeKms::start().await;
    let key = fake.key("eu-west-1");
    let broker = start(&fake, &key).await;
    let store = beside(&broker);
    let grant = store.intend_kms_grant(intention(&key), Duration::from_secs(900));
    let grant = grant.await.unwrap().unwrap();
    let revoke = pb::RevokeKmsGrantRequest {
        key: ORDERS.into(),
        grant_id: grant.id.to_string(),
    };
    let mut admin = broker.granter(ADMIN).await;
    let refused = admin.revoke_kms_grant(revoke).await.map(drop);
    assert_eq!(reason(refused), "KMS_UNAVAILABLE");
    let lives = store.complete_kms_grant(&grant.id, "late").await.unwrap();
    assert!(!lives, "it was revoked before KMS had made it");
}

/// The store as it is left by one who dies before KMS is asked.
#[tokio::test]
async fn an_intention_that_nothing_came_of_waits_for_what_may_come_yet() {
    let fake = FakeKms::start().await;
    let key = fake.key("eu-west-1");
    let broker = start(&fake, &key).await;
    let store = beside(&broker);
    let grant = intention(&key);
    let grant = store.intend_kms_grant(grant, Duration::from_secs(900));
    let grant = grant.await.unwrap().unwrap();
    broker.end_due_kms_grants("one").await;
    assert_eq!(fake.calls(Operation::ListGrants), 0, "its maker has time");
    store
        .end_kms_grant(&grant.key, &grant.id, Duration::ZERO)
        .await
        .unwrap();
    broker.end_due_kms_grants("one").await;
    assert_eq!(fake.calls(Operation::ListGrants), 1);
    let living = store.has_kms_grants().await.unwrap();
    assert!(living, "it may be in no list yet");
    let waiting = store.due_kms_grants(9).await.unwrap().grants;
    assert_eq!(waiting, [], "it was looked for a moment ago");
    // KMS answers late: it stays due, and waits for nothing more.
    let lives = store.complete_kms_grant(&grant.id, "late").await.unwrap();
    assert!(!lives);
    let due = store.due_kms_grants(9).await.unwrap().grants;
    assert_eq!(due[0].kms_id.as_deref(), Some("late"));
    store.kms_grant_is_over(&grant.id).await.unwrap();
    assert!(!store.complete_kms_grant(&grant.id, "later").await.unwrap());
}
