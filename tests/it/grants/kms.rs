//! Grants of AWS KMS itself: made for administrators, and ended by the broker in time.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use keybroker::directory::Standing;
use keybroker::grants::Id;
use keybroker::grants::Operations;
use keybroker::grpc::pb;
use keybroker::grpc::pb::GrantOperation;
use keybroker::kms::Arn;
use keybroker::store;
use keybroker::store::Store;
use keybroker::store::kms_grants::KmsGrant;
use serde_json::json;
use tonic::Code;

use super::ADMIN;
use super::GLOBEX;
use super::ORDERS;
use super::WORKER;
use super::subset;
use crate::harness::Broker;
use crate::harness::Refusal;
use crate::harness::WEB;
use crate::harness::reason;
use crate::harness::soon;
use crate::support::fake_kms::BROKER;
use crate::support::fake_kms::FakeKms;
use crate::support::fake_kms::Fault;
use crate::support::fake_kms::Operation;
use crate::support::fake_kms::Outcome;
use crate::support::postgres::Postgres;

const ROLE: &str = "arn:aws:iam::111122223333:role/etl";

pub fn wish() -> pb::CreateKmsGrantRequest {
    pb::CreateKmsGrantRequest {
        key: ORDERS.into(),
        grantee_principal: ROLE.into(),
        operations: vec![GrantOperation::Decrypt.into()],
        ..Default::default()
    }
}

/// The usual tenants, whose `orders` is a key of `fake`'s.
fn tenants(key: &Arn) -> String {
    super::tenants().replace("local:acme-orders", key.as_str())
}

async fn start(fake: &FakeKms, key: &Arn) -> Broker {
    Broker::start()
        .with(|setup| {
            setup.tenants = tenants(key);
            setup.delegation = Some(Arc::new(fake.aws()));
        })
        .await
}

/// The store of `broker`, as another process sees it.
fn beside(broker: &Broker) -> Store {
    open(broker.folder())
}

fn open(folder: &Path) -> Store {
    let config = store::Config {
        file: folder.join("store.db"),
        ..store::Config::default()
    };
    Store::new(&config, None).unwrap()
}

async fn create(broker: &Broker, wish: pb::CreateKmsGrantRequest) -> pb::KmsGrant {
    let mut admin = broker.granter(ADMIN).await;
    let created = admin.create_kms_grant(wish).await.unwrap().into_inner();
    assert!(!created.grant_token.is_empty());
    created.grant.unwrap()
}

/// Has the broker end what is due until KMS has no grants of `key`.
async fn ended(broker: &Broker, fake: &FakeKms, key: &Arn) {
    let rounds = async {
        while !fake.grants(key).is_empty() {
            broker.inner().end_due_kms_grants("one").await.unwrap();
            tokio::task::yield_now().await;
        }
    };
    soon(rounds).await;
}

fn intention(key: &Arn) -> KmsGrant {
    KmsGrant {
        id: Id::random().unwrap(),
        key: keybroker::name::KeyName::parse(ORDERS, &"acme".parse().unwrap()).unwrap(),
        arn: key.clone(),
        grantee: ROLE.parse().unwrap(),
        operations: Operations::new([keybroker::grants::Operation::Decrypt]).unwrap(),
        creator: ADMIN.parse().unwrap(),
        created: jiff::Timestamp::MIN,
        expires: jiff::Timestamp::MIN,
        kms_id: None,
    }
}

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
    assert_eq!(made.wanted["Name"], format!("keybroker-{}", grant.id));
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
    let due = beside(&broker).keys_with_kms_grants().await.unwrap();
    assert!(due.is_empty(), "what KMS has refused is over");
}

#[tokio::test]
async fn a_grant_ends_when_it_expires_and_no_earlier() {
    let fake = FakeKms::start().await;
    let key = fake.key("eu-west-1");
    let broker = start(&fake, &key).await;
    let long = create(&broker, wish()).await;
    broker.inner().end_due_kms_grants("one").await.unwrap();
    assert_eq!(fake.calls(Operation::RevokeGrant), 0);
    let short = pb::CreateKmsGrantRequest {
        lifetime_seconds: 1,
        ..wish()
    };
    create(&broker, short).await;
    let rounds = async {
        while fake.grants(&key).len() > 1 {
            broker.inner().end_due_kms_grants("one").await.unwrap();
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
    broker.inner().end_due_kms_grants("one").await.unwrap();
    assert!(fake.grants(&key).is_empty());
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
    let known: BTreeSet<String> = known.iter().map(KmsGrant::name).collect();
    let lost: Vec<&String> = names.difference(&known).collect();
    let [lost] = lost[..] else { panic!("{lost:?}") };
    let id: Id = lost.strip_prefix("keybroker-").unwrap().parse().unwrap();
    assert!(store.end_kms_grant(&name, &id).await.unwrap());
    broker.inner().end_due_kms_grants("one").await.unwrap();
    let left = fake.grants(&key);
    assert_eq!(left.len(), 12);
    assert!(left.iter().all(|one| one.wanted["Name"] != lost.as_str()));
}

/// The store as it is left by one who dies before KMS is asked.
#[tokio::test]
async fn an_intention_that_nothing_came_of_waits_for_what_may_come_yet() {
    let fake = FakeKms::start().await;
    let key = fake.key("eu-west-1");
    let broker = start(&fake, &key).await;
    let store = beside(&broker);
    let grant = intention(&key);
    let grant = store
        .intend_kms_grant(grant, Duration::from_secs(900))
        .await
        .unwrap();
    broker.inner().end_due_kms_grants("one").await.unwrap();
    assert_eq!(fake.calls(Operation::ListGrants), 0, "its maker has time");
    store.end_kms_grant(&grant.key, &grant.id).await.unwrap();
    broker.inner().end_due_kms_grants("one").await.unwrap();
    assert_eq!(fake.calls(Operation::ListGrants), 1);
    let living = store.keys_with_kms_grants().await.unwrap();
    assert_eq!(
        living,
        std::slice::from_ref(&grant.key),
        "it may be in no list yet"
    );
    // KMS answers late: it stays due.
    assert!(store.complete_kms_grant(&grant.id, "late").await.unwrap());
    store.end_kms_grant(&grant.key, &grant.id).await.unwrap();
    let due = store.due_kms_grants(9).await.unwrap().grants;
    assert_eq!(due[0].kms_id.as_deref(), Some("late"));
    store.kms_grant_is_over(&grant.id).await.unwrap();
    assert!(!store.complete_kms_grant(&grant.id, "later").await.unwrap());
}

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
    let (one, two) = tokio::join!(
        broker.inner().end_due_kms_grants("one"),
        other.inner().end_due_kms_grants("two"),
    );
    one.unwrap();
    two.unwrap();
    assert!(fake.grants(&key).is_empty());
    assert_eq!(fake.calls(Operation::RevokeGrant), 5);
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
    let lives = one.intend_kms_grant(intention(&arn), hour).await.unwrap();
    let ends = one.intend_kms_grant(intention(&arn), hour).await.unwrap();
    assert!(one.complete_kms_grant(&lives.id, "kms-1").await.unwrap());
    assert!(one.complete_kms_grant(&ends.id, "kms-2").await.unwrap());
    let known = other.kms_grants_of_key(&lives.key, None, 10).await.unwrap();
    assert_eq!(known.len(), 2);
    let keys = other.keys_with_kms_grants().await.unwrap();
    assert_eq!(keys, std::slice::from_ref(&lives.key));
    let due = other.due_kms_grants(10).await.unwrap();
    assert!(due.grants.is_empty());

    assert!(other.end_kms_grant(&ends.key, &ends.id).await.unwrap());
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
        (grant.id, grant.kms_id.as_deref()),
        (ends.id, Some("kms-2"))
    );
    one.postpone_kms_grant(&ends.id, hour).await.unwrap();
    assert!(other.due_kms_grants(10).await.unwrap().grants.is_empty());
    one.kms_grant_is_over(&ends.id).await.unwrap();
    assert!(!other.end_kms_grant(&ends.key, &ends.id).await.unwrap());
    assert!(
        other
            .kms_grant(&lives.key, &lives.id)
            .await
            .unwrap()
            .is_some()
    );
    one.end_kms_grants(&lives.key).await.unwrap();
    let due = other.due_kms_grants(10).await.unwrap();
    assert_eq!(due.grants.len(), 1);
    other.forget_kms_grants().await.unwrap();
}
