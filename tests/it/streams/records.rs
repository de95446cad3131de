//! Two records a stream: one before anything leaves, one when it has ended.

use bytes::Bytes;
use serde_json::Value;
use serde_json::json;
use tonic::Code;

use super::Encrypting;
use super::decrypt_whole;
use super::encrypt_whole;
use super::text;
use crate::calls::counted;
use crate::calls::of;
use crate::calls::watched;
use crate::harness::Broker;
use crate::harness::Refusal;
use crate::harness::WEB;
use crate::harness::reason;
use crate::harness::rpcs::encrypt_start;
use crate::harness::soon;

/// Whether these are the two records of one stream.
fn belong_together(opened: &Value, closed: &Value) {
    for same in [
        "eventName",
        "tenant",
        "userIdentity",
        "requestID",
        "resources",
    ] {
        assert_eq!(opened[same], closed[same], "{same}");
    }
    let (first, last) = (
        &opened["additionalEventData"],
        &closed["additionalEventData"],
    );
    assert_eq!(first["streamID"], opened["eventID"]);
    assert_eq!(last["streamID"], opened["eventID"]);
    assert_ne!(closed["eventID"], opened["eventID"]);
    assert_eq!(first["streamPhase"], "opened");
    assert_eq!(last["streamPhase"], "closed");
    assert_eq!(opened["errorCode"], Value::Null);
    assert_eq!(opened["requestParameters"]["plaintextBytes"], Value::Null);
}

#[tokio::test]
async fn a_stream_is_on_record_before_its_first_byte_and_at_its_end() {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    let mut open = Encrypting::begin(&mut web, encrypt_start("keys/orders"))
        .await
        .unwrap();
    open.answers.message().await.unwrap().unwrap();
    assert_eq!(broker.records().len(), 1, "and it is there already");
    open.send(text(10_000)).await;
    let sealed = Bytes::from(open.finish().await.whole());
    decrypt_whole(&mut web, Default::default(), &sealed, 999)
        .await
        .whole();

    let records = broker.records();
    assert_eq!(records.len(), 4);
    for (pair, name) in records.chunks(2).zip(["EncryptStream", "DecryptStream"]) {
        belong_together(&pair[0], &pair[1]);
        assert_eq!(pair[1]["eventName"], name);
        assert_eq!(pair[1]["errorCode"], Value::Null);
        let bytes = &pair[1]["requestParameters"]["plaintextBytes"];
        assert_eq!(*bytes, json!(10_000));
        let key = &pair[0]["requestParameters"]["key"];
        assert_eq!(key, "tenants/acme/keys/orders");
        let closed = &pair[1]["additionalEventData"];
        assert!(closed["streamMessages"].as_u64().unwrap() >= 3);
        assert!(closed["durationMicros"].as_u64().unwrap() > 0);
    }
}

#[tokio::test]
async fn a_stream_that_fails_before_it_opens_has_one_record() {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    let none = Bytes::from_static(b"no message");
    let start = encrypt_start("keys/absent");
    let sealed = encrypt_whole(&mut web, start, &text(1), 1).await;
    assert_eq!(reason(sealed.ended), "POLICY_DENIED");
    let opened = decrypt_whole(&mut web, Default::default(), &none, 1).await;
    assert_eq!(reason(opened.ended), "CIPHERTEXT_INVALID");
    let records = broker.records();
    assert_eq!(records.len(), 2);
    assert_eq!(records[0]["errorCode"], "POLICY_DENIED");
    assert_eq!(records[1]["errorCode"], "CIPHERTEXT_INVALID");
    assert_eq!(records[1]["errorMessage"], "version");
    let stream = &records[0]["additionalEventData"]["streamID"];
    assert_eq!(*stream, Value::Null);
}

#[tokio::test]
async fn a_stream_that_fails_on_its_way_says_why_on_its_last_record() {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    let sealed = encrypt_whole(&mut web, encrypt_start("keys/orders"), &text(9000), 999).await;
    let sealed = Bytes::from(sealed.whole());
    let short = sealed.slice(..sealed.len() - 1);
    let opened = decrypt_whole(&mut web, Default::default(), &short, 999).await;
    assert_eq!(opened.bytes.len(), 8192);
    assert_eq!(reason(opened.ended), "CIPHERTEXT_INVALID");
    let [_, _, opened, closed] = broker.records().try_into().unwrap();
    belong_together(&opened, &closed);
    assert_eq!(closed["errorCode"], "CIPHERTEXT_INVALID");
    assert_eq!(closed["errorMessage"], "truncated");
    assert_eq!(closed["requestParameters"]["plaintextBytes"], 8192);
}

#[tokio::test]
async fn a_client_that_goes_away_leaves_an_abandoned_stream() {
    let broker = Broker::start().with(|setup| setup.limits.streams = 1).await;
    // One that cancels, and one that dies.
    for round in [1, 2] {
        let connection = broker.connect(&broker.authority.client(WEB)).await.unwrap();
        let mut web = connection.client();
        let start = encrypt_start("keys/orders");
        let mut open = Encrypting::begin(&mut web, start).await.unwrap();
        open.send(text(10_000)).await;
        open.answers.message().await.unwrap().unwrap();
        if round == 2 {
            connection.cut();
        }
        drop(open);
        broker.trail.reached(2 * round).await;
        let records = broker.records();
        let [.., opened, closed] = records.as_slice() else {
            panic!("two records");
        };
        belong_together(opened, closed);
        assert_eq!(closed["errorCode"], "ABANDONED");
    }
    // The place is free again.
    let mut web = broker.caller(WEB).await;
    soon(encrypt_whole(
        &mut web,
        encrypt_start("keys/orders"),
        &text(1),
        1,
    ))
    .await
    .whole();
}

#[tokio::test]
async fn nothing_leaves_a_stream_that_is_not_on_record() {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    broker.trail.fail();
    let refused = Encrypting::begin(&mut web, encrypt_start("keys/orders")).await;
    let refusal = Refusal::of(&refused.err().unwrap());
    assert_eq!(refusal.code, Code::Unavailable);
    assert_eq!(refusal.reason, "AUDIT_UNAVAILABLE");
    broker.trail.heal();
    assert_eq!(broker.records().len(), 0);

    // Nor does one end well whose end is not.
    let open = Encrypting::begin(&mut web, encrypt_start("keys/orders"))
        .await
        .unwrap();
    open.send(text(10)).await;
    broker.trail.fail();
    assert_eq!(reason(open.finish().await.ended), "AUDIT_UNAVAILABLE");
    broker.trail.heal();
    let purge = broker
        .inner()
        .data_keys()
        .purge(&keybroker::datakeys::Scope::All);
    soon(purge).await;
}

#[tokio::test]
async fn a_stream_is_counted_once_at_its_end() {
    let broker = watched().await;
    let mut web = broker.caller(WEB).await;
    let mut open = Encrypting::begin(&mut web, encrypt_start("keys/orders"))
        .await
        .unwrap();
    open.answers.message().await.unwrap().unwrap();
    assert_eq!(counted(&broker, "keybroker_operations_total").await, []);
    open.finish().await.whole();
    assert_eq!(
        counted(&broker, "keybroker_operations_total").await,
        [(of("EncryptStream", "done", ""), 1.0)]
    );
}
