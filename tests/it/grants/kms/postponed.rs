//! Ends that fail: tried again, and in nobody's way.

use std::sync::Arc;

use keybroker::directory::Standing;
use sqlx::Row as _;

use super::ROLE;
use super::beside;
use super::connect;
use super::create;
use super::meddle;
use super::start;
use super::tenants;
use super::wish;
use crate::harness::Broker;
use crate::harness::soon;
use crate::support::fake_kms::BROKER;
use crate::support::fake_kms::FakeKms;
use crate::support::fake_kms::Fault;
use crate::support::fake_kms::Operation;
use crate::support::http1::get;
use crate::support::prometheus;

/// As if all were long overdue.
const OVERDUE: &str = "UPDATE kms_grants SET due = 1, expires = 1";

#[tokio::test]
async fn a_region_that_is_out_of_reach_holds_up_no_other() {
    let fake = FakeKms::start().await;
    let (lost, well) = (fake.key("eu-west-1"), fake.key("eu-north-1"));
    let broker = start(&fake, &lost).await;
    for _ in 0..60 {
        create(&broker, wish()).await;
    }
    broker.reload_policy(&tenants(&well));
    let last = create(&broker, wish()).await;
    for fault in [
        Fault::Close,
        Fault::Code("KMSInternalException", 500),
        Fault::Code("ThrottlingException", 400),
    ] {
        // The one of the Region that is well is the last of all.
        meddle(broker.folder(), "UPDATE kms_grants SET due = 1, retry = 0").await;
        meddle(
            broker.folder(),
            "UPDATE kms_grants SET due = 2, over = 0 WHERE arn LIKE '%:eu-north-1:%'",
        )
        .await;
        fake.region("eu-west-1").fail(Operation::RevokeGrant, fault);
        let before = fake.calls_of(&well, Operation::RevokeGrant);
        for _ in 0..2 {
            broker.end_due_kms_grants("one").await;
        }
        assert_eq!(fake.calls_of(&well, Operation::RevokeGrant), before + 1);
        fake.heal();
    }
    assert_eq!(fake.calls_of(&lost, Operation::RevokeGrant), 3);
    assert!(
        fake.grants(&well)
            .iter()
            .all(|one| one.id != last.kms_grant_id)
    );
    assert_eq!(fake.grants(&lost).len(), 60);
}

/// KMS fails for one key alone.
#[tokio::test]
async fn a_key_that_kms_fails_for_does_not_hold_up_its_region_for_ever() {
    let fake = FakeKms::start().await;
    let (bad, good) = (fake.key("eu-west-1"), fake.key("eu-west-1"));
    let broker = start(&fake, &bad).await;
    for _ in 0..3 {
        create(&broker, wish()).await;
    }
    broker.reload_policy(&tenants(&good));
    create(&broker, wish()).await;
    meddle(
        broker.folder(),
        "UPDATE kms_grants SET due = created - 60000",
    )
    .await;
    let fault = Fault::Code("KMSInternalException", 500);
    fake.fail_key(&bad, Operation::RevokeGrant, fault);
    let rounds = async {
        while !fake.grants(&good).is_empty() {
            broker.end_due_kms_grants("one").await;
            // As if five seconds were over, and half of that for the jitter.
            let later = "UPDATE kms_grants SET retry = retry - 7500 WHERE retry > 0";
            meddle(broker.folder(), later).await;
        }
    };
    soon(rounds).await;
    assert_eq!(fake.grants(&bad).len(), 3);
    assert!(fake.calls_of(&bad, Operation::RevokeGrant) <= 3);
}

#[tokio::test]
async fn what_kms_refuses_to_end_is_counted_apart() {
    let fake = FakeKms::start().await;
    let key = fake.key("eu-west-1");
    fake.deny(BROKER, Operation::RevokeGrant, &key);
    let broker = Broker::start()
        .with(|setup| {
            setup.tenants = tenants(&key);
            setup.delegation = Some(Arc::new(fake.aws()));
            setup.listen.admin = Some(([127, 0, 0, 1], 0).into());
        })
        .await;
    create(&broker, wish()).await;
    meddle(broker.folder(), OVERDUE).await;
    broker.end_due_kms_grants("one").await;
    assert_eq!(counted(&broker).await, (1.0, 0.0), "before it was tried");
    broker.end_due_kms_grants("one").await;
    assert_eq!(counted(&broker).await, (0.0, 1.0));
    assert_eq!(fake.calls(Operation::RevokeGrant), 1, "not each second");

    fake.allow(BROKER, Operation::RevokeGrant, &key);
    meddle(broker.folder(), "UPDATE kms_grants SET retry = 0").await;
    for _ in 0..2 {
        broker.end_due_kms_grants("one").await;
    }
    assert_eq!(counted(&broker).await, (0.0, 0.0));
    assert!(fake.grants(&key).is_empty());
}

/// How many are overdue, and how many are refused.
async fn counted(broker: &Broker) -> (f64, f64) {
    let answer = get(broker.admin_address().unwrap(), "/metrics").await;
    let metrics = prometheus::parse(&answer.body);
    (
        metrics["keybroker_kms_grants_overdue"],
        metrics["keybroker_kms_grants_refused"],
    )
}

#[tokio::test]
async fn a_damaged_row_is_in_nobodys_way() {
    let fake = FakeKms::start().await;
    let key = fake.key("eu-west-1");
    let broker = start(&fake, &key).await;
    for _ in 0..41 {
        create(&broker, wish()).await;
    }
    meddle(
        broker.folder(),
        "UPDATE kms_grants SET due = 1, grantee = 'nobody'",
    )
    .await;
    let sound = create(&broker, wish()).await;
    broker.stand(&tenants(&key), "acme", Standing::Suspended);
    for _ in 0..2 {
        broker.end_due_kms_grants("one").await;
    }
    let left = fake.grants(&key);
    assert_eq!(left.len(), 41);
    assert!(left.iter().all(|one| one.id != sound.kms_grant_id));
    assert!(
        left.iter()
            .all(|one| one.wanted["GranteePrincipal"] == ROLE)
    );
}

#[tokio::test]
async fn a_broker_that_has_nothing_to_end_writes_nothing() {
    let fake = FakeKms::start().await;
    let key = fake.key("eu-west-1");
    let broker = start(&fake, &key).await;
    broker.end_due_kms_grants("one").await;
    assert_eq!(turn(&broker).await, (String::new(), 0));
    create(&broker, wish()).await;
    broker.end_due_kms_grants("one").await;
    let taken = turn(&broker).await;
    assert_eq!(taken.0, "one");
    broker.end_due_kms_grants("one").await;
    assert_eq!(turn(&broker).await, taken, "it lasts for a while yet");
    let store = beside(&broker);
    assert!(!store.take_kms_grants_turn("two").await.unwrap());
}

/// Whose turn it is, and until when.
async fn turn(broker: &Broker) -> (String, i64) {
    let mut connection = connect(broker.folder()).await;
    let row = sqlx::query("SELECT holder, until FROM kms_grants_turn")
        .fetch_one(&mut connection)
        .await
        .unwrap();
    (row.get(0), row.get(1))
}
