//! What goes in comes out again, through every operation and at every size.

use bytes::Bytes;
use keybroker::grpc::pb;
use tonic::Code;

use crate::harness::Broker;
use crate::harness::Client;
use crate::harness::GLOBEX;
use crate::harness::Refusal;
use crate::harness::STRANGER;
use crate::harness::WEB;
use crate::harness::reason;
use crate::harness::rpcs::decrypt;
use crate::harness::rpcs::encrypt;
use crate::harness::rpcs::pairs;
use crate::harness::rpcs::seal;

const ORDERS: &str = "tenants/acme/keys/orders";

#[tokio::test]
async fn what_was_encrypted_decrypts() {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    for name in ["keys/orders", ORDERS] {
        let sealed = web.encrypt(encrypt(name, "hello")).await.unwrap();
        let sealed = sealed.into_inner();
        assert_eq!(sealed.name, ORDERS);
        assert_eq!(sealed.key_version, "tenants/acme/keys/orders/versions/1");
        assert_eq!(sealed.ciphertext_crc32c, crc32c::crc32c(&sealed.ciphertext));
        for name in ["", "keys/orders", ORDERS] {
            let request = pb::DecryptRequest {
                name: name.into(),
                ..decrypt(&sealed.ciphertext)
            };
            let opened = web.decrypt(request).await.unwrap().into_inner();
            let expected = pb::DecryptResponse {
                name: ORDERS.into(),
                key_version: sealed.key_version.clone(),
                used_primary: true,
                plaintext: "hello".into(),
                plaintext_crc32c: crc32c::crc32c(b"hello"),
                verified_ciphertext_crc32c: false,
                verified_associated_data_crc32c: false,
            };
            assert!(opened == expected, "the answer differs with name {name:?}");
        }
    }
    broker.stop().await;
}

#[tokio::test]
async fn every_size_up_to_a_mebibyte_comes_back() {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    for size in [1, 15, 16, 4095, 4096, 4097, 8192, 65_536, 1 << 20] {
        let plaintext: Bytes = (0..size).map(|i| (i % 251) as u8).collect();
        let sealed = web.encrypt(encrypt("keys/orders", plaintext.clone())).await;
        let ciphertext = sealed.unwrap().into_inner().ciphertext;
        let opened = web.decrypt(decrypt(&ciphertext)).await.unwrap();
        assert!(opened.into_inner().plaintext == plaintext, "{size} bytes");
    }
    let beyond = web
        .encrypt(encrypt("keys/orders", vec![0; (1 << 20) + 1]))
        .await;
    assert_eq!(reason(beyond), "PLAINTEXT_TOO_LARGE");
    let empty = web.encrypt(encrypt("keys/orders", "")).await;
    assert_eq!(reason(empty), "FIELD_INVALID");
}

#[tokio::test]
async fn the_largest_message_fits_with_everything_at_its_limit() {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    let request = pb::EncryptRequest {
        associated_data: vec![7; 32 << 10].into(),
        encryption_context: pairs([("note", &"v".repeat(512))]),
        ..encrypt("keys/orders", vec![1; 1 << 20])
    };
    let sealed = web.encrypt(request.clone()).await.unwrap().into_inner();
    let opened = web
        .decrypt(pb::DecryptRequest {
            associated_data: request.associated_data.clone(),
            encryption_context: request.encryption_context.clone(),
            ..decrypt(&sealed.ciphertext)
        })
        .await;
    assert!(opened.unwrap().into_inner().plaintext == request.plaintext);
}

#[tokio::test]
async fn associated_data_is_asked_for_again() {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    let sealed = web
        .encrypt(pb::EncryptRequest {
            associated_data: "record 7".into(),
            ..encrypt("keys/orders", "bound")
        })
        .await
        .unwrap()
        .into_inner();
    let request = |associated_data: &'static str| pb::DecryptRequest {
        associated_data: associated_data.into(),
        ..decrypt(&sealed.ciphertext)
    };
    let opened = web.decrypt(request("record 7")).await.unwrap();
    assert_eq!(opened.into_inner().plaintext, "bound");
    for other in ["", "record 8", "record 7 "] {
        let outcome = web.decrypt(request(other)).await;
        assert_eq!(reason(outcome), "CIPHERTEXT_INVALID", "{other:?}");
    }
    assert_eq!(broker.kms_calls(), 1, "associated data never reaches KMS");
}

#[tokio::test]
async fn associated_data_has_its_limit() {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    let sized = |size: usize| pb::EncryptRequest {
        associated_data: vec![0; size].into(),
        ..encrypt("keys/orders", "x")
    };
    assert!(web.encrypt(sized(32 << 10)).await.is_ok());
    let beyond = web.encrypt(sized((32 << 10) + 1)).await.unwrap_err();
    let refusal = Refusal::of(&beyond);
    assert_eq!(refusal.reason, "FIELD_INVALID");
    assert_eq!(refusal.fields, ["associated_data"]);
}

#[tokio::test]
async fn a_data_key_decrypts_to_its_plaintext() {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    let mut seen = Vec::new();
    for (asked, length) in [(0, 32), (1, 1), (16, 16), (1024, 1024)] {
        let request = pb::GenerateDataKeyRequest {
            name: "keys/orders".into(),
            number_of_bytes: asked,
            encryption_context: pairs([("table", "users")]),
            associated_data: "row".into(),
            ..Default::default()
        };
        let made = web.generate_data_key(request).await.unwrap().into_inner();
        assert_eq!(made.plaintext.len(), length);
        assert_eq!(made.plaintext_crc32c, crc32c::crc32c(&made.plaintext));
        let request = pb::DecryptRequest {
            encryption_context: pairs([("table", "users")]),
            associated_data: "row".into(),
            ..decrypt(&made.ciphertext)
        };
        let opened = web.decrypt(request).await.unwrap().into_inner();
        assert!(opened.plaintext == made.plaintext);
        seen.push(made.plaintext);
    }
    let beyond = web
        .generate_data_key(pb::GenerateDataKeyRequest {
            name: "keys/orders".into(),
            number_of_bytes: 1025,
            ..Default::default()
        })
        .await
        .unwrap_err();
    assert_eq!(Refusal::of(&beyond).fields, ["number_of_bytes"]);
    assert_eq!(broker.kms_calls(), 1, "data keys are made without KMS");
}

#[tokio::test]
async fn data_keys_are_never_handed_out_twice() {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    let request = pb::GenerateDataKeyRequest {
        name: "keys/orders".into(),
        ..Default::default()
    };
    let one = web.generate_data_key(request.clone()).await.unwrap();
    let two = web.generate_data_key(request).await.unwrap();
    assert!(one.into_inner().plaintext != two.into_inner().plaintext);
}

#[tokio::test]
async fn a_data_key_without_plaintext_decrypts_later() {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    let request = pb::GenerateDataKeyWithoutPlaintextRequest {
        name: "keys/orders".into(),
        number_of_bytes: 48,
        ..Default::default()
    };
    let made = web.generate_data_key_without_plaintext(request).await;
    let made = made.unwrap().into_inner();
    assert_eq!(made.ciphertext_crc32c, crc32c::crc32c(&made.ciphertext));
    let opened = web.decrypt(decrypt(&made.ciphertext)).await.unwrap();
    assert_eq!(opened.into_inner().plaintext.len(), 48);
}

#[tokio::test]
async fn re_encrypt_moves_a_message_to_another_key_and_context() {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    let sealed = web
        .encrypt(pb::EncryptRequest {
            encryption_context: pairs([("table", "old")]),
            associated_data: "old".into(),
            ..encrypt("keys/orders", "moved")
        })
        .await
        .unwrap()
        .into_inner();
    let moved = web
        .re_encrypt(pb::ReEncryptRequest {
            source_name: String::new(),
            ciphertext: sealed.ciphertext,
            source_encryption_context: pairs([("table", "old")]),
            source_associated_data: "old".into(),
            destination_name: "keys/invoices".into(),
            destination_encryption_context: pairs([("table", "new")]),
            destination_associated_data: "new".into(),
            ..Default::default()
        })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(moved.source_name, ORDERS);
    assert_eq!(moved.source_key_version, format!("{ORDERS}/versions/1"));
    assert_eq!(moved.destination_name, "tenants/acme/keys/invoices");
    assert_eq!(moved.ciphertext_crc32c, crc32c::crc32c(&moved.ciphertext));
    let opened = web
        .decrypt(pb::DecryptRequest {
            name: "keys/invoices".into(),
            ciphertext: moved.ciphertext,
            encryption_context: pairs([("table", "new")]),
            associated_data: "new".into(),
            ..Default::default()
        })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(opened.plaintext, "moved");
}

#[tokio::test]
async fn re_encrypt_names_the_field_of_the_side_that_is_wrong() {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    let ciphertext = seal(&mut web, "keys/orders", "x").await;
    let good = pb::ReEncryptRequest {
        source_name: "keys/orders".into(),
        destination_name: "keys/invoices".into(),
        ciphertext,
        ..Default::default()
    };
    let long: Bytes = vec![0; (32 << 10) + 1].into();
    let cases = [
        (
            "source_name",
            pb::ReEncryptRequest {
                source_name: "nonsense".into(),
                ..good.clone()
            },
        ),
        (
            "destination_name",
            pb::ReEncryptRequest {
                destination_name: "nonsense".into(),
                ..good.clone()
            },
        ),
        (
            "source_associated_data",
            pb::ReEncryptRequest {
                source_associated_data: long.clone(),
                ..good.clone()
            },
        ),
        (
            "destination_associated_data",
            pb::ReEncryptRequest {
                destination_associated_data: long,
                ..good.clone()
            },
        ),
        (
            "source_encryption_context",
            pb::ReEncryptRequest {
                source_encryption_context: pairs([("", "x")]),
                ..good.clone()
            },
        ),
        (
            "destination_encryption_context",
            pb::ReEncryptRequest {
                destination_encryption_context: pairs([("", "x")]),
                ..good
            },
        ),
    ];
    for (field, request) in cases {
        let refused = web.re_encrypt(request).await.unwrap_err();
        assert_eq!(Refusal::of(&refused).fields, [field]);
    }
}

#[tokio::test]
async fn random_bytes_come_in_the_length_asked_for() {
    let broker = Broker::start().await;
    let mut stranger = broker.caller(STRANGER).await;
    for length in [1, 32, 1024] {
        let request = pb::GenerateRandomRequest {
            number_of_bytes: length,
        };
        let random = stranger.generate_random(request).await.unwrap();
        let random = random.into_inner();
        assert_eq!(random.plaintext.len(), length as usize);
        assert_eq!(random.plaintext_crc32c, crc32c::crc32c(&random.plaintext));
    }
    for length in [0, 1025, u32::MAX] {
        let request = pb::GenerateRandomRequest {
            number_of_bytes: length,
        };
        let outcome = stranger.generate_random(request).await;
        assert_eq!(reason(outcome), "FIELD_INVALID", "{length}");
    }
    assert_eq!(broker.kms_calls(), 0);
}

#[tokio::test]
async fn another_tenants_key_serves_its_external_users() {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    let mut globex = broker.caller(GLOBEX).await;
    let name = "tenants/acme/keys/shared";

    let sealed = seal(&mut globex, name, "across").await;
    let opened = web.decrypt(decrypt(&sealed)).await.unwrap().into_inner();
    assert_eq!(opened.plaintext, "across");
    assert_eq!(opened.name, name);

    let sealed = seal(&mut web, "keys/shared", "back").await;
    let opened = globex.decrypt(decrypt(&sealed)).await.unwrap();
    assert_eq!(opened.into_inner().plaintext, "back");
    assert_eq!(
        broker.kms_calls(),
        1,
        "one key and context is one data key, whoever calls"
    );
}

#[tokio::test]
async fn one_way_roles_go_one_way() {
    let broker = Broker::start().await;
    let role = |name: &str| format!("spiffe://prod.example/tenant/acme/sa/{name}");
    let mut writer = broker.caller(&role("writer")).await;
    let mut reader = broker.caller(&role("reader")).await;
    let sealed = seal(&mut writer, "keys/orders", "x").await;
    assert!(reader.decrypt(decrypt(&sealed)).await.is_ok());
    let outcome = writer.decrypt(decrypt(&sealed)).await;
    assert_eq!(reason(outcome), "POLICY_DENIED");
    let outcome = reader.encrypt(encrypt("keys/orders", "x")).await;
    assert_eq!(reason(outcome), "POLICY_DENIED");
}

#[tokio::test]
async fn a_key_is_described_to_those_with_a_role() {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    let request = pb::DescribeKeyRequest {
        name: "keys/orders".into(),
        ..Default::default()
    };
    let described = web.describe_key(request).await.unwrap().into_inner();
    assert_eq!(
        described.key,
        Some(pb::Key {
            name: ORDERS.into(),
            kms_keys: vec!["local:acme-orders".into()],
            additional_kms_keys: Vec::new(),
            role: "users".into(),
            data_key_limits: Some(pb::DataKeyLimits {
                max_age_seconds: 300,
                max_messages: 1 << 20,
                max_bytes: 1 << 36,
            }),
        })
    );
    assert_eq!(broker.kms_calls(), 0);
}

async fn list(
    client: &mut Client,
    parent: &str,
    page_size: i32,
    token: &str,
) -> (Vec<String>, String) {
    let request = pb::ListKeysRequest {
        parent: parent.into(),
        page_size,
        page_token: token.into(),
    };
    let page = client.list_keys(request).await.unwrap().into_inner();
    let names = page.keys.iter().map(|key| key.name.clone());
    (names.collect(), page.next_page_token)
}

#[tokio::test]
async fn keys_are_listed_in_pages() {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    let full = |ids: &[&str]| -> Vec<String> {
        ids.iter()
            .map(|id| format!("tenants/acme/keys/{id}"))
            .collect()
    };
    let all = full(&["invoices", "orders", "own", "shared"]);
    for size in [0, 4, 1001, i32::MAX] {
        let page = list(&mut web, "", size, "").await;
        assert_eq!(page, (all.clone(), String::new()), "page_size {size}");
    }
    let (first, token) = list(&mut web, "tenants/acme", 3, "").await;
    assert_eq!(first, full(&["invoices", "orders", "own"]));
    let rest = list(&mut web, "tenants/acme", 3, &token).await;
    assert_eq!(rest, (full(&["shared"]), String::new()));

    let mut one_by_one = Vec::new();
    let mut token = String::new();
    loop {
        let (page, next) = list(&mut web, "", 1, &token).await;
        assert_eq!(page.len(), 1);
        one_by_one.extend(page);
        token = next;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(one_by_one, all);
}

#[tokio::test]
async fn a_list_shows_only_keys_with_a_role() {
    let broker = Broker::start().await;
    let mut globex = broker.caller(GLOBEX).await;
    let (own, _) = list(&mut globex, "", 0, "").await;
    assert_eq!(own, ["tenants/globex/keys/orders"]);
    let (foreign, _) = list(&mut globex, "tenants/acme", 0, "").await;
    assert_eq!(foreign, ["tenants/acme/keys/shared"]);

    let mut stranger = broker.caller(STRANGER).await;
    for parent in ["", "tenants/acme", "tenants/absent"] {
        let page = list(&mut stranger, parent, 0, "").await;
        assert_eq!(page, (Vec::new(), String::new()), "{parent:?}");
    }
}

#[tokio::test]
async fn a_list_refuses_what_is_no_page() {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    let cases = [
        ("parent", "acme", 0, ""),
        ("parent", "tenants/", 0, ""),
        ("parent", "tenants/ACME", 0, ""),
        ("page_size", "", -1, ""),
        ("page_size", "", i32::MIN, ""),
        ("page_token", "", 0, "No Token"),
    ];
    for (field, parent, page_size, token) in cases {
        let request = pb::ListKeysRequest {
            parent: parent.into(),
            page_size,
            page_token: token.into(),
        };
        let refused = web.list_keys(request).await.unwrap_err();
        let refusal = Refusal::of(&refused);
        assert_eq!(refusal.code, Code::InvalidArgument, "{field}");
        assert_eq!(refusal.reason, "FIELD_INVALID", "{field}");
        assert_eq!(refusal.fields, [field]);
    }
}

#[tokio::test]
async fn a_name_that_is_no_name_is_refused_before_any_look_up() {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    for name in [
        "",
        "orders",
        "keys/",
        "keys/Orders",
        "keys/orders/versions/1",
        "tenants/acme",
        "tenants//keys/orders",
        "tenants/acme/keys/orders ",
        "/keys/orders",
    ] {
        let refused = web.encrypt(encrypt(name, "x")).await.unwrap_err();
        let refusal = Refusal::of(&refused);
        assert_eq!(refusal.reason, "FIELD_INVALID", "{name:?}");
        assert_eq!(refusal.fields, ["name"], "{name:?}");
    }
}
