//! `check-config --online`: what KMS lets us do, by the real command against the fake.

use serde_json::Value;
use serde_json::json;

use super::site::Site;
use super::site::run;
use crate::support::fake_kms::BROKER;
use crate::support::fake_kms::FakeKms;
use crate::support::fake_kms::Fault;
use crate::support::fake_kms::Operation;

#[tokio::test(flavor = "multi_thread")]
async fn a_role_with_all_rights_does_nothing_with_the_keys() {
    let fake = FakeKms::start().await;
    let (old, new) = (fake.key("eu-west-1"), fake.key("us-east-1"));
    let site = site(&fake, &format!("[\"{old}\", \"{new}\"]"));
    let (code, said, _) = check(&site, &[]);
    assert_eq!(code, Some(0), "{said}");
    let lines: Vec<&str> = said.lines().collect();
    let [good, first, second] = lines[..] else {
        panic!("{said}");
    };
    assert!(good.contains("good; 1 tenants, 1 keys"), "{good}");
    for (line, arn, seals) in [(first, &old, "-"), (second, &new, "ok")] {
        let found: Vec<&str> = line.split_whitespace().collect();
        let expected = format!("{arn} GenerateDataKey {seals} Decrypt ok DescribeKey ok");
        let version = if seals == "ok" { 2 } else { 1 };
        let name = format!("tenants/acme/keys/orders/versions/{version}");
        assert_eq!(found[0], name);
        assert_eq!(found[1..].join(" "), expected);
    }
    assert!(fake.plaintexts().is_empty(), "no data key was made");
    let context = [
        ("keybroker:key", "orders"),
        ("keybroker:tenant", "acme"),
        ("plan", "gold"),
    ];
    let context = context.map(|(name, value)| (name.to_owned(), value.to_owned()));
    for call in fake.log() {
        let dry = call.operation != Operation::DescribeKey;
        assert_eq!(call.dry, dry, "{call:?}");
        assert!(!dry || call.context == context.clone().into(), "{call:?}");
    }
    assert_eq!(fake.log().len(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_is_a_statement_to_paste_for_people_and_for_programs() {
    let fake = FakeKms::start().await;
    let arn = fake.key("eu-west-1");
    let site = site(&fake, &format!("\"{arn}\""));
    fake.deny(BROKER, Operation::Decrypt, &arn);
    fake.deny(BROKER, Operation::DescribeKey, &arn);
    let statement = json!({
        "Effect": "Allow",
        "Action": ["kms:Decrypt", "kms:DescribeKey"],
        "Resource": arn.as_str(),
    });
    let (code, said, sentence) = check(&site, &[]);
    assert_eq!(code, Some(77), "{said}");
    assert!(sentence.contains("1 of 1 KMS keys"), "{sentence}");
    let missing = said.split_once("missing: ").unwrap().1;
    assert_eq!(serde_json::from_str::<Value>(missing).unwrap(), statement);

    let (code, said, _) = check(&site, &["--output", "json"]);
    assert_eq!(code, Some(77), "{said}");
    let found: Value = serde_json::from_str(&said).unwrap();
    let key = &found["kms_keys"][0];
    assert_eq!(key["missing_statement"], statement);
    assert_eq!(key["region"], "eu-west-1");
    let outcomes = ["ok", "DENIED", "DENIED"];
    for (place, outcome) in outcomes.into_iter().enumerate() {
        assert_eq!(key["operations"][place]["outcome"], outcome);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_that_countersigns_the_trail_is_asked_whether_it_signs() {
    let fake = FakeKms::start().await;
    let (arn, signing) = (fake.key("eu-west-1"), fake.signing_key("eu-west-1"));
    let site = site(&fake, &format!("\"{arn}\""));
    let audit = format!("[audit]\nkms_key = \"{signing}\"\n");
    site.edit("keybroker.toml", "[audit]\n", &audit);
    let (code, said, _) = check(&site, &[]);
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.contains(&format!("audit.kms_key  {signing}  Sign ok")),
        "{said}"
    );

    fake.deny(BROKER, Operation::Sign, &signing);
    let (code, said, sentence) = check(&site, &["--output", "json"]);
    assert_eq!(code, Some(77), "{said}");
    assert!(
        sentence.contains("audit.kms_key does not sign"),
        "{sentence}"
    );
    let found: Value = serde_json::from_str(&said).unwrap();
    let statement = json!({
        "Effect": "Allow",
        "Action": ["kms:GetPublicKey", "kms:Sign"],
        "Resource": signing.as_str(),
    });
    assert_eq!(found["audit_kms_key"]["missing_statement"], statement);

    // One that encrypts signs nothing.
    site.edit("keybroker.toml", signing.as_str(), arn.as_str());
    let (code, said, _) = check(&site, &[]);
    assert_eq!(code, Some(78), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_additional_key_is_asked_whether_it_wraps_and_makes_data_keys() {
    let fake = FakeKms::start().await;
    let (first, more) = (fake.key("eu-west-1"), fake.key("us-east-1"));
    let kms = format!("{{ key = \"{first}\", additional_key = \"{more}\" }}");
    let site = site(&fake, &kms);
    let (code, said, _) = check(&site, &[]);
    assert_eq!(code, Some(0), "{said}");
    for (arn, wraps) in [(&first, "-"), (&more, "ok")] {
        let expected = format!(
            "tenants/acme/keys/orders/versions/1 {arn} GenerateDataKey ok Encrypt {wraps} \
             Decrypt ok DescribeKey ok"
        );
        let mut lines = said.lines().map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            words.join(" ")
        });
        assert!(lines.any(|line| line == expected), "{said}");
    }
    assert!(fake.plaintexts().is_empty(), "nothing was encrypted");

    fake.deny(BROKER, Operation::Encrypt, &more);
    let (code, said, _) = check(&site, &[]);
    assert_eq!(code, Some(77), "{said}");
    let statement =
        format!(r#"missing: {{"Effect":"Allow","Action":["kms:Encrypt"],"Resource":"{more}"}}"#);
    assert!(said.contains(&statement), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_of_no_use_is_told_from_a_kms_that_is_away() {
    let fake = FakeKms::start().await;
    let arn = fake.key("eu-west-1");
    let site = site(&fake, &format!("\"{arn}\""));
    fake.disable(&arn);
    let (code, said, _) = check(&site, &[]);
    assert_eq!(code, Some(69), "{said}");
    assert!(said.contains("GenerateDataKey DISABLED"), "{said}");
    assert!(!said.contains("missing"), "{said}");

    fake.enable(&arn);
    fake.region("eu-west-1").fail_all(Fault::Hang);
    let (code, said, _) = check(&site, &["--within", "1s"]);
    assert_eq!(code, Some(69), "{said}");
    assert_eq!(said.matches("UNAVAILABLE").count(), 3, "{said}");

    let absent = "arn:aws:kms:eu-west-1:111122223333:key/absent";
    fake.heal();
    site.edit("tenants.toml", arn.as_str(), absent);
    let (code, said, _) = check(&site, &[]);
    assert_eq!(code, Some(78), "{said}");
    assert!(said.contains("NOT_FOUND"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_passes_by_itself_is_not_told() {
    let fake = FakeKms::start().await;
    let arn = fake.key("eu-west-1");
    let site = site(&fake, &format!("\"{arn}\""));
    for fault in [
        Fault::Code("KMSInternalException", 500),
        Fault::Code("ThrottlingException", 400),
    ] {
        for operation in [Operation::GenerateDataKey, Operation::Decrypt] {
            fake.fail_next(2, operation, fault.clone());
        }
        let (code, said, _) = check(&site, &[]);
        assert_eq!(code, Some(0), "{fault:?}: {said}");
    }
    fake.fail(Operation::Decrypt, Fault::Code("KMSInternalException", 500));
    let (code, said, _) = check(&site, &[]);
    assert_eq!(code, Some(69), "{said}");
    assert!(said.contains("Decrypt UNAVAILABLE"), "{said}");
}

#[test]
fn local_keys_are_checked_too() {
    let site = Site::new();
    let said = site.good(&["check-config", "--online"]);
    let row = "GenerateDataKey ok             Decrypt ok             DescribeKey ok";
    assert!(said.contains(row), "{said}");
    site.good(&["keyring", "disable", "orders"]);
    let output = run(site.command(&["check-config", "--online"]), b"");
    assert_eq!(output.status.code(), Some(69));
}

/// A site whose key `orders` is `kms` of `fake`.
fn site(fake: &FakeKms, kms: &str) -> Site {
    let site = Site::without_keyring();
    site.edit("tenants.toml", "\"local:orders\"", kms);
    let local = "[kms.local]\nkeyring = \"keyring\"\nsealing_key = \"sealing.key\"\n";
    let aws = format!("[kms.aws]\nendpoint = \"{}\"\n", fake.endpoint());
    site.edit("keybroker.toml", local, &aws);
    site
}

/// Runs the check: its exit code, and what it said on either stream.
fn check(site: &Site, more: &[&str]) -> (Option<i32>, String, String) {
    let mut command = site.command(&[["check-config", "--online"].as_slice(), more].concat());
    command
        .env("AWS_ACCESS_KEY_ID", BROKER)
        .env("AWS_SECRET_ACCESS_KEY", SECRET);
    let output = run(command, b"");
    let [said, sentence] =
        [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    assert!(!said.contains(SECRET) && !sentence.contains(SECRET));
    (output.status.code(), said, sentence)
}

const SECRET: &str = "no-secret-of-ours";
