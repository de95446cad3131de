use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::slice;

use proptest::prelude::*;

use super::*;

#[test]
fn what_is_written_is_read_back() {
    let bytes = encode(&sample());
    assert_eq!(parse(&bytes).as_deref(), Ok(sample().as_slice()));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("warm");
    assert_eq!(read(&path).unwrap(), []);
    fs::write(&path, "old").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    write(&path, &bytes).unwrap();
    assert_eq!(read(&path).unwrap(), sample());
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn a_write_that_fails_leaves_the_file_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("warm");
    fs::create_dir(&path).unwrap();
    fs::write(path.join("inhabited"), "").unwrap();
    let error = write(&path, &encode(&[])).unwrap_err();
    assert!(matches!(error, Error::Unwritable { .. }), "{error}");
    assert!(path.join("inhabited").exists());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn every_cut_is_a_flaw_but_between_lines() {
    let bytes = encode(&sample());
    for length in 0..bytes.len() {
        let whole_lines = length > 0 && bytes[length - 1] == b'\n';
        assert_eq!(parse(&bytes[..length]).is_ok(), whole_lines, "{length}");
    }
}

#[test]
fn a_flaw_has_its_place_and_shows_no_value() {
    let good = String::from_utf8(encode(&sample())).unwrap();
    let shape = "a field is unknown, missing or of the wrong form";
    for (old, new, line, what) in [
        ("\"used\":", "\"usedd\":", 2, shape),
        ("\"acme\"", "\"hunter2!\"", 2, shape),
        ("[\"stage\",\"hunter2\"]", "\"hunter2\"", 2, shape),
        ("{\"tenant\"", "{hunter2", 2, "not JSON"),
        ("\"stage\"", "\"\"", 2, "not an encryption context"),
        ("AQIDBA==", "hunter2", 3, "not a wrapped data key"),
        ("AQIDBA==", "AQIDBB==", 3, "not a wrapped data key"),
    ] {
        assert!(good.contains(old), "{old}");
        let flaw = parse(good.replacen(old, new, 1).as_bytes()).unwrap_err();
        assert!(!flaw.to_string().contains("hunter"), "{flaw}");
        match flaw {
            Flaw::Line {
                line: at,
                what: said,
                ..
            } => assert_eq!((at, said), (line, what), "{new}"),
            other => panic!("{new}: {other}"),
        }
    }
    let twice = good.replacen("[\"stage\"", "[\"Stage\",\"x\"],[\"stage\"", 1);
    assert!(parse(twice.as_bytes()).is_err());
}

#[test]
fn what_is_no_warm_file_is_told_from_one_that_is_damaged() {
    for foreign in ["tenants_file = \"x\"\n", "{}\n", "\n", "{\"file\":\"x\"}"] {
        assert_eq!(parse(foreign.as_bytes()), Err(Flaw::Foreign), "{foreign}");
    }
    let newer = "{\"file\":\"keybroker warm\",\"version\":3}\n";
    let flaw = parse(newer.as_bytes());
    assert_eq!(flaw, Err(Flaw::Version { version: 3 }));
    assert!(matches!(parse(b""), Err(Flaw::Line { line: 1, .. })));
}

#[test]
fn files_are_bounded_in_lines_length_and_bytes() {
    let one = sample().pop().unwrap();
    let full = encode(&vec![one.clone(); MOST_ENTRIES + 1]);
    assert_eq!(parse(&full).unwrap().len(), MOST_ENTRIES);
    let line = encode(slice::from_ref(&one));
    let line = line.split_inclusive(|byte| *byte == b'\n').nth(1).unwrap();
    assert_eq!(parse(&[&full, line].concat()), Err(Flaw::Many));

    let long = [encode(&[]), vec![b' '; MAX_LINE + 1]].concat();
    assert!(matches!(parse(&long), Err(Flaw::Line { line: 2, .. })));
    let long = [encode(&[]), vec![b'\n'; MAX_FILE]].concat();
    assert_eq!(parse(&long), Err(Flaw::Long));
}

#[test]
fn the_longest_entries_are_read_back_as_far_as_a_file_may_hold_them() {
    let value = "\u{1}".repeat(500);
    let pairs = (0..7).map(|n| (format!("{n}"), value.clone()));
    let wrapped = EncryptedDataKey {
        provider_id: "\u{1}".repeat(2048),
        provider_info: "\u{1}".repeat(2048),
        ciphertext: vec![0; 6144],
    };
    let longest = Recent {
        context: EncryptionContext::new(pairs).unwrap(),
        purpose: Purpose::Open(vec![wrapped.clone(); 2]),
        ..sample().pop().unwrap()
    };
    let bytes = encode(&vec![longest.clone(); 1000]);
    assert!(bytes.len() <= MAX_FILE);
    let read = parse(&bytes).unwrap();
    assert!(read.len() > 150 && read.iter().all(|one| *one == longest));
    let longer = Recent {
        purpose: Purpose::Open(vec![wrapped; 3]),
        ..longest.clone()
    };
    assert_eq!(
        parse(&encode(&[longer, longest.clone()])),
        Ok(vec![longest])
    );
}

proptest! {
    #[test]
    fn parsing_is_total(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        drop(parse(&bytes));
        drop(parse(&[&encode(&[])[..], &bytes].concat()));
    }

    #[test]
    fn a_changed_byte_never_panics(place in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = encode(&sample());
        *place.get_mut::<u8>(&mut bytes) = byte;
        if let Ok(read) = parse(&bytes) {
            prop_assert_eq!(parse(&encode(&read)), Ok(read));
        }
    }
}

fn sample() -> Vec<Recent> {
    let pairs = [("keybroker:tenant", "acme"), ("stage", "hunter2")];
    let pairs = pairs.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let seal = Recent {
        key: KeyName {
            tenant: "acme".parse().unwrap(),
            key: "orders".parse().unwrap(),
        },
        context: EncryptionContext::new(pairs).unwrap(),
        used: "2026-01-31T12:00:00.125Z".parse().unwrap(),
        purpose: Purpose::Seal,
    };
    let one = EncryptedDataKey {
        provider_id: "aws-kms".into(),
        provider_info: "arn:aws:kms:eu-west-1:111122223333:key/\"ä\n\"".into(),
        ciphertext: vec![1, 2, 3, 4],
    };
    let two = EncryptedDataKey {
        ciphertext: vec![5],
        ..one.clone()
    };
    let open = Recent {
        purpose: Purpose::Open(vec![one, two]),
        ..seal.clone()
    };
    vec![seal, open]
}
