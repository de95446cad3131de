//! A start without KMS.

use std::net::SocketAddr;
use std::time::Duration;

use super::site::Running;
use super::site::good_bytes;
use super::warming::client;
use super::warming::site;
use crate::harness::soon;
use crate::support::fake_kms::BROKER;
use crate::support::fake_kms::FakeKms;
use crate::support::fake_kms::Fault;
use crate::support::http1::get;

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
