//! Configurations that cannot be used: each is refused with a sentence that names the file, what is
//! wrong and what to do, and nothing changes on disk.

use std::fs;
use std::fs::Permissions;
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use super::site::Running;
use super::site::Site;
use super::site::bad;

#[test]
fn a_good_configuration_is_good() {
    let site = Site::new();
    let before = site.files();
    let said = site.good(&["check-config"]);
    assert!(
        said.contains("good; 1 tenants, 1 keys, 1 identity rules"),
        "{said}"
    );
    assert_eq!(site.files(), before);
}

#[test]
fn malformed_toml_has_its_place() {
    refused("keybroker.toml", "[listen]", "[listen", &["line 3, column"]);
    refused(
        "tenants.toml",
        "[[tenant]]",
        "[[tenant",
        &["line 1, column"],
    );
}

#[test]
fn an_unknown_key_has_its_place_and_a_suggestion() {
    refused(
        "keybroker.toml",
        "private_key",
        "private_kye",
        &["line 11, column 1", "did you mean `private_key`?"],
    );
    refused(
        "tenants.toml",
        "users",
        "user",
        &["line 8, column 1", "did you mean `users`?"],
    );
}

#[test]
fn what_is_there_twice_is_refused() {
    let tenant = "\n[[tenant]]\nid = \"acme\"\n";
    refused(
        "tenants.toml",
        "shop\"]\n",
        &format!("shop\"]\n{tenant}"),
        &["acme"],
    );
    let key = "\n[[tenant.key]]\nid = \"orders\"\nkms = \"local:orders\"\n";
    refused(
        "tenants.toml",
        "shop\"]\n",
        &format!("shop\"]\n{key}"),
        &["acme", "orders"],
    );
}

#[test]
fn a_capture_that_the_pattern_lacks_is_refused() {
    refused(
        "keybroker.toml",
        "\"{service}\"",
        "\"{sevrice}\"",
        &["identity.rule 1", "sevrice", "service"],
    );
}

#[test]
fn a_key_without_its_kms_is_refused() {
    refused(
        "keybroker.toml",
        "[kms.local]\nkeyring = \"keyring\"\nsealing_key = \"sealing.key\"\n",
        "",
        &["tenants/acme/keys/orders", "[kms.local]", "add it"],
    );
    refused("tenants.toml", "kms = \"local:orders\"\n", "", &["kms"]);
}

#[test]
fn a_reserved_name_is_refused() {
    refused(
        "tenants.toml",
        "plan =",
        "\"aws-crypto-plan\" =",
        &["acme", "aws-crypto-plan"],
    );
    refused(
        "keybroker.toml",
        "{ service =",
        "{ \"keybroker:service\" =",
        &["keybroker:service", "reserved"],
    );
}

#[test]
fn one_name_from_two_sources_is_refused() {
    let site = Site::new();
    site.edit("tenants.toml", "plan =", "service =");
    let words = ["service", "acme", "name that pair otherwise"];
    check(&site, "keybroker.toml", &words);
}

#[test]
fn limits_above_their_ceiling_are_refused_not_clamped() {
    for (limit, value, named) in [
        ("in_flight = 65537", "65537", "65536"),
        ("connections = 0", "0", "1"),
        ("streams = 65537", "65537", "65536"),
        ("queue_delay = \"11s\"", "11s", "10s"),
        ("connection_age = \"25h\"", "25h", "24h"),
        ("drain = \"11m\"", "11m", "10m"),
    ] {
        let limits = format!("[limits]\n{limit}");
        refused(
            "keybroker.toml",
            "[limits]",
            &limits,
            &["limits.", value, named],
        );
    }
    refused(
        "keybroker.toml",
        "[limits]",
        "[cache]\nentries = 0\n[limits]",
        &["cache.entries"],
    );
    let age = "users = []\ncache = { max_age = \"2h\" }\n#";
    refused("tenants.toml", "users", age, &["orders", "max_age"]);
}

#[test]
fn settings_of_kms_and_sockets_are_checked_too() {
    refused(
        "keybroker.toml",
        "[kms.local]",
        "[kms.aws]\nattempt_timeout = \"11s\"\n\n[kms.local]",
        &["kms.aws.attempt_timeout", "at most 10s"],
    );
    refused(
        "keybroker.toml",
        "path = \"broker.sock\"",
        "path = \"broker.sock\"\nmode = \"666\"",
        &["\"666\"", "others"],
    );
}

#[test]
fn a_certificate_of_another_key_is_refused() {
    let site = Site::new();
    site.certify("other", 2099);
    site.edit("keybroker.toml", "server.key", "other.key");
    check(&site, "server.pem", &["other.key", "must be one pair"]);
}

#[test]
fn an_expired_certificate_is_refused() {
    let site = Site::new();
    site.certify("server", 2001);
    check(
        &site,
        "server.pem",
        &["expired on 2001-01-01", "put a new one"],
    );
}

#[test]
fn a_file_that_is_not_there_is_named() {
    for name in [
        "keybroker.toml",
        "tenants.toml",
        "server.pem",
        "server.key",
        "ca.pem",
    ] {
        let site = Site::new();
        fs::remove_file(site.path(name)).unwrap();
        check(&site, name, &["No such file"]);
    }
}

#[test]
fn a_file_that_may_not_be_read_is_named() {
    for name in [
        "keybroker.toml",
        "tenants.toml",
        "server.pem",
        "server.key",
        "ca.pem",
    ] {
        let site = Site::new();
        fs::set_permissions(site.path(""), Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(site.path(name), Permissions::from_mode(0o000)).unwrap();
        // Keys of the site are its owner's alone; here nobody is.
        for open in [
            "keybroker.toml",
            "tenants.toml",
            "server.pem",
            "server.key",
            "ca.pem",
        ] {
            if open != name {
                let mode = Permissions::from_mode(0o644);
                fs::set_permissions(site.path(open), mode).unwrap();
            }
        }
        let sentence = bad(as_nobody(&site), b"", 78);
        let path = site.path(name);
        assert!(sentence.contains(path.to_str().unwrap()), "{sentence}");
        assert!(sentence.contains("ermission denied"), "{sentence}");
    }
}

#[test]
fn an_address_in_use_is_named() {
    let site = Site::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    site.edit("keybroker.toml", "127.0.0.1:0", &address);
    let sentence = bad(site.command(&["serve"]), b"", 71);
    assert!(sentence.contains(&address), "{sentence}");
    assert!(sentence.contains("choose another address"), "{sentence}");
}

#[test]
fn a_socket_of_a_living_process_stays_and_a_dead_one_is_replaced() {
    let site = Site::new();
    let first = Running::logging(site.command(&["serve"]));
    first.await_line("serving on a Unix socket");

    let second = Site::new();
    let socket = site.path("broker.sock");
    second.edit("keybroker.toml", "broker.sock", socket.to_str().unwrap());
    let inode = fs::symlink_metadata(&socket).unwrap().ino();
    let sentence = bad(second.command(&["serve"]), b"", 71);
    assert!(
        sentence.contains("in use by a living process"),
        "{sentence}"
    );
    assert_eq!(fs::symlink_metadata(&socket).unwrap().ino(), inode);

    first.crash();
    let after = Running::logging(second.command(&["serve"]));
    after.await_line("serving on a Unix socket");
    let mut health = second.command(&["healthcheck"]);
    health.env("KEYBROKER_ADDR", format!("unix:{}", socket.display()));
    super::site::good(health, b"");
}

#[test]
fn something_else_in_the_place_of_the_socket_stays() {
    let site = Site::new();
    site.write("broker.sock", "precious");
    let sentence = bad(site.command(&["serve"]), b"", 78);
    assert!(
        sentence.contains("is no socket: move it away"),
        "{sentence}"
    );
    assert_eq!(fs::read(site.path("broker.sock")).unwrap(), b"precious");
}

/// A site in whose file `old` became `new` is refused, in a sentence with `words`.
fn refused(file: &str, old: &str, new: &str, words: &[&str]) {
    let site = Site::new();
    site.edit(file, old, new);
    check(&site, file, words);
}

/// `check-config` and `serve` refuse alike, naming `file`, and change nothing.
fn check(site: &Site, file: &str, words: &[&str]) {
    let before = site.files();
    for command in ["check-config", "serve"] {
        let sentence = bad(site.command(&[command]), b"", 78);
        for word in words.iter().chain([&file]) {
            assert!(sentence.contains(word), "{command}: {word:?} in {sentence}");
        }
    }
    assert_eq!(site.files(), before);
}

/// `check-config` by a user whom file permissions bind.
fn as_nobody(site: &Site) -> Command {
    if fs::metadata("/proc/self").unwrap().uid() != 0 {
        return site.command(&["check-config"]);
    }
    // As a file descriptor the binary can be run by a user who may not enter its folder.
    let mut command = Command::new("sh");
    command
        .args([
            "-c",
            "exec setpriv --reuid=65534 --regid=65534 --clear-groups /proc/self/fd/9 \
             check-config --config \"$0\" 9<\"$1\"",
        ])
        .arg(site.path("keybroker.toml"))
        .arg(env!("CARGO_BIN_EXE_keybroker"));
    command
}
