//! The whole broker over the embedded KMS and its keyring file.

use std::sync::Arc;

use jiff::Timestamp;
use keybroker::crypto::Secret;
use keybroker::datakeys::Scope;
use keybroker::kms::local::Keyring;
use keybroker::kms::local::Purpose;
use keybroker::kms::local::SealingKey;
use keybroker::name::KeyId;
use tempfile::TempDir;

use crate::harness::Broker;
use crate::harness::WEB;
use crate::harness::reason;
use crate::harness::rpcs::decrypt;
use crate::harness::rpcs::encrypt;
use crate::harness::rpcs::seal;

fn keyring() -> (Arc<Keyring>, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let sealing = SealingKey::new(Secret::random().unwrap());
    let path = folder.path().join("keyring");
    let keyring = Keyring::create(&path, Purpose::Production, sealing).unwrap();
    keyring.add(&key("acme-orders"), Timestamp::now()).unwrap();
    (Arc::new(keyring), folder)
}

fn key(id: &str) -> KeyId {
    id.parse().unwrap()
}

/// A broker over `keyring` with nothing cached.
async fn broker(keyring: &Arc<Keyring>) -> Broker {
    let kms = Arc::clone(keyring);
    Broker::start().with(|setup| setup.kms = Some(kms)).await
}

#[tokio::test]
async fn messages_of_a_rotated_key_open_and_say_that_they_are_old() {
    let (keyring, _folder) = keyring();
    let first = broker(&keyring).await;
    let mut web = first.caller(WEB).await;
    let old = seal(&mut web, "keys/orders", "old").await;
    let rotated = keyring.rotate(&key("acme-orders"), Timestamp::now());
    assert_eq!(rotated.unwrap(), 2);

    let second = broker(&keyring).await;
    let mut web = second.caller(WEB).await;
    let opened = web.decrypt(decrypt(&old)).await.unwrap().into_inner();
    assert_eq!(opened.plaintext, "old");
    assert_eq!(opened.key_version, "tenants/acme/keys/orders/versions/1");
    assert!(!opened.used_primary);
    let new = web.encrypt(encrypt("keys/orders", "new")).await.unwrap();
    let new = new.into_inner();
    assert_eq!(new.key_version, "tenants/acme/keys/orders/versions/2");
    let opened = web.decrypt(decrypt(&new.ciphertext)).await.unwrap();
    assert!(opened.into_inner().used_primary);
}

#[tokio::test]
async fn a_key_out_of_use_says_why() {
    let (keyring, _folder) = keyring();
    let broker = broker(&keyring).await;
    let mut web = broker.caller(WEB).await;
    let id = key("acme-orders");
    let mut outcome = async |expected: &str| {
        // What was refused is remembered for a moment, which a purge ends.
        broker.inner().data_keys().purge(&Scope::All).await;
        let refused = web.encrypt(encrypt("keys/orders", "x")).await;
        assert_eq!(reason(refused), expected);
    };
    keyring.disable(&id).unwrap();
    outcome("KEY_DISABLED").await;
    keyring.schedule_deletion(&id, Timestamp::now()).unwrap();
    outcome("KEY_PENDING_DELETION").await;
    keyring.cancel_deletion(&id).unwrap();
    outcome("KEY_DISABLED").await;
    keyring.enable(&id).unwrap();
    broker.inner().data_keys().purge(&Scope::All).await;
    web.encrypt(encrypt("keys/orders", "x")).await.unwrap();
    // One that the directory names and the keyring has not got is the operator's fault, or the
    // tenant's where it brings its own.
    let refused = web.encrypt(encrypt("keys/invoices", "x")).await;
    assert_eq!(reason(refused), "KMS_ACCESS_DENIED");
    let refused = web.encrypt(encrypt("keys/own", "x")).await;
    assert_eq!(reason(refused), "TENANT_KMS_CONFIG_INVALID");
}
