//! What the log says of a KMS that fails or refuses.

use super::site::bad;
use super::site::good_bytes;
use super::site::run;
use super::warming::client;
use super::warming::serve;
use super::warming::site;
use crate::support::fake_kms::BROKER;
use crate::support::fake_kms::FakeKms;
use crate::support::fake_kms::Fault;
use crate::support::fake_kms::Operation;

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_is_told_when_it_begins_and_when_it_is_over() {
    let fake = FakeKms::start().await;
    let site = site(&fake);
    let server = serve(&site);
    let operation = Operation::GenerateDataKey;
    fake.fail(operation, Fault::Code("KMSInternalException", 500));
    let encrypt = || client(&site, &["encrypt", "--key", "keys/orders"]);
    let mut asked = None;
    while asked != Some(fake.calls(operation)) {
        asked = Some(fake.calls(operation));
        bad(encrypt(), b"x", 69);
    }
    let line = server.await_line("KMS fails for this key");
    assert!(line.contains("region=\"eu-west-1\""), "{line}");
    assert!(line.contains("key=arn:aws:kms:eu-west-1:"), "{line}");
    assert!(line.contains("KMSInternalException"), "{line}");

    fake.heal();
    let answered = (0..1000).any(|_| run(encrypt(), b"x").status.success());
    assert!(answered);
    let line = server.await_line("KMS answers for this key again");
    assert!(line.contains("key=arn:aws:kms:eu-west-1:"), "{line}");
    assert_eq!(server.stop(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_right_that_we_lack_is_told_as_a_statement_to_paste() {
    let fake = FakeKms::start().await;
    let site = site(&fake);
    let server = serve(&site);
    let encrypt = |table: &str| {
        let context = format!("table={table}");
        client(
            &site,
            &["encrypt", "--key", "keys/orders", "--context", &context],
        )
    };
    good_bytes(encrypt("a"), b"x");
    let arn = fake.log()[0].key.clone().unwrap().parse().unwrap();
    fake.deny(BROKER, Operation::GenerateDataKey, &arn);
    for table in ["b", "c", "d"] {
        bad(encrypt(table), b"x", 70);
    }
    let line = server.await_line("our own role may not use this KMS key");
    let statement =
        format!(r#"{{"Effect":"Allow","Action":["kms:GenerateDataKey"],"Resource":"{arn}"}}"#);
    assert!(line.contains(&statement), "{line}");
    assert!(line.contains("key=tenants/acme/keys/orders"), "{line}");

    fake.allow(BROKER, Operation::GenerateDataKey, &arn);
    let answered = (0..1000).any(|_| run(encrypt("b"), b"x").status.success());
    assert!(answered);
    let (code, said) = server.finish();
    assert_eq!(code, Some(0));
    let said = String::from_utf8(said).unwrap();
    assert_eq!(said.matches("our own role may not").count(), 1, "{said}");
    assert_eq!(said.matches("KMS allows this again").count(), 1, "{said}");
}
