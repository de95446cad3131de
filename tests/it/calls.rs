//! What is counted of calls and decisions, whatever becomes of them.

use std::collections::BTreeMap;

use keybroker::kms;

use crate::harness::Broker;
use crate::harness::Start;
use crate::harness::WEB;
use crate::harness::reason;
use crate::harness::rpcs::decrypt;
use crate::harness::rpcs::encrypt;
use crate::harness::soon;
use crate::support::http1::get;
use crate::support::prometheus;

/// A broker that can be scraped.
pub fn watched() -> Start {
    Broker::start().with(|setup| setup.listen.admin = Some(([127, 0, 0, 1], 0).into()))
}

async fn scrape(broker: &Broker) -> BTreeMap<String, f64> {
    let answer = get(broker.admin_address().unwrap(), "/metrics").await;
    prometheus::parse(&answer.body)
}

/// What was counted of `name`, by the labels that tell it apart.
pub async fn counted(broker: &Broker, name: &str) -> Vec<(String, f64)> {
    let series = scrape(broker).await;
    let of_name = series.into_iter().filter_map(|(series, value)| {
        let labels = series.strip_prefix(name)?.strip_prefix('{')?;
        (value > 0.0).then(|| (labels.trim_end_matches('}').to_owned(), value))
    });
    of_name.collect()
}

/// An operation's labels.
pub fn of(operation: &str, outcome: &str, reason: &str) -> String {
    format!(r#"operation="{operation}",outcome="{outcome}",reason="{reason}""#)
}

#[tokio::test]
async fn each_call_is_counted_once_by_what_became_of_it() {
    let broker = watched().await;
    let mut web = broker.caller(WEB).await;
    web.encrypt(encrypt("keys/orders", "x")).await.unwrap();
    web.encrypt(encrypt("keys/orders", "x")).await.unwrap();
    let denied = web.encrypt(encrypt("keys/absent", "x")).await;
    assert_eq!(reason(denied), "POLICY_DENIED");
    let malformed = web.decrypt(decrypt(&"no message".into())).await;
    assert_eq!(reason(malformed), "CIPHERTEXT_INVALID");
    broker.kms.fail(kms::Error::Unavailable("away".into()));
    let away = web.encrypt(encrypt("keys/invoices", "x")).await;
    assert_eq!(reason(away), "KMS_UNAVAILABLE");
    broker.kms.heal();
    let identity = broker.authority.client(WEB);
    let connection = broker.connect(&identity).await.unwrap();
    connection
        .wire
        .send("/a.B/C", &[], Default::default())
        .await;
    broker.trail.fail();
    let unrecorded = web.encrypt(encrypt("keys/orders", "x")).await;
    assert_eq!(reason(unrecorded), "AUDIT_UNAVAILABLE");
    broker.trail.heal();

    let mut expected = [
        (of("Decrypt", "refused", "CIPHERTEXT_INVALID"), 1.0),
        (of("Encrypt", "done", ""), 2.0),
        (of("Encrypt", "failed", "AUDIT_UNAVAILABLE"), 1.0),
        (of("Encrypt", "failed", "KMS_UNAVAILABLE"), 1.0),
        (of("Encrypt", "refused", "POLICY_DENIED"), 1.0),
        (of("_OTHER", "failed", "METHOD_UNKNOWN"), 1.0),
    ];
    expected.sort_by(|(one, _), (other, _)| one.cmp(other));
    assert_eq!(
        counted(&broker, "keybroker_operations_total").await,
        expected
    );
    let codes = counted(&broker, "rpc_server_call_duration_seconds_count").await;
    let code = |code: &str| {
        let label = format!(r#"rpc_response_status_code="{code}""#);
        let of_code = codes.iter().filter(|(labels, _)| labels.contains(&label));
        of_code.map(|(_, count)| count).sum::<f64>()
    };
    let codes = ["OK", "PERMISSION_DENIED", "INVALID_ARGUMENT", "UNAVAILABLE"].map(code);
    assert_eq!(codes, [2.0, 1.0, 1.0, 2.0]);
    let decisions = counted(&broker, "keybroker_authz_decisions_total").await;
    let decisions: Vec<_> = decisions.iter().map(|(one, n)| (&**one, *n)).collect();
    assert_eq!(
        decisions,
        [
            (r#"decision="allow""#, 4.0),
            (r#"decision="deny""#, 1.0),
            // What is no message is bound to nothing.
            (r#"decision="invalid""#, 1.0),
        ]
    );
}

#[tokio::test]
async fn a_client_that_goes_away_is_counted_as_such() {
    let broker = watched().await;
    let mut leaving = broker.caller(WEB).await;
    let _held = broker.kms.hold().await;
    let call =
        tokio::spawn(async move { leaving.encrypt(encrypt("keys/orders", "x")).await.map(drop) });
    broker.kms.reached(1).await;
    call.abort();
    let abandoned = [(of("Encrypt", "abandoned", "ABANDONED"), 1.0)];
    soon(async {
        while counted(&broker, "keybroker_operations_total").await != abandoned {
            tokio::task::yield_now().await;
        }
    })
    .await;
}
