//! The warm file: what a restart begins with, as lines of JSON behind a line that says so.
//!
//! ```text
//! {"file":"keybroker warm","version":2}
//! {"tenant":"acme","key":"orders","context":[["keybroker:key","orders"],…],"used":"2026-01-31T12:00:00Z"}
//! {"tenant":…,"wrapped":[{"provider":"aws-kms","info":"arn:…","ciphertext":"<base64>"}]}
//! ```
//!
//! An entry with wrapped keys opens, one without seals. The file is not trusted: whoever writes
//! it can have KMS called at the configured rate, for keys of the directory and contexts of those
//! keys alone.

use std::fs::File;
use std::io;
use std::io::Read;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use jiff::Timestamp;
use serde::Deserialize;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::error::Category;
use tempfile::Builder;

use crate::datakeys::warm::MOST_ENTRIES;
use crate::datakeys::warm::Purpose;
use crate::datakeys::warm::Recent;
use crate::message::EncryptedDataKey;
use crate::message::EncryptionContext;
use crate::message::Envelope;
use crate::name::KeyId;
use crate::name::KeyName;
use crate::name::TenantId;

/// A warm file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its bytes are none of ours, or damaged.
    #[error("{path}: {flaw}")]
    Flawed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and where.
        flaw: Flaw,
    },
    /// The file could not be read.
    #[error("cannot read {path}: {source}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file could not be written: what was there before still is.
    #[error("cannot write {path}: {source}")]
    Unwritable {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// Why bytes are no warm file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// Something else than a warm file.
    #[error("not a warm file")]
    Foreign,
    /// A line is not what it should be.
    #[error("line {line}, column {column}: {what}")]
    Line {
        /// The line, counted from 1.
        line: usize,
        /// The column in bytes, counted from 1.
        column: usize,
        /// What is wrong there. Holds no text of the file.
        what: &'static str,
    },
    /// Longer than any warm file.
    #[error("longer than {limit} bytes", limit = MAX_FILE)]
    Long,
    /// More entries than any warm file has.
    #[error("more than {limit} entries", limit = MOST_ENTRIES)]
    Many,
    /// Written by another keybroker.
    #[error("in format {version}, this keybroker reads {known}", known = VERSION)]
    Version {
        /// Its format.
        version: u32,
    },
}

/// Reads the file at `path`; nothing when there is no file.
///
/// # Errors
/// [`Error::Unreadable`], [`Error::Flawed`]: nothing of the file is used then.
pub fn read(path: &Path) -> Result<Vec<Recent>, Error> {
    let owned = || path.to_owned();
    match beginning(path) {
        Ok(bytes) => parse(&bytes).map_err(|flaw| Error::Flawed {
            path: owned(),
            flaw,
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(Error::Unreadable {
            path: owned(),
            source,
        }),
    }
}

/// Replaces the file at `path` by `bytes`, whole or not at all, readable by its owner alone.
///
/// # Errors
/// [`Error::Unwritable`].
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    replace(path, bytes).map_err(|source| Error::Unwritable {
        path: path.to_owned(),
        source,
    })
}

/// Reads the bytes of a warm file. Total: any bytes give entries or a flaw.
///
/// # Errors
/// [`Flaw`], at the first thing that is wrong.
pub fn parse(bytes: &[u8]) -> Result<Vec<Recent>, Flaw> {
    if bytes.is_empty() {
        return Err(flaw(1, 1, "empty"));
    }
    let mut lines = (1..).zip(bytes.split_inclusive(|byte| *byte == b'\n'));
    let head = lines.next().and_then(|(_, head)| {
        let head = head.get(..MAX_LINE.min(head.len()))?;
        serde_json::from_slice::<Head>(head).ok()
    });
    match head.filter(|head| head.file == FILE) {
        None => return Err(Flaw::Foreign),
        Some(Head { version, .. }) if version != VERSION => return Err(Flaw::Version { version }),
        Some(_) => {}
    }
    if bytes.len() > MAX_FILE {
        return Err(Flaw::Long);
    }
    let mut recent = Vec::new();
    for (number, line) in lines {
        if recent.len() == MOST_ENTRIES {
            return Err(Flaw::Many);
        }
        recent.push(entry(number, line)?);
    }
    match bytes.last() {
        Some(b'\n') => Ok(recent),
        _ => Err(flaw(recent.len() + 1, 1, "cut short")),
    }
}

/// The bytes of a file with `recent`, or with as many from its front as a file may hold; without
/// those that have more wrapped keys, and longer, than KMS makes.
pub fn encode(recent: &[Recent]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let head = Head {
        file: FILE.to_owned(),
        version: VERSION,
    };
    append(&mut bytes, &head);
    for one in recent.iter().take(MOST_ENTRIES) {
        let before = bytes.len();
        append(&mut bytes, &Line::of(one));
        let long = bytes.len() - before > MAX_LINE;
        let full = bytes.len() > MAX_FILE;
        if long || full {
            bytes.truncate(before);
        }
        if full {
            break;
        }
    }
    bytes
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    file: String,
    version: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    tenant: TenantId,
    key: KeyId,
    context: Vec<(String, String)>,
    used: Timestamp,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    wrapped: Vec<Wrapped>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wrapped {
    provider: String,
    info: String,
    ciphertext: String,
}

impl Line {
    fn of(one: &Recent) -> Self {
        let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        Self {
            tenant: one.key.tenant.clone(),
            key: one.key.key.clone(),
            context: one.context.pairs().map(owned).collect(),
            used: one.used,
            wrapped: match &one.purpose {
                Purpose::Open(wrapped) => wrapped.iter().map(Wrapped::of).collect(),
                Purpose::Seal => Vec::new(),
            },
        }
    }
}

impl Wrapped {
    fn of(one: &EncryptedDataKey) -> Self {
        Self {
            provider: one.provider_id.clone(),
            info: one.provider_info.clone(),
            ciphertext: BASE64_STANDARD.encode(&one.ciphertext),
        }
    }

    fn decoded(self) -> Option<EncryptedDataKey> {
        Some(EncryptedDataKey {
            provider_id: self.provider,
            provider_info: self.info,
            ciphertext: BASE64_STANDARD.decode(&self.ciphertext).ok()?,
        })
    }
}

fn entry(number: usize, line: &[u8]) -> Result<Recent, Flaw> {
    if line.len() > MAX_LINE {
        return Err(flaw(number, 1, "longer than any entry"));
    }
    let line: Line = json(number, line)?;
    let context = EncryptionContext::new(line.context)
        .map_err(|_| flaw(number, 1, "not an encryption context"))?;
    let purpose = match line.wrapped.is_empty() {
        true => Purpose::Seal,
        false => {
            let unusable = || flaw(number, 1, "not a wrapped data key");
            let wrapped = line.wrapped.into_iter().map(Wrapped::decoded);
            let wrapped: Option<Vec<_>> = wrapped.collect();
            let wrapped = wrapped.ok_or_else(unusable)?;
            Envelope::new(&context, &wrapped).map_err(|_| unusable())?;
            Purpose::Open(wrapped)
        }
    };
    Ok(Recent {
        key: KeyName {
            tenant: line.tenant,
            key: line.key,
        },
        context,
        used: line.used,
        purpose,
    })
}

/// serde's own sentences may hold text of the file, which can be personal data.
fn json<T: DeserializeOwned>(number: usize, line: &[u8]) -> Result<T, Flaw> {
    serde_json::from_slice(line).map_err(|error| {
        let what = match error.classify() {
            Category::Data => "a field is unknown, missing or of the wrong form",
            Category::Eof => "cut short",
            Category::Io | Category::Syntax => "not JSON",
        };
        flaw(number, error.column().max(1), what)
    })
}

fn flaw(line: usize, column: usize, what: &'static str) -> Flaw {
    Flaw::Line { line, column, what }
}

fn append(bytes: &mut Vec<u8>, line: &impl Serialize) {
    serde_json::to_writer(&mut *bytes, line).expect("texts and numbers are JSON");
    bytes.push(b'\n');
}

/// As much of a file as tells whether it is too long.
fn beginning(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let limit = u64::try_from(MAX_FILE).unwrap_or(u64::MAX);
    File::open(path)?
        .take(limit.saturating_add(1))
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    // Made with mode 0600.
    let mut new = Builder::new().prefix(".warm-").tempfile_in(folder)?;
    new.write_all(bytes)?;
    new.as_file().sync_all()?;
    new.persist(path)?;
    File::open(folder)?.sync_all()
}

const FILE: &str = "keybroker warm";
const VERSION: u32 = 2;
/// Longest file, in bytes.
const MAX_FILE: usize = 16 << 20;
/// Longest line, in bytes: the longest context and two of the longest wrapped keys fit, every byte
/// escaped.
const MAX_LINE: usize = 96 << 10;

#[cfg(test)]
mod tests {
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
}
