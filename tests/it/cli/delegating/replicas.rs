//! Several brokers that share PostgreSQL, and the grants that one of them ends for all.

use std::collections::BTreeSet;
use std::path::Path;
use std::path::PathBuf;
use std::slice;

use serde_json::Value;

use super::LONG_AGO;
use super::NOBODYS_TURN;
use super::records;
use super::wish;
use crate::cli::holder::Holder;
use crate::cli::replica::GRANTING;
use crate::cli::replica::Replica;
use crate::harness::until;
use crate::support::fake_kms::FakeKms;
use crate::support::fake_kms::Fault;
use crate::support::fake_kms::Operation;
use crate::support::postgres::Postgres;
use crate::support::postgres::sql;

/// A broker whose KMS is `kms`.
fn replica(postgres: &Postgres, kms: &FakeKms) -> Replica {
    let replica = Replica::patient(postgres);
    let aws = format!(
        "[kms.aws]\nendpoint = \"{}\"\nattempt_timeout = \"10s\"\noperation_timeout = \"30s\"\n\n\
         [kms.local]",
        kms.endpoint()
    );
    replica.site.edit("keybroker.toml", "[kms.local]", &aws);
    replica.serve()
}

/// Has each of `folders` make a grant that lives for a second; their ids.
async fn delegate(folders: &[PathBuf]) -> BTreeSet<String> {
    let mut ids = BTreeSet::new();
    for folder in folders {
        let mut holder = Holder::soon_at(folder).await;
        ids.insert(holder.delegate(wish(1)).await.unwrap().id);
    }
    ids
}

/// Of the grants that the broker in `folder` has ended, the ids.
fn ended(folder: &Path) -> Vec<String> {
    let id = |record: Value| {
        record["additionalEventData"]["grantId"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    records(folder, "EndKmsGrant").into_iter().map(id).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_ends_each_grant_once_and_another_takes_over_from_the_dead() {
    let postgres = Postgres::start();
    let kms = FakeKms::start().await;
    let arn = kms.key("eu-west-1");
    let mut fleet = [(); 2].map(|()| replica(&postgres, &kms));
    fleet[0].apply(&GRANTING.replace("local:orders", arn.as_str()));
    for replica in &fleet {
        replica.becomes("tenants/acme/keys/orders").await;
    }
    let folders = fleet.each_ref().map(|one| one.site.path(""));
    let made = delegate(&[&folders[..], &folders, &folders].concat()).await;
    until(|| {
        folders
            .each_ref()
            .map(|folder| ended(folder))
            .concat()
            .len()
            >= made.len()
    })
    .await;
    assert!(kms.grants(&arn).is_empty());
    let by = folders.each_ref().map(|folder| ended(folder));
    let ender = usize::from(by[0].is_empty());
    assert!(by[1 - ender].is_empty(), "both have ended some: {by:?}");
    assert_eq!(by[ender].len(), made.len());
    assert_eq!(by[ender].iter().cloned().collect::<BTreeSet<_>>(), made);
    assert_eq!(kms.calls(Operation::RevokeGrant), made.len());
    let (dead, heir) = (ender, folders[1 - ender].clone());

    // It dies when KMS has ended one more, and it has not heard so.
    kms.fail(Operation::RevokeGrant, Fault::Unheard);
    let more = delegate(slice::from_ref(&heir)).await;
    until(|| kms.grants(&arn).is_empty()).await;
    fleet[dead].crash();
    kms.heal();
    let mut database = postgres.connect().await;
    sql(&mut database, LONG_AGO).await;
    sql(&mut database, NOBODYS_TURN).await;
    until(|| !ended(&heir).is_empty()).await;
    let mut all = more;
    all.extend(delegate(slice::from_ref(&heir)).await);
    until(|| ended(&heir).len() >= all.len()).await;
    assert!(kms.grants(&arn).is_empty());
    assert_eq!(ended(&heir).into_iter().collect::<BTreeSet<_>>(), all);
    assert_eq!(ended(&folders[dead]).len(), made.len());
}
