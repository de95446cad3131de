//! What the trail says of grants that the broker ends by itself.

use keybroker::directory::Standing;
use keybroker::grpc::pb;
use serde_json::Value;
use serde_json::json;

use super::LONG_AGO;
use super::ROLE;
use super::create;
use super::ended;
use super::meddle;
use super::start;
use super::tenants;
use super::wish;
use crate::grants::ADMIN;
use crate::grants::ORDERS;
use crate::harness::Broker;
use crate::harness::reason;
use crate::support::fake_kms::FakeKms;
use crate::support::fake_kms::Fault;
use crate::support::fake_kms::Operation;

/// Those of grants that nobody called to end.
pub fn ends(broker: &Broker) -> Vec<Value> {
    let mut records = broker.records();
    records.retain(|record| record["eventName"] == "EndKmsGrant");
    records
}

/// Of each, the grant's id and why it has ended.
fn causes(broker: &Broker) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let ends = ends(broker).into_iter();
    ends.map(|record| {
        let more = &record["additionalEventData"];
        (text(&more["grantId"]), text(&more["kmsGrant"]["ending"]))
    })
    .collect()
}

fn short() -> pb::CreateKmsGrantRequest {
    pb::CreateKmsGrantRequest {
        lifetime_seconds: 1,
        ..wish()
    }
}

#[tokio::test]
async fn the_end_of_a_grant_that_expires_is_on_record() {
    let fake = FakeKms::start().await;
    let key = fake.key("eu-west-1");
    let broker = start(&fake, &key).await;
    let grant = create(&broker, short()).await;
    let made = fake.grants(&key).remove(0);
    ended(&broker, &fake, &key).await;
    broker.end_due_kms_grants("one").await;

    let [record] = &ends(&broker)[..] else {
        panic!("{:?}", ends(&broker))
    };
    assert_eq!(
        (&record["eventCategory"], &record["readOnly"]),
        (&json!("Management"), &json!(false))
    );
    let who = json!({ "type": "Service", "principalId": "keybroker", "authenticator": "none" });
    assert_eq!(record["userIdentity"], who);
    assert_eq!(record["sourceIPAddress"], "keybroker");
    assert_eq!(record["tenant"], "acme");
    assert_eq!(record["requestParameters"]["key"], ORDERS);
    let resource = json!([{ "name": ORDERS, "ARN": key.as_str(), "type": "KMSKey" }]);
    assert_eq!(record["resources"], resource);
    assert_eq!(record["errorCode"], json!(null));
    let more = &record["additionalEventData"];
    assert_eq!(more["grantId"], grant.id);
    assert!(more["kmsRequestID"].is_string());
    let named = json!({
        "id": made.id,
        "name": made.wanted["Name"],
        "granteePrincipal": ROLE,
        "issuingPrincipal": ADMIN,
        "ending": "expired",
        "alreadyGone": false,
    });
    assert_eq!(more["kmsGrant"], named);
    assert!(!record.to_string().contains(&made.token));
}

#[tokio::test]
async fn the_record_says_why_a_grant_has_ended() {
    let fake = FakeKms::start().await;
    let key = fake.key("eu-west-1");
    let broker = start(&fake, &key).await;
    let mut expected = Vec::new();
    let tenants = tenants(&key);

    let grant = create(&broker, wish()).await;
    broker.stand(&tenants, "acme", Standing::Suspended);
    ended(&broker, &fake, &key).await;
    expected.push((grant.id, "suspended".to_owned()));

    broker.stand(&tenants, "acme", Standing::Active);
    let grant = create(&broker, wish()).await;
    let without = tenants.replacen("id = \"orders\"", "id = \"bills\"", 1);
    broker.stand(&without, "acme", Standing::Active);
    broker.end_due_kms_grants("one").await;
    assert_eq!(
        fake.grants(&key).len(),
        1,
        "its maker may have heard of the key before this one"
    );
    meddle(broker.folder(), "UPDATE kms_grants SET created = 1").await;
    ended(&broker, &fake, &key).await;
    expected.push((grant.id, "removed".to_owned()));

    // Begun by an administrator, whose own record tells of the failure.
    broker.stand(&tenants, "acme", Standing::Active);
    let grant = create(&broker, wish()).await;
    fake.fail_next(
        1,
        Operation::RevokeGrant,
        Fault::Code("KMSInternalException", 500),
    );
    let revoke = pb::RevokeKmsGrantRequest {
        key: ORDERS.into(),
        grant_id: grant.id.clone(),
    };
    let mut admin = broker.granter(ADMIN).await;
    let refused = admin.revoke_kms_grant(revoke).await.map(drop);
    assert_eq!(reason(refused), "KMS_UNAVAILABLE");
    ended(&broker, &fake, &key).await;
    expected.push((grant.id, "revoked".to_owned()));

    assert_eq!(causes(&broker), expected);
}

#[tokio::test]
async fn what_was_gone_already_is_said_to_have_been() {
    let fake = FakeKms::start().await;
    let key = fake.key("eu-west-1");
    let broker = start(&fake, &key).await;
    create(&broker, wish()).await;
    fake.forget_grants(&key);
    broker.stand(&tenants(&key), "acme", Standing::Suspended);
    broker.end_due_kms_grants("one").await;
    assert!(ends(&broker).is_empty(), "KMS may not know it yet");
    meddle(broker.folder(), LONG_AGO).await;
    broker.end_due_kms_grants("one").await;
    let more = &ends(&broker)[0]["additionalEventData"];
    assert_eq!(more["kmsGrant"]["alreadyGone"], json!(true));
}

/// Nothing hinders the end in KMS; but the broker is not done with it before it is on record.
#[tokio::test]
async fn an_end_that_no_sink_takes_the_record_of_is_recorded_later() {
    let fake = FakeKms::start().await;
    let key = fake.key("eu-west-1");
    let broker = start(&fake, &key).await;
    let grant = create(&broker, wish()).await;
    broker.stand(&tenants(&key), "acme", Standing::Suspended);
    broker.trail.fail();
    broker.end_due_kms_grants("one").await;
    assert!(fake.grants(&key).is_empty());
    assert!(ends(&broker).is_empty());
    broker.trail.heal();

    meddle(broker.folder(), LONG_AGO).await;
    broker.end_due_kms_grants("one").await;
    // A sink that is back takes what was left for it, too.
    let [.., record] = &ends(&broker)[..] else {
        panic!("there is no record")
    };
    let more = &record["additionalEventData"];
    assert_eq!(more["grantId"], grant.id);
    assert_eq!(more["kmsGrant"]["alreadyGone"], json!(true));
    broker.end_due_kms_grants("one").await;
    assert_eq!(fake.calls(Operation::RevokeGrant), 2, "then it is over");
}
