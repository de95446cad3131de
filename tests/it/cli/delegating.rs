//! Grants of AWS KMS by the command line, and over the end of the server that made them.

mod command;
mod replicas;

use std::fs;
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use keybroker::grpc::pb;
use keybroker::grpc::pb::GrantOperation;
use keybroker::kms::Arn;
use serde_json::Value;
use tokio::time::sleep;

use super::house::House;
use super::tenants::sql;
use crate::harness::ADMIN;
use crate::harness::until;
use crate::support::fake_kms::FakeKms;
use crate::support::fake_kms::Fault;
use crate::support::fake_kms::Operation;

const ROLE: &str = "arn:aws:iam::111122223333:role/etl";
/// The one that is dead has it for half a minute more, which no test waits for.
const NOBODYS_TURN: &str = "UPDATE kms_grants_turn SET until = 0";
/// What KMS does not know it has no more, and not: not yet.
const LONG_AGO: &str = "UPDATE kms_grants SET created = 1";

/// A server's folder where [`ADMIN`] administers `orders`, which is `arn`, and KMS may take longer
/// than a test.
fn house(kms: &FakeKms, arn: &Arn) -> House {
    let house = House::new(arn);
    let administered = format!("administrators = [\"{ADMIN}\"]\nusers = [");
    house.site.edit("tenants.toml", "users = [", &administered);
    house.use_kms(kms);
    let patient = "[kms.aws]\nattempt_timeout = \"10s\"\noperation_timeout = \"30s\"";
    house.site.edit("keybroker.toml", "[kms.aws]", patient);
    house
}

fn wish(lifetime_seconds: u32) -> pb::CreateKmsGrantRequest {
    pb::CreateKmsGrantRequest {
        key: "keys/orders".into(),
        grantee_principal: ROLE.into(),
        operations: vec![GrantOperation::Decrypt.into()],
        lifetime_seconds,
        ..Default::default()
    }
}

/// The records of `event` in the trail of the server in `folder`.
fn records(folder: &Path, event: &str) -> Vec<Value> {
    let text = fs::read_to_string(folder.join("audit.jsonl")).unwrap_or_default();
    // The last one may be half written.
    let records = text
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok());
    records
        .filter(|record: &Value| record["eventName"] == event)
        .collect()
}

/// Why grants have ended that nobody called to end.
fn causes(folder: &Path) -> Vec<String> {
    let ends = records(folder, "EndKmsGrant").into_iter();
    ends.map(|record| {
        let cause = &record["additionalEventData"]["kmsGrant"]["ending"];
        cause.as_str().unwrap().to_owned()
    })
    .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_whose_maker_is_killed_before_it_hears_of_it_is_found_by_name_and_ended() {
    let kms = FakeKms::start().await;
    let arn = kms.key("eu-west-1");
    let house = house(&kms, &arn);
    let folder = house.site.path("");
    let server = house.serve();
    let admin = house.authority.client(ADMIN);
    let mut admin = house.connect_as(&server, &admin).await.grants();
    kms.fail(Operation::CreateGrant, Fault::Unheard);
    let asking = tokio::spawn(async move { admin.create_kms_grant(wish(900)).await });
    until(|| !kms.grants(&arn).is_empty()).await;
    server.crash();
    assert!(asking.await.unwrap().is_err());
    assert!(records(&folder, "CreateKmsGrant").is_empty());
    kms.heal();
    let made = kms.grants(&arn).remove(0);

    // As if its maker's time were up, and its turn.
    sql(
        &house.site,
        "UPDATE kms_grants SET due = 1 WHERE kms_id = ''",
    );
    sql(&house.site, NOBODYS_TURN);
    let server = house.serve();
    until(|| kms.grants(&arn).is_empty()).await;
    assert_eq!(server.stop(), Some(0));
    let [record] = &records(&folder, "EndKmsGrant")[..] else {
        panic!("{:?}", records(&folder, "EndKmsGrant"))
    };
    let named = &record["additionalEventData"]["kmsGrant"];
    assert_eq!(named["ending"], "orphaned");
    assert_eq!(
        (&named["id"], &named["name"]),
        (&made.id.into(), &made.wanted["Name"])
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_that_expires_while_no_broker_runs_is_ended_after_the_start() {
    let kms = FakeKms::start().await;
    let arn = kms.key("eu-west-1");
    let house = house(&kms, &arn);
    let server = house.serve();
    let admin = house.authority.client(ADMIN);
    let mut admin = house.connect_as(&server, &admin).await.grants();
    let created = admin.create_kms_grant(wish(5)).await.unwrap().into_inner();
    server.crash();
    let expires = created.grant.unwrap().expire_time.unwrap();
    let expires = Timestamp::new(expires.seconds, expires.nanos).unwrap();
    let left = Timestamp::now().duration_until(expires);
    sleep(Duration::try_from(left).unwrap_or_default()).await;
    assert_eq!(kms.grants(&arn).len(), 1);
    sql(&house.site, NOBODYS_TURN);

    let server = house.serve();
    until(|| kms.grants(&arn).is_empty()).await;
    assert_eq!(server.stop(), Some(0));
    assert_eq!(kms.calls(Operation::RevokeGrant), 1);
    assert_eq!(causes(&house.site.path("")), ["expired"]);
}

/// What nobody could say any more is said by the next one.
#[tokio::test(flavor = "multi_thread")]
async fn an_end_that_a_kill_kept_from_the_trail_is_on_record_after_the_start() {
    let kms = FakeKms::start().await;
    let arn = kms.key("eu-west-1");
    let house = house(&kms, &arn);
    let folder = house.site.path("");
    let server = house.serve();
    let admin = house.authority.client(ADMIN);
    let mut admin = house.connect_as(&server, &admin).await.grants();
    kms.fail(Operation::RevokeGrant, Fault::Unheard);
    admin.create_kms_grant(wish(1)).await.unwrap();
    until(|| kms.grants(&arn).is_empty()).await;
    server.crash();
    assert!(records(&folder, "EndKmsGrant").is_empty());

    kms.heal();
    sql(&house.site, NOBODYS_TURN);
    sql(&house.site, LONG_AGO);
    let server = house.serve();
    until(|| !records(&folder, "EndKmsGrant").is_empty()).await;
    assert_eq!(server.stop(), Some(0));
    let [record] = &records(&folder, "EndKmsGrant")[..] else {
        panic!("{:?}", records(&folder, "EndKmsGrant"))
    };
    let named = &record["additionalEventData"]["kmsGrant"];
    assert_eq!(
        (&named["ending"], &named["alreadyGone"]),
        (&"expired".into(), &true.into())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_restored_store_does_not_know_is_told_of_and_the_rest_ends_as_ever() {
    let kms = FakeKms::start().await;
    let arn = kms.key("eu-west-1");
    let house = house(&kms, &arn);
    let admin = house.authority.client(ADMIN);
    let server = house.serve();
    let mut grants = house.connect_as(&server, &admin).await.grants();
    let known = grants.create_kms_grant(wish(900)).await.unwrap();
    let known = known.into_inner().grant.unwrap();
    assert_eq!(server.stop(), Some(0));
    let backup = house.site.path("backup.db");
    sql(&house.site, &format!("VACUUM INTO '{}'", backup.display()));

    let server = house.serve();
    let mut grants = house.connect_as(&server, &admin).await.grants();
    let made = grants.create_kms_grant(wish(900)).await.unwrap();
    let stray = made.into_inner().grant.unwrap().kms_grant_id;
    assert_eq!(server.stop(), Some(0));
    for rest in ["store.db-wal", "store.db-shm"] {
        // It may be there.
        let _ = fs::remove_file(house.site.path(rest));
    }
    // Into the file that is there, which nobody else can read.
    fs::write(house.site.path("store.db"), fs::read(backup).unwrap()).unwrap();
    sql(&house.site, NOBODYS_TURN);

    let server = house.serve();
    let mut grants = house.connect_as(&server, &admin).await.grants();
    let line = server.await_line("that this store has named, and does not know");
    assert!(line.contains(&stray), "{line}");
    let revoke = pb::RevokeKmsGrantRequest {
        key: "keys/orders".into(),
        grant_id: known.id,
    };
    grants.revoke_kms_grant(revoke).await.unwrap();
    assert_eq!(server.stop(), Some(0));
    let left = kms.grants(&arn);
    assert_eq!(
        left.iter().map(|one| &*one.id).collect::<Vec<_>>(),
        [&*stray]
    );
}
