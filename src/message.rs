//! The ciphertext format: AWS Encryption SDK message v2, suite 0x0478.
//!
//! Bytes in, bytes out, under a data key that somebody else supplies. Knows nothing of tenants,
//! policies or KMS.
//!
//! A message is a header (suite, message id, encryption context, encrypted data keys, commitment,
//! tag) and a body of frames. Every message has keys of its own, derived from the data key and the
//! message id, so a data key may seal any number of messages without repeating a nonce.

pub mod context;
mod envelope;
mod flaw;
mod frames;
mod header;
mod keys;
pub(crate) mod reader;
pub mod stream;

#[cfg(test)]
mod tests;

pub use context::EncryptionContext;
pub use envelope::Envelope;
pub use envelope::Limit;
pub use flaw::Flaw;

pub use crate::crypto::kdf::SIDE_BY_SIDE;

use crate::crypto::Plaintext;
use crate::crypto::Secret;
use crate::crypto::random;

use frames::Body;
use frames::FrameLength;
use frames::Frames;
use header::Header;
use keys::DATA_KEY;
use keys::Keys;
use keys::MESSAGE_ID;
use reader::Reader;

/// A data key as it stands in a message header, wrapped by a KMS key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EncryptedDataKey {
    /// Whose wrapping: `aws-kms` or `keybroker-local`.
    pub provider_id: String,
    /// Which key wrapped it: the ARN that KMS returned, or the local key's id and version.
    pub provider_info: String,
    /// The wrapped key, opaque, at most 6,144 bytes.
    pub ciphertext: Vec<u8>,
}

/// Seals `plaintext` as a message under `data_key`, which `envelope` holds wrapped, and binds it
/// to `associated_data`, which the message does not hold. Without bytes of it the message is
/// readable by any AWS Encryption SDK.
///
/// # Errors
/// [`random::Error`] when there is no fresh message id to be had.
///
/// # Panics
/// When `plaintext` needs more than 2^32 − 1 frames: beyond 16 TiB.
pub fn seal(
    data_key: &Secret<DATA_KEY>,
    envelope: &Envelope,
    associated_data: &[u8],
    plaintext: &[u8],
) -> Result<Vec<u8>, random::Error> {
    let mut message_id = [0; MESSAGE_ID];
    random::fill(&mut message_id)?;
    Ok(seal_with(
        &Keys::derive(data_key, &message_id),
        envelope,
        &message_id,
        FrameLength::DEFAULT,
        associated_data,
        plaintext,
    ))
}

/// As [`seal`], each of `texts`: associated data and plaintext. Fastest for [`SIDE_BY_SIDE`] of
/// them.
///
/// # Errors
/// As [`seal`]: none is sealed then.
///
/// # Panics
/// As [`seal`].
pub fn seal_each(
    data_key: &Secret<DATA_KEY>,
    envelope: &Envelope,
    texts: &[(&[u8], &[u8])],
) -> Result<Vec<Vec<u8>>, random::Error> {
    let mut ids = vec![[0; MESSAGE_ID]; texts.len()];
    random::fill(ids.as_flattened_mut())?;
    let keys = Keys::derive_each(data_key, &ids);
    let messages = keys.zip(&ids).zip(texts);
    Ok(messages
        .map(|((keys, id), (associated_data, plaintext))| {
            let frame_length = FrameLength::DEFAULT;
            seal_with(
                &keys,
                envelope,
                id,
                frame_length,
                associated_data,
                plaintext,
            )
        })
        .collect())
}

/// [`seal`] without randomness, under the `keys` of `message_id`, which must seal once at most.
fn seal_with(
    keys: &Keys,
    envelope: &Envelope,
    message_id: &[u8; MESSAGE_ID],
    frame_length: FrameLength,
    associated_data: &[u8],
    plaintext: &[u8],
) -> Vec<u8> {
    let length = header::sealed_len(envelope) + frames::sealed_len(plaintext.len(), frame_length);
    let mut message = Vec::with_capacity(length);
    header::seal(
        keys,
        envelope,
        message_id,
        frame_length,
        associated_data,
        &mut message,
    );
    Body::new(&keys.content, message_id).seal(frame_length, plaintext, &mut message);
    message
}

/// A received message: its header is well formed and within our limits, and nothing about it is
/// proved until [`Message::open`] returns.
pub struct Message<'a> {
    header: Header<'a>,
    body: &'a [u8],
}

impl<'a> Message<'a> {
    /// Reads the header of the message `bytes`. The body is first looked at by [`Message::open`].
    ///
    /// # Errors
    /// The [`Flaw`] of the header that comes first.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Flaw> {
        Self::read(bytes, None)
    }

    /// As [`Message::parse`], for a message that may well have the context and the encrypted data
    /// keys of `other`, byte by byte: it then shares them instead of reading them again.
    ///
    /// # Errors
    /// As [`Message::parse`].
    pub fn parse_like(bytes: &'a [u8], other: &Message<'_>) -> Result<Self, Flaw> {
        Self::read(bytes, Some(&other.header))
    }

    fn read(bytes: &'a [u8], like: Option<&Header<'_>>) -> Result<Self, Flaw> {
        let mut reader = Reader::new(bytes);
        let header = Header::read(&mut reader, like)?;
        Ok(Self {
            header,
            body: reader.rest(),
        })
    }

    /// The serialized encryption context and encrypted data keys, as the message claims them:
    /// equal bytes are equal claims.
    pub fn claims(&self) -> &'a [u8] {
        self.header.claims
    }

    /// The encryption context, as the message claims. Empty in some messages of other producers.
    pub fn context(&self) -> &EncryptionContext {
        &self.header.claimed.context
    }

    /// The encrypted data keys, as the message claims, in its order. Those whose provider is not
    /// UTF-8 text, as raw keyrings write them, are left out: none of them is ours to unwrap.
    pub fn encrypted_data_keys(&self) -> &[EncryptedDataKey] {
        &self.header.claimed.encrypted_data_keys
    }

    /// What follows the header, unproven.
    pub fn body(&self) -> &'a [u8] {
        self.body
    }

    /// The plaintext, after every byte of the message has been verified: commitment, header with
    /// `associated_data`, all frames in order, nothing behind them. Takes at most the memory of
    /// the body, and wipes it unless it returns it.
    ///
    /// # Errors
    /// The [`Flaw`] that comes first. Callers over the network must not learn which one.
    pub fn open(
        &self,
        data_key: &Secret<DATA_KEY>,
        associated_data: &[u8],
    ) -> Result<Plaintext, Flaw> {
        self.open_with(
            &Keys::derive(data_key, self.header.message_id),
            associated_data,
        )
    }

    fn open_with(&self, keys: &Keys, associated_data: &[u8]) -> Result<Plaintext, Flaw> {
        self.header.verify(keys, associated_data)?;

        let body = Body::new(&keys.content, self.header.message_id);
        // Plaintext is shorter than its frames, so this never grows and leaves no copy behind.
        let mut plaintext = Plaintext::with_capacity(self.body.len());
        for frame in Frames::new(self.body, self.header.framing) {
            body.open(&frame?, &mut plaintext)?;
        }
        Ok(plaintext)
    }
}

/// As [`Message::open`], each of `messages` with its associated data. Fastest for
/// [`SIDE_BY_SIDE`] of them.
pub fn open_each(
    data_key: &Secret<DATA_KEY>,
    messages: &[(&Message<'_>, &[u8])],
) -> Vec<Result<Plaintext, Flaw>> {
    let ids = messages
        .iter()
        .map(|(message, _)| *message.header.message_id);
    let ids: Vec<_> = ids.collect();
    Keys::derive_each(data_key, &ids)
        .zip(messages)
        .map(|(keys, (message, associated_data))| message.open_with(&keys, associated_data))
        .collect()
}
