//! The keyring and its sealing key as files: whose they are, and what happens when they are damaged,
//! replaced, gone or cannot be written.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::fs::symlink;
use std::path::Path;

use keybroker::kms::local::Error;
use keybroker::kms::local::Keyring;
use keybroker::kms::local::Purpose;
use keybroker::kms::local::SealingKey;
use keybroker::kms::local::file;
use keybroker::kms::local::sealing;
use keybroker::kms::local::sealing::Source;

use super::Place;
use super::create;
use super::key;
use super::names;
use super::now;
use super::open;
use super::sealing;
use crate::support::unprivileged;

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
    let test = "keyring::files::a_read_only_folder_fails_changes_alone";
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
    let test = "keyring::files::an_unreadable_keyring_is_not_called_missing";
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
    let test = "keyring::files::a_full_disk_fails_changes_alone";
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
