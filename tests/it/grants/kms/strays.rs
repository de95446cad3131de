//! Grants that a store has named and does not know.

use std::sync::Arc;

use keybroker::kms::Arn;

use super::create;
use super::meddle;
use super::tenants;
use super::wish;
use crate::harness::Broker;
use crate::support::fake_kms::FakeKms;
use crate::support::fake_kms::Fault;
use crate::support::fake_kms::Operation;
use crate::support::http1::get;
use crate::support::prometheus;

async fn start(fake: &FakeKms, key: &Arn) -> Broker {
    Broker::start()
        .with(|setup| {
            setup.tenants = tenants(key);
            setup.delegation = Some(Arc::new(fake.aws()));
            setup.listen.admin = Some(([127, 0, 0, 1], 0).into());
        })
        .await
}

/// What the metrics say, after a look by the broker itself, which has the turn.
async fn told(broker: &Broker) -> f64 {
    let looked = broker.inner().tell_of_stray_kms_grants("one").await;
    assert!(looked.unwrap());
    shown(broker).await
}

async fn shown(broker: &Broker) -> f64 {
    let answer = get(broker.admin_address().unwrap(), "/metrics").await;
    prometheus::parse(&answer.body)["keybroker_kms_grants_stray"]
}

#[tokio::test]
async fn what_the_store_does_not_know_is_told_of_and_left_alone() {
    let fake = FakeKms::start().await;
    let key = fake.key("eu-west-1");
    let broker = start(&fake, &key).await;
    for _ in 0..3 {
        create(&broker, wish()).await;
    }
    assert_eq!(told(&broker).await, 0.0);
    meddle(
        broker.folder(),
        "DELETE FROM kms_grants WHERE id = (SELECT max(id) FROM kms_grants)",
    )
    .await;
    assert_eq!(told(&broker).await, 1.0);
    broker.end_due_kms_grants("one").await;
    assert_eq!(fake.grants(&key).len(), 3);
    assert_eq!(fake.calls(Operation::RevokeGrant), 0);

    // It is another's to tell now.
    meddle(broker.folder(), "UPDATE kms_grants_turn SET holder = 'two'").await;
    let looked = broker.inner().tell_of_stray_kms_grants("one").await;
    assert!(!looked.unwrap());
    assert_eq!(shown(&broker).await, 0.0);
}

/// Two deployments may have grants of one KMS key.
#[tokio::test]
async fn what_another_store_has_named_is_no_stray() {
    let fake = FakeKms::start().await;
    let key = fake.key("eu-west-1");
    let (one, other) = (start(&fake, &key).await, start(&fake, &key).await);
    create(&one, wish()).await;
    create(&other, wish()).await;
    assert_eq!(told(&one).await, 0.0);
    assert_eq!(told(&other).await, 0.0);
}

#[tokio::test]
async fn who_has_made_no_grant_asks_kms_nothing() {
    let fake = FakeKms::start().await;
    let key = fake.key("eu-west-1");
    let broker = start(&fake, &key).await;
    assert_eq!(told(&broker).await, 0.0);
    assert_eq!(fake.calls(Operation::ListGrants), 0);

    // What KMS does not list ends no look.
    create(&broker, wish()).await;
    fake.fail(
        Operation::ListGrants,
        Fault::Code("AccessDeniedException", 400),
    );
    assert_eq!(told(&broker).await, 0.0);
    assert_eq!(fake.calls(Operation::ListGrants), 1);
}
