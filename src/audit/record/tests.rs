use proptest::prelude::*;
use serde_json::Value;
use serde_json::json;

use super::*;

#[test]
fn a_full_line_is_what_it_always_was() {
    let identity = UserIdentity {
        kind: "SPIFFE",
        principal_id: "spiffe://prod.example/tenant/acme/sa/web".into(),
        authenticator: "x509-svid",
        session_context: Some(Session {
            cert_serial: "0a1b2c".into(),
            not_after: time("2026-12-01T00:00:00Z"),
        }),
    };
    let tls = Tls {
        tls_version: "TLSv1.3",
        cipher_suite: "TLS_AES_256_GCM_SHA384",
    };
    let resource = |name: &str, arn: &str| Resource {
        name: name.into(),
        arn: arn.into(),
        kind: "KMSKey",
    };
    let record = Record {
        event_name: Some("ReEncrypt".into()),
        origin: Some(Arc::new(Origin::new(
            Some(&identity),
            "127.0.0.1",
            Some(tls),
        ))),
        tenant: Some(tenant()),
        user_agent: Some("tests/1".into()),
        request_id: Some("request 1".into()),
        trace_id: Some("0af7651916cd43dd8448eb211c80319c".into()),
        key: KeyName::parse("keys/orders", &tenant()).ok(),
        context_keys: ["table", "column"].into_iter().collect(),
        context_values: [("table", "or\"ders")].into_iter().collect(),
        plaintext_bytes: Some(1024),
        resources: vec![
            resource(
                "tenants/acme/keys/orders/versions/1",
                "arn:aws:kms:us-west-2:111122223333:key/1",
            ),
            resource("tenants/acme/keys/orders/versions/2", "local/2"),
        ],
        rule: Some("users"),
        grant_id: None,
        grant: None,
        kms_grant: None,
        change: None,
        category: Category::default(),
        policy_generation: Some(7),
        cache: Some(Cache::Miss),
        kms_request_ids: vec!["request-1".into()],
        items: None,
        stream: None,
        failure: None,
    };
    let stamp = Stamp {
        micros: 1234,
        ..stamp("2026-11-22T17:53:36.1234567Z")
    };
    assert_eq!(
        text(&record, &stamp),
        concat!(
            r#"{"eventVersion":"1.0","eventTime":"2026-11-22T17:53:36.1234567Z","#,
            r#""eventID":"018f0000-0000-7000-8000-00000000002a","eventSource":"keybroker","#,
            r#""eventName":"ReEncrypt","eventCategory":"Data","readOnly":true,"#,
            r#""userIdentity":{"type":"SPIFFE","#,
            r#""principalId":"spiffe://prod.example/tenant/acme/sa/web","#,
            r#""authenticator":"x509-svid","sessionContext":{"certSerial":"0a1b2c","#,
            r#""notAfter":"2026-12-01T00:00:00Z"}},"tenant":"acme","#,
            r#""sourceIPAddress":"127.0.0.1","userAgent":"tests/1","#,
            r#""tlsDetails":{"tlsVersion":"TLSv1.3","cipherSuite":"TLS_AES_256_GCM_SHA384"},"#,
            r#""requestID":"request 1","traceId":"0af7651916cd43dd8448eb211c80319c","#,
            r#""requestParameters":{"key":"tenants/acme/keys/orders","#,
            r#""encryptionContextKeys":["table","column"],"#,
            r#""encryptionContext":{"table":"or\"ders"},"plaintextBytes":1024},"#,
            r#""responseElements":null,"#,
            r#""resources":[{"name":"tenants/acme/keys/orders/versions/1","#,
            r#""ARN":"arn:aws:kms:us-west-2:111122223333:key/1","type":"KMSKey"},"#,
            r#"{"name":"tenants/acme/keys/orders/versions/2","ARN":"local/2","type":"KMSKey"}],"#,
            r#""additionalEventData":{"rule":"users","grantId":null,"policyGeneration":7,"#,
            r#""cache":"miss","kmsRequestID":"request-1","durationMicros":1234},"#,
            r#""errorCode":null,"errorMessage":null,"instance":"018f0000-0000-7000-8000-000000000001"}"#,
            "\n"
        )
    );
}

#[test]
fn a_denial_is_what_it_always_was_whatever_its_texts_hold() {
    let record = Record {
        user_agent: Some("a \"quoted\" \\ agent\t\u{7f}\u{2028}".into()),
        context_keys: ["tab\tle", "\u{1}\u{1f}\u{fc}\""].into_iter().collect(),
        items: None,
        failure: Some(Failure {
            reason: "POLICY_DENIED",
            cause: "line one\nline \"two\"\r\u{8}\u{c}\u{0}".into(),
        }),
        ..Record::default()
    };
    let stamp = Stamp {
        micros: -1,
        ..stamp("1969-12-31T23:59:59.5Z")
    };
    assert_eq!(
        text(&record, &stamp),
        concat!(
            r#"{"eventVersion":"1.0","eventTime":"1969-12-31T23:59:59.5Z","#,
            r#""eventID":"018f0000-0000-7000-8000-00000000002a","eventSource":"keybroker","#,
            r#""eventName":"_OTHER","eventCategory":"Data","readOnly":true,"#,
            r#""userIdentity":null,"tenant":null,"sourceIPAddress":null,"#,
            r#""userAgent":"a \"quoted\" \\ agent\t"#,
            "\u{7f}\u{2028}",
            r#"","tlsDetails":null,"requestID":null,"traceId":null,"#,
            r#""requestParameters":{"key":null,"#,
            r#""encryptionContextKeys":["tab\tle","\u0001\u001fü\""],"plaintextBytes":null},"#,
            r#""responseElements":null,"resources":[],"#,
            r#""additionalEventData":{"rule":null,"grantId":null,"policyGeneration":null,"#,
            r#""cache":null,"kmsRequestID":null,"durationMicros":-1},"#,
            r#""errorCode":"POLICY_DENIED","#,
            r#""errorMessage":"line one\nline \"two\"\r\b\f\u0000","#,
            r#""instance":"018f0000-0000-7000-8000-000000000001"}"#,
            "\n"
        )
    );
}

#[test]
fn a_stream_adds_its_own_fields() {
    let stamp = stamp("2026-11-22T17:53:36Z");
    let record = Record {
        stream: Some(Stream {
            id: stamp.id,
            phase: Phase::Closed,
            messages: 12,
        }),
        ..Record::default()
    };
    assert!(text(&record, &stamp).contains(concat!(
        r#""durationMicros":0,"streamID":"018f0000-0000-7000-8000-00000000002a","#,
        r#""streamPhase":"closed","streamMessages":12},"errorCode":null"#,
    )));
}

proptest! {
    #[test]
    fn a_line_is_read_back_as_what_was_noted(
        texts in prop::array::uniform9("(?s).{0,40}"),
        names in prop::collection::vec("(?s).{0,20}", 0..4),
        numbers in any::<(usize, u64, i64)>(),
        second in -377_705_023_201_i64..253_402_207_200,
        ids in any::<[u128; 2]>(),
    ) {
        let [name, source, agent, request, trace, resource, arn, kms, cause] = &texts;
        let [id, instance] = ids.map(Uuid::from_u128);
        let (bytes, generation, micros) = numbers;
        let record = Record {
            event_name: Some(name.as_str().into()),
            origin: Some(Arc::new(Origin::new(None, source, None))),
            tenant: Some(tenant()),
            user_agent: Some(agent.as_str().into()),
            request_id: Some(request.as_str().into()),
            trace_id: Some(trace.clone()),
            key: None,
            context_keys: names.iter().map(String::as_str).collect(),
            context_values: Values::default(),
            plaintext_bytes: Some(bytes),
            resources: vec![Resource {
                name: resource.as_str().into(),
                arn: arn.as_str().into(),
                kind: "KMSKey",
            }],
            rule: None,
            grant_id: None,
            grant: None,
            kms_grant: None,
            change: None,
            category: Category::default(),
            policy_generation: Some(generation),
            cache: Some(Cache::Stale),
            kms_request_ids: vec![kms.clone()],
            items: None,
            stream: None,
            failure: Some(Failure { reason: "X", cause: cause.clone() }),
        };
        let stamp = Stamp {
            instance,
            id,
            began: Timestamp::from_second(second).unwrap(),
            micros: micros.into(),
        };
        let line = text(&record, &stamp);
        prop_assert_eq!(line.lines().count(), 1);
        let read: Value = serde_json::from_str(&line).unwrap();
        prop_assert_eq!(read, json!({
            "eventVersion": "1.0",
            "eventTime": stamp.began,
            "eventID": stamp.id,
            "eventSource": "keybroker",
            "eventName": name,
            "eventCategory": "Data",
            "readOnly": true,
            "userIdentity": null,
            "tenant": "acme",
            "sourceIPAddress": source,
            "userAgent": agent,
            "tlsDetails": null,
            "requestID": request,
            "traceId": trace,
            "requestParameters": {
                "key": null,
                "encryptionContextKeys": names,
                "plaintextBytes": bytes,
            },
            "responseElements": null,
            "resources": [{ "name": resource, "ARN": arn, "type": "KMSKey" }],
            "additionalEventData": {
                "rule": null,
                "grantId": null,
                "policyGeneration": generation,
                "cache": "stale",
                "kmsRequestID": kms,
                "durationMicros": micros,
            },
            "errorCode": "X",
            "errorMessage": cause,
            "instance": instance,
        }));
    }
}

fn text(record: &Record, stamp: &Stamp) -> String {
    let mut line = Vec::new();
    record.line(stamp, &mut line);
    String::from_utf8(line).unwrap()
}

fn stamp(began: &str) -> Stamp {
    Stamp {
        instance: Uuid::from_u128(0x018f_0000_0000_7000_8000_0000_0000_0001),
        id: Uuid::from_u128(0x018f_0000_0000_7000_8000_0000_0000_002a),
        began: time(began),
        micros: 0,
    }
}

fn time(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn tenant() -> TenantId {
    "acme".parse().unwrap()
}
