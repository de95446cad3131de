//! A start without KMS, and without the database as well.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::Instant;

use super::replica::Replica;
use super::replica::admin;
use super::site::Running;
use super::site::good_bytes;
use super::warming::client;
use super::warming::site;
use crate::harness::soon;
use crate::support::fake_kms::BROKER;
use crate::support::fake_kms::FakeKms;
use crate::support::fake_kms::Fault;
use crate::support::figures;
use crate::support::http1::get;
use crate::support::postgres::Postgres;
use crate::support::scale::scaled;

#[tokio::test(flavor = "multi_thread")]
async fn a_server_starts_without_kms_says_so_and_is_ready_when_kms_is() {
    let fake = FakeKms::start().await;
    let region = fake.region("eu-west-1");
    region.fail_all(Fault::Close);
    let site = site(&fake);
    site.edit(
        "keybroker.toml",
        "[listen]",
        "[listen]\nadmin = \"127.0.0.1:0\"",
    );
    let mut command = site.command(&["serve"]);
    command
        .env("AWS_ACCESS_KEY_ID", BROKER)
        .env("AWS_SECRET_ACCESS_KEY", "no secret");
    let server = Running::logging(command);
    let line = server.await_line("serving metrics and readiness in plain text");
    let admin = line.split_once("address=").unwrap().1.trim();
    let admin: SocketAddr = admin.parse().unwrap();

    becomes(admin, |body| {
        body.contains("degraded") && body.contains("\"kms\"")
    })
    .await;
    let line = server.await_line("KMS does not answer");
    assert!(line.contains("region=\"eu-west-1\""), "{line}");
    assert_eq!(get(admin, "/healthz").await.status, 200);
    site.good(&["healthcheck"]);

    region.heal();
    becomes(admin, |body| !body.contains("\"kms\"")).await;
    server.await_line("KMS answers again");
    assert!(
        fake.plaintexts().is_empty(),
        "nobody has asked for a data key"
    );
    good_bytes(client(&site, &["encrypt", "--key", "keys/orders"]), b"x");
    assert_eq!(server.stop(), Some(0));
}

/// D-8.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_starts_without_kms_and_database_and_needs_no_other_start_when_they_are_back() {
    let fake = FakeKms::start().await;
    let mut postgres = Postgres::start();
    let mut replica = Replica::of(&postgres, postgres.address());
    let aws = format!(
        "[kms.aws]\nendpoint = \"{}\"\n\n[kms.local]",
        fake.endpoint()
    );
    replica.site.edit("keybroker.toml", "[kms.local]", &aws);
    replica.start();
    replica.apply(&format!(
        "[[tenant]]\nid = \"acme\"\n[[tenant.key]]\nid = \"orders\"\nkms = \"{}\"\n\
         users = [\"unix:uid=UID\"]\n",
        fake.key("eu-west-1")
    ));
    assert_eq!(replica.server.take().unwrap().stop(), Some(0));
    postgres.stop();
    fake.region("eu-west-1").fail_all(Fault::Close);

    let began = Instant::now();
    let mut command = replica.site.command(&["serve"]);
    command
        .env("AWS_ACCESS_KEY_ID", BROKER)
        .env("AWS_SECRET_ACCESS_KEY", "no secret");
    let server = Running::logging(command);
    let admin = admin(&server);
    assert_eq!(get(admin, "/healthz").await.status, 200);
    let unready = get(admin, "/readyz").await;
    let seconds = began.elapsed().as_secs_f64();
    figures::record("upstream", [("state_after_start_seconds", seconds)]);
    assert!(seconds <= scaled(20.0, 2.0), "{seconds}");
    assert_eq!(unready.status, 503);
    assert!(unready.body.contains("\"store\""), "{}", unready.body);

    postgres.restart();
    server.await_line("the store is back");
    becomes(admin, |body| {
        body.contains("degraded") && body.contains("\"kms\"")
    })
    .await;
    fake.heal();
    becomes(admin, |body| !body.contains("degraded")).await;
    good_bytes(replica.at(&["encrypt", "--key", "keys/orders"]), b"x");
    assert_eq!(server.stop(), Some(0));
}

/// Waits until readiness is told so, with a server that takes calls all the while.
async fn becomes(admin: SocketAddr, so: impl Fn(&str) -> bool) {
    let asking = async {
        let mut ticks = tokio::time::interval(Duration::from_millis(50));
        loop {
            ticks.tick().await;
            let ready = get(admin, "/readyz").await;
            assert_eq!(ready.status, 200);
            if so(&ready.body) {
                return;
            }
        }
    };
    soon(asking).await;
}
