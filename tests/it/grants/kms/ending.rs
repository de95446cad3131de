//! The end of grants that are due.

use std::path::Path;

use keybroker::directory::Directory;
use keybroker::directory::Standing;
use keybroker::grpc::pb;
use keybroker::store::Absent;

use super::beside;
use super::create;
use super::ended;
use super::records::ends;
use super::start;
use super::tenants;
use super::wish;
use crate::grants::ADMIN;
use crate::grants::ORDERS;
use crate::harness::reason;
use crate::harness::soon;
use crate::support::fake_kms::FakeKms;
use crate::support::fake_kms::Fault;
use crate::support::fake_kms::Operation;
use crate::support::fake_kms::Outcome;

#[tokio::test]
async fn a_grant_ends_when_it_expires_and_no_earlier() {
    let fake = FakeKms::start().await;
    let key = fake.key("eu-west-1");
    let broker = start(&fake, &key).await;
    let long = create(&broker, wish()).await;
    broker.end_due_kms_grants("one").await;
    assert_eq!(fake.calls(Operation::RevokeGrant), 0);
    let short = pb::CreateKmsGrantRequest {
        lifetime_seconds: 1,
        ..wish()
    };
    create(&broker, short).await;
    let rounds = async {
        while fake.grants(&key).len() > 1 {
            broker.end_due_kms_grants("one").await;
            tokio::task::yield_now().await;
        }
    };
    soon(rounds).await;
    assert_eq!(fake.grants(&key)[0].id, long.kms_grant_id);
}

#[tokio::test]
async fn suspension_ends_the_grants_of_a_tenant() {
    let fake = FakeKms::start().await;
    let key = fake.key("eu-west-1");
    let broker = start(&fake, &key).await;
    create(&broker, wish()).await;
    broker.stand(&tenants(&key), "acme", Standing::Suspended);
    broker.end_due_kms_grants("one").await;
    assert!(fake.grants(&key).is_empty());
}

#[tokio::test]
async fn the_removal_of_a_tenant_ends_its_grants() {
    let fake = FakeKms::start().await;
    let key = fake.key("eu-west-1");
    let broker = start(&fake, &key).await;
    let store = beside(&broker);
    let documents = |text: &str| {
        let path = Path::new("tenants.toml");
        Directory::parse_with_documents(text, path).unwrap().1
    };
    let all = documents(&tenants(&key));
    store.apply(&all, Absent::Remove).await.unwrap();
    create(&broker, wish()).await;
    broker.end_due_kms_grants("one").await;
    assert_eq!(fake.grants(&key).len(), 1);
    let none = documents("");
    store.apply(&none, Absent::Remove).await.unwrap();
    broker.end_due_kms_grants("one").await;
    assert!(fake.grants(&key).is_empty());
    let named = &ends(&broker)[0]["additionalEventData"]["kmsGrant"];
    assert_eq!(named["ending"], "removed");
}

#[tokio::test]
async fn an_end_that_kms_does_not_let_be_is_tried_until_it_does() {
    let fake = FakeKms::start().await;
    let key = fake.key("eu-west-1");
    let broker = start(&fake, &key).await;
    let grant = create(&broker, wish()).await;
    fake.fail(
        Operation::RevokeGrant,
        Fault::Code("KMSInternalException", 500),
    );
    let revoke = pb::RevokeKmsGrantRequest {
        key: ORDERS.into(),
        grant_id: grant.id,
    };
    let mut admin = broker.granter(ADMIN).await;
    let refused = admin.revoke_kms_grant(revoke).await.map(drop);
    assert_eq!(reason(refused), "KMS_UNAVAILABLE");
    fake.heal();
    ended(&broker, &fake, &key).await;
}

#[tokio::test]
async fn many_that_are_due_at_once_end_within_the_quota_of_kms() {
    let fake = FakeKms::start().await;
    let key = fake.key("eu-west-1");
    let broker = start(&fake, &key).await;
    let mut admin = broker.granter(ADMIN).await;
    for _ in 0..120 {
        admin.create_kms_grant(wish()).await.unwrap();
    }
    fake.region("eu-west-1").throttle_above(50);
    broker.stand(&tenants(&key), "acme", Standing::Suspended);
    ended(&broker, &fake, &key).await;
    let revocations = fake.log();
    let revocations = revocations
        .iter()
        .filter(|call| call.operation == Operation::RevokeGrant);
    let answered = revocations.filter(|call| call.outcome == Some(Outcome::Answered));
    assert_eq!(answered.count(), 120);
    assert_eq!(
        fake.calls(Operation::RevokeGrant),
        120,
        "none was throttled"
    );
}
