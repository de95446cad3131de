//! The local KMS on real files.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::fs::symlink;
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
use keybroker::kms::local::file;
use keybroker::kms::local::sealing;
use keybroker::kms::local::sealing::Source;
use keybroker::message::EncryptionContext;
use keybroker::name::KeyId;
use tempfile::TempDir;

use crate::harness::demand;
use crate::kms_contract::Fixture;
use crate::kms_contract::contract;
use crate::support::unprivileged;

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

#[test]
fn a_keyring_is_for_its_owner_alone_and_leaves_no_litter() {
    let place = Place::new();
    let keyring = place.create();
    keyring.add(&key("orders"), now()).unwrap();
    for file in [place.path(), place.folder.path().join("keyring.lock")] {
        let mode = fs::metadata(file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
    assert_eq!(place.names(), ["keyring", "keyring.lock"]);
}

#[test]
fn a_missing_keyring_is_not_made_by_opening() {
    let place = Place::new();
    let error = place.refusal();
    assert!(matches!(&error, Error::Missing { path } if *path == place.path()));
    assert!(error.to_string().contains("keybroker keyring init"));
    assert!(place.names().is_empty());
}

#[test]
fn an_existing_file_is_never_overwritten() {
    let place = Place::new();
    fs::write(place.path(), "precious").unwrap();
    let refused = Keyring::create(&place.path(), Purpose::Production, sealing(1)).err();
    assert!(matches!(refused, Some(Error::Exists { .. })));
    assert_eq!(fs::read(place.path()).unwrap(), b"precious");
}

#[test]
fn a_second_holder_is_refused_until_the_first_lets_go() {
    let place = Place::new();
    let first = place.create();
    assert!(matches!(place.refusal(), Error::Held { .. }));
    first.add(&key("orders"), now()).unwrap();
    assert!(
        matches!(place.refusal(), Error::Held { .. }),
        "after a replacement"
    );
    let link = place.folder.path().join("link");
    symlink(place.path(), &link).unwrap();
    let refused = Keyring::open(&link, Purpose::Production, sealing(1)).err();
    assert!(
        matches!(refused, Some(Error::Held { .. })),
        "through a link"
    );
    drop(first);
    drop(place.open());

    let linked = Keyring::open(&link, Purpose::Production, sealing(1))
        .ok()
        .unwrap();
    linked.add(&key("invoices"), now()).unwrap();
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    drop(linked);
    assert_eq!(place.open().keys().len(), 2);
}

#[test]
fn dev_and_production_keyrings_do_not_mix() {
    for (made, wanted) in [
        (Purpose::Dev, Purpose::Production),
        (Purpose::Production, Purpose::Dev),
    ] {
        let place = Place::new();
        drop(
            Keyring::create(&place.path(), made, sealing(1))
                .ok()
                .unwrap(),
        );
        let refused = Keyring::open(&place.path(), wanted, sealing(1)).err();
        let Some(Error::Purpose {
            found, expected, ..
        }) = refused
        else {
            panic!("{refused:?}");
        };
        assert_eq!((found, expected), (made, wanted));
        assert!(Keyring::open(&place.path(), made, sealing(1)).is_ok());
    }
}

#[test]
fn another_sealing_key_is_called_that() {
    let place = Place::new();
    drop(place.create());
    let refused = Keyring::open(&place.path(), Purpose::Production, sealing(2)).err();
    let why = file::Error::OtherKey;
    assert!(matches!(refused, Some(Error::File { why: found, .. }) if found == why));
}

#[test]
fn a_keyring_cut_anywhere_is_refused_and_left_alone() {
    let place = Place::new();
    let whole = place.bytes();
    for length in 0..whole.len() {
        fs::write(place.path(), &whole[..length]).unwrap();
        let error = place.refusal();
        let short = |why: &file::Error| matches!(why, file::Error::Short { .. });
        assert!(
            matches!(&error, Error::File { why, .. } if short(why)),
            "{length}: {error}"
        );
        assert_eq!(fs::read(place.path()).unwrap(), whole[..length]);
    }
}

#[test]
fn a_keyring_damaged_anywhere_is_refused_and_left_alone() {
    let place = Place::new();
    let whole = place.bytes();
    for at in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x81;
        fs::write(place.path(), &damaged).unwrap();
        let error = place.refusal();
        let right = match &error {
            Error::File { why, .. } => *why != file::Error::OtherKey,
            _ => false,
        };
        assert!(right, "{at}: {error}");
        assert_eq!(fs::read(place.path()).unwrap(), damaged);
    }
}

#[test]
fn other_files_are_named_for_what_they_are() {
    let place = Place::new();
    let whole = place.bytes();
    let mut newer = whole.clone();
    newer[9] = 2;
    let mut endless = whole.clone();
    endless.resize(file::MAX_FILE + 1, 0);
    let trailing = [&whole[..], b"\n"].concat();
    for (bytes, expected) in [
        (&newer[..], file::Error::Newer { format: 2 }),
        (b"[identity]\n", file::Error::NotKeyring),
        (&endless, file::Error::Long),
        (&trailing, file::Error::Corrupt),
    ] {
        fs::write(place.path(), bytes).unwrap();
        let error = place.refusal();
        assert!(
            matches!(&error, Error::File { why, .. } if *why == expected),
            "{error}"
        );
        assert!(error.to_string().contains(place.path().to_str().unwrap()));
    }
    fs::remove_file(place.path()).unwrap();
    fs::create_dir(place.path()).unwrap();
    let error = place.refusal();
    let why = file::Error::NotKeyring;
    assert!(
        matches!(&error, Error::File { why: found, .. } if *found == why),
        "{error}"
    );
}

#[test]
fn a_file_that_was_replaced_meanwhile_is_not_overwritten() {
    let place = Place::new();
    let backup = place.bytes();
    let keyring = place.open();
    keyring.add(&key("later"), now()).unwrap();
    fs::write(place.path(), &backup).unwrap();
    let refused = keyring.add(&key("latest"), now());
    assert!(matches!(refused, Err(Error::Changed { .. })), "{refused:?}");
    assert_eq!(fs::read(place.path()).unwrap(), backup);
}

#[test]
fn a_file_that_is_gone_is_written_anew() {
    let place = Place::new();
    let keyring = place.create();
    keyring.add(&key("orders"), now()).unwrap();
    fs::remove_file(place.path()).unwrap();
    let refused = Keyring::create(&place.path(), Purpose::Production, sealing(1)).err();
    assert!(matches!(refused, Some(Error::Held { .. })), "{refused:?}");
    keyring.rotate(&key("orders"), now()).unwrap();
    let listing = keyring.keys();
    drop(keyring);
    assert_eq!(place.open().keys(), listing);
}

#[test]
fn a_read_only_folder_fails_changes_alone() {
    let test = "keyring::a_read_only_folder_fails_changes_alone";
    unprivileged::run(test, |folder| {
        let path = folder.join("keyring");
        let keyring = Keyring::create(&path, Purpose::Production, sealing(1))
            .ok()
            .unwrap();
        keyring.add(&key("orders"), now()).unwrap();
        let (listing, bytes) = (keyring.keys(), fs::read(&path).unwrap());

        fs::set_permissions(folder, fs::Permissions::from_mode(0o500)).unwrap();
        let refused = keyring.rotate(&key("orders"), now());
        assert!(
            matches!(refused, Err(Error::Unwritable { .. })),
            "{refused:?}"
        );
        assert_eq!((keyring.keys(), fs::read(&path).unwrap()), (listing, bytes));

        fs::set_permissions(folder, fs::Permissions::from_mode(0o700)).unwrap();
        assert_eq!(keyring.rotate(&key("orders"), now()).unwrap(), 2);
    });
}

#[test]
fn an_unreadable_keyring_is_not_called_missing() {
    let test = "keyring::an_unreadable_keyring_is_not_called_missing";
    unprivileged::run(test, |folder| {
        let path = folder.join("keyring");
        drop(
            Keyring::create(&path, Purpose::Production, sealing(1))
                .ok()
                .unwrap(),
        );
        fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
        let refused = Keyring::open(&path, Purpose::Production, sealing(1)).err();
        assert!(
            matches!(refused, Some(Error::Unreadable { .. })),
            "{refused:?}"
        );
    });
}

#[test]
fn a_full_disk_fails_changes_alone() {
    let test = "keyring::a_full_disk_fails_changes_alone";
    let prepare = |folder: &Path| {
        let keyring = create(&folder.join("keyring"));
        keyring.add(&key("orders"), now()).unwrap();
    };
    unprivileged::run_without_space(test, prepare, |folder| {
        let path = folder.join("keyring");
        let keyring = open(&path);
        let (listing, bytes) = (keyring.keys(), fs::read(&path).unwrap());
        let refused = keyring.rotate(&key("orders"), now());
        assert!(
            matches!(refused, Err(Error::Unwritable { .. })),
            "{refused:?}"
        );
        assert_eq!((keyring.keys(), fs::read(&path).unwrap()), (listing, bytes));
        assert_eq!(names(folder), ["keyring", "keyring.lock"]);
    });
}

#[test]
fn a_sealing_key_is_made_once_and_read_from_file_or_credential() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("seal");
    let ring = folder.path().join("keyring");
    let made = SealingKey::create(&path).ok().unwrap();
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let again = SealingKey::create(&path).err();
    assert!(matches!(again, Some(sealing::Error::Exists { .. })));

    drop(
        Keyring::create(&ring, Purpose::Production, made)
            .ok()
            .unwrap(),
    );
    for source in [Source::File(path), Source::Credential("seal".into())] {
        let key = SealingKey::load(&source, Some(folder.path())).ok().unwrap();
        assert!(
            Keyring::open(&ring, Purpose::Production, key).is_ok(),
            "{source}"
        );
    }
}

#[test]
fn a_bad_sealing_key_says_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("seal");
    let source = Source::File(path.clone());
    let refusal = |source: &Source| SealingKey::load(source, None).err().unwrap();
    assert!(matches!(refusal(&source), sealing::Error::Missing { .. }));
    let credential = Source::Credential("seal".into());
    assert!(matches!(
        refusal(&credential),
        sealing::Error::NoCredentials { .. }
    ));

    fs::write(&path, [7; 32]).unwrap();
    let mode = |mode| fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    mode(0o644);
    assert!(matches!(
        refusal(&source),
        sealing::Error::Exposed { mode: 0o644, .. }
    ));
    mode(0o640);
    assert!(SealingKey::load(&source, None).is_ok());
    fs::write(&path, [7; 31]).unwrap();
    assert!(matches!(refusal(&source), sealing::Error::Malformed { .. }));
    fs::write(&path, vec![b'a'; 1 << 20]).unwrap();
    assert!(matches!(refusal(&source), sealing::Error::Malformed { .. }));
    let a_folder = Source::File(folder.path().into());
    assert!(matches!(
        refusal(&a_folder),
        sealing::Error::Malformed { .. }
    ));
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
