//! GCM does not bind a ciphertext to one key: a message can be made that authenticates under two.
//! It opens under the one that it commits to alone.

use aes_gcm::AeadInOut;
use aes_gcm::Aes256Gcm;
use aes_gcm::KeyInit;
use keybroker::crypto::Secret;
use keybroker::crypto::kdf;
use keybroker::kms::KeyRef;
use keybroker::message;
use keybroker::message::EncryptedDataKey;
use keybroker::message::EncryptionContext;
use keybroker::message::Envelope;
use keybroker::message::Flaw;
use keybroker::message::Message;

use super::causes;
use super::context_of;
use super::refused;
use super::unbound;
use crate::harness::Broker;
use crate::harness::GLOBEX;
use crate::harness::WEB;

#[test]
fn a_message_that_authenticates_under_two_keys_opens_under_the_committed_one_alone() {
    let keys = [Secret::random().unwrap(), Secret::random().unwrap()];
    let context = EncryptionContext::default();
    for committed in [0, 1] {
        let forged = Forged::new(&keys, committed, &context, &[]);
        let open = |bytes: &[u8], key: usize| {
            let opened = Message::parse(bytes).unwrap().open(&keys[key], b"");
            opened.map(|plaintext| plaintext.to_vec())
        };
        let plaintext = forged.plaintexts[committed].to_vec();
        assert_eq!(open(&forged.message, committed), Ok(plaintext));
        let other = 1 - committed;
        assert_eq!(open(&forged.message, other), Err(Flaw::CommitmentMismatch));
        // Nor does GCM look at it first: it would find the tag.
        let mut bent = forged.message.clone();
        bent[forged.header] ^= 1;
        assert_eq!(open(&bent, committed), Err(Flaw::HeaderMismatch));
        assert_eq!(open(&bent, other), Err(Flaw::CommitmentMismatch));
    }
}

#[tokio::test]
async fn a_tenant_is_refused_what_authenticates_under_its_key_and_commits_to_anothers() {
    let broker = Broker::start().await;
    let names = [("keybroker:key", "orders"), ("table", "users")];
    let acme = [("keybroker:tenant", "acme"), ("stage", "test")];
    let globex = [("keybroker:tenant", "globex")];
    let tenants: [(&str, &[(&str, &str)]); 2] = [(WEB, &acme), (GLOBEX, &globex)];
    for (own, (id, pairs)) in tenants.into_iter().enumerate() {
        let context = context_of(&[&names, pairs].concat());
        let keys = [Secret::random().unwrap(), Secret::random().unwrap()];
        let wrapped = ["acme-orders", "globex-orders"].map(|kms| KeyRef::Local(kms.to_owned()));
        let wrapped = [0, 1].map(|at| broker.kms.wrap(&wrapped[at], &keys[at], &context));
        let mut caller = broker.caller(id).await;
        let calls = broker.kms.decrypt_calls();

        let theirs = Forged::new(&keys, 1 - own, &context, &wrapped);
        refused(&mut caller, unbound(theirs.message), id).await;
        assert_eq!(causes(&broker).pop().unwrap(), "commitment_mismatch");
        assert_eq!(broker.kms.decrypt_calls(), calls + 1, "{id} has its key");

        let ours = Forged::new(&keys, own, &context, &wrapped);
        let opened = caller.decrypt(unbound(ours.message)).await.unwrap();
        assert_eq!(*opened.into_inner().plaintext, ours.plaintexts[own]);
    }
}

/// A message of one frame that plain AES-GCM opens under both of two data keys.
struct Forged {
    message: Vec<u8>,
    /// What it opens to under each.
    plaintexts: [[u8; BLOCK]; 2],
    /// Where its header's tag begins.
    header: usize,
}

impl Forged {
    /// Commits to the key at `committed`. With a free block in the header and one in the frame,
    /// either tag can be made the same under both keys.
    fn new(
        keys: &[Secret<32>; 2],
        committed: usize,
        context: &EncryptionContext,
        wrapped: &[EncryptedDataKey],
    ) -> Self {
        let spare = EncryptedDataKey {
            provider_id: "nobody".to_owned(),
            provider_info: String::new(),
            ciphertext: vec![0; 2 * BLOCK],
        };
        let wrapped = [wrapped, &[spare]].concat();
        let envelope = Envelope::new(context, &wrapped).unwrap();
        let mut message = message::seal(&keys[committed], &envelope, b"", &[0; BLOCK]).unwrap();

        let header = message.len() - FRAME - TAG;
        let frame = message.len() - BLOCK - TAG;
        // Two blocks of its own hold one of the header's, wherever they begin.
        let spare = (header - AFTER_KEYS - 2 * BLOCK).next_multiple_of(BLOCK);
        let id: [u8; 32] = message[3..35].try_into().unwrap();
        let content = [0, 1].map(|at| {
            let key: Secret<32> = kdf::extract(&id, &keys[at]).expand(b"\x04\x78DERIVEKEY");
            Aes256Gcm::new(key.expose().into())
        });

        let tag = collide(&content, &[0; 12], |block| {
            message[spare..spare + BLOCK].copy_from_slice(&block.to_be_bytes());
            (message[..header].to_vec(), Vec::new())
        });
        message[header..header + TAG].copy_from_slice(&tag);

        let mut nonce = [0; 12];
        nonce[11] = 1;
        let label = b"AWSKMSEncryptionClient Final Frame".as_slice();
        let length = [0, 0, 0, 0, 0, 0, 0, 16];
        let additional = [id.as_slice(), label, &[0, 0, 0, 1], &length].concat();
        let tag = collide(&content, &nonce, |block| {
            message[frame..frame + BLOCK].copy_from_slice(&block.to_be_bytes());
            (additional.clone(), block.to_be_bytes().to_vec())
        });
        message[frame + BLOCK..].copy_from_slice(&tag);

        // Without this the tests would show nothing: GCM is content with either key.
        let plaintexts = [0, 1].map(|at| {
            let open = |nonce: &[u8; 12], aad: &[u8], bytes: &[u8]| {
                let (sealed, tag) = bytes.split_at(bytes.len() - TAG);
                let mut buffer = sealed.to_vec();
                let tag = tag.try_into().unwrap();
                content[at]
                    .decrypt_inout_detached(nonce.into(), aad, buffer.as_mut_slice().into(), tag)
                    .expect("it authenticates");
                buffer
            };
            open(&[0; 12], &message[..header], &message[header..header + TAG]);
            open(&nonce, &additional, &message[frame..])
                .try_into()
                .unwrap()
        });
        assert_ne!(plaintexts[0], plaintexts[1]);
        Self {
            message,
            plaintexts,
            header,
        }
    }
}

/// The tag that both keys make for the additional data and ciphertext that `parts` puts around a
/// block, once the block is the right one; `parts` is last called with that.
///
/// A tag is linear over GF(2^128) in any one block `X` that it covers: `T = T(0) + X · (T(1) +
/// T(0))`. Two keys are two lines, which cross.
fn collide(
    keys: &[Aes256Gcm; 2],
    nonce: &[u8; 12],
    mut parts: impl FnMut(u128) -> (Vec<u8>, Vec<u8>),
) -> [u8; TAG] {
    let mut tags = |block| {
        let (additional, ciphertext) = parts(block);
        [0, 1].map(|at: usize| tag(&keys[at], nonce, &additional, &ciphertext))
    };
    let (zero, one) = (tags(0), tags(ONE));
    let slopes = zero[0] ^ one[0] ^ zero[1] ^ one[1];
    let [tag, same] = tags(multiply(zero[0] ^ zero[1], invert(slopes)));
    assert_eq!(tag, same);
    tag.to_be_bytes()
}

/// The tag over a ciphertext rather than a plaintext.
fn tag(key: &Aes256Gcm, nonce: &[u8; 12], additional: &[u8], ciphertext: &[u8]) -> u128 {
    let seal = |buffer: &mut [u8]| {
        let tag = key.encrypt_inout_detached(nonce.into(), additional, buffer.into());
        u128::from_be_bytes(tag.unwrap().into())
    };
    let mut buffer = vec![0; ciphertext.len()];
    seal(&mut buffer);
    for (keystream, byte) in buffer.iter_mut().zip(ciphertext) {
        *keystream ^= byte;
    }
    let tag = seal(&mut buffer);
    assert_eq!(buffer, ciphertext);
    tag
}

/// NIST SP 800-38D, section 6.3.
fn multiply(x: u128, y: u128) -> u128 {
    let reduction = 0xe1 << 120;
    let mut product = 0;
    let mut shifted = y;
    for bit in (0..128).rev() {
        if x >> bit & 1 == 1 {
            product ^= shifted;
        }
        let carry = shifted & 1;
        shifted >>= 1;
        shifted ^= carry * reduction;
    }
    product
}

/// `x^(2^128 − 2)`.
fn invert(x: u128) -> u128 {
    let mut inverse = ONE;
    let mut power = x;
    for _ in 1..128 {
        power = multiply(power, power);
        inverse = multiply(inverse, power);
    }
    inverse
}

/// The 1 of GCM's field, whose bits run from the left.
const ONE: u128 = 1 << 127;
const BLOCK: usize = 16;
const TAG: usize = 16;
/// Marker, number, nonce, length, one block and its tag.
const FRAME: usize = 4 + 4 + 12 + 4 + BLOCK + TAG;
/// Content type, frame length and commitment end what the header's tag covers.
const AFTER_KEYS: usize = 1 + 4 + 32;
