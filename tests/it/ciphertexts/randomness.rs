//! No two messages share an id, and without randomness there is no message.

use std::env;
use std::fs;
use std::fs::File;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::thread;

use keybroker::crypto::Secret;
use keybroker::message;
use keybroker::message::EncryptedDataKey;
use keybroker::message::EncryptionContext;
use keybroker::message::Envelope;
use tokio::runtime::Runtime;

use crate::harness::Broker;
use crate::harness::Refusal;
use crate::harness::WEB;
use crate::harness::rpcs::call;
use crate::harness::rpcs::seal;
use crate::support::figures;
use crate::support::scale::scaled;

#[test]
fn a_million_messages_under_one_data_key_share_no_id_and_no_derived_key() {
    let each = scaled(500_000, 5_000_000);
    let data_key = Secret::random().unwrap();
    let envelope = envelope();
    // Half of an id, and half of the commitment, which stands for all that is derived with it.
    let one = || {
        let message = message::seal(&data_key, &envelope, b"", b"").unwrap();
        let commitment = message.len() - EMPTY_FRAME - 16 - 32;
        [3, commitment].map(|at| u128::from_be_bytes(message[at..at + 16].try_into().unwrap()))
    };
    let [mut ids, mut commitments] = [(); 2].map(|()| Vec::with_capacity(2 * each));
    thread::scope(|scope| {
        let threads =
            [(); 2].map(|()| scope.spawn(|| (0..each).map(|_| one()).collect::<Vec<_>>()));
        for [id, commitment] in threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap())
        {
            ids.push(id);
            commitments.push(commitment);
        }
    });
    let repeated = repetitions(&mut ids) + repetitions(&mut commitments);
    figures::record(
        "message_ids",
        [("messages", ids.len()), ("repeated", repeated)],
    );
    assert_eq!(repeated, 0);
}

#[test]
fn without_randomness_there_is_an_error_and_no_output() {
    match env::var_os(DROUGHT) {
        Some(drought) => Runtime::new()
            .unwrap()
            .block_on(thirst(Path::new(&drought))),
        None => {
            let folder = tempfile::tempdir().unwrap();
            let output = Command::new(env::current_exe().unwrap())
                .args(["--exact", TEST])
                .env("LD_PRELOAD", generator(folder.path()))
                .env(DROUGHT, folder.path().join("drought"))
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&output.stdout);
            let errors = String::from_utf8_lossy(&output.stderr);
            // A misspelt name would run nothing, and succeed.
            let passed = output.status.success() && text.contains("1 passed");
            assert!(passed, "{text}\n{errors}");
        }
    }
}

/// Runs where the generator fails as long as the file `drought` exists.
async fn thirst(drought: &Path) {
    let broker = Broker::start().await;
    let mut web = broker.caller(WEB).await;
    // A data key is at hand from now on: messages alone need randomness.
    let sealed = seal(&mut web, "keys/orders", "x").await;
    let data_key = Secret::random().unwrap();

    File::create(drought).unwrap();
    // None is left in a buffer either, which a fork or a restored snapshot would repeat.
    assert!(message::seal(&data_key, &envelope(), b"", b"x").is_err());
    assert!(Secret::<32>::random().is_err());
    for rpc in [
        "Encrypt",
        "ReEncrypt",
        "GenerateDataKey",
        "GenerateDataKeyWithoutPlaintext",
        "GenerateRandom",
    ] {
        let refused = call(&mut web, rpc, "keys/orders", &sealed).await;
        let refusal = Refusal::of(&refused.expect_err(rpc));
        assert_eq!(refusal.reason, "INTERNAL", "{rpc}");
        let cause = broker.records().pop().unwrap()["errorMessage"].to_string();
        assert!(cause.contains("random generator"), "{rpc}: {cause}");
    }
    let opened = call(&mut web, "Decrypt", "keys/orders", &sealed).await;
    assert!(opened.is_ok(), "opening needs none: {opened:?}");

    fs::remove_file(drought).unwrap();
    let served = call(&mut web, "Encrypt", "keys/orders", &sealed).await;
    assert!(served.is_ok(), "it recovers: {served:?}");
}

/// A library that stands before the operating system's generator.
fn generator(folder: &Path) -> PathBuf {
    let (source, library) = (folder.join("generator.c"), folder.join("generator.so"));
    fs::write(&source, GENERATOR).unwrap();
    let compiled = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .args([&library, &source])
        .status();
    assert!(compiled.unwrap().success());
    library
}

fn envelope() -> Envelope {
    let wrapped = EncryptedDataKey {
        provider_id: "nobody".to_owned(),
        provider_info: String::new(),
        ciphertext: Vec::new(),
    };
    Envelope::new(&EncryptionContext::default(), &[wrapped]).unwrap()
}

fn repetitions(values: &mut [u128]) -> usize {
    values.sort_unstable();
    let neighbours = values.iter().zip(&values[1..]);
    neighbours.filter(|(one, next)| one == next).count()
}

const GENERATOR: &str = r#"
#include <errno.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

ssize_t getrandom(void *bytes, size_t length, unsigned flags) {
    const char *drought = getenv("KEYBROKER_TEST_DROUGHT");
    if (length > 0 && drought && access(drought, F_OK) == 0) {
        errno = EIO;
        return -1;
    }
    return syscall(SYS_getrandom, bytes, length, flags);
}
"#;
const TEST: &str = "ciphertexts::randomness::without_randomness_there_is_an_error_and_no_output";
const DROUGHT: &str = "KEYBROKER_TEST_DROUGHT";
/// Marker, number, nonce, length and tag.
const EMPTY_FRAME: usize = 4 + 4 + 12 + 4 + 16;
