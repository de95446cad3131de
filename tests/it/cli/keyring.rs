//! The life of a keyring, by command.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::site::Running;
use super::site::Site;
use super::site::bad;
use super::site::command;
use super::site::exists;
use super::site::good;
use super::site::good_bytes;

#[test]
fn a_keyring_is_made_filled_rotated_and_listed() {
    let site = Site::without_keyring();
    let made = site.good(&["keyring", "init"]);
    assert!(
        made.contains("sealing.key") && made.contains("keyring"),
        "{made}"
    );
    for file in ["keyring", "sealing.key"] {
        let mode = fs::metadata(site.path(file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    let added = site.good(&["keyring", "add", "orders"]);
    assert!(added.contains("kms = \"local:orders\""), "{added}");
    let rotated = site.good(&["keyring", "rotate", "orders"]);
    assert!(rotated.contains("version 2 wraps now"), "{rotated}");
    let list = site.good(&["keyring", "list"]);
    assert!(list.contains("orders  enabled  version 2"), "{list}");

    site.good(&["keyring", "disable", "orders"]);
    let list = site.good(&["keyring", "list", "--output", "json"]);
    let list: serde_json::Value = serde_json::from_str(&list).unwrap();
    assert_eq!(list["keys"][0]["id"], "orders");
    assert_eq!(list["keys"][0]["state"], "disabled");
    assert_eq!(list["keys"][0]["versions"][1]["number"], 2);
    let disabled = bad(site.command(&["keyring", "rotate", "orders"]), b"", 65);
    assert!(disabled.contains("orders is disabled"), "{disabled}");
    site.good(&["keyring", "enable", "orders"]);
    site.good(&["keyring", "rotate", "orders"]);
}

#[test]
fn nothing_is_overwritten() {
    let site = Site::new();
    let before = site.files();
    let init = bad(site.command(&["keyring", "init"]), b"", 73);
    assert!(init.contains("exists already"), "{init}");
    let add = bad(site.command(&["keyring", "add", "orders"]), b"", 65);
    assert!(add.contains("orders exists already"), "{add}");
    let rotate = bad(site.command(&["keyring", "rotate", "other"]), b"", 65);
    assert!(rotate.contains("no key other"), "{rotate}");
    assert_eq!(site.files(), before);
}

#[test]
fn a_message_made_offline_opens_by_either_of_two_keys() {
    let site = Site::new();
    site.good(&["keyring", "add", "second"]);
    let both = "{ key = \"local:orders\", additional_key = \"local:second\" }";
    site.edit("tenants.toml", "\"local:orders\"", both);
    let encrypt = ["encrypt", "--offline", "--key", "tenants/acme/keys/orders"];
    let sealed = good_bytes(site.command(&encrypt), b"x");
    for lost in ["orders", "second"] {
        site.good(&["keyring", "disable", lost]);
        let opened = good(site.command(&["decrypt", "--offline"]), &sealed);
        assert_eq!(opened, "x", "{lost}");
        bad(site.command(&encrypt), b"x", 69);
        site.good(&["keyring", "enable", lost]);
    }
}

#[test]
fn a_keyring_needs_no_configuration() {
    let site = Site::without_keyring();
    let (keyring, key) = (site.path("ring"), site.path("key"));
    let place = [
        "--keyring",
        keyring.to_str().unwrap(),
        "--sealing-key",
        key.to_str().unwrap(),
    ];
    good(command(&[&["keyring", "init"][..], &place].concat()), b"");
    good(
        command(&[&["keyring", "add", "a"][..], &place].concat()),
        b"",
    );
    let list = good(command(&[&["keyring", "list"][..], &place].concat()), b"");
    assert!(list.starts_with("a  enabled"), "{list}");
}

#[test]
fn a_missing_keyring_is_named_and_not_made() {
    let site = Site::without_keyring();
    for args in [&["serve"][..], &["keyring", "list"]] {
        let sentence = bad(site.command(args), b"", 78);
        assert!(sentence.contains("`keybroker keyring init`"), "{sentence}");
        assert!(sentence.contains(site.path("keyring").to_str().unwrap()));
    }
    for file in ["keyring", "keyring.lock", "sealing.key", "broker.sock"] {
        assert!(!exists(&site.path(file)), "{file}");
    }
}

#[test]
fn a_keyring_that_a_server_holds_says_so() {
    let site = Site::new();
    let server = Running::logging(site.command(&["serve"]));
    server.await_line("serving with TLS");
    let held = bad(site.command(&["keyring", "rotate", "orders"]), b"", 69);
    assert!(held.contains("held by another process"), "{held}");
    assert!(held.contains("rotation_period"), "{held}");
}
