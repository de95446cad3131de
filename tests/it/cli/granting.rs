//! Grants by the command line, and over the end of a server.

use super::site::Running;
use super::site::Site;
use super::site::bad;
use super::site::gid;
use super::site::good;
use super::site::good_bytes;
use super::site::run;
use super::site::uid;

#[test]
fn a_grant_is_made_used_listed_and_revoked_and_outlives_the_server() {
    let site = Site::with_operator();
    let uid = uid();
    let administrators = format!("administrators = [\"unix:uid={uid}\"]\nusers = [");
    site.edit("tenants.toml", "users = [", &administrators);
    let at = |args: &[&str]| site.at(args);
    let start = || {
        let server = Running::logging(site.command(&["serve"]));
        server.await_line("serving on a Unix socket");
        server
    };
    let server = start();
    let encrypt = ["encrypt", "--key", "keys/orders", "--context", "order=7"];
    bad(at(&encrypt), b"x", 77);

    let grantee = format!("unix:uid={uid}");
    let grantee_whole = format!("{grantee},gid={}", gid());
    let create = [
        "grant",
        "create",
        "--key",
        "keys/orders",
        "--grantee",
        &grantee,
        "--operation",
        "Encrypt",
        "--operation",
        "DescribeKey",
        "--context-subset",
        "order=7",
        "--lifetime",
        "1h",
        "--name",
        "job",
        "--output",
        "json",
    ];
    let made: serde_json::Value = serde_json::from_str(&good(at(&create), b"")).unwrap();
    let id = made["grant"]["id"].as_str().unwrap();
    assert_eq!(
        made["grant"]["operations"],
        serde_json::json!(["DescribeKey", "Encrypt"])
    );
    let again: serde_json::Value = serde_json::from_str(&good(at(&create), b"")).unwrap();
    assert_eq!(again["grant"], made["grant"]);
    good_bytes(at(&encrypt), b"x");
    bad(at(&["encrypt", "--key", "keys/orders"]), b"x", 77);
    let explain = |context: &[&str]| {
        let question = ["explain", &grantee_whole, "Encrypt", "keys/orders"];
        good(at(&[&question[..], context].concat()), b"")
    };
    let said = explain(&["--context", "order=7"]);
    assert!(said.starts_with("allowed: a grant allows it"), "{said}");
    let said = explain(&["--tenant", "acme", "--output", "json"]);
    let said: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(
        (&said["allowed"], &said["role"]),
        (&false.into(), &"administrators".into())
    );
    let list = ["grant", "list", "--key", "keys/orders"];
    let listed = good(at(&list), b"");
    assert!(
        listed.contains(id) && listed.contains("tenants/acme/keys/orders"),
        "{listed}"
    );
    assert_eq!(
        good(at(&["grant", "list"]), b""),
        "",
        "nobody is to retire it"
    );
    assert_eq!(server.stop(), Some(0));

    let server = start();
    assert!(good(at(&list), b"").contains(id));
    site.write("token", made["grant_token"].as_str().unwrap());
    let token = site.path("token");
    let with_token = [
        &encrypt[..],
        &["--grant-token-file", token.to_str().unwrap()],
    ]
    .concat();
    good_bytes(at(&with_token), b"x");
    bad(
        at(&["grant", "renew", "--key", "keys/orders", "--id", id]),
        b"",
        69,
    );
    let retire = [
        "grant",
        "retire",
        "--grant-token-file",
        token.to_str().unwrap(),
    ];
    bad(at(&retire), b"", 77);
    good(
        at(&["grant", "revoke", "--key", "keys/orders", "--id", id]),
        b"",
    );
    bad(at(&with_token), b"x", 77);
    assert_eq!(good(at(&list), b""), "");
    for wrong in [
        &[
            "grant",
            "create",
            "--key",
            "keys/orders",
            "--grantee",
            "x",
            "--operation",
            "Sign",
        ][..],
        &["grant", "revoke", "--key", "keys/orders"],
        &["grant", "retire"],
    ] {
        bad(at(wrong), b"", 64);
    }
    assert_eq!(server.stop(), Some(0));
}

/// As with PostgreSQL: what one of them changes the other knows of, and a token works at both.
#[test]
fn two_processes_on_one_sqlite_file_share_its_grants() {
    let (one, other) = (Site::with_operator(), Site::with_operator());
    let grantee = format!("unix:uid={}", uid());
    let administrators = format!("administrators = [\"{grantee}\"]\nusers = [");
    one.edit("tenants.toml", "users = [", &administrators);
    let store = format!(
        "[store]\nfile = \"{}\"\n\n[grants]\ntoken_key = \"{}\"\n\n[kms.local]",
        one.path("store.db").display(),
        one.path("store.db.token-key").display()
    );
    other.edit("keybroker.toml", "[kms.local]", &store);
    other.edit("keybroker.toml", "tenants_file = \"tenants.toml\"\n", "");
    let servers = [&one, &other].map(|site| {
        let server = Running::logging(site.command(&["serve"]));
        server.await_line("serving on a Unix socket");
        server
    });
    for (maker, user) in [(&one, &other), (&other, &one)] {
        bad(user.at(&ENCRYPT), b"x", 77);
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
        let made: serde_json::Value = serde_json::from_str(&good(maker.at(&create), b"")).unwrap();
        user.write("token", made["grant_token"].as_str().unwrap());
        let token = user.path("token");
        let with_token = ["--grant-token-file", token.to_str().unwrap()];
        good_bytes(user.at(&[&ENCRYPT[..], &with_token].concat()), b"x");

        let id = made["grant"]["id"].as_str().unwrap();
        let revoke = ["grant", "revoke", "--key", "keys/orders", "--id", id];
        good(maker.at(&revoke), b"");
        let refused = || run(user.at(&ENCRYPT), b"x").status.code() == Some(77);
        assert!((0..1000).any(|_| refused()));
    }
    for server in servers {
        assert_eq!(server.stop(), Some(0));
    }
}

const ENCRYPT: [&str; 3] = ["encrypt", "--key", "keys/orders"];
