//! What did not verify, or did not verify to the end, is nowhere in memory afterwards.

use std::fs;
use std::fs::File;
use std::os::unix::fs::FileExt;

use keybroker::crypto::Secret;
use keybroker::crypto::random;
use keybroker::message;
use keybroker::message::EncryptedDataKey;
use keybroker::message::EncryptionContext;
use keybroker::message::Envelope;
use keybroker::message::Flaw;
use keybroker::message::Message;
use zeroize::Zeroize;
use zeroize::Zeroizing;

#[test]
fn a_message_that_fails_at_its_end_leaves_no_plaintext_behind() {
    let data_key = Secret::random().unwrap();
    let wrapped = EncryptedDataKey {
        provider_id: "nobody".to_owned(),
        provider_info: String::new(),
        ciphertext: Vec::new(),
    };
    let envelope = Envelope::new(&EncryptionContext::default(), &[wrapped]).unwrap();
    let mut sign = [0; SIGN];
    random::fill(&mut sign).unwrap();

    // All frames but the last are good, and were plaintext for a moment.
    let mut plaintext = sign.repeat(10 * 4096 / SIGN);
    let good = message::seal(&data_key, &envelope, b"", &plaintext).unwrap();
    assert!(sightings(&sign) > 0, "it is found where it is");
    plaintext.zeroize();
    assert_eq!(sightings(&sign), 0, "not even where it was sealed");

    let open = |message: &[u8]| Message::parse(message).unwrap().open(&data_key, b"");
    let opened = open(&good).unwrap();
    assert!(sightings(&sign) > 0, "it is found where it was opened");
    drop(opened);
    assert_eq!(sightings(&sign), 0);

    let mut bent = good.clone();
    *bent.last_mut().unwrap() ^= 1;
    let cut = &good[..good.len() - 1];
    let longer = [&good[..], b"!"].concat();
    for (bytes, flaw) in [
        (&bent[..], Flaw::FrameMismatch(10)),
        (cut, Flaw::Truncated),
        (&longer, Flaw::TrailingBytes(1)),
    ] {
        assert_eq!(open(bytes).err(), Some(flaw.clone()));
        assert_eq!(sightings(&sign), 0, "{flaw}");
    }
}

/// How often `sign`, many times in a row, stands anywhere in the writable memory of this process.
fn sightings(sign: &[u8; SIGN]) -> usize {
    let memory = File::open("/proc/self/mem").unwrap();
    // Wiped, lest it be what the next search finds.
    let mut chunk = Zeroizing::new(vec![0; 1 << 20]);
    let mut found = 0;
    for line in fs::read_to_string("/proc/self/maps").unwrap().lines() {
        let mut fields = line.split_whitespace();
        let (range, access) = (fields.next().unwrap(), fields.next().unwrap());
        if !access.starts_with("rw") {
            continue;
        }
        let (start, end) = range.split_once('-').unwrap();
        let [mut at, end] = [start, end].map(|hex| u64::from_str_radix(hex, 16).unwrap());
        while at < end {
            let length = chunk.len().min((end - at).try_into().unwrap());
            // What another test has freed by now can't be read, and is no plaintext of this one.
            if memory.read_exact_at(&mut chunk[..length], at).is_ok() {
                found += seen(sign, &chunk[..length]);
            }
            at += length as u64;
        }
    }
    found
}

/// A stride is full of it, whatever the offset; what this search leaves behind never fills one.
fn seen(sign: &[u8; SIGN], memory: &[u8]) -> usize {
    let turns = sign.repeat(2);
    memory
        .chunks_exact(16 * SIGN)
        .filter(|stride| {
            let first = &stride[..SIGN];
            let repeats = stride[SIGN..] == stride[..15 * SIGN];
            repeats && turns.windows(SIGN).any(|turned| turned == first)
        })
        .count()
}

const SIGN: usize = 32;
