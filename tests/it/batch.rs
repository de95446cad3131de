//! Batches: each item as if it had come alone, and one reservation, one KMS call and one record
//! where one will do.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use keybroker::datakeys::Scope;
use keybroker::grpc::MAX_BATCH;
use keybroker::grpc::pb;
use keybroker::grpc::pb::decrypt_batch_result;
use keybroker::grpc::pb::encrypt_batch_result;
use keybroker::kms;
use keybroker::message::Message;
use prost::Message as _;
use serde_json::Value;
use serde_json::json;
use tonic::IntoRequest as _;
use tonic::Status;
use tonic_types::StatusExt as _;

use crate::harness::Broker;
use crate::harness::Client;
use crate::harness::GLOBEX;
use crate::harness::Refusal;
use crate::harness::TENANTS;
use crate::harness::WEB;
use crate::harness::framed;
use crate::harness::reason;
use crate::harness::rpcs::decrypt;
use crate::harness::rpcs::encrypt;
use crate::harness::rpcs::identified;
use crate::harness::rpcs::pairs;
use crate::harness::rpcs::seal;
use crate::harness::rpcs::unary;
use crate::harness::soon;

/// The outcomes of a batch to encrypt, those that failed as unary calls fail.
async fn encrypt_all(
    client: &mut Client,
    items: Vec<pb::EncryptRequest>,
) -> Result<Vec<Result<pb::EncryptResponse, Status>>, Status> {
    let request = identified(pb::EncryptBatchRequest { items });
    let answer = client.encrypt_batch(request).await?;
    let metadata = answer.metadata().clone();
    let results = answer.into_inner().results.into_iter();
    Ok(results
        .map(|result| match result.outcome.unwrap() {
            encrypt_batch_result::Outcome::Response(response) => Ok(response),
            encrypt_batch_result::Outcome::Status(status) => Err(unary(&status, metadata.clone())),
        })
        .collect())
}

/// As [`encrypt_all`], to decrypt.
async fn decrypt_all(
    client: &mut Client,
    items: Vec<pb::DecryptRequest>,
) -> Result<Vec<Result<pb::DecryptResponse, Status>>, Status> {
    let request = identified(pb::DecryptBatchRequest { items });
    let answer = client.decrypt_batch(request).await?;
    let metadata = answer.metadata().clone();
    let results = answer.into_inner().results.into_iter();
    Ok(results
        .map(|result| match result.outcome.unwrap() {
            decrypt_batch_result::Outcome::Response(response) => Ok(response),
            decrypt_batch_result::Outcome::Status(status) => Err(unary(&status, metadata.clone())),
        })
        .collect())
}

/// The messages of a batch in which every item was served.
async fn sealed(client: &mut Client, items: Vec<pb::EncryptRequest>) -> Vec<Bytes> {
    let outcomes = encrypt_all(client, items).await.unwrap();
    let ciphertexts = outcomes.into_iter().map(|one| one.unwrap().ciphertext);
    ciphertexts.collect()
}

fn reasons<T>(outcomes: &[Result<T, Status>]) -> Vec<String> {
    let reason = |outcome: &Result<T, Status>| match outcome {
        Ok(_) => "served".to_owned(),
        Err(status) => Refusal::of(status).reason,
    };
    outcomes.iter().map(reason).collect()
}

/// What a client sees of an error, but for the trailer that only a call of its own can carry.
fn seen(status: &Status) -> (Refusal, HashMap<String, String>, Option<String>) {
    let details = status.get_error_details();
    let refusal = Refusal {
        pushback: None,
        ..Refusal::of(status)
    };
    let metadata = details.error_info().unwrap().metadata.clone();
    let request = details.request_info();
    (
        refusal,
        metadata,
        request.map(|info| info.request_id.clone()),
    )
}

/// How many messages each data key sealed.
fn uses(messages: &[Bytes]) -> Vec<usize> {
    let mut uses: BTreeMap<Vec<u8>, usize> = BTreeMap::new();
    for message in messages {
        let message = Message::parse(message).unwrap();
        let [wrapped] = message.encrypted_data_keys() else {
            panic!("one data key wraps");
        };
        *uses.entry(wrapped.ciphertext.clone()).or_default() += 1;
    }
    uses.into_values().collect()
}

fn tenants_with(cache: &str) -> String {
    let line = "kms = \"local:acme-orders\"";
    let tenants = TENANTS.replace(line, &format!("{line}\ncache = {{ {cache} }}"));
    assert_ne!(tenants, TENANTS);
    tenants
}

#[tokio::test]
async fn batches_of_any_size_come_back_in_order_for_one_kms_call() {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    for count in [1, 2, 999, 1000] {
        let plaintexts: Vec<Bytes> = (0..count)
            .map(|n: usize| vec![n as u8; 1 + n % 700].into())
            .collect();
        let items = plaintexts.iter().enumerate().map(|(n, plaintext)| {
            let associated_data = format!("record {n}").into();
            pb::EncryptRequest {
                associated_data,
                plaintext_crc32c: Some(crc32c::crc32c(plaintext)),
                ..encrypt("keys/orders", plaintext.clone())
            }
        });
        let answers = encrypt_all(&mut web, items.collect()).await.unwrap();
        let items = answers.into_iter().enumerate().map(|(n, answer)| {
            let answer = answer.unwrap();
            assert_eq!(answer.name, "tenants/acme/keys/orders");
            assert!(answer.verified_plaintext_crc32c);
            pb::DecryptRequest {
                associated_data: format!("record {n}").into(),
                ciphertext_crc32c: Some(answer.ciphertext_crc32c),
                ..decrypt(&answer.ciphertext)
            }
        });
        let opened = decrypt_all(&mut web, items.collect()).await.unwrap();
        let opened: Vec<Bytes> = opened
            .into_iter()
            .map(|answer| answer.unwrap().plaintext)
            .collect();
        assert_eq!(opened, plaintexts);
    }
    assert_eq!(broker.kms_calls(), 1);
    // What another process sealed is unwrapped once for all.
    let messages = sealed(&mut web, vec![encrypt("keys/orders", "x"); 1000]).await;
    broker.inner().data_keys().purge(&Scope::All).await;
    let items = messages.iter().map(decrypt).collect();
    let opened = decrypt_all(&mut web, items).await.unwrap();
    assert!(opened.iter().all(Result::is_ok));
    assert_eq!(broker.kms_calls(), 2);
}

#[tokio::test]
async fn a_batch_counts_as_many_look_ups_as_it_has_items() {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    sealed(&mut web, vec![encrypt("keys/orders", "x"); 10]).await;
    sealed(&mut web, vec![encrypt("keys/orders", "x"); 5]).await;
    let stats = broker.inner().data_keys().stats();
    assert_eq!((stats.misses, stats.coalesced, stats.hits), (1, 9, 5));
    assert_eq!(broker.metrics.avoided(), 14);
}

#[tokio::test]
async fn another_number_of_items_fails_as_a_whole() {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    for count in [0, 1001, 5000] {
        let items = vec![encrypt("keys/orders", "x"); count];
        let refused = encrypt_all(&mut web, items).await.unwrap_err();
        let refusal = Refusal::of(&refused);
        assert_eq!(refusal.reason, "FIELD_INVALID", "{count}");
        assert_eq!(refusal.fields, ["items"], "{count}");
        let items = vec![decrypt(&Bytes::from_static(b"x")); count];
        let refused = decrypt_all(&mut web, items).await;
        assert_eq!(reason(refused), "FIELD_INVALID", "{count}");
    }
    assert_eq!(broker.kms_calls(), 0);
    assert_eq!(broker.records().len(), 6);
}

#[tokio::test]
async fn four_mebibytes_are_read_and_one_byte_more_is_not() {
    let broker = Broker::start().await;
    let connection = broker.connect(&broker.authority.client(WEB)).await.unwrap();
    let path = "/keybroker.v1.KeyBrokerService/EncryptBatch";
    let items = vec![encrypt("keys/orders", "x")];
    let good = pb::EncryptBatchRequest { items }.encode_to_vec();
    for (length, reason) in [(MAX_BATCH, ""), (MAX_BATCH + 1, "MESSAGE_TOO_LARGE")] {
        // An unknown field of the right length, which decoders skip.
        let mut message = good.clone();
        let rest = length - message.len() - 2 - 4;
        message.extend_from_slice(&[0xfa, 0x01]);
        prost::encode_length_delimiter(rest, &mut message).unwrap();
        message.resize(message.len() + rest, 0);
        assert_eq!(message.len(), length);
        let answer = connection.wire.send(path, &[], framed(&message)).await;
        assert_eq!(Refusal::of(&answer.status).reason, reason);
        if !reason.is_empty() {
            assert!(answer.status.message().contains("4194304"));
        }
    }
}

#[tokio::test]
async fn an_item_fails_alone_and_as_a_call_of_its_own() {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    let long = vec![0; (32 << 10) + 1];
    let items = vec![
        encrypt("keys/orders", "first"),
        encrypt("tenants/globex/keys/orders", "x"),
        encrypt("keys/absent", "x"),
        encrypt("keys/locked", "x"),
        encrypt("no name", "x"),
        encrypt("keys/orders", ""),
        encrypt("keys/orders", vec![0; (1 << 20) + 1]),
        pb::EncryptRequest {
            plaintext_crc32c: Some(1),
            ..encrypt("keys/orders", "x")
        },
        pb::EncryptRequest {
            encryption_context: pairs([("keybroker:tenant", "globex")]),
            ..encrypt("keys/orders", "x")
        },
        pb::EncryptRequest {
            associated_data: long.clone().into(),
            ..encrypt("keys/orders", "x")
        },
        encrypt("keys/invoices", "last"),
    ];
    let outcomes = encrypt_all(&mut web, items.clone()).await.unwrap();
    assert_eq!(
        reasons(&outcomes),
        [
            "served",
            "POLICY_DENIED",
            "POLICY_DENIED",
            "POLICY_DENIED",
            "FIELD_INVALID",
            "FIELD_INVALID",
            "PLAINTEXT_TOO_LARGE",
            "CHECKSUM_MISMATCH",
            "CONTEXT_INVALID",
            "FIELD_INVALID",
            "served",
        ]
    );
    for (item, outcome) in items.into_iter().zip(&outcomes) {
        let alone = web.encrypt(identified(item)).await;
        if let Err(status) = outcome {
            assert_eq!(seen(status), seen(&alone.unwrap_err()));
        }
    }

    let own = seal(&mut web, "keys/orders", "own").await;
    let other = seal(&mut web, "keys/invoices", "other").await;
    let mut globex = broker.caller(GLOBEX).await;
    let foreign = seal(&mut globex, "keys/orders", "foreign").await;
    let mut bent = own.to_vec();
    *bent.last_mut().unwrap() ^= 1;
    let named = |name: &str, ciphertext: &Bytes| pb::DecryptRequest {
        name: name.into(),
        ..decrypt(ciphertext)
    };
    let items = vec![
        decrypt(&own),
        decrypt(&foreign),
        named("tenants/globex/keys/orders", &foreign),
        named("keys/absent", &own),
        named("keys/invoices", &own),
        named("no name", &own),
        decrypt(&bent.into()),
        decrypt(&own.slice(..own.len() - 1)),
        decrypt(&Bytes::from_static(b"no message")),
        named("keys/absent", &Bytes::from_static(b"no message")),
        decrypt(&Bytes::new()),
        pb::DecryptRequest {
            ciphertext_crc32c: Some(1),
            ..decrypt(&own)
        },
        pb::DecryptRequest {
            associated_data: "other".into(),
            ..decrypt(&own)
        },
        pb::DecryptRequest {
            encryption_context: pairs([("other", "pair")]),
            ..decrypt(&own)
        },
        named("keys/invoices", &other),
    ];
    let outcomes = decrypt_all(&mut web, items.clone()).await.unwrap();
    for (place, (item, outcome)) in items.into_iter().zip(&outcomes).enumerate() {
        let alone = web.decrypt(identified(item)).await;
        match (outcome, alone) {
            (Ok(opened), Ok(alone)) => assert_eq!(*opened, alone.into_inner(), "{place}"),
            (Err(status), Err(alone)) => assert_eq!(seen(status), seen(&alone), "{place}"),
            (outcome, alone) => panic!("{place}: {outcome:?} and alone {alone:?}"),
        }
    }
    let served: Vec<usize> = (0..outcomes.len())
        .filter(|n| outcomes[*n].is_ok())
        .collect();
    assert_eq!(served, [0, 14]);
}

#[tokio::test]
async fn a_limit_below_the_batch_has_the_key_replaced_in_between() {
    let tenants = tenants_with("max_messages = 300, max_bytes = 2000");
    let broker = Broker::start().with(|setup| setup.tenants = tenants).await;
    let mut web = broker.caller(WEB).await;
    let messages = sealed(&mut web, vec![encrypt("keys/orders", "x"); 1000]).await;
    let mut spread = uses(&messages);
    spread.sort_unstable();
    assert_eq!(spread, [100, 300, 300, 300]);
    assert_eq!(broker.kms_calls(), 4);
    // Bytes bind likewise, and what no data key has room for has one of its own.
    let mut items = vec![encrypt("keys/orders", vec![0; 900]); 5];
    items.insert(1, encrypt("keys/orders", vec![0; 2001]));
    let messages = sealed(&mut web, items).await;
    assert!(uses(&messages).into_iter().all(|count| count <= 2));
    let items = messages.iter().map(decrypt).collect();
    let opened = decrypt_all(&mut web, items).await.unwrap();
    assert!(opened.iter().all(Result::is_ok));
}

#[tokio::test]
async fn batches_at_once_keep_the_limit_together() {
    let tenants = tenants_with("max_messages = 70");
    let broker = Broker::start().with(|setup| setup.tenants = tenants).await;
    let web = broker.caller(WEB).await;
    let batches = (0..8).map(|_| {
        let mut web = web.clone();
        tokio::spawn(async move { sealed(&mut web, vec![encrypt("keys/orders", "x"); 100]).await })
    });
    let mut messages = Vec::new();
    for batch in batches.collect::<Vec<_>>() {
        messages.extend(batch.await.unwrap());
    }
    assert_eq!(messages.len(), 800);
    assert!(uses(&messages).into_iter().all(|count| count <= 70));
}

#[tokio::test]
async fn a_failure_of_kms_concerns_its_own_context_alone() {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    broker.kms.rule(|call| match call.context.value("table") {
        Some("7") => Err(kms::Error::Unavailable("gone".into())),
        _ => Ok(()),
    });
    let item = |n: usize| pb::EncryptRequest {
        encryption_context: pairs([("table", &(n % 40).to_string())]),
        ..encrypt("keys/orders", n.to_string())
    };
    let outcomes = encrypt_all(&mut web, (0..200).map(item).collect())
        .await
        .unwrap();
    for (n, outcome) in outcomes.iter().enumerate() {
        match outcome {
            Ok(_) => assert_ne!(n % 40, 7),
            Err(status) => {
                assert_eq!(n % 40, 7);
                assert_eq!(Refusal::of(status).reason, "KMS_UNAVAILABLE");
            }
        }
    }
    assert_eq!(broker.kms_calls(), 40, "one for each context");
}

#[tokio::test]
async fn contexts_that_miss_wait_for_kms_together() {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    let held = broker.kms.hold().await;
    let item = |n: usize| pb::EncryptRequest {
        encryption_context: pairs([("table", &n.to_string())]),
        ..encrypt("keys/orders", "x")
    };
    let items = (0..20).map(item).collect();
    let batch = tokio::spawn(async move { encrypt_all(&mut web, items).await });
    broker.kms.reached(16).await;
    drop(held);
    let outcomes = soon(batch).await.unwrap().unwrap();
    assert!(outcomes.iter().all(Result::is_ok));
}

#[tokio::test]
async fn what_is_not_ready_at_the_deadline_fails_the_call() {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    seal(&mut web, "keys/orders", "x").await;
    let _held = broker.kms.hold().await;
    let items = vec![encrypt("keys/orders", "x"), encrypt("keys/invoices", "x")];
    let mut request = pb::EncryptBatchRequest { items }.into_request();
    request.set_timeout(Duration::from_millis(200));
    let refused = soon(web.encrypt_batch(request)).await;
    assert_eq!(reason(refused), "DEADLINE_EXCEEDED");
    let record = &broker.records()[1];
    assert_eq!(record["errorCode"], "DEADLINE_EXCEEDED");
    assert_eq!(record["requestParameters"]["items"], 2);
}

#[tokio::test]
async fn a_purge_in_between_has_a_batch_ask_again_and_a_denial_ends_its_items() {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    let held = broker.kms.hold().await;
    let items = vec![encrypt("keys/orders", "x"); 10];
    let mut second = web.clone();
    let batch = tokio::spawn(async move { encrypt_all(&mut second, items).await });
    broker.kms.reached(1).await;
    broker.inner().data_keys().purge(&Scope::All).await;
    drop(held);
    let outcomes = soon(batch).await.unwrap().unwrap();
    assert!(outcomes.iter().all(Result::is_ok));
    assert_eq!(broker.kms_calls(), 2, "what was on its way serves nobody");

    broker.inner().data_keys().purge(&Scope::All).await;
    broker.kms.rule(|call| match call.key.as_str() {
        "local:acme-orders" => Err(kms::Error::Disabled),
        _ => Ok(()),
    });
    let items = vec![encrypt("keys/orders", "x"), encrypt("keys/invoices", "x")];
    let outcomes = encrypt_all(&mut web, items).await.unwrap();
    assert_eq!(reasons(&outcomes), ["KEY_DISABLED", "served"]);
}

#[tokio::test]
async fn one_record_counts_items_by_key_and_outcome() {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    let with_context = pb::EncryptRequest {
        encryption_context: pairs([("table", "users")]),
        ..encrypt("keys/orders", "four")
    };
    let items = vec![
        encrypt("keys/orders", "one"),
        encrypt("tenants/globex/keys/orders", "x"),
        with_context,
        encrypt("keys/invoices", "x"),
        encrypt("tenants/globex/keys/orders", "x"),
        encrypt("no name", "x"),
    ];
    encrypt_all(&mut web, items).await.unwrap();
    let [record] = broker.records().try_into().unwrap();
    assert_eq!(record["eventName"], "EncryptBatch");
    assert_eq!(record["errorCode"], Value::Null);
    assert_eq!(record["tenant"], "acme");
    assert_eq!(
        record["requestParameters"],
        json!({
            "key": null,
            "encryptionContextKeys": ["table"],
            "plaintextBytes": 8,
            "items": 6,
        })
    );
    assert_eq!(
        record["additionalEventData"]["items"],
        json!([
            {"key": "tenants/acme/keys/orders", "outcome": "served", "count": 2},
            {"key": "tenants/globex/keys/orders", "outcome": "POLICY_DENIED", "count": 2},
            {"key": "tenants/acme/keys/invoices", "outcome": "served", "count": 1},
            {"key": null, "outcome": "FIELD_INVALID", "count": 1},
        ])
    );
    assert_eq!(record["additionalEventData"]["cache"], "miss");
    assert_eq!(record["resources"].as_array().unwrap().len(), 2);
    seal(&mut web, "keys/orders", "x").await;
    let unary = &broker.records()[1];
    assert_eq!(unary["requestParameters"].get("items"), None);
    assert_eq!(unary["additionalEventData"].get("items"), None);
}

#[tokio::test]
async fn a_batch_of_one_key_is_recorded_like_a_call_with_that_key() {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    let messages = sealed(&mut web, vec![encrypt("keys/orders", "x"); 3]).await;
    let items = messages.iter().map(decrypt).collect();
    decrypt_all(&mut web, items).await.unwrap();
    for (record, cache) in broker.records().iter().zip(["miss", "hit"]) {
        assert_eq!(
            record["requestParameters"]["key"],
            "tenants/acme/keys/orders"
        );
        assert_eq!(record["additionalEventData"]["rule"], "users");
        assert_eq!(record["additionalEventData"]["cache"], cache);
        assert_eq!(record["requestParameters"]["plaintextBytes"], 3);
    }
}

/// A request within its limit whose items take more room sealed.
fn swelling() -> Vec<pb::EncryptRequest> {
    vec![encrypt("keys/orders", vec![7; 4140]); 1000]
}

/// The status of the first item that has no room.
pub async fn response_too_large() -> Status {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    let outcomes = encrypt_all(&mut web, swelling()).await.unwrap();
    outcomes.into_iter().find_map(Result::err).unwrap()
}

#[tokio::test]
async fn items_without_room_in_the_answer_say_so_and_the_others_are_served() {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    let items = swelling();
    let request = pb::EncryptBatchRequest {
        items: items.clone(),
    };
    assert!(request.encoded_len() <= MAX_BATCH);
    let answer = web.encrypt_batch(request).await.unwrap().into_inner();
    assert!(
        answer.encoded_len() <= MAX_BATCH,
        "{}",
        answer.encoded_len()
    );
    let served = answer.results.iter().take_while(|result| {
        let outcome = result.outcome.as_ref().unwrap();
        matches!(outcome, encrypt_batch_result::Outcome::Response(_))
    });
    let served = served.count();
    assert!((900..1000).contains(&served), "{served}");
    let [record] = broker.records().try_into().unwrap();
    let key = "tenants/acme/keys/orders";
    assert_eq!(
        record["additionalEventData"]["items"],
        json!([
            {"key": key, "outcome": "served", "count": served},
            {"key": key, "outcome": "RESPONSE_TOO_LARGE", "count": 1000 - served},
        ])
    );
    // Another call takes them.
    let rest = items.into_iter().skip(served).collect();
    let outcomes = encrypt_all(&mut web, rest).await.unwrap();
    assert!(outcomes.iter().all(Result::is_ok));
}
