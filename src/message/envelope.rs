//! The part of a header that all messages under one data key share.

use super::EncryptedDataKey;
use super::EncryptionContext;
use super::header;
use super::reader::Reader;

/// The encryption context and the encrypted data keys of a data key, serialized once for all the
/// messages that it seals.
pub struct Envelope(pub(super) Box<[u8]>);

/// Which bound on encrypted data keys is passed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Limit {
    /// A field of an encrypted data key is too long.
    #[error("{field} of an encrypted data key has {length} bytes, more than {limit}")]
    Field {
        /// Which field.
        field: &'static str,
        /// Its length in bytes.
        length: usize,
        /// The most bytes it may have.
        limit: usize,
    },
    /// There is no encrypted data key, or there are too many.
    #[error("{count} encrypted data keys, not 1 to {limit}")]
    Keys {
        /// How many there are.
        count: usize,
        /// The most there may be.
        limit: usize,
    },
}

/// Most encrypted data keys that we write.
pub(super) const MAX_KEYS_WRITTEN: usize = 8;
/// Most encrypted data keys that we read.
pub(super) const MAX_KEYS_READ: usize = 16;
/// Longest provider id, and longest provider info, in bytes: KMS's maximum for a key's name.
pub(super) const MAX_PROVIDER: usize = 2048;
/// Longest encrypted data key proper, in bytes: KMS's maximum for a ciphertext.
pub(super) const MAX_CIPHERTEXT: usize = 6144;

impl Envelope {
    /// `u16 A ‖ context (A bytes) ‖ u16 count ‖ (u16 length ‖ provider id ‖ u16 length ‖ provider
    /// info ‖ u16 length ‖ ciphertext)…` (message format, section 2.1).
    ///
    /// # Errors
    /// [`Limit`] unless there are 1 to 8 encrypted data keys, with providers of at most 2,048 and
    /// ciphertexts of at most 6,144 bytes.
    pub fn new(context: &EncryptionContext, keys: &[EncryptedDataKey]) -> Result<Self, Limit> {
        check_count(keys.len(), MAX_KEYS_WRITTEN)?;
        let mut bytes = Vec::new();
        let pairs = context.serialized();
        bytes.extend_from_slice(&length(pairs.len()));
        bytes.extend_from_slice(pairs);
        bytes.extend_from_slice(&length(keys.len()));
        for key in keys {
            let fields = [
                (PROVIDER_ID, key.provider_id.as_bytes()),
                (PROVIDER_INFO, key.provider_info.as_bytes()),
                (CIPHERTEXT, key.ciphertext.as_slice()),
            ];
            for ((field, limit), value) in fields {
                check_field(field, value.len(), limit)?;
                bytes.extend_from_slice(&length(value.len()));
                bytes.extend_from_slice(value);
            }
        }
        Ok(Self(bytes.into_boxed_slice()))
    }

    /// The serialized encryption context.
    pub fn context(&self) -> &[u8] {
        let mut reader = Reader::new(&self.0);
        let context = reader.u16().and_then(|length| reader.take(length.into()));
        context.expect("`new` writes the context behind its length")
    }

    /// The encrypted data keys, in the order they were given in.
    pub fn encrypted_data_keys(&self) -> Vec<EncryptedDataKey> {
        let behind_context = 2 + self.context().len();
        let keys = self.0.get(behind_context..).unwrap_or_default();
        header::read_keys(&mut Reader::new(keys)).expect("`new` writes them in this form")
    }

    /// The length in bytes.
    pub fn size(&self) -> usize {
        self.0.len()
    }
}

/// The fields of an encrypted data key in the order of the wire: name and longest length.
pub(super) const PROVIDER_ID: (&str, usize) = ("provider id", MAX_PROVIDER);
pub(super) const PROVIDER_INFO: (&str, usize) = ("provider info", MAX_PROVIDER);
pub(super) const CIPHERTEXT: (&str, usize) = ("ciphertext", MAX_CIPHERTEXT);

pub(super) fn check_count(count: usize, limit: usize) -> Result<(), Limit> {
    if count == 0 || count > limit {
        return Err(Limit::Keys { count, limit });
    }
    Ok(())
}

pub(super) fn check_field(field: &'static str, length: usize, limit: usize) -> Result<(), Limit> {
    if length > limit {
        return Err(Limit::Field {
            field,
            length,
            limit,
        });
    }
    Ok(())
}

fn length(n: usize) -> [u8; 2] {
    u16::try_from(n)
        .expect("contexts and checked fields have at most 6,144 bytes")
        .to_be_bytes()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::Message;
    use super::super::seal;
    use super::*;
    use crate::crypto::Secret;

    fn key(provider: usize, ciphertext: usize) -> EncryptedDataKey {
        EncryptedDataKey {
            provider_id: "aws-kms".to_owned(),
            provider_info: "k".repeat(provider),
            ciphertext: vec![0; ciphertext],
        }
    }

    fn limit(keys: &[EncryptedDataKey]) -> Option<Limit> {
        Envelope::new(&EncryptionContext::default(), keys).err()
    }

    #[test]
    fn limits_hold_at_the_edge_and_one_beyond() {
        assert_eq!(limit(&vec![key(2048, 6144); 8]), None);
        assert_eq!(
            limit(&vec![key(1, 1); 9]),
            Some(Limit::Keys { count: 9, limit: 8 })
        );
        assert_eq!(limit(&[]), Some(Limit::Keys { count: 0, limit: 8 }));
        assert_eq!(
            limit(&[key(2049, 1)]),
            Some(Limit::Field {
                field: "provider info",
                length: 2049,
                limit: 2048
            })
        );
        assert_eq!(
            limit(&[key(1, 6145)]),
            Some(Limit::Field {
                field: "ciphertext",
                length: 6145,
                limit: 6144
            })
        );
    }

    fn any_key() -> impl Strategy<Value = EncryptedDataKey> {
        let provider = || "[a-zé:/-]{0,40}";
        let ciphertext = prop::collection::vec(any::<u8>(), 0..300);
        (provider(), provider(), ciphertext).prop_map(|(provider_id, provider_info, ciphertext)| {
            EncryptedDataKey {
                provider_id,
                provider_info,
                ciphertext,
            }
        })
    }

    proptest! {
        #[test]
        fn a_message_with_two_encrypted_data_keys_names_both_and_opens(
            keys in prop::collection::vec(any_key(), 1..=2),
            pairs in prop::collection::btree_map("[a-z]{1,8}", "[a-z]{1,8}", 0..3),
            plaintext in prop::collection::vec(any::<u8>(), 0..100),
            associated_data in prop::collection::vec(any::<u8>(), 0..9),
        ) {
            let context = EncryptionContext::new(pairs).expect("within limits");
            let envelope = Envelope::new(&context, &keys).expect("within limits");
            prop_assert_eq!(&envelope.encrypted_data_keys(), &keys);
            prop_assert_eq!(envelope.context(), context.serialized());
            let data_key = Secret::random().expect("randomness");
            let sealed = seal(&data_key, &envelope, &associated_data, &plaintext);
            let sealed = sealed.expect("randomness");
            let message = Message::parse(&sealed).expect("a message");
            prop_assert_eq!(message.encrypted_data_keys(), keys);
            prop_assert_eq!(message.context(), &context);
            let opened = message.open(&data_key, &associated_data).expect("the same key");
            prop_assert_eq!(opened.as_slice(), plaintext);
        }
    }

    #[test]
    fn an_empty_context_has_length_zero_and_no_count() {
        let envelope = Envelope::new(&EncryptionContext::default(), &[key(1, 2)]).expect("one key");
        assert_eq!(*envelope.0, *b"\0\0\0\x01\0\x07aws-kms\0\x01k\0\x02\0\0");
    }
}
