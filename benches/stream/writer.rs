//! Our frame writer beside the AEAD that it uses, in memory and on one core.

use std::hint::black_box;
use std::time::Duration;
use std::time::Instant;

use keybroker::crypto::Secret;
use keybroker::crypto::aead;
use keybroker::message::EncryptedDataKey;
use keybroker::message::EncryptionContext;
use keybroker::message::Envelope;
use keybroker::message::stream::Sealer;

/// The throughput of the frame writer over that of the AEAD alone, the median of the rounds.
pub fn aead_ratio() -> f64 {
    let mut ratios: Vec<f64> = (0..ROUNDS)
        .map(|round| {
            // Who goes first changes.
            let (frames, alone) = match round % 2 {
                0 => (frames(), alone()),
                _ => {
                    let alone = alone();
                    (frames(), alone)
                }
            };
            alone.as_secs_f64() / frames.as_secs_f64()
        })
        .collect();
    ratios.sort_by(f64::total_cmp);
    ratios[ROUNDS / 2]
}

/// Seals as a stream does, in pieces as they come over the network.
fn frames() -> Duration {
    let key = EncryptedDataKey {
        provider_id: "aws-kms".to_owned(),
        provider_info: "key".to_owned(),
        ciphertext: vec![7; 184],
    };
    let envelope = Envelope::new(&EncryptionContext::default(), &[key]).unwrap();
    let data_key = Secret::filled(|cell| cell.fill(1));
    let piece = vec![0x5a; PIECE];
    let (mut sealer, _) = Sealer::new(&data_key, &envelope, b"").unwrap();
    let began = Instant::now();
    for _ in 0..BYTES / PIECE {
        black_box(sealer.push(black_box(&piece)));
    }
    black_box(sealer.finish());
    began.elapsed()
}

/// Seals one frame's length over and over in place, bound to as many bytes as a frame is.
fn alone() -> Duration {
    let key = aead::Key::new(&Secret::filled(|cell| cell.fill(1)));
    let mut buffer = vec![0x5a; FRAME];
    let bound = [0x5a; 32 + 28 + 4 + 8];
    let began = Instant::now();
    for number in 0..BYTES / FRAME {
        let mut nonce = [0; aead::NONCE];
        nonce[4..].copy_from_slice(&(number as u64).to_be_bytes());
        black_box(key.seal_in_place(&nonce, &bound, black_box(&mut buffer)));
    }
    began.elapsed()
}

const ROUNDS: usize = 31;
const BYTES: usize = 64 << 20;
const PIECE: usize = 64 << 10;
const FRAME: usize = 4096;
