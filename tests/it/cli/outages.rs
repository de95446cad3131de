//! What the log says of a KMS that fails.

use super::site::bad;
use super::site::run;
use super::warming::client;
use super::warming::serve;
use super::warming::site;
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
