//! Tenants in the store: brought in by a command beside a running server, or by the server itself.

use std::fs;
use std::net::SocketAddr;
use std::process::Command;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use super::replica::admin;
use super::site::Running;
use super::site::Site;
use super::site::bad;
use super::site::good;
use super::site::good_bytes;
use super::site::uid;
use sqlx::AssertSqlSafe;
use sqlx::ConnectOptions as _;
use sqlx::Connection as _;
use sqlx::Executor as _;
use sqlx::Row as _;
use sqlx::sqlite::SqliteConnectOptions;

use crate::harness::soon;
use crate::support::http1::get;

#[test]
fn a_file_that_is_brought_in_reaches_a_running_server() {
    let site = site();
    let server = serving(&site);
    assert_eq!(keys(&site), "");
    let said = apply(&site, &[]);
    assert_eq!(said, "added tenant acme\nchange 1; 0 tenants unchanged\n");
    becomes(&site, "tenants/acme/keys/orders");
    assert_eq!(apply(&site, &[]), "nothing changed; 1 tenants unchanged\n");

    site.edit("tenants.toml", "\"orders\"", "\"bills\"");
    let said = apply(&site, &[]);
    assert_eq!(said, "changed tenant acme\nchange 2; 0 tenants unchanged\n");
    becomes(&site, "tenants/acme/keys/bills");

    site.write("tenants.toml", "[[tenant]]\nid = \"globex\"\n");
    let said = apply(&site, &[]);
    assert_eq!(said, "added tenant globex\nchange 3; 0 tenants unchanged\n");
    assert!(keys(&site).contains("tenants/acme/keys/bills"));
    let said = apply(&site, &["--prune"]);
    assert_eq!(said, "removed tenant acme\nchange 4; 1 tenants unchanged\n");
    becomes(&site, "");
    assert_eq!(server.stop(), Some(0));
}

#[test]
fn what_was_brought_in_is_there_after_a_restart() {
    let site = site();
    let server = serving(&site);
    apply(&site, &[]);
    server.crash();
    let server = serving(&site);
    assert!(keys(&site).contains("tenants/acme/keys/orders"));
    assert_eq!(server.stop(), Some(0));
    let said = site.good(&["check-config"]);
    assert!(said.contains("1 tenants, 1 keys"), "{said}");
}

#[test]
fn a_file_that_does_not_fit_changes_nothing() {
    let site = site();
    let _server = serving(&site);
    apply(&site, &[]);
    site.edit("tenants.toml", "users", "user");
    let sentence = bad(applying(&site, &[]), b"", 65);
    assert!(sentence.contains("did you mean `users`?"), "{sentence}");
    site.edit("tenants.toml", "user ", "users ");
    site.edit("tenants.toml", "plan", "service");
    let sentence = bad(applying(&site, &[]), b"", 65);
    assert!(sentence.contains("fixed pair of tenant acme"), "{sentence}");
    site.edit("tenants.toml", "service", "plan");
    assert_eq!(apply(&site, &[]), "nothing changed; 1 tenants unchanged\n");
}

#[test]
fn with_a_tenants_file_the_file_decides() {
    let site = site();
    let configuration = fs::read_to_string(site.path("keybroker.toml")).unwrap();
    let server = serving(&site);
    apply(&site, &[]);
    assert_eq!(server.stop(), Some(0));
    site.write("others.toml", "[[tenant]]\nid = \"globex\"\n");
    site.write(
        "keybroker.toml",
        &format!("tenants_file = \"others.toml\"\n{configuration}"),
    );
    let server = serving(&site);
    let sentence = bad(applying(&site, &[]), b"", 69);
    assert!(sentence.contains("tenants_file"), "{sentence}");
    assert_eq!(keys(&site), "");
    let tenants = fs::read_to_string(site.path("tenants.toml")).unwrap();
    site.write("others.toml", &tenants);
    becomes(&site, "tenants/acme/keys/orders");
    assert_eq!(server.stop(), Some(0));
}

#[test]
fn a_suspended_tenant_is_refused_until_it_is_resumed() {
    let site = site();
    let server = serving(&site);
    apply(&site, &[]);
    becomes(&site, "tenants/acme/keys/orders");
    let sentence = bad(site.at(&["tenant", "suspend", "globex"]), b"", 65);
    assert!(sentence.contains("no tenant globex"), "{sentence}");
    let said = good(site.at(&["tenant", "suspend", "acme"]), b"");
    assert!(
        said.starts_with("suspended tenant acme: change 2"),
        "{said}"
    );
    let again = good(site.at(&["tenant", "suspend", "acme"]), b"");
    let already = "tenant acme was suspended already: change 2";
    assert!(again.starts_with(already), "{again}");
    let refused = || {
        let output = listing(&site).output().unwrap();
        String::from_utf8(output.stderr)
            .unwrap()
            .contains("suspended")
    };
    assert!((0..1000).any(|_| refused()));
    // Nothing that a file says lets it go on, and no restart.
    site.edit("tenants.toml", "gold", "silver");
    apply(&site, &[]);
    server.crash();
    let server = serving(&site);
    assert!(refused());
    let said = good(site.at(&["tenant", "resume", "acme"]), b"");
    assert!(said.starts_with("resumed tenant acme: change 4"), "{said}");
    assert!((0..1000).any(|_| !refused()));
    assert!(keys(&site).contains("tenants/acme/keys/orders"));
    assert_eq!(server.stop(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purged_tenants_data_keys_are_dropped() {
    let site = site();
    let (server, admin) = watched(&site);
    apply(&site, &[]);
    becomes(&site, "tenants/acme/keys/orders");
    let encrypt = ["encrypt", "--key", "keys/orders"];
    good_bytes(site.at(&encrypt), b"x");
    for change in [2, 3] {
        let said = good(site.at(&["tenant", "purge", "acme"]), b"");
        let expected = format!("purged tenant acme: change {change}");
        assert!(said.starts_with(&expected), "{said}");
    }
    counts(
        admin,
        "keybroker_data_key_retirements_total{reason=\"purge\"} 1",
    )
    .await;
    good_bytes(site.at(&encrypt), b"x");
    assert_eq!(server.stop(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_corrupt_row_denies_its_tenant_and_the_process_lives() {
    let site = site();
    let tenants = fs::read_to_string(site.path("tenants.toml")).unwrap();
    site.write(
        "tenants.toml",
        &format!("{tenants}\n[[tenant]]\nid = \"globex\"\n"),
    );
    let (server, admin) = watched(&site);
    apply(&site, &[]);
    for damage in ["x'00ff'", "'[[tenant]]'", "17", "''"] {
        becomes(&site, "tenants/acme/keys/orders");
        sql(
            &site,
            &format!(
                "UPDATE change SET n = n + 1;
             UPDATE tenants SET document = {damage}, changed = (SELECT n FROM change)
             WHERE id = 'acme';"
            ),
        );
        let line = server.await_line("a tenant of the store is not usable");
        assert!(line.contains("acme"), "{line}");
        assert_eq!(keys(&site), "");
        let metrics = get(admin, "/metrics").await.body;
        assert!(
            metrics.contains("\nkeybroker_tenants_refused 1\n"),
            "{metrics}"
        );
        assert_eq!(
            apply(&site, &[]).lines().next(),
            Some("changed tenant acme")
        );
    }
    counts(admin, "keybroker_tenants_refused 0").await;
    assert_eq!(server.stop(), Some(0));
}

#[test]
fn a_full_disk_refuses_changes_and_reads_go_on() {
    let site = site();
    let configuration = fs::read_to_string(site.path("keybroker.toml")).unwrap();
    let configuration = format!("tenants_file = \"tenants.toml\"\n{configuration}");
    site.write("keybroker.toml", &configuration);
    let server = site.serve_on_full_disks();
    server.await_line("serving on a Unix socket");
    becomes(&site, "tenants/acme/keys/orders");

    server.fill_disk();
    site.edit("tenants.toml", "\"orders\"", "\"bills\"");
    let line = server.await_line("the store is out of reach, or takes no changes");
    assert!(line.contains("disk"), "{line}");
    server.await_line("configuration reloaded");
    assert!(keys(&site).contains("tenants/acme/keys/orders"));
    server.clear_disk();
    becomes(&site, "tenants/acme/keys/bills");
    assert_eq!(server.stop(), Some(0));
}

#[test]
fn a_change_that_is_cut_off_happened_whole_or_not_at_all() {
    let site = site();
    let key = fs::read_to_string(site.path("tenants.toml")).unwrap();
    let file = |plan: &str| -> String {
        let tenant = |n| {
            key.replace("acme", &format!("tenant-{n}"))
                .replace("gold", plan)
        };
        (0..400).map(tenant).collect()
    };
    let mut server = serving(&site);
    let (mut good, mut cut) = (0, 0);
    for round in 0..20_u64 {
        site.write("tenants.toml", &file(&format!("plan-{round}")));
        if round == 0 {
            apply(&site, &[]);
        }
        let mut command = applying(&site, &[]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        // At another point of its way each time, from its first steps to its end.
        thread::sleep(Duration::from_millis(round * 6));
        server.crash();
        // It would ask the next server.
        child.kill().unwrap();
        match child.wait().unwrap().success() {
            true => good += 1,
            false => cut += 1,
        }
        server = serving(&site);
        // All tenants are of one round.
        let rounds =
            "SELECT CAST(count(DISTINCT substr(document, instr(document, 'plan-'), 7)) AS TEXT)
             FROM tenants";
        assert_eq!(sql(&site, rounds).as_deref(), Some("1"), "round {round}");
        let tenants = "SELECT CAST(count(*) AS TEXT) FROM tenants";
        assert_eq!(sql(&site, tenants).as_deref(), Some("400"));
        assert_eq!(sql(&site, "PRAGMA integrity_check").as_deref(), Some("ok"));
    }
    assert!(cut > 0, "{good} were never cut off");
}

/// A site without a tenants file; whoever runs the tests may use the keys of the file that is
/// there to bring in.
fn site() -> Site {
    let site = Site::with_operator();
    site.edit("keybroker.toml", "tenants_file = \"tenants.toml\"\n", "");
    let users = format!("users = [\"unix:uid={}\", ", uid());
    site.edit("tenants.toml", "users = [", &users);
    site
}

fn serving(site: &Site) -> Running {
    let server = Running::logging(site.command(&["serve"]));
    server.await_line("serving on a Unix socket");
    server
}

/// The same, and the address of its metrics.
fn watched(site: &Site) -> (Running, SocketAddr) {
    let listen = "[listen]\nadmin = \"127.0.0.1:0\"";
    site.edit("keybroker.toml", "[listen]", listen);
    let server = Running::logging(site.command(&["serve"]));
    let address = admin(&server);
    (server, address)
}

/// Waits until `line` is among the metrics.
async fn counts(admin: SocketAddr, line: &str) {
    let line = format!("\n{line}\n");
    let counted = async {
        let mut ticks = tokio::time::interval(Duration::from_millis(50));
        while !get(admin, "/metrics").await.body.contains(&line) {
            ticks.tick().await;
        }
    };
    soon(counted).await;
}

fn apply(site: &Site, more: &[&str]) -> String {
    good(applying(site, more), b"")
}

fn applying(site: &Site, more: &[&str]) -> Command {
    let mut command = site.at(&["apply", "-f", "tenants.toml"]);
    command.args(more);
    command
}

/// The keys that the tests' own user sees.
fn keys(site: &Site) -> String {
    good(listing(site), b"")
}

fn listing(site: &Site) -> Command {
    site.at(&["keys", "list"])
}

/// Waits until the server shows this key, or none.
fn becomes(site: &Site, key: &str) {
    let shows = || {
        let seen = keys(site);
        seen.contains(key) && seen.is_empty() == key.is_empty()
    };
    // Each look takes a process some milliseconds.
    assert!((0..1000).any(|_| shows()), "no {key:?} in {:?}", keys(site));
}

/// Runs `statements` in the store's file, as none of ours would; the first value of what they
/// yield.
pub(super) fn sql(site: &Site, statements: &str) -> Option<String> {
    let options = SqliteConnectOptions::new().filename(site.path("store.db"));
    let statements = statements.to_owned();
    let running = async move {
        let mut connection = options.connect().await.unwrap();
        let text = AssertSqlSafe(statements);
        let row = connection
            .fetch_optional(sqlx::raw_sql(text))
            .await
            .unwrap();
        // Nothing of it goes on when this has returned.
        connection.close().await.unwrap();
        row.map(|row| row.get_unchecked::<String, _>(0))
    };
    // A test may have a runtime of its own.
    let thread = thread::spawn(|| {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_all().build().unwrap().block_on(running)
    });
    thread.join().unwrap()
}
