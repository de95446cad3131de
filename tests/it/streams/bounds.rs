//! How much, how many and how long.

use std::time::Duration;

use jiff::SignedDuration;
use tokio::time::Instant;
use tonic::Code;

use super::Decrypting;
use super::Encrypting;
use super::declared;
use super::encrypt_whole;
use super::text;
use crate::harness::Broker;
use crate::harness::Refusal;
use crate::harness::TENANTS;
use crate::harness::WEB;
use crate::harness::reason;
use crate::harness::rpcs::encrypt;
use crate::harness::rpcs::encrypt_start;
use crate::harness::rpcs::seal;

/// The key `orders` with few bytes for a data key.
fn few_bytes() -> String {
    let kms = "kms = \"local:acme-orders\"";
    let few = TENANTS.replace(kms, &format!("{kms}\ncache.max_bytes = 10000"));
    assert_ne!(few, TENANTS);
    few
}

#[tokio::test]
async fn a_declared_length_shares_a_data_key_and_none_has_one_of_its_own() {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    for _ in 0..3 {
        encrypt_whole(&mut web, declared(100), &text(100), 10)
            .await
            .whole();
    }
    assert_eq!(broker.kms_calls(), 1);
    for calls in 2..5 {
        let start = encrypt_start("keys/orders");
        encrypt_whole(&mut web, start, &text(100), 10).await.whole();
        assert_eq!(broker.kms_calls(), calls);
    }
}

#[tokio::test]
async fn one_byte_more_than_declared_ends_the_stream() {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    encrypt_whole(&mut web, declared(5000), &text(4999), 4096)
        .await
        .whole();
    for length in [1, 4096, 1 << 20] {
        let sealed = encrypt_whole(&mut web, declared(5000), &text(5001), length).await;
        let refusal = Refusal::of(&sealed.ended.unwrap_err());
        assert_eq!(refusal.reason, "FIELD_INVALID");
        assert_eq!(refusal.fields, ["plaintext_length"]);
    }
    let sealed = encrypt_whole(&mut web, declared(0), &text(1), 1).await;
    assert_eq!(reason(sealed.ended), "FIELD_INVALID");
}

#[tokio::test]
async fn no_stream_passes_what_a_data_key_may_seal() {
    let broker = Broker::start()
        .with(|setup| setup.tenants = few_bytes())
        .await;
    let mut web = broker.caller(WEB).await;
    // Undeclared, and declared as more.
    for start in [encrypt_start("keys/orders"), declared(20_000)] {
        let sealed = encrypt_whole(&mut web, start.clone(), &text(10_000), 999).await;
        sealed.whole();
        let sealed = encrypt_whole(&mut web, start, &text(10_001), 999).await;
        let refusal = Refusal::of(&sealed.ended.unwrap_err());
        assert_eq!(refusal.code, Code::InvalidArgument);
        assert_eq!(refusal.reason, "PLAINTEXT_TOO_LARGE");
        assert!(refusal.message.contains("10000"), "{}", refusal.message);
    }
    assert_eq!(broker.kms_calls(), 4, "each with a data key of its own");
    // What is declared counts at once, and is not given back.
    encrypt_whole(&mut web, declared(6_000), &text(1), 1)
        .await
        .whole();
    encrypt_whole(&mut web, declared(6_000), &text(1), 1)
        .await
        .whole();
    assert_eq!(broker.kms_calls(), 6);
}

#[tokio::test]
async fn nothing_is_read_before_the_data_key_is_there() {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    let held = broker.kms.hold().await;
    let parts =
        crate::harness::rpcs::encrypt_parts(encrypt_start("keys/orders"), vec![text(1 << 20); 8]);
    let (sent, mut taken) = tokio::sync::watch::channel(0);
    let requests = futures_util::stream::iter(parts);
    let requests = futures_util::StreamExt::inspect(requests, move |_| {
        sent.send_modify(|sent| *sent += 1);
    });
    let call = tokio::spawn(async move { web.encrypt_stream(requests).await });
    broker.kms.reached(1).await;
    // The windows of HTTP/2 hold 128 KiB: the client gets no further than its first chunk.
    taken.wait_for(|taken| *taken >= 2).await.unwrap();
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
    assert!(*taken.borrow() <= 3, "{}", *taken.borrow());
    drop(held);
    let answers = call.await.unwrap().unwrap().into_inner();
    let open = Encrypting {
        requests: None,
        answers,
    };
    assert!(open.finish().await.whole().len() > 8 << 20);
}

#[tokio::test]
async fn streams_have_places_of_their_own() {
    let broker = Broker::start()
        .with(|setup| {
            setup.limits.streams = 2;
            setup.limits.in_flight = 1;
        })
        .await;
    let mut web = broker.caller(WEB).await;
    let sealed = seal(&mut web, "keys/orders", "x").await;
    let one = Encrypting::begin(&mut web, encrypt_start("keys/orders"))
        .await
        .unwrap();
    let two = Decrypting::begin(&mut web, Default::default(), sealed.clone())
        .await
        .unwrap();
    let mut other = broker.caller(WEB).await;
    let three = Encrypting::begin(&mut other, encrypt_start("keys/orders")).await;
    let refusal = Refusal::of(&three.err().unwrap());
    assert_eq!(refusal.code, Code::ResourceExhausted);
    assert_eq!(refusal.reason, "OVERLOADED");
    web.encrypt(encrypt("keys/orders", "x")).await.unwrap();
    assert_eq!(two.finish().await.whole(), b"x");
    let three = Encrypting::begin(&mut other, encrypt_start("keys/orders"))
        .await
        .unwrap();
    one.finish().await.whole();
    three.finish().await.whole();
}

#[tokio::test]
async fn a_stream_ends_at_its_clients_deadline_and_not_at_a_calls() {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    let limit = Some(Duration::from_millis(700));
    let began = Instant::now();
    let start = encrypt_start("keys/orders");
    let mut open = Encrypting::begin_within(&mut web, start, limit)
        .await
        .unwrap();
    // Busy or not.
    while began.elapsed() < Duration::from_millis(300) {
        assert!(open.send(text(10)).await);
    }
    let refusal = Refusal::of(&open.rest().await.ended.unwrap_err());
    assert_eq!(refusal.code, Code::DeadlineExceeded);
    assert_eq!(refusal.reason, "DEADLINE_EXCEEDED");
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(600), "{took:?}");
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[tokio::test]
async fn a_stream_that_stands_still_ends() {
    let broker = Broker::start()
        .with(|setup| setup.limits.deadlines.stall = Duration::from_millis(300))
        .await;
    let mut web = broker.caller(WEB).await;
    let mut open = Encrypting::begin(&mut web, encrypt_start("keys/orders"))
        .await
        .unwrap();
    let refusal = Refusal::of(&open.rest().await.ended.unwrap_err());
    assert_eq!(refusal.code, Code::DeadlineExceeded);
    assert!(refusal.message.contains("moved"), "{}", refusal.message);

    // A reader that stalls: all windows fill, and then nothing moves.
    let open = Encrypting::begin(&mut web, encrypt_start("keys/orders"))
        .await
        .unwrap();
    broker.trail.reached(3).await;
    let sending = tokio::spawn(async move { while open.send(text(1 << 20)).await {} });
    broker.trail.reached(4).await;
    let records = broker.records();
    assert_eq!(records[3]["errorCode"], "DEADLINE_EXCEEDED");
    let taken = records[3]["requestParameters"]["plaintextBytes"]
        .as_u64()
        .unwrap();
    assert!(taken < 16 << 20, "{taken}");
    sending.abort();
    web.encrypt(encrypt("keys/orders", "x")).await.unwrap();
}

#[tokio::test]
async fn an_old_connection_waits_for_its_streams() {
    let broker = Broker::start()
        .with(|setup| {
            setup.limits.connection_age = SignedDuration::from_millis(100);
            setup.limits.deadlines.grace = Duration::from_millis(100);
        })
        .await;
    let connection = broker.connect(&broker.authority.client(WEB)).await.unwrap();
    let mut web = connection.client();
    let open = Encrypting::begin(&mut web, encrypt_start("keys/orders"))
        .await
        .unwrap();
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(800) {
        assert!(open.send(text(10)).await);
    }
    open.finish().await.whole();
    let _ = crate::harness::soon(connection.ended).await.unwrap();
}

#[tokio::test]
async fn an_old_connection_does_not_wait_for_ever() {
    let broker = Broker::start()
        .with(|setup| {
            setup.limits.connection_age = SignedDuration::from_millis(100);
            setup.limits.deadlines.grace = Duration::from_millis(100);
            setup.limits.deadlines.stream_grace = Duration::from_millis(300);
        })
        .await;
    let mut web = broker.caller(WEB).await;
    let mut open = Encrypting::begin(&mut web, encrypt_start("keys/orders"))
        .await
        .unwrap();
    open.rest().await.ended.unwrap_err();
    broker.trail.reached(2).await;
    assert_eq!(broker.records()[1]["errorCode"], "ABANDONED");
}
