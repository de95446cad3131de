//! `keybroker kms-grant`.

use serde_json::Value;
use serde_json::json;

use super::ROLE;
use crate::cli::site::Running;
use crate::cli::site::Site;
use crate::cli::site::bad;
use crate::cli::site::credited;
use crate::cli::site::good;
use crate::cli::site::uid;
use crate::support::fake_kms::FakeKms;

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_of_kms_is_made_listed_and_revoked_by_the_command_line() {
    let kms = FakeKms::start().await;
    let arn = kms.key("eu-west-1");
    let site = Site::with_operator();
    let administered = format!("administrators = [\"unix:uid={}\"]\nusers = [", uid());
    site.edit("tenants.toml", "users = [", &administered);
    site.edit("tenants.toml", "local:orders", arn.as_str());
    let aws = format!(
        "[kms.aws]\nendpoint = \"{}\"\n\n[kms.local]",
        kms.endpoint()
    );
    site.edit("keybroker.toml", "[kms.local]", &aws);
    let server = Running::logging(credited(site.command(&["serve"])));
    server.await_line("serving on a Unix socket");

    let create = [
        "kms-grant",
        "create",
        "--key",
        "keys/orders",
        "--grantee",
        ROLE,
        "--operation",
        "GenerateDataKey",
        "--operation",
        "Decrypt",
        "--context-subset",
        "order=7",
        "--lifetime",
        "10m",
    ];
    let made = good(site.at(&[&create[..], &["--output", "json"]].concat()), b"");
    let made: Value = serde_json::from_str(&made).unwrap();
    let in_kms = kms.grants(&arn).remove(0);
    assert_eq!(made["grant"]["kms_grant_id"], in_kms.id);
    assert_eq!(made["grant"]["kms_key_arn"], arn.as_str());
    assert_eq!(made["grant"]["grantee_principal"], ROLE);
    assert_eq!(
        made["grant"]["operations"],
        json!(["Decrypt", "GenerateDataKey"])
    );
    assert_eq!(made["grant_token"], in_kms.token);
    let bound = &in_kms.wanted["Constraints"]["EncryptionContextSubset"];
    assert_eq!(
        (&bound["order"], &bound["keybroker:tenant"]),
        (&json!("7"), &json!("acme"))
    );

    let list = ["kms-grant", "list", "--key", "keys/orders"];
    let listed = good(site.at(&[&list[..], &["--output", "json"]].concat()), b"");
    let listed: Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(listed, json!({ "grants": [made["grant"]] }));
    let id = made["grant"]["id"].as_str().unwrap();
    let lines = good(site.at(&list), b"");
    assert!(
        lines.starts_with(id) && lines.contains(&in_kms.id),
        "{lines}"
    );

    let revoke = ["kms-grant", "revoke", "--key", "keys/orders", "--id", id];
    good(site.at(&revoke), b"");
    assert!(kms.grants(&arn).is_empty());
    assert_eq!(good(site.at(&list), b""), "");
    let text = good(site.at(&create), b"");
    assert!(text.contains("\ntoken AQpA"), "{text}");

    let root = create.map(|word| match word {
        ROLE => "arn:aws:iam::111122223333:root",
        word => word,
    });
    let refused = bad(site.at(&root), b"", 65);
    assert!(refused.contains("grantee_principal"), "{refused}");
    for wrong in [
        &[
            "kms-grant",
            "create",
            "--key",
            "keys/orders",
            "--grantee",
            ROLE,
        ][..],
        &[&create[..], &["--context-equals", "a=b"]].concat(),
        &["kms-grant", "revoke", "--key", "keys/orders"],
        &["kms-grant", "list"],
    ] {
        bad(site.at(wrong), b"", 64);
    }
    assert_eq!(server.stop(), Some(0));
}
