//! Exactly one record a call, whatever becomes of it; and nothing secret in any of them.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use keybroker::datakeys::Scope;
use keybroker::grpc::pb;
use keybroker::kms;
use serde_json::Value;
use serde_json::json;
use tonic::IntoRequest as _;

use crate::harness::Broker;
use crate::harness::GLOBEX;
use crate::harness::Refusal;
use crate::harness::TENANTS;
use crate::harness::WEB;
use crate::harness::reason;
use crate::harness::rpcs;
use crate::harness::rpcs::decrypt;
use crate::harness::rpcs::encrypt;
use crate::harness::rpcs::pairs;
use crate::harness::rpcs::seal;

#[tokio::test]
async fn a_record_says_who_did_what_with_which_key() {
    let broker = Broker::start().await;
    let identity = broker.authority.client(WEB);
    let mut web = broker.client(&identity).await;
    let mut request = pb::EncryptRequest {
        encryption_context: pairs([("table", "users")]),
        ..encrypt("keys/orders", "hello")
    }
    .into_request();
    let headers = request.metadata_mut();
    headers.insert("user-agent", "tests/1".parse().unwrap());
    headers.insert("x-request-id", "request 1".parse().unwrap());
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    headers.insert("traceparent", trace.parse().unwrap());
    web.encrypt(request).await.unwrap();

    let [record] = broker.records().try_into().unwrap();
    let took = record["additionalEventData"]["durationMicros"].as_i64();
    assert!(took.unwrap() > 0);
    let time: Timestamp = record["eventTime"].as_str().unwrap().parse().unwrap();
    assert!(Timestamp::now().duration_since(time).as_secs() < 60);
    let end = record["userIdentity"]["sessionContext"]["notAfter"].clone();
    assert!(end.as_str().unwrap().parse::<Timestamp>().unwrap() > Timestamp::now());
    let suite = record["tlsDetails"]["cipherSuite"].as_str().unwrap();
    assert!(IANA_SUITES.contains(&suite), "{suite}");
    assert_eq!(
        record,
        json!({
            "eventVersion": "1.0",
            "eventTime": record["eventTime"],
            "eventID": record["eventID"],
            "eventSource": "keybroker",
            "eventName": "Encrypt",
            "eventCategory": "Data",
            "readOnly": true,
            "userIdentity": {
                "type": "SPIFFE",
                "principalId": WEB,
                "authenticator": "x509-svid",
                "sessionContext": { "certSerial": identity.serial(), "notAfter": end },
            },
            "tenant": "acme",
            "sourceIPAddress": "127.0.0.1",
            "userAgent": record["userAgent"],
            "tlsDetails": { "tlsVersion": "TLSv1.3", "cipherSuite": record["tlsDetails"]["cipherSuite"] },
            "requestID": "request 1",
            "traceId": "0af7651916cd43dd8448eb211c80319c",
            "requestParameters": {
                "key": "tenants/acme/keys/orders",
                "encryptionContextKeys": ["table"],
                "plaintextBytes": 5,
            },
            "responseElements": null,
            "resources": [{
                "name": "tenants/acme/keys/orders/versions/1",
                "ARN": "fake/acme-orders/1",
                "type": "KMSKey",
            }],
            "additionalEventData": {
                "rule": "users",
                "grantId": null,
                "policyGeneration": 1,
                "cache": "miss",
                "kmsRequestID": "request-1",
                "durationMicros": took,
            },
            "errorCode": null,
            "errorMessage": null,
            "instance": record["instance"],
            "seq": 1,
            "hash": record["hash"],
        })
    );
}

#[tokio::test]
async fn every_rpc_leaves_one_record_of_its_name_and_a_stream_two() {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    let ciphertext = seal(&mut web, "keys/orders", "x").await;
    let mut expected = vec!["Encrypt".to_owned()];
    for rpc in rpcs::names() {
        rpcs::call(&mut web, &rpc, "keys/orders", &ciphertext)
            .await
            .unwrap();
        if rpc.ends_with("Stream") {
            expected.push(rpc.clone());
        }
        expected.push(rpc);
    }
    let records = broker.records();
    let names: Vec<_> = records
        .iter()
        .map(|record| record["eventName"].as_str().unwrap())
        .collect();
    assert_eq!(names, expected);
    // Behind the one that says that the process has started.
    for (record, number) in records.iter().zip(1..) {
        assert_eq!(record["seq"], number, "no gap shows that none is missing");
        assert_eq!(record["errorCode"], Value::Null);
    }
    let ids: BTreeSet<_> = records
        .iter()
        .map(|record| record["eventID"].as_str().unwrap())
        .collect();
    assert_eq!(ids.len(), records.len());
}

#[tokio::test]
async fn what_opens_is_on_record_with_key_and_data_key_whichever_way_it_is_opened() {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    let ciphertext = seal(&mut web, "keys/orders", "x").await;
    for rpc in ["Decrypt", "DecryptBatch", "DecryptStream"] {
        for name in ["", "keys/orders"] {
            broker.inner().data_keys().purge(&Scope::All).await;
            for cache in ["miss", "hit"] {
                let before = broker.records().len();
                rpcs::call(&mut web, rpc, name, &ciphertext).await.unwrap();
                let record = &broker.records()[before];
                let kms = (cache == "miss").then(|| format!("request-{}", broker.kms_calls()));
                assert_eq!(record["tenant"], "acme");
                let parameters = &record["requestParameters"];
                assert_eq!(parameters["key"], "tenants/acme/keys/orders", "{rpc}");
                let version = json!({
                    "name": "tenants/acme/keys/orders/versions/1",
                    "ARN": "fake/acme-orders/1",
                    "type": "KMSKey",
                });
                assert_eq!(record["resources"], json!([version]), "{rpc}");
                let more = &record["additionalEventData"];
                assert_eq!(more["rule"], "users", "{rpc}");
                assert_eq!(more["cache"], cache, "{rpc}");
                assert_eq!(more["kmsRequestID"], json!(kms), "{rpc}");
            }
        }
    }
}

#[tokio::test]
async fn a_denial_is_on_record_with_the_key_that_the_message_alone_names() {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    let acmes = seal(&mut web, "keys/orders", "x").await;
    let mut globex = broker.caller(GLOBEX).await;
    for (rpc, key) in [
        ("Decrypt", "/requestParameters/key"),
        ("DecryptBatch", "/additionalEventData/items/0/key"),
        ("DecryptStream", "/requestParameters/key"),
    ] {
        let refused = rpcs::call(&mut globex, rpc, "", &acmes).await;
        assert_eq!(reason(refused), "POLICY_DENIED", "{rpc}");
        let record = broker.records().pop().unwrap();
        let key = record.pointer(key).unwrap();
        assert_eq!(key, "tenants/acme/keys/orders", "{rpc}");
        assert_eq!(record["tenant"], "globex", "{rpc}: the caller's");
    }
}

/// The outcomes and the use of the cache of all calls, in order.
fn outcomes(broker: &Broker) -> Vec<(Value, Value)> {
    broker
        .records()
        .iter()
        .map(|record| {
            let cache = record["additionalEventData"]["cache"].clone();
            (record["errorCode"].clone(), cache)
        })
        .collect()
}

#[tokio::test]
async fn misses_hits_denials_and_failures_leave_one_record_each() {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    web.encrypt(encrypt("keys/orders", "x")).await.unwrap();
    web.encrypt(encrypt("keys/orders", "x")).await.unwrap();
    assert!(web.encrypt(encrypt("keys/absent", "x")).await.is_err());
    assert!(web.encrypt(encrypt("no name", "x")).await.is_err());
    broker.kms.fail(kms::Error::Throttled);
    assert!(web.encrypt(encrypt("keys/invoices", "x")).await.is_err());
    assert_eq!(
        outcomes(&broker),
        [
            (json!(null), json!("miss")),
            (json!(null), json!("hit")),
            (json!("POLICY_DENIED"), json!(null)),
            (json!("FIELD_INVALID"), json!(null)),
            (json!("KMS_THROTTLED"), json!(null)),
        ]
    );
    let records = broker.records();
    let request = |record: &Value| record["additionalEventData"]["kmsRequestID"].clone();
    assert_eq!(request(&records[0]), "request-1");
    assert_eq!(request(&records[1]), Value::Null, "a hit asked nobody");
    // Whose call it was is known even where nothing came of it.
    for record in &records {
        assert_eq!(record["userIdentity"]["principalId"], WEB);
        assert_eq!(record["tenant"], "acme");
    }
}

#[tokio::test]
async fn a_caller_who_waited_for_anothers_kms_call_is_on_record_as_such() {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    let held = broker.kms.hold().await;
    let encrypting = |mut web: crate::harness::Client| {
        tokio::spawn(async move { web.encrypt(encrypt("keys/orders", "x")).await.map(drop) })
    };
    let first = encrypting(web.clone());
    broker.kms.reached(1).await;
    let second = encrypting(web.clone());
    taken_in(&mut web, 1).await;
    drop(held);
    first.await.unwrap().unwrap();
    second.await.unwrap().unwrap();
    let mut caches: Vec<_> = outcomes(&broker)
        .into_iter()
        .map(|(_, cache)| cache)
        .collect();
    caches.sort_by_key(ToString::to_string);
    assert_eq!(caches, [json!("coalesced"), json!("miss"), json!(null)]);
    assert_eq!(broker.kms_calls(), 1);
}

/// Returns when what was sent before on this connection has been taken in: the server reads a
/// connection in order, and has answered `times` later calls.
async fn taken_in(client: &mut crate::harness::Client, times: usize) {
    for _ in 0..times {
        tokio::task::yield_now().await;
        let request = pb::GenerateRandomRequest { number_of_bytes: 1 };
        client.generate_random(request).await.unwrap();
    }
}

#[tokio::test]
async fn a_deadline_leaves_one_record() {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    let _held = broker.kms.hold().await;
    let mut request = encrypt("keys/orders", "x").into_request();
    request.set_timeout(Duration::from_millis(100));
    assert_eq!(reason(web.encrypt(request).await), "DEADLINE_EXCEEDED");
    let [record] = broker.records().try_into().unwrap();
    assert_eq!(record["errorCode"], "DEADLINE_EXCEEDED");
    assert_eq!(record["eventName"], "Encrypt");
    assert_eq!(
        record["requestParameters"]["key"],
        "tenants/acme/keys/orders"
    );
}

#[tokio::test]
async fn a_client_that_goes_away_leaves_an_abandoned_record() {
    let broker = Broker::start().await;
    let web = broker.caller(WEB).await;
    let held = broker.kms.hold().await;
    let mut leaving = web.clone();
    let call =
        tokio::spawn(async move { leaving.encrypt(encrypt("keys/orders", "x")).await.map(drop) });
    broker.kms.reached(1).await;
    call.abort();
    broker.trail.reached(1).await;
    drop(held);
    let mut web = web;
    // Its KMS call went on and serves the next.
    web.encrypt(encrypt("keys/orders", "x")).await.unwrap();
    assert_eq!(
        outcomes(&broker),
        [
            (json!("ABANDONED"), json!(null)),
            (
                json!(null),
                broker.records()[1]["additionalEventData"]["cache"].clone()
            ),
        ]
    );
    assert_eq!(broker.kms_calls(), 1);
}

#[tokio::test]
async fn a_connection_that_breaks_leaves_a_record_for_each_call_under_way() {
    let broker = Broker::start().await;
    let identity = broker.authority.client(WEB);
    let connection = broker.connect(&identity).await.unwrap();
    let _held = broker.kms.hold().await;
    for key in ["keys/orders", "keys/invoices"] {
        let mut web = connection.client();
        tokio::spawn(async move { web.encrypt(encrypt(key, "x")).await.map(drop) });
    }
    broker.kms.reached(2).await;
    connection.cut();
    broker.trail.reached(2).await;
    let [one, two] = broker.records().try_into().unwrap();
    assert_eq!(one["errorCode"], "ABANDONED");
    assert_eq!(two["errorCode"], "ABANDONED");
}

#[tokio::test]
async fn nothing_is_released_without_a_record() {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    let ciphertext = seal(&mut web, "keys/orders", "secret").await;
    broker.trail.fail();
    for rpc in rpcs::names() {
        let refused = rpcs::call(&mut web, &rpc, "keys/orders", &ciphertext).await;
        let refusal = Refusal::of(&refused.expect_err(&rpc));
        assert_eq!(refusal.reason, "AUDIT_UNAVAILABLE", "{rpc}");
    }
    // Refusals are no exception: who asks unseen learns nothing.
    let refused = web.encrypt(encrypt("keys/absent", "x")).await;
    assert_eq!(reason(refused), "AUDIT_UNAVAILABLE");

    let identity = broker.authority.client(WEB);
    let connection = broker.connect(&identity).await.unwrap();
    let body = crate::harness::framed(&prost::Message::encode_to_vec(&decrypt(&ciphertext)));
    let path = "/keybroker.v1.KeyBrokerService/Decrypt";
    let answer = connection.wire.send(path, &[], body).await;
    assert!(answer.body.is_empty(), "no byte of an answer leaves");
    assert_eq!(broker.records().len(), 1, "that of the first call");

    broker.trail.heal();
    let opened = web.decrypt(decrypt(&ciphertext)).await.unwrap();
    assert_eq!(opened.into_inner().plaintext, "secret");
}

#[tokio::test]
async fn a_sink_that_hangs_holds_the_answer_and_not_the_server() {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    let identity = broker.authority.client(WEB);
    broker.trail.hold();
    // Within the sink's own patience; a client's would be longer.
    let refused = web.encrypt(encrypt("keys/orders", "x")).await;
    assert_eq!(reason(refused), "AUDIT_UNAVAILABLE");
    assert!(broker.connect(&identity).await.is_ok(), "it still accepts");
    broker.trail.heal();
    assert!(web.encrypt(encrypt("keys/orders", "x")).await.is_ok());
}

#[tokio::test]
async fn no_record_holds_content() {
    const CANARY: &str = "canary-d41d8cd98f";
    let broker = Broker::start()
        .with(|setup| {
            setup.tenants = TENANTS.replace("stage = \"test\"", &format!("stage = \"{CANARY}\""));
        })
        .await;
    let mut web = broker.caller(WEB).await;
    let context = || pairs([("table", CANARY)]);
    let sealed = web
        .encrypt(pb::EncryptRequest {
            encryption_context: context(),
            associated_data: CANARY.into(),
            ..encrypt("keys/orders", CANARY)
        })
        .await
        .unwrap()
        .into_inner();
    let request = pb::DecryptRequest {
        encryption_context: context(),
        associated_data: CANARY.into(),
        ..decrypt(&sealed.ciphertext)
    };
    web.decrypt(request.clone()).await.unwrap();
    let made = web
        .generate_data_key(pb::GenerateDataKeyRequest {
            name: "keys/orders".into(),
            encryption_context: context(),
            associated_data: CANARY.into(),
            ..Default::default()
        })
        .await
        .unwrap();
    // And in everything that fails.
    let refusals = [
        web.decrypt(pb::DecryptRequest {
            associated_data: format!("{CANARY}2").into(),
            ..request.clone()
        })
        .await,
        web.decrypt(pb::DecryptRequest {
            encryption_context: pairs([("table", &format!("{CANARY}2"))]),
            ..request.clone()
        })
        .await,
        web.decrypt(pb::DecryptRequest {
            ciphertext: CANARY.into(),
            ..request.clone()
        })
        .await,
        web.decrypt(pb::DecryptRequest {
            encryption_context: pairs([("stage", CANARY)]),
            ..request.clone()
        })
        .await,
        web.decrypt(pb::DecryptRequest {
            encryption_context: pairs([("table", &CANARY.repeat(60))]),
            ..request.clone()
        })
        .await,
        web.decrypt(pb::DecryptRequest {
            ciphertext_crc32c: Some(0),
            ..request
        })
        .await,
    ];
    for refused in refusals {
        let status = refused.unwrap_err();
        let details = String::from_utf8_lossy(status.details()).into_owned();
        assert!(!status.message().contains(CANARY), "{status:?}");
        assert!(!details.contains(CANARY), "{status:?}");
    }
    let text = broker.trail.text();
    assert_eq!(broker.records().len(), 9);
    assert!(!text.contains(CANARY), "{text}");
    // Nor a made key in the forms that it could take in JSON.
    use base64::Engine as _;
    let key = made.into_inner().plaintext;
    let base64 = base64::engine::general_purpose::STANDARD.encode(&key);
    let hex: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
    let list = serde_json::to_string(&key[..8]).unwrap();
    for form in [base64.as_str(), &hex, list.trim_matches(['[', ']'])] {
        assert!(!text.contains(form));
    }
}

#[tokio::test]
async fn values_stand_in_a_record_where_the_keys_tenant_allows_them_alone() {
    let broker = Broker::start()
        .with(|setup| {
            let id = "id = \"acme\"";
            let allowed = format!("{id}\naudit_context = [\"table\", \"absent\"]");
            setup.tenants = TENANTS.replacen(id, &allowed, 1);
        })
        .await;
    let mut web = broker.caller(WEB).await;
    let context = pairs([("table", "or\"ders"), ("row", "secret")]);
    let request = |name| pb::EncryptRequest {
        encryption_context: context.clone(),
        ..encrypt(name, "x")
    };
    web.encrypt(request("keys/orders")).await.unwrap();
    assert!(web.encrypt(request("keys/absent")).await.is_err());
    let [allowed, denied] = broker.records().try_into().unwrap();
    let parameters = &allowed["requestParameters"];
    assert_eq!(parameters["encryptionContextKeys"], json!(["row", "table"]));
    assert_eq!(
        parameters["encryptionContext"],
        json!({"table": "or\"ders"})
    );
    assert_eq!(denied["requestParameters"].get("encryptionContext"), None);
    assert!(!broker.trail.text().contains("secret"));
}

/// The suites of TLS 1.3 that are served, by their IANA names.
const IANA_SUITES: [&str; 3] = [
    "TLS_AES_128_GCM_SHA256",
    "TLS_AES_256_GCM_SHA384",
    "TLS_CHACHA20_POLY1305_SHA256",
];
