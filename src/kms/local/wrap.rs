//! Data keys under a version of a local key.
//!
//! | bytes | field |
//! |---|---|
//! | 1 | format, 1 |
//! | 32 | salt, random |
//! | 32 | data key, AES-256-GCM under HKDF-SHA-512(material, salt, `keybroker local wrap 1`), nonce zero |
//! | 16 | tag |
//!
//! Each wrap has a key of its own, so its one nonce never repeats. Associated data: provider info,
//! then the serialized encryption context, each after its length as `u32`, big-endian.

use crate::crypto::Secret;
use crate::crypto::aead;
use crate::crypto::kdf;
use crate::crypto::random;
use crate::kms::DATA_KEY;
use crate::message::EncryptionContext;

/// Wraps `plaintext` under `material`, bound to `info` and `context`.
///
/// # Errors
/// [`random::Error`] when there is no salt to be had.
pub(super) fn wrap(
    material: &Secret<32>,
    info: &str,
    context: &EncryptionContext,
    plaintext: &Secret<DATA_KEY>,
) -> Result<Vec<u8>, random::Error> {
    let mut salt = [0; SALT];
    random::fill(&mut salt)?;
    let mut wrapped = Vec::with_capacity(1 + SALT + DATA_KEY + aead::TAG);
    wrapped.push(FORMAT);
    wrapped.extend_from_slice(&salt);
    // Encrypted in a cell that is wiped, so that the plaintext never lies in the vector.
    let mut tag = aead::Tag([0; aead::TAG]);
    let ciphertext = Secret::filled(|cell: &mut [u8; DATA_KEY]| {
        cell.copy_from_slice(plaintext.expose());
        tag = wrap_key(material, &salt).seal_in_place(&ONE_NONCE, &bound(info, context), cell);
    });
    wrapped.extend_from_slice(ciphertext.expose());
    wrapped.extend_from_slice(&tag.0);
    Ok(wrapped)
}

/// The inverse of [`wrap`]; `None` when anything differs.
pub(super) fn unwrap(
    material: &Secret<32>,
    info: &str,
    context: &EncryptionContext,
    wrapped: &[u8],
) -> Option<Secret<DATA_KEY>> {
    let (&[format], rest) = wrapped.split_first_chunk()?;
    let (salt, rest) = rest.split_first_chunk()?;
    let (ciphertext, rest) = rest.split_first_chunk::<DATA_KEY>()?;
    let tag = aead::Tag(rest.try_into().ok()?);
    if format != FORMAT {
        return None;
    }
    let mut opened = Err(aead::Mismatch);
    let plaintext = Secret::filled(|cell| {
        cell.copy_from_slice(ciphertext);
        opened =
            wrap_key(material, salt).open_in_place(&ONE_NONCE, &bound(info, context), cell, &tag);
    });
    opened.ok().map(|()| plaintext)
}

/// HKDF-SHA-512(`material`, `salt`, label).
fn wrap_key(material: &Secret<32>, salt: &[u8; SALT]) -> aead::Key {
    aead::Key::new(&kdf::extract(salt, material).expand(b"keybroker local wrap 1"))
}

/// The associated data, injective in `info` and `context`.
fn bound(info: &str, context: &EncryptionContext) -> Vec<u8> {
    let length = |n: usize| {
        u32::try_from(n)
            .expect("info has some 120 bytes, a context at most 4 KiB")
            .to_be_bytes()
    };
    let pairs = context.serialized();
    let mut aad = Vec::with_capacity(8 + info.len() + pairs.len());
    aad.extend_from_slice(&length(info.len()));
    aad.extend_from_slice(info.as_bytes());
    aad.extend_from_slice(&length(pairs.len()));
    aad.extend_from_slice(pairs);
    aad
}

const FORMAT: u8 = 1;
const SALT: usize = 32;
/// Sound because each wrap has a key of its own.
const ONE_NONCE: [u8; aead::NONCE] = [0; aead::NONCE];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_wrapped_key_opens_under_the_same_terms_alone() {
        let material = Secret::random().expect("randomness");
        let data_key = Secret::random().expect("randomness");
        let context = context(vec![("a".into(), "b".into())]);
        let wrapped = wrap(&material, "ring/key/1", &context, &data_key).expect("wrapped");

        let again = unwrap(&material, "ring/key/1", &context, &wrapped).expect("opens");
        assert!(again.matches(data_key.expose()));

        let other = Secret::random().expect("randomness");
        assert!(unwrap(&other, "ring/key/1", &context, &wrapped).is_none());
        assert!(unwrap(&material, "ring/key/2", &context, &wrapped).is_none());
        let none = EncryptionContext::default();
        assert!(unwrap(&material, "ring/key/1", &none, &wrapped).is_none());
    }

    #[test]
    fn any_other_length_is_refused() {
        let material = Secret::random().expect("randomness");
        let data_key = Secret::random().expect("randomness");
        let context = EncryptionContext::default();
        let mut wrapped = wrap(&material, "i", &context, &data_key).expect("wrapped");
        for length in 0..wrapped.len() {
            assert!(unwrap(&material, "i", &context, &wrapped[..length]).is_none());
        }
        wrapped.push(0);
        assert!(unwrap(&material, "i", &context, &wrapped).is_none());
    }

    proptest! {
        #[test]
        fn associated_data_is_injective(one in terms(), two in terms()) {
            let aad = |(info, pairs): &Terms| bound(info, &context(pairs.clone()));
            let same = one.0 == two.0 && context(one.1.clone()) == context(two.1.clone());
            prop_assert_eq!(aad(&one) == aad(&two), same);
        }
    }

    type Terms = (String, Vec<(String, String)>);

    /// Drawn from so few letters that texts which run together alike are common.
    fn terms() -> impl Strategy<Value = Terms> {
        (
            "[ab\0]{0,2}",
            prop::collection::btree_map("[ab]{1,2}", "[ab]{1,2}", 0..3),
        )
            .prop_map(|(info, pairs)| (info, pairs.into_iter().collect()))
    }

    fn context(pairs: Vec<(String, String)>) -> EncryptionContext {
        EncryptionContext::new(pairs).expect("within limits")
    }
}
