//! What streams make and take is what the other RPCs take and make, and nothing unverified leaves.

use bytes::Bytes;
use keybroker::grpc::pb;
use tonic::Code;

use super::Decrypting;
use super::Encrypting;
use super::Outcome;
use super::cut;
use super::declared;
use super::decrypt_whole;
use super::encrypt_whole;
use super::text;
use crate::harness::Broker;
use crate::harness::Client;
use crate::harness::Refusal;
use crate::harness::WEB;
use crate::harness::reason;
use crate::harness::rpcs::decrypt;
use crate::harness::rpcs::encrypt;
use crate::harness::rpcs::encrypt_start;
use crate::harness::rpcs::pairs;

const ORDERS: &str = "tenants/acme/keys/orders";

#[tokio::test]
async fn every_size_in_every_cut_is_read_by_stream_and_by_call() {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    for size in [
        0,
        1,
        4095,
        4096,
        4097,
        65_535,
        65_536,
        65_537,
        (1 << 20) + 1,
    ] {
        let plaintext = text(size);
        for length in [1, 4095, 4096, 4097, 65_536, 1 << 20] {
            if size / length > 300 {
                continue;
            }
            let start = declared(size as u64);
            let sealed = encrypt_whole(&mut web, start, &plaintext, length).await;
            assert!(sealed.chunks.iter().all(|chunk| *chunk <= 66 << 10));
            let sealed = Bytes::from(sealed.whole());
            let opened = web.decrypt(decrypt(&sealed)).await.unwrap();
            assert!(
                opened.into_inner().plaintext == plaintext,
                "{size} by {length}"
            );
            let opened = decrypt_whole(&mut web, Default::default(), &sealed, length).await;
            assert!(opened.chunks.iter().all(|chunk| *chunk <= 66 << 10));
            assert!(opened.whole() == plaintext, "{size} by {length}");
        }
        if (1..=1 << 20).contains(&size) {
            let sealed = web.encrypt(encrypt("keys/orders", plaintext.clone())).await;
            let sealed = sealed.unwrap().into_inner().ciphertext;
            let opened = decrypt_whole(&mut web, Default::default(), &sealed, 10_000).await;
            assert!(opened.whole() == plaintext);
        }
    }
}

#[tokio::test]
async fn a_stream_beyond_any_call_comes_back() {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    let plaintext = text(10 << 20);
    let sealed = encrypt_whole(&mut web, encrypt_start("keys/orders"), &plaintext, 1 << 20).await;
    let sealed = Bytes::from(sealed.whole());
    let opened = decrypt_whole(&mut web, Default::default(), &sealed, 1 << 20).await;
    assert!(opened.whole() == plaintext);
}

#[tokio::test]
async fn a_stream_says_what_it_is_sealed_with_and_takes_the_same_again() {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    let data = Bytes::from_static(b"record-42");
    let start = pb::EncryptStreamStart {
        encryption_context: pairs([("table", "users")]),
        associated_data_crc32c: Some(crc32c::crc32c(&data)),
        associated_data: data.clone(),
        ..encrypt_start("keys/orders")
    };
    let sealed = encrypt_whole(&mut web, start, &text(5000), 999).await;
    let started = pb::EncryptStreamStarted {
        name: ORDERS.into(),
        key_version: format!("{ORDERS}/versions/1"),
        verified_associated_data_crc32c: true,
    };
    assert_eq!(sealed.start, Some(started));
    let sealed = Bytes::from(sealed.whole());

    let start = pb::DecryptStreamStart {
        name: ORDERS.into(),
        encryption_context: pairs([("table", "users")]),
        associated_data: data,
        ..Default::default()
    };
    let opened = decrypt_whole(&mut web, start.clone(), &sealed, 999).await;
    let started = pb::DecryptStreamStarted {
        name: ORDERS.into(),
        key_version: format!("{ORDERS}/versions/1"),
        used_primary: true,
        verified_associated_data_crc32c: false,
    };
    assert_eq!(opened.start, Some(started));
    assert_eq!(opened.whole(), text(5000));

    let others = [
        pb::DecryptStreamStart {
            associated_data: Bytes::new(),
            ..start.clone()
        },
        pb::DecryptStreamStart {
            encryption_context: Default::default(),
            ..start.clone()
        },
        pb::DecryptStreamStart {
            name: "keys/invoices".into(),
            ..start
        },
    ];
    for other in others {
        let opened = decrypt_whole(&mut web, other, &sealed, 999).await;
        assert!(opened.start.is_none() && opened.bytes.is_empty());
        assert_eq!(reason(opened.ended), "CIPHERTEXT_INVALID");
    }
}

/// What a message that does not open must end in, whatever is wrong with it.
fn refused(opened: &Outcome<pb::DecryptStreamStarted>, expected: &Refusal, plaintext: &Bytes) {
    let refusal = Refusal::of(opened.ended.as_ref().unwrap_err());
    assert_eq!(refusal, *expected);
    assert!(plaintext.starts_with(&opened.bytes));
    let whole = opened.bytes.len().is_multiple_of(4096) || opened.bytes.len() == plaintext.len();
    assert!(whole, "{} bytes of frames", opened.bytes.len());
}

#[tokio::test]
async fn a_message_that_was_changed_ends_as_in_a_call_and_releases_whole_frames_alone() {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    let plaintext = text(3 * 4096 + 100);
    let sealed = encrypt_whole(&mut web, encrypt_start("keys/orders"), &plaintext, 4096).await;
    let sealed = Bytes::from(sealed.whole());
    let none = Bytes::from_static(b"no message");
    let expected = Refusal::of(&web.decrypt(decrypt(&none)).await.unwrap_err());
    assert_eq!(expected.reason, "CIPHERTEXT_INVALID");

    let check = async |web: &mut Client, message: Vec<u8>| {
        for length in [500, 4096, 1 << 20] {
            let message = Bytes::from(message.clone());
            let opened = decrypt_whole(web, Default::default(), &message, length).await;
            refused(&opened, &expected, &plaintext);
        }
    };
    let body = sealed.len() - (plaintext.len() + 3 * 32 + 40);
    for at in (body..sealed.len()).step_by(301).chain([sealed.len() - 1]) {
        let mut changed = sealed.to_vec();
        changed[at] ^= 1;
        check(&mut web, changed).await;
    }
    for length in [
        1,
        2,
        100,
        body - 1,
        body,
        body + 1,
        body + 4128,
        sealed.len() - 1,
    ] {
        check(&mut web, sealed[..length].to_vec()).await;
    }
    check(&mut web, Vec::new()).await;
    check(&mut web, [&sealed[..], b"!"].concat()).await;
    check(&mut web, [&sealed[..], &sealed[..]].concat()).await;
    let (header, frames) = sealed.split_at(body);
    let frames = cut(&Bytes::copy_from_slice(frames), 4128);
    check(
        &mut web,
        [header, &frames[1], &frames[0], &frames[2], &frames[3]].concat(),
    )
    .await;
    check(
        &mut web,
        [header, &frames[0], &frames[0], &frames[1]].concat(),
    )
    .await;
    check(&mut web, [header, &frames[0], &frames[3]].concat()).await;
}

#[tokio::test]
async fn a_header_that_was_changed_gives_no_start() {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    let sealed = encrypt_whole(&mut web, encrypt_start("keys/orders"), &text(10), 10).await;
    let sealed = sealed.whole();
    let header = sealed.len() - 50;
    for at in 0..header {
        let mut changed = sealed.clone();
        changed[at] ^= 1;
        let start = pb::DecryptStreamStart {
            name: ORDERS.into(),
            ..Default::default()
        };
        let opened = decrypt_whole(&mut web, start, &changed.into(), 1 << 20).await;
        assert!(opened.start.is_none(), "byte {at}");
        assert_eq!(reason(opened.ended), "CIPHERTEXT_INVALID", "byte {at}");
    }
}

#[tokio::test]
async fn frames_come_as_soon_as_they_are_certain() {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    let mut sealing = Encrypting::begin(&mut web, encrypt_start("keys/orders"))
        .await
        .unwrap();
    let start = sealing.answers.message().await.unwrap().unwrap();
    assert!(start.part.is_some());
    let header = sealing.chunk().await;
    // One byte more than a frame.
    sealing.send(text(4097)).await;
    let frame = sealing.chunk().await;
    assert_eq!(frame.len(), 4096 + 32);

    let mut opening = Decrypting::begin(&mut web, Default::default(), header)
        .await
        .unwrap();
    opening.answers.message().await.unwrap().unwrap();
    opening.send(frame).await;
    assert_eq!(opening.chunk().await, text(4096));
    let last = sealing.finish().await.whole();
    opening.send(last).await;
    assert_eq!(opening.finish().await.whole(), text(4097)[4096..]);
}

impl Encrypting {
    /// The next chunk.
    async fn chunk(&mut self) -> Bytes {
        use pb::encrypt_stream_response::Part;
        match self.answers.message().await.unwrap().unwrap().part {
            Some(Part::Chunk(chunk)) => chunk.ciphertext,
            Some(Part::Start(_)) | None => panic!("no chunk"),
        }
    }
}

impl Decrypting {
    /// The next chunk.
    async fn chunk(&mut self) -> Bytes {
        use pb::decrypt_stream_response::Part;
        match self.answers.message().await.unwrap().unwrap().part {
            Some(Part::Chunk(chunk)) => chunk.plaintext,
            Some(Part::Start(_)) | None => panic!("no chunk"),
        }
    }
}

#[tokio::test]
async fn messages_out_of_order_and_checksums_that_differ_end_a_stream() {
    use pb::encrypt_stream_request::Part;
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    let start = || Part::Start(encrypt_start("keys/orders"));
    let chunk = |sum| {
        Part::Chunk(pb::EncryptStreamChunk {
            plaintext: text(10),
            plaintext_crc32c: sum,
        })
    };
    let good = Some(crc32c::crc32c(&text(10)));
    let summed = Part::Start(pb::EncryptStreamStart {
        associated_data: text(10),
        associated_data_crc32c: Some(1),
        ..encrypt_start("keys/orders")
    });
    let cases: [(&str, &str, Vec<Option<Part>>); 7] = [
        ("FIELD_INVALID", "start", vec![]),
        ("FIELD_INVALID", "start", vec![None]),
        ("FIELD_INVALID", "start", vec![Some(chunk(good))]),
        ("FIELD_INVALID", "chunk", vec![Some(start()), Some(start())]),
        (
            "FIELD_INVALID",
            "chunk",
            vec![Some(start()), Some(chunk(good)), None],
        ),
        (
            "CHECKSUM_MISMATCH",
            "plaintext",
            vec![Some(start()), Some(chunk(Some(1)))],
        ),
        ("CHECKSUM_MISMATCH", "associated_data", vec![Some(summed)]),
    ];
    for (reason, field, parts) in cases {
        let requests: Vec<_> = parts
            .into_iter()
            .map(|part| pb::EncryptStreamRequest { part })
            .collect();
        let requests = futures_util::stream::iter(requests);
        let outcome = match web.encrypt_stream(requests).await {
            Ok(answers) => {
                let open = Encrypting {
                    requests: None,
                    answers: answers.into_inner(),
                };
                open.finish().await
            }
            Err(status) => Outcome::refused(status),
        };
        let refusal = Refusal::of(&outcome.ended.unwrap_err());
        assert_eq!(refusal.code, Code::InvalidArgument);
        assert_eq!(
            (refusal.reason.as_str(), &*refusal.fields),
            (reason, &[field.to_owned()][..])
        );
    }
}
