//! Which KMS key to ask is the directory's word: what a message names is held against it, and a
//! message that doesn't fit costs no call.

use keybroker::crypto::Secret;
use keybroker::kms::Arn;
use keybroker::kms::KeyRef;
use keybroker::message;
use keybroker::message::EncryptedDataKey;
use keybroker::message::Envelope;
use keybroker::message::Message;

use super::causes;
use super::context_of;
use super::refused;
use super::unbound;
use crate::harness::Broker;
use crate::harness::WEB;

const ORDERS: &str = "arn:aws:kms:eu-west-1:111122223333:key/orders";
const REPLICATED: &str = "arn:aws:kms:eu-west-1:111122223333:key/mrk-1a2b";

/// KMS keys that ours are easily taken for.
const FOREIGN: [&str; 15] = [
    "arn:aws:kms:eu-west-1:999988887777:key/orders",
    "arn:aws:kms:eu-central-1:111122223333:key/orders",
    "arn:aws-cn:kms:eu-west-1:111122223333:key/orders",
    "arn:aws:kms:eu-west-1:111122223333:key/Orders",
    "arn:aws:kms:eu-west-1:111122223333:key/orders-2",
    "arn:aws:kms:eu-west-1:111122223333:alias/orders",
    "arn:aws:kms:eu-west-1:999988887777:key/mrk-1a2b",
    "arn:aws:kms:us-east-1:999988887777:key/mrk-1a2b",
    "arn:aws-cn:kms:cn-north-1:111122223333:key/mrk-1a2b",
    "arn:aws:kms:us-east-1:111122223333:key/mrk-1a2c",
    "arn:aws:kms:us-east-1:111122223333:key/mrk-1a2b0",
    "arn:aws:kms:eu-west-1:111122223333:key/orders ",
    "local:orders",
    "orders",
    "",
];

#[tokio::test]
async fn a_message_that_names_a_foreign_kms_key_reaches_no_kms() {
    let broker = broker().await;
    let mut web = broker.caller(WEB).await;
    // Wrapped by our keys, so that a call would succeed: the names alone are foreign.
    for wrapper in [ORDERS, REPLICATED] {
        for name in FOREIGN {
            let message = named(&broker, wrapper, &[("aws-kms", name)]);
            refused(&mut web, unbound(message), name).await;
            assert_eq!(causes(&broker).pop().unwrap(), "foreign_key", "{name}");
        }
        for provider in [
            "AWS-KMS",
            "aws-kms-mrk",
            "aws-kms-hierarchy",
            "keybroker-local",
            "",
        ] {
            let message = named(&broker, wrapper, &[(provider, wrapper)]);
            refused(&mut web, unbound(message), provider).await;
            assert_eq!(causes(&broker).pop().unwrap(), "foreign_key", "{provider}");
        }
    }
    let several = FOREIGN.map(|name| ("aws-kms", name));
    let message = named(&broker, ORDERS, &several[..8]);
    refused(&mut web, unbound(message), "several").await;
    assert_eq!(broker.kms_calls(), 0);
}

#[tokio::test]
async fn foreign_kms_keys_beside_ours_are_passed_over() {
    let broker = broker().await;
    let mut web = broker.caller(WEB).await;
    let replica = REPLICATED.replace("eu-west-1", "us-east-1");
    for (calls, (wrapper, name)) in [
        (ORDERS, ORDERS),
        (REPLICATED, REPLICATED),
        (REPLICATED, &replica),
    ]
    .into_iter()
    .enumerate()
    {
        let names = [&FOREIGN[..6], &[name], &FOREIGN[6..7]].concat();
        let names: Vec<_> = names.into_iter().map(|name| ("aws-kms", name)).collect();
        let message = named(&broker, wrapper, &names);
        assert!(web.decrypt(unbound(message)).await.is_ok(), "{name}");
        assert_eq!(broker.kms_calls(), calls + 1, "{name}");
    }
}

#[tokio::test]
async fn an_altered_version_or_suite_reaches_no_kms() {
    let broker = broker().await;
    let mut web = broker.caller(WEB).await;
    let message = named(&broker, ORDERS, &[("aws-kms", ORDERS)]);
    let mut starts: Vec<[u8; 3]> = (0..=u8::MAX)
        .filter(|version| *version != 2)
        .map(|version| [version, 0x04, 0x78])
        .collect();
    // All assigned suites but ours, what lies next to it, and its bytes turned round.
    for suite in [
        0x0000_u16, 0x0014, 0x0046, 0x0078, 0x0114, 0x0146, 0x0178, 0x0214, 0x0346, 0x0378, 0x0477,
        0x0479, 0x0578, 0x7804, 0xffff,
    ] {
        let [high, low] = suite.to_be_bytes();
        starts.push([2, high, low]);
    }
    for start in starts {
        let mut altered = message.clone();
        altered[..3].copy_from_slice(&start);
        refused(&mut web, unbound(altered), &format!("{start:02x?}")).await;
    }
    assert_eq!(broker.kms_calls(), 0);
    assert!(web.decrypt(unbound(message)).await.is_ok(), "it was good");
}

#[tokio::test]
async fn no_other_version_and_suite_has_a_header() {
    let broker = broker().await;
    let mut message = named(&broker, ORDERS, &[("aws-kms", ORDERS)]);
    let versions = (0..=u8::MAX).map(|version| (version, 0x0478));
    let suites = (0..=u16::MAX).map(|suite| (2, suite));
    for (version, suite) in versions.chain(suites) {
        let [high, low] = suite.to_be_bytes();
        message[..3].copy_from_slice(&[version, high, low]);
        let ours = (version, suite) == (2, 0x0478);
        assert_eq!(
            Message::parse(&message).is_ok(),
            ours,
            "{version} {suite:04x}"
        );
    }
}

/// A broker whose key `keys/orders` of acme has two KMS keys of AWS.
async fn broker() -> Broker {
    let tenants = format!(
        "[[tenant]]\nid = \"acme\"\n[[tenant.key]]\nid = \"orders\"\n\
         kms = [\"{ORDERS}\", \"{REPLICATED}\"]\nusers = [\"{WEB}\"]\n"
    );
    Broker::start().with(|setup| setup.tenants = tenants).await
}

/// A good message for `keys/orders` whose data key `wrapper` wraps, and whose header says that
/// those of these providers and names do.
fn named(broker: &Broker, wrapper: &str, names: &[(&str, &str)]) -> Vec<u8> {
    let context = context_of(&[
        ("keybroker:key", "orders"),
        ("keybroker:tenant", "acme"),
        ("table", "users"),
    ]);
    let wrapper: Arn = wrapper.parse().unwrap();
    let data_key = Secret::random().unwrap();
    let wrapped = broker.kms.wrap(&KeyRef::Aws(wrapper), &data_key, &context);
    let wrapped: Vec<_> = names
        .iter()
        .map(|(provider, name)| EncryptedDataKey {
            provider_id: (*provider).to_owned(),
            provider_info: (*name).to_owned(),
            ..wrapped.clone()
        })
        .collect();
    let envelope = Envelope::new(&context, &wrapped).unwrap();
    message::seal(&data_key, &envelope, b"", b"from elsewhere").unwrap()
}
