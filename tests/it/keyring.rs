//! The local KMS on real files.

mod files;

use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use keybroker::crypto::Secret;
use keybroker::kms;
use keybroker::kms::KeyRef;
use keybroker::kms::Kms;
use keybroker::kms::local::Error;
use keybroker::kms::local::Keyring;
use keybroker::kms::local::Purpose;
use keybroker::kms::local::SealingKey;
use keybroker::kms::local::State;
use keybroker::kms::local::contents::Contents;
use keybroker::kms::local::contents::Key;
use keybroker::kms::local::contents::MAX_KEYS;
use keybroker::kms::local::contents::MAX_VERSIONS;
use keybroker::kms::local::contents::Version;
use keybroker::message::EncryptionContext;
use keybroker::name::KeyId;
use tempfile::TempDir;

use crate::harness::demand;
use crate::kms_contract::Fixture;
use crate::kms_contract::contract;

#[tokio::test]
async fn the_local_kms_keeps_the_contract() {
    let place = Place::new();
    let keyring = place.create();
    for id in ["one", "two", "off", "doomed"] {
        keyring.add(&key(id), now()).unwrap();
    }
    keyring.disable(&key("off")).unwrap();
    keyring.schedule_deletion(&key("doomed"), now()).unwrap();
    contract(&keyring, &keyring).await;
}

#[async_trait]
impl Fixture for Keyring {
    fn enabled(&self) -> [KeyRef; 2] {
        ["one", "two"].map(local)
    }

    fn disabled(&self) -> KeyRef {
        local("off")
    }

    fn pending_deletion(&self) -> KeyRef {
        local("doomed")
    }

    fn absent(&self) -> KeyRef {
        local("nowhere")
    }

    async fn rotate(&self, key: &KeyRef) {
        let KeyRef::Local(id) = key else {
            panic!("{key}");
        };
        Self::rotate(self, &id.parse().unwrap(), now()).unwrap();
    }
}

#[tokio::test]
async fn what_was_wrapped_before_a_restart_opens_after_it() {
    let place = Place::new();
    let keyring = place.create();
    keyring.add(&key("orders"), now()).unwrap();
    let old = generate(&keyring, "orders").await;
    assert_eq!(keyring.rotate(&key("orders"), now()).unwrap(), 2);
    let new = generate(&keyring, "orders").await;
    let (id, listing) = (keyring.id(), keyring.keys());
    drop(keyring);

    let keyring = place.open();
    assert_eq!((keyring.id(), keyring.keys()), (id, listing));
    for (made, version) in [(old, 1), (new, 2)] {
        let info = format!("{id}/orders/{version}");
        assert_eq!(made.wrapped.provider_info, info);
        let opened = keyring
            .decrypt(&local("orders"), &made.wrapped, &none(), &demand())
            .await
            .ok()
            .unwrap();
        assert!(opened.plaintext.matches(made.plaintext.expose()));
        assert_eq!(opened.current, version == 2, "version {version}");
    }
}

#[tokio::test]
async fn another_keyring_is_another_key() {
    let (place, other) = (Place::new(), Place::new());
    let (keyring, other) = (place.create(), other.create());
    keyring.add(&key("orders"), now()).unwrap();
    other.add(&key("orders"), now()).unwrap();
    let made = generate(&other, "orders").await;
    assert!(local("orders").claims(&made.wrapped));
    let refused = keyring
        .decrypt(&local("orders"), &made.wrapped, &none(), &demand())
        .await;
    assert_eq!(refused.err(), Some(kms::Error::IncorrectKey));
}

#[tokio::test]
async fn provider_info_is_taken_to_the_letter() {
    let place = Place::new();
    let keyring = place.create();
    keyring.add(&key("orders"), now()).unwrap();
    let id = keyring.id();
    let made = generate(&keyring, "orders").await;
    let mut wrapped = made.wrapped.clone();
    for info in [
        format!("{id}/orders/2"),
        format!("{id}/orders/01"),
        format!("{id}/orders/+1"),
        format!("{id}/orders/1/"),
        format!("{id}/orders/"),
        format!("{}/orders/1", id.to_string().to_uppercase()),
        String::from("1"),
        String::new(),
    ] {
        wrapped.provider_info = info;
        let refused = keyring
            .decrypt(&local("orders"), &wrapped, &none(), &demand())
            .await;
        assert_eq!(refused.err(), Some(kms::Error::IncorrectKey), "{wrapped:?}");
    }
    let mut wrapped = made.wrapped;
    wrapped.provider_id = "aws-kms".into();
    let refused = keyring
        .decrypt(&local("orders"), &wrapped, &none(), &demand())
        .await;
    assert_eq!(refused.err(), Some(kms::Error::IncorrectKey));
}

#[tokio::test]
async fn a_key_of_aws_is_not_in_the_keyring() {
    let place = Place::new();
    let keyring = place.create();
    let aws = "arn:aws:kms:eu-west-1:111122223333:key/one"
        .parse()
        .unwrap();
    let error = keyring.describe_key(&aws).await.unwrap_err();
    assert!(matches!(error, kms::Error::NotFound(_)));
}

#[tokio::test]
async fn calls_go_on_while_keys_rotate() {
    let place = Place::new();
    let keyring = Arc::new(place.create());
    keyring.add(&key("orders"), now()).unwrap();
    let rotating = thread::spawn({
        let keyring = Arc::clone(&keyring);
        move || {
            for _ in 0..50 {
                keyring.rotate(&key("orders"), now()).unwrap();
            }
        }
    });
    let mut calls = 0;
    while calls < 50 || !rotating.is_finished() {
        let made = generate(&keyring, "orders").await;
        let opened = keyring
            .decrypt(&local("orders"), &made.wrapped, &none(), &demand())
            .await;
        assert!(
            opened
                .ok()
                .unwrap()
                .plaintext
                .matches(made.plaintext.expose())
        );
        calls += 1;
    }
    rotating.join().unwrap();
    assert_eq!(keyring.keys()[0].versions.last().unwrap().0, 51);
}

#[test]
fn keys_rotate_when_their_time_has_come() {
    let place = Place::new();
    let keyring = place.create();
    let day = Duration::from_secs(86_400);
    let days = |n: u32| now() + day * n;
    keyring.add(&key("early"), days(0)).unwrap();
    keyring.add(&key("late"), days(5)).unwrap();
    keyring.add(&key("off"), days(0)).unwrap();
    keyring.disable(&key("off")).unwrap();

    assert_eq!(keyring.rotate_due(day * 10, days(9)).unwrap(), []);
    let early = now() + day * 10 - Duration::from_secs(1);
    assert_eq!(keyring.rotate_due(day * 10, early).unwrap(), []);
    assert_eq!(
        keyring.rotate_due(day * 10, days(10)).unwrap(),
        [key("early")]
    );
    assert_eq!(keyring.rotate_due(day * 10, days(10)).unwrap(), []);
    let all = [key("early"), key("late")];
    assert_eq!(keyring.rotate_due(day * 10, days(30)).unwrap(), all);
    let clock_set_back = Timestamp::UNIX_EPOCH;
    assert_eq!(keyring.rotate_due(day * 10, clock_set_back).unwrap(), []);
}

#[test]
fn changes_obey_the_state_of_a_key() {
    let place = Place::new();
    let keyring = place.create();
    let id = key("orders");
    let in_state = |change: Result<(), Error>, expected: State| {
        let Err(Error::KeyState { key, state }) = change else {
            panic!("{change:?}");
        };
        assert_eq!((key, state), (id.clone(), expected));
    };
    let unknown = keyring.disable(&id);
    assert!(matches!(unknown, Err(Error::KeyUnknown { .. })));
    keyring.add(&id, now()).unwrap();
    let again = keyring.add(&id, now());
    assert!(matches!(again, Err(Error::KeyExists { .. })));
    in_state(keyring.cancel_deletion(&id), State::Enabled);

    keyring.disable(&id).unwrap();
    in_state(keyring.rotate(&id, now()).map(drop), State::Disabled);
    let due = now() + Duration::from_secs(60);
    keyring.schedule_deletion(&id, due).unwrap();
    let pending = State::PendingDeletion { due };
    in_state(keyring.enable(&id), pending);
    in_state(keyring.disable(&id), pending);
    in_state(keyring.schedule_deletion(&id, now()), pending);
    in_state(keyring.rotate(&id, now()).map(drop), pending);

    keyring.cancel_deletion(&id).unwrap();
    assert_eq!(keyring.keys()[0].state, State::Disabled);
    keyring.enable(&id).unwrap();
    assert_eq!(keyring.rotate(&id, now()).unwrap(), 2);

    keyring.schedule_deletion(&id, due).unwrap();
    assert_eq!(keyring.delete_due(now()).unwrap(), []);
    assert_eq!(keyring.delete_due(due).unwrap(), [key("orders")]);
    assert_eq!(keyring.keys(), []);
    drop(keyring);
    assert_eq!(place.open().keys(), []);
}

#[test]
fn a_full_keyring_takes_no_key_and_a_full_key_no_version() {
    let version = |number: usize| Version {
        number: number.try_into().unwrap(),
        created: now(),
        material: Arc::new(Secret::random().unwrap()),
    };
    let full = Key {
        state: State::Enabled,
        primary: version(MAX_VERSIONS),
        earlier: (1..MAX_VERSIONS).map(version).collect(),
    };
    let single = |n: usize| (key(&format!("k{n}")), fresh(version(1)));
    let contents = Contents {
        id: uuid::Uuid::new_v4(),
        purpose: Purpose::Production,
        keys: (1..MAX_KEYS)
            .map(single)
            .chain([(key("full"), full)])
            .collect(),
    };
    let place = Place::new();
    let bytes = contents.seal(&sealing(1)).unwrap();
    fs::write(place.path(), &bytes).unwrap();

    let keyring = place.open();
    assert_eq!(keyring.keys().len(), MAX_KEYS);
    let refused = keyring.add(&key("more"), now());
    assert!(matches!(refused, Err(Error::ManyKeys)), "{refused:?}");
    let refused = keyring.rotate(&key("full"), now());
    assert!(
        matches!(refused, Err(Error::ManyVersions { .. })),
        "{refused:?}"
    );
    assert_eq!(fs::read(place.path()).unwrap(), bytes);
    let rotated = keyring.rotate_due(Duration::ZERO, now()).unwrap();
    assert_eq!(rotated.len(), MAX_KEYS - 1, "all but the full one");
    assert!(!rotated.contains(&key("full")));
}

/// A private folder with room for a keyring.
struct Place {
    folder: TempDir,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { folder }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("keyring")
    }

    fn create(&self) -> Keyring {
        create(&self.path())
    }

    fn open(&self) -> Keyring {
        open(&self.path())
    }

    fn refusal(&self) -> Error {
        match Keyring::open(&self.path(), Purpose::Production, sealing(1)) {
            Ok(_) => panic!("it opened"),
            Err(error) => error,
        }
    }

    /// The bytes of a small keyring, which also lies here.
    fn bytes(&self) -> Vec<u8> {
        self.create().add(&key("orders"), now()).unwrap();
        fs::read(self.path()).unwrap()
    }

    fn names(&self) -> Vec<String> {
        names(self.folder.path())
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let name = |entry: fs::DirEntry| entry.file_name().into_string().unwrap();
    let mut names: Vec<String> = entries.map(|entry| name(entry.unwrap())).collect();
    names.sort();
    names
}

fn create(path: &Path) -> Keyring {
    match Keyring::create(path, Purpose::Production, sealing(1)) {
        Ok(keyring) => keyring,
        Err(error) => panic!("{error}"),
    }
}

fn open(path: &Path) -> Keyring {
    match Keyring::open(path, Purpose::Production, sealing(1)) {
        Ok(keyring) => keyring,
        Err(error) => panic!("{error}"),
    }
}

async fn generate(keyring: &Keyring, id: &str) -> kms::DataKey {
    let made = keyring
        .generate_data_key(&local(id), &none(), &demand())
        .await;
    made.ok().unwrap()
}

fn sealing(seed: u8) -> SealingKey {
    SealingKey::new(Secret::filled(|key| key.fill(seed)))
}

fn key(id: &str) -> KeyId {
    id.parse().unwrap()
}

fn local(id: &str) -> KeyRef {
    KeyRef::Local(id.into())
}

fn none() -> EncryptionContext {
    EncryptionContext::default()
}

fn fresh(primary: Version) -> Key {
    Key {
        state: State::Enabled,
        primary,
        earlier: Vec::new(),
    }
}

fn now() -> Timestamp {
    "2026-03-01T12:00:00Z".parse().unwrap()
}
