//! A store that takes nothing: writes fail and say so, reads go on, and what was acknowledged is
//! there.

use sqlx::ConnectOptions as _;
use sqlx::Connection as _;
use sqlx::Executor as _;
use sqlx::sqlite::SqliteConnectOptions;
use tonic::Status;

use super::crashes::Acknowledged;
use super::crashes::Load;
use super::crashes::site;
use super::holder::Holder;
use super::site::Running;
use super::site::Site;
use super::tenants::sql;
use crate::harness::Refusal;
use crate::support::scale::scaled;

/// F-10, of a disk without room for another byte.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_takes_no_grant_and_loses_none() {
    let site = site();
    let folder = site.path("");
    let server = site.serve_on_full_disks();
    let mut holder = Holder::soon_at(&folder).await;
    let held = holder.create(u64::MAX, 3600).await.unwrap();
    let mut known = Acknowledged::default();
    let rounds = scaled(5, 50);
    for round in 0..rounds {
        let load = Load::begin(&folder, round);
        load.reaches(5 + round % 10).await;
        server.fill_disk();
        // All of it ends with the first refusal.
        known.add(load.end().await);
        unavailable(holder.create(u64::MAX, 3600).await.map(drop));
        unavailable(holder.revoke(&held.id).await);
        assert!(holder.uses(&held).await.unwrap());
        known.check(&mut holder).await;
        server.clear_disk();
        known.check(&mut holder).await;
    }
    holder.revoke(&held.id).await.unwrap();
    println!("{}", known.counts());
    assert!(known.revoked.len() as u64 >= rounds, "{}", known.counts());
    server.crash();
    let _server = Running::logging(site.command(&["serve"]));
    known.check(&mut Holder::soon_at(&folder).await).await;
    assert_eq!(known.lost, 0);
    assert_eq!(sql(&site, "PRAGMA integrity_check").as_deref(), Some("ok"));
}

/// F-10, of a file that somebody else is writing to, and does not stop.
#[tokio::test(flavor = "multi_thread")]
async fn while_another_process_writes_no_grant_is_made_and_uses_go_on() {
    let site = site();
    let _server = Running::logging(site.command(&["serve"]));
    let mut holder = Holder::soon_at(&site.path("")).await;
    let mut other = Holder::soon_at(&site.path("")).await;
    let held = holder.create(1, 3600).await.unwrap();

    let mut writer = connect(&site).await;
    writer.execute("BEGIN IMMEDIATE").await.unwrap();
    let (made, used) = tokio::join!(holder.create(2, 3600), other.uses(&held));
    unavailable(made.map(drop));
    assert!(used.unwrap());
    assert_eq!(other.list().await.unwrap(), [held.id.as_str()]);
    writer.execute("ROLLBACK").await.unwrap();
    writer.close().await.unwrap();

    let more = holder.create(2, 3600).await.unwrap();
    assert!(holder.uses(&more).await.unwrap());
    holder.revoke(&held.id).await.unwrap();
    assert_eq!(other.list().await.unwrap(), [more.id]);
}

async fn connect(site: &Site) -> sqlx::SqliteConnection {
    let options = SqliteConnectOptions::new().filename(site.path("store.db"));
    options.connect().await.unwrap()
}

fn unavailable(refused: Result<(), Status>) {
    assert_eq!(
        Refusal::of(&refused.unwrap_err()).reason,
        "STORE_UNAVAILABLE"
    );
}
