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
mod tests;
