//! Several brokers on one PostgreSQL.

use std::process::Stdio;
use std::time::Duration;

use tokio::time::Instant;

use super::replica::GRANTING;
use super::replica::Replica;
use super::replica::admin;
use super::replica::fleet;
use super::site::Running;
use super::site::bad;
use super::site::good;
use super::site::run;
use super::site::uid;
use crate::harness::soon;
use crate::support::http1::get;
use crate::support::postgres::Postgres;
use crate::support::postgres::sql;
use crate::support::proxy::Proxy;

#[tokio::test(flavor = "multi_thread")]
async fn what_is_brought_in_through_one_reaches_the_others() {
    let postgres = Postgres::start();
    let one = Replica::of(&postgres, postgres.address());
    let other = Replica::of(&postgres, postgres.address());
    let (one, other) = (one.serve(), other.serve());
    one.apply(ORDERS);
    for replica in [&one, &other] {
        replica.becomes("tenants/acme/keys/orders").await;
    }
    other.apply("");
    for replica in [&one, &other] {
        replica.becomes("").await;
    }
    let said = one.apply("");
    assert_eq!(said, "nothing changed; 0 tenants unchanged\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_commits_late_is_not_stepped_over() {
    let postgres = Postgres::start();
    let replica = Replica::of(&postgres, postgres.address()).serve();
    replica.apply(&format!("{ORDERS}{GLOBEX}"));
    replica.becomes("tenants/acme/keys/orders").await;
    assert!(replica.keys_of("tenants/globex").contains("keys/shared"));

    // A change that takes its number first, and is not done yet.
    let mut early = postgres.connect().await;
    sql(
        &mut early,
        "BEGIN;
         UPDATE change SET n = n + 1;
         UPDATE tenants SET document = NULL, changed = (SELECT n FROM change) WHERE id = 'globex'",
    )
    .await;
    // A later one, which would be done at once.
    let late = replica.applying(BILLS).stdout(Stdio::null()).spawn();
    let mut watching = postgres.connect().await;
    let waits = "SELECT count(*)::text FROM pg_stat_activity
                 WHERE wait_event_type = 'Lock' AND application_name = 'keybroker'";
    let waiting = async {
        while sql(&mut watching, waits).await.as_deref() == Some("0") {
            tokio::task::yield_now().await;
        }
    };
    soon(waiting).await;
    assert!(replica.keys().contains("tenants/acme/keys/orders"));
    sql(&mut early, "COMMIT").await;
    assert!(late.unwrap().wait().unwrap().success());
    // Once the later one is seen, so is the earlier one.
    replica.becomes("tenants/acme/keys/bills").await;
    assert_eq!(replica.keys_of("tenants/globex"), "");
    let change = sql(&mut watching, "SELECT n::text FROM change").await;
    assert_eq!(change.as_deref(), Some("3"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_notification_that_is_lost_costs_a_poll() {
    let postgres = Postgres::start();
    let proxy = Proxy::start(postgres.address()).await;
    let replica = Replica::of(&postgres, proxy.address()).serve();
    let mut watching = postgres.connect().await;
    let listens = "SELECT client_port::text FROM pg_stat_activity
                   WHERE query LIKE 'LISTEN%' AND application_name = 'keybroker'";
    let mut port = None;
    let listening = async {
        while port.is_none() {
            port = sql(&mut watching, listens).await;
        }
    };
    soon(listening).await;
    proxy.silence(port.unwrap().parse().unwrap());
    let other = Replica::of(&postgres, postgres.address()).serve();
    other.apply(ORDERS);
    let seen = tokio::time::timeout(Duration::from_secs(5), replica.becomes("acme/keys/orders"));
    seen.await
        .expect("the poll finds what no notification told");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_starts_without_its_database_and_is_ready_when_it_is_there() {
    let mut postgres = Postgres::start();
    let other = Replica::of(&postgres, postgres.address()).serve();
    other.apply(ORDERS);
    drop(other);
    postgres.stop();
    let replica = Replica::of(&postgres, postgres.address());
    let server = Running::logging(replica.site.command(&["serve"]));
    server.await_line("not ready until it was reached once");
    let admin = admin(&server);
    assert_eq!(get(admin, "/healthz").await.status, 200);
    let unready = get(admin, "/readyz").await;
    assert_eq!(unready.status, 503);
    assert!(unready.body.contains("store"), "{}", unready.body);
    bad(replica.site.command(&["healthcheck"]), b"", 1);

    postgres.restart();
    server.await_line("the store is back");
    assert_eq!(get(admin, "/readyz").await.status, 200);
    let replica = Replica {
        server: Some(server),
        ..replica
    };
    replica.becomes("tenants/acme/keys/orders").await;
    let healthy = async {
        let healthy = || {
            replica
                .site
                .command(&["healthcheck"])
                .output()
                .unwrap()
                .status
                .success()
        };
        while !healthy() {
            tokio::task::yield_now().await;
        }
    };
    soon(healthy).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_goes_away_is_missed_by_nobody_and_not_stormed() {
    let postgres = Postgres::start();
    let proxy = Proxy::start(postgres.address()).await;
    let replica = Replica::of(&postgres, proxy.address()).serve();
    replica.apply(ORDERS);
    replica.becomes("tenants/acme/keys/orders").await;
    let admin = replica.admin.unwrap();

    proxy.refuse(true);
    proxy.silence_all();
    let server = replica.server.as_ref().unwrap();
    server.await_line("the store is out of reach");
    let ready = get(admin, "/readyz").await;
    assert_eq!(ready.status, 200);
    assert!(ready.body.contains("store"), "{}", ready.body);
    assert!(replica.keys().contains("tenants/acme/keys/orders"));
    let (before, began) = (proxy.accepted(), Instant::now());
    let trying = async {
        while proxy.accepted() < before + 10 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    soon(trying).await;
    let took = began.elapsed();
    assert!(
        took >= Duration::from_secs(1),
        "ten connections in {took:?}"
    );

    proxy.refuse(false);
    server.await_line("the store is back");
    replica.apply(BILLS);
    replica.becomes("tenants/acme/keys/bills").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspension_reaches_all_who_are_in_touch_and_the_others_end_by_themselves() {
    let postgres = Postgres::start();
    let proxy = Proxy::start(postgres.address()).await;
    let one = Replica::of(&postgres, postgres.address()).serve();
    let other = Replica::of(&postgres, proxy.address());
    let store = "[store]\nmax_staleness = \"5s\"";
    other.site.edit("keybroker.toml", "[store]", store);
    let other = other.serve();
    one.apply(ORDERS);
    one.becomes("tenants/acme/keys/orders").await;
    other.becomes("tenants/acme/keys/orders").await;

    proxy.refuse(true);
    proxy.silence_all();
    // It waits a while for the one that does not answer.
    let mut suspending = one.at(&["tenant", "suspend", "acme"]);
    let mut suspending = suspending.stdout(Stdio::null()).spawn().unwrap();
    one.refuses("suspended").await;
    assert!(other.keys().contains("tenants/acme/keys/orders"));
    other.refuses("store").await;
    assert!(suspending.wait().unwrap().success());
    assert_eq!(get(other.admin.unwrap(), "/readyz").await.status, 200);

    proxy.refuse(false);
    other.refuses("suspended").await;
    good(other.at(&["tenant", "resume", "acme"]), b"");
    one.becomes("tenants/acme/keys/orders").await;
    other.becomes("tenants/acme/keys/orders").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_does_not_prove_its_name_is_not_talked_to() {
    let postgres = Postgres::start();
    let stranger = Postgres::start();
    let unreached = |replica: &Replica| {
        let server = Running::logging(replica.site.command(&["serve"]));
        let line = server.await_line("the store is out of reach");
        assert!(line.contains("certificate"), "{line}");
    };
    let replica = Replica::of(&postgres, postgres.address());
    let config = "keybroker.toml";
    replica.site.edit(config, "@127.0.0.1:", "@localhost:");
    unreached(&replica);
    let replica = Replica::of(&postgres, postgres.address());
    let (own, other) = (postgres.ca(), stranger.ca());
    let (own, other) = (own.to_str().unwrap(), other.to_str().unwrap());
    replica.site.edit(config, own, other);
    unreached(&replica);
    replica.site.edit(config, other, own);
    replica.serve().apply(ORDERS);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_ends_in_the_midst_of_a_change_leaves_none_of_it() {
    let postgres = Postgres::start();
    let mut replica = Replica::of(&postgres, postgres.address()).serve();
    let file = |plan: u64| -> String {
        let tenant = |n| {
            format!("[[tenant]]\nid = \"tenant-{n}\"\ncontext = {{ plan = \"plan-{plan}\" }}\n")
        };
        (0..300).map(tenant).collect()
    };
    replica.apply(&file(99));
    let mut watching = postgres.connect().await;
    let mut cut = 0;
    // How far it is after some time is the machine's matter: until some were cut off.
    for round in 0..48 {
        if cut == 6 {
            break;
        }
        let mut child = replica
            .applying(&file(10 + round % 12))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        tokio::time::sleep(Duration::from_millis(20 + round % 12 * 12)).await;
        replica.crash();
        // It would ask the next server.
        child.kill().unwrap();
        cut += u32::from(!child.wait().unwrap().success());
        replica = replica.serve();
        let plans = sql(
            &mut watching,
            "SELECT count(DISTINCT substring(document from 'plan-..'))::text FROM tenants",
        );
        assert_eq!(plans.await.as_deref(), Some("1"), "round {round}");
    }
    assert!(cut > 0, "none was cut off");
    // Nobody holds the number any more.
    replica.apply(ORDERS);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_works_everywhere_at_once_by_its_token_and_nowhere_soon_after_its_end() {
    let postgres = Postgres::start();
    let replicas = fleet(&postgres, GRANTING).await;
    let [first, others @ ..] = &replicas;
    let grantee = format!("unix:uid={}", uid());
    let mut slowest = Duration::ZERO;
    for _ in 0..5 {
        let create = [
            "grant",
            "create",
            "--key",
            "keys/orders",
            "--grantee",
            &grantee,
            "--operation",
            "Encrypt",
            "--output",
            "json",
        ];
        let made: serde_json::Value = serde_json::from_str(&good(first.at(&create), b"")).unwrap();
        for replica in &replicas {
            replica
                .site
                .write("token", made["grant_token"].as_str().unwrap());
            super::site::good_bytes(replica.at(&USE), b"x");
        }
        let id = made["grant"]["id"].as_str().unwrap();
        let revoke = ["grant", "revoke", "--key", "keys/orders", "--id", id];
        good(first.at(&revoke), b"");
        let revoked = Instant::now();
        bad(first.at(&USE), b"x", 77);
        for replica in others {
            while run(replica.at(&USE), b"x").status.success() {
                assert!(revoked.elapsed() < Duration::from_secs(5), "it still works");
            }
            bad(replica.at(&USE), b"x", 77);
        }
        slowest = slowest.max(revoked.elapsed());
    }
    println!("refused everywhere after {slowest:?}, commands included");
}

const USE: [&str; 5] = [
    "encrypt",
    "--key",
    "keys/orders",
    "--grant-token-file",
    "token",
];

const ORDERS: &str = r#"
[[tenant]]
id = "acme"
[[tenant.key]]
id = "orders"
kms = "local:orders"
users = ["unix:uid=UID"]
"#;
const BILLS: &str = r#"
[[tenant]]
id = "acme"
[[tenant.key]]
id = "bills"
kms = "local:orders"
users = ["unix:uid=UID"]
"#;
const GLOBEX: &str = r#"
[[tenant]]
id = "globex"
[[tenant.key]]
id = "shared"
kms = "local:orders"
external_users = ["unix:uid=UID"]
"#;
