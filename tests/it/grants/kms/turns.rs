//! Several brokers on one store.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use keybroker::directory::Standing;
use keybroker::kms::Arn;
use keybroker::store;
use keybroker::store::Store;
use keybroker::store::kms_grants::Ending;
use keybroker::store::kms_grants::Obstacle;

use super::create;
use super::intention;
use super::start;
use super::tenants;
use super::wish;
use crate::harness::Broker;
use crate::support::fake_kms::FakeKms;
use crate::support::fake_kms::Operation;
use crate::support::postgres::Postgres;

#[tokio::test]
async fn one_broker_at_a_time_ends_them_and_each_once() {
    let fake = FakeKms::start().await;
    let key = fake.key("eu-west-1");
    let broker = start(&fake, &key).await;
    let folder = broker.folder().to_owned();
    let other = Broker::start()
        .with(|setup| {
            setup.tenants = tenants(&key);
            setup.delegation = Some(Arc::new(fake.aws()));
            setup.store = Some(folder);
        })
        .await;
    for _ in 0..5 {
        create(&broker, wish()).await;
    }
    for one in [&broker, &other] {
        one.stand(&tenants(&key), "acme", Standing::Suspended);
    }
    tokio::join!(
        broker.end_due_kms_grants("one"),
        other.end_due_kms_grants("two"),
    );
    assert!(fake.grants(&key).is_empty());
    assert_eq!(fake.calls(Operation::RevokeGrant), 5);
}

/// All that the store is asked, by two who share it: SQLite's part is in the tests above.
#[tokio::test]
async fn postgresql_has_each_ended_by_one() {
    let postgres = Postgres::start();
    let password = fs::read_to_string(postgres.password()).unwrap();
    let config = store::Config {
        url: Some(format!(
            "postgres://keybroker@{}/postgres",
            postgres.address()
        )),
        ca: Some(postgres.ca()),
        ..store::Config::default()
    };
    let [one, other] = [(); 2].map(|()| Store::new(&config, Some(password.trim_end())).unwrap());
    let arn: Arn = "arn:aws:kms:eu-west-1:111122223333:key/0c0c"
        .parse()
        .unwrap();
    let hour = Duration::from_hours(1);
    let [lives, ends] = [intention(&arn), intention(&arn)];
    let lives = one.intend_kms_grant(lives, hour).await.unwrap().unwrap();
    let ends = one.intend_kms_grant(ends, hour).await.unwrap().unwrap();
    assert!(one.complete_kms_grant(&lives.id, "kms-1").await.unwrap());
    assert!(one.complete_kms_grant(&ends.id, "kms-2").await.unwrap());
    let known = other.kms_grants_of_key(&lives.key, None, 10).await.unwrap();
    assert_eq!(known.len(), 2);
    let keys = other.keys_with_kms_grants().await.unwrap();
    assert_eq!(keys, std::slice::from_ref(&lives.key));
    let due = other.due_kms_grants(10).await.unwrap();
    assert!(due.grants.is_empty());

    assert!(
        other
            .end_kms_grant(&ends.key, &ends.id, Duration::ZERO)
            .await
            .unwrap()
    );
    let (mine, yours) = tokio::join!(
        one.take_kms_grants_turn("one"),
        other.take_kms_grants_turn("other"),
    );
    assert!(mine.unwrap() ^ yours.unwrap(), "one has the turn");
    let due = one.due_kms_grants(10).await.unwrap();
    let [grant] = &due.grants[..] else {
        panic!("{due:?}")
    };
    assert_eq!(
        (grant.id, grant.kms_id.as_deref(), grant.cause(due.now)),
        (ends.id, Some("kms-2"), Ending::Revoked)
    );
    let (id, outage) = (ends.id.to_string(), Obstacle::Outage);
    one.postpone_kms_grant(&id, hour, outage).await.unwrap();
    assert!(other.due_kms_grants(10).await.unwrap().grants.is_empty());
    one.postpone_kms_grant(&id, Duration::ZERO, Obstacle::Unknown)
        .await
        .unwrap();
    assert_eq!(other.due_kms_grants(10).await.unwrap().grants.len(), 1);
    one.postpone_kms_grants_beside(&arn, hour).await.unwrap();
    assert!(other.due_kms_grants(10).await.unwrap().grants.is_empty());
    assert!(other.has_kms_grants().await.unwrap());
    one.kms_grant_is_over(&ends.id).await.unwrap();
    assert!(
        !other
            .end_kms_grant(&ends.key, &ends.id, Duration::ZERO)
            .await
            .unwrap()
    );
    assert!(
        other
            .kms_grant(&lives.key, &lives.id)
            .await
            .unwrap()
            .is_some()
    );
    one.end_kms_grants(&lives.key, Ending::Removed, hour)
        .await
        .unwrap();
    one.end_kms_grants(&lives.key, Ending::Suspended, Duration::ZERO)
        .await
        .unwrap();
    let due = other.due_kms_grants(10).await.unwrap();
    assert_eq!(due.grants.len(), 1);
    assert_eq!(due.grants[0].cause(due.now), Ending::Suspended);
    other.forget_kms_grants().await.unwrap();
}
