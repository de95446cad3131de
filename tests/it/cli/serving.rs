//! A server from its start to its end.

use std::fs;

use jiff::SignedDuration;
use jiff::Timestamp;
use keybroker::kms::local::Keyring;
use keybroker::kms::local::Purpose;
use keybroker::kms::local::SealingKey;
use keybroker::kms::local::sealing::Source;

use super::site::Running;
use super::site::Site;
use super::site::bad;
use super::site::good;

#[test]
fn sigterm_ends_a_server_in_order() {
    let site = Site::new();
    let server = Running::logging(site.command(&["serve"]));
    server.await_line("serving on a Unix socket");
    site.good(&["healthcheck"]);
    assert_eq!(server.stop(), Some(0));
    bad(site.command(&["healthcheck"]), b"", 1);
}

#[test]
fn health_is_asked_where_the_configuration_lets_probes_in() {
    let site = Site::new();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap().to_string();
    drop(free);
    let listen = format!("[listen]\nhealth = \"{address}\"");
    site.edit("keybroker.toml", "[listen]", &listen);
    site.edit(
        "keybroker.toml",
        "[listen.unix]\npath = \"broker.sock\"\n",
        "",
    );
    let server = Running::logging(site.command(&["serve"]));
    server.await_line("serving health probes");
    site.good(&["healthcheck"]);
    site.good(&["healthcheck", "--addr", &format!("http://{address}")]);
    assert_eq!(server.stop(), Some(0));
    let sentence = bad(site.command(&["healthcheck"]), b"", 1);
    assert!(sentence.contains(&address), "{sentence}");
}

#[test]
fn a_period_rotates_keys_while_the_server_runs() {
    let site = Site::without_keyring();
    site.good(&["keyring", "init"]);
    let two_days_ago = Timestamp::now() - SignedDuration::from_hours(48);
    let sealing = Source::File(site.path("sealing.key"));
    let sealing = SealingKey::load(&sealing, None).unwrap();
    let keyring = Keyring::open(&site.path("keyring"), Purpose::Production, sealing).unwrap();
    keyring
        .add(&"orders".parse().unwrap(), two_days_ago)
        .unwrap();
    drop(keyring);
    let period = "[kms.local]\nrotation_period = \"24h\"";
    site.edit("keybroker.toml", "[kms.local]", period);
    let server = Running::logging(site.command(&["serve"]));
    server.await_line("rotated a key of the local keyring");
    assert_eq!(server.stop(), Some(0));
    let list = site.good(&["keyring", "list"]);
    assert!(!list.contains("version 1 "), "{list}");
}

#[test]
fn a_unix_peer_encrypts_by_its_user() {
    let site = Site::new();
    let rule = "[[identity.rule]]\nmatch = \"unix:uid=UID\"\ntenant = \"acme\"\n\n[kms.local]";
    let uid = std::os::unix::fs::MetadataExt::uid(&fs::metadata("/proc/self").unwrap());
    let rule = rule.replace("UID", &uid.to_string());
    site.edit("keybroker.toml", "[kms.local]", &rule);
    site.edit(
        "tenants.toml",
        "users = [",
        &format!("users = [\"unix:uid={uid}\", "),
    );
    let server = Running::logging(site.command(&["serve"]));
    server.await_line("serving on a Unix socket");
    let address = format!("unix:{}", site.path("broker.sock").display());
    let at = |args: &[&str]| {
        let mut command = site.command(args);
        command.env("KEYBROKER_ADDR", &address);
        command
    };
    let list = good(at(&["keys", "list"]), b"");
    assert!(list.contains("tenants/acme/keys/orders"), "{list}");
}
