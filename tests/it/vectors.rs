//! The published commitment vectors of the AWS Encryption SDK, where their folder is present.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use keybroker::crypto::Secret;
use keybroker::message::Flaw;
use keybroker::message::Message;
use serde::Deserialize;

use crate::support::figures;

#[derive(Deserialize)]
struct File {
    tests: Vec<Vector>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Vector {
    ciphertext: String,
    comment: String,
    decrypted_dek: String,
    encryption_context: BTreeMap<String, String>,
    #[serde(default)]
    plaintext_frames: Vec<String>,
    /// Whether it must decrypt.
    status: bool,
}

impl Vector {
    fn message(&self) -> Vec<u8> {
        STANDARD.decode(&self.ciphertext).expect("base64")
    }

    fn is_signed(&self) -> bool {
        self.message().starts_with(b"\x02\x05\x78")
    }

    fn open(&self) -> Result<Vec<u8>, Flaw> {
        let bytes = self.message();
        let message = Message::parse(&bytes)?;
        let pairs = message.context().pairs();
        let pairs: BTreeMap<_, _> = pairs.map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
        assert_eq!(pairs, self.encryption_context, "{}", self.comment);
        let data_key = STANDARD.decode(&self.decrypted_dek).expect("base64");
        let opened = message.open(&Secret::copied(&data_key).expect("32 bytes"), b"")?;
        Ok(opened.to_vec())
    }
}

#[test]
fn published_messages_are_read_and_bad_ones_refused() {
    let Some(vectors) = load() else { return };
    let (mut read, mut refused, mut failed) = (0, 0, 0);
    for vector in vectors.iter().filter(|vector| !vector.is_signed()) {
        match (vector.open(), vector.status) {
            (Ok(plaintext), true) if plaintext == vector.plaintext_frames.concat().as_bytes() => {
                read += 1;
            }
            (Err(Flaw::CommitmentMismatch), false) => refused += 1,
            (outcome, _) => {
                println!("{}: {:?}", vector.comment, outcome.map(drop));
                failed += 1;
            }
        }
    }
    figures::record(
        "vectors",
        [("read", read), ("refused", refused), ("failed", failed)],
    );
    assert_eq!((read, refused, failed), (20, 3, 0));
}

#[test]
fn published_signed_messages_are_refused_by_suite() {
    let Some(vectors) = load() else { return };
    let signed: Vec<_> = vectors.iter().filter(|vector| vector.is_signed()).collect();
    assert_eq!(signed.len(), 23);
    for vector in signed {
        assert_eq!(vector.open(), Err(Flaw::SignedSuite), "{}", vector.comment);
    }
}

/// The vectors, or `None` in a checkout that stands alone; CI must have them.
fn load() -> Option<Vec<Vector>> {
    let folder = std::env::var_os("KEYBROKER_VECTORS").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/vectors"),
        PathBuf::from,
    );
    let path = folder.join("esdk/commitment-test-vectors.json");
    match fs::read(&path) {
        Ok(bytes) => Some(
            serde_json::from_slice::<File>(&bytes)
                .expect("vectors")
                .tests,
        ),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let absent = format!(
                "{}: not found, so the published vectors did not run",
                path.display()
            );
            assert!(std::env::var_os("CI").is_none(), "{absent}");
            // Not `println`, whose output the harness keeps to itself when a test passes.
            writeln!(io::stderr(), "{absent}").expect("standard error");
            None
        }
        Err(error) => panic!("{}: {error}", path.display()),
    }
}
