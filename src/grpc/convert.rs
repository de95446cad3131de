//! Wire messages to the broker's requests, fallibly, and results to wire messages, infallibly.
//!
//! Messages are taken apart completely, so that a new field breaks the build here. Checksums are
//! compared here, before anything else looks at the bytes.

pub(super) mod stream;

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::broker::Binding;
use crate::broker::Cipher;
use crate::broker::Done;
use crate::broker::Opened;
use crate::broker::Page;
use crate::broker::Plain;
use crate::broker::Sealed;
use crate::broker::Visible;
use crate::crypto::Plaintext;
use crate::datakeys::Version;
use crate::directory::KmsKeys;
use crate::error::Error;
use crate::grpc::pb;
use crate::kms::KeyRef;

/// Whether a checksum came with a field and was compared.
#[derive(Clone, Copy, Default)]
pub(super) struct Verified(bool);

pub(super) struct Encrypt {
    pub(super) to: Binding,
    pub(super) plaintext: Bytes,
    verified: [Verified; 2],
}

impl TryFrom<pb::EncryptRequest> for Encrypt {
    type Error = Error;

    fn try_from(request: pb::EncryptRequest) -> Result<Self, Error> {
        let pb::EncryptRequest {
            name,
            plaintext,
            encryption_context,
            associated_data,
            plaintext_crc32c,
            associated_data_crc32c,
            grant_tokens,
        } = request;
        let verified = [
            verify("plaintext", &plaintext, plaintext_crc32c)?,
            verify("associated_data", &associated_data, associated_data_crc32c)?,
        ];
        let to = binding(name, encryption_context, associated_data, grant_tokens);
        Ok(Self {
            to,
            plaintext,
            verified,
        })
    }
}

impl Encrypt {
    pub(super) fn respond(verified: [Verified; 2], sealed: Sealed) -> pb::EncryptResponse {
        Self::response(
            verified,
            String::from(&sealed.name),
            &sealed.version,
            sealed.ciphertext,
        )
    }

    /// The response of one item of a batch.
    pub(super) fn respond_item(
        verified: [Verified; 2],
        item: Done<Vec<u8>>,
    ) -> pb::EncryptResponse {
        Self::response(
            verified,
            String::from(&*item.name),
            &item.version,
            item.content,
        )
    }

    fn response(
        verified: [Verified; 2],
        name: String,
        version: &Version,
        ciphertext: Vec<u8>,
    ) -> pb::EncryptResponse {
        let [plaintext, associated_data] = verified;
        let (ciphertext, ciphertext_crc32c) = summed(ciphertext);
        pb::EncryptResponse {
            name,
            key_version: String::from(&*version.name),
            ciphertext,
            ciphertext_crc32c,
            verified_plaintext_crc32c: plaintext.0,
            verified_associated_data_crc32c: associated_data.0,
        }
    }

    pub(super) fn verified(&self) -> [Verified; 2] {
        self.verified
    }
}

pub(super) struct Decrypt {
    pub(super) from: Binding,
    pub(super) ciphertext: Bytes,
    verified: [Verified; 2],
}

impl TryFrom<pb::DecryptRequest> for Decrypt {
    type Error = Error;

    fn try_from(request: pb::DecryptRequest) -> Result<Self, Error> {
        let pb::DecryptRequest {
            name,
            ciphertext,
            encryption_context,
            associated_data,
            ciphertext_crc32c,
            associated_data_crc32c,
            grant_tokens,
        } = request;
        let verified = [
            verify("ciphertext", &ciphertext, ciphertext_crc32c)?,
            verify("associated_data", &associated_data, associated_data_crc32c)?,
        ];
        let from = binding(name, encryption_context, associated_data, grant_tokens);
        Ok(Self {
            from,
            ciphertext,
            verified,
        })
    }
}

impl Decrypt {
    pub(super) fn respond(verified: [Verified; 2], opened: Opened) -> pb::DecryptResponse {
        Self::response(
            verified,
            String::from(&opened.name),
            &opened.version,
            opened.plaintext,
        )
    }

    /// The response of one item of a batch.
    pub(super) fn respond_item(
        verified: [Verified; 2],
        item: Done<Plaintext>,
    ) -> pb::DecryptResponse {
        Self::response(
            verified,
            String::from(&*item.name),
            &item.version,
            item.content,
        )
    }

    fn response(
        verified: [Verified; 2],
        name: String,
        version: &Version,
        plaintext: Plaintext,
    ) -> pb::DecryptResponse {
        let [ciphertext, associated_data] = verified;
        let (plaintext, plaintext_crc32c) = secret(plaintext);
        pb::DecryptResponse {
            name,
            key_version: String::from(&*version.name),
            used_primary: version.primary,
            plaintext,
            plaintext_crc32c,
            verified_ciphertext_crc32c: ciphertext.0,
            verified_associated_data_crc32c: associated_data.0,
        }
    }

    pub(super) fn verified(&self) -> [Verified; 2] {
        self.verified
    }
}

/// What is to be encrypted, and which checksums came with it, item by item.
pub(super) fn plaintexts(
    request: pb::EncryptBatchRequest,
) -> (Vec<Result<Plain, Error>>, Vec<[Verified; 2]>) {
    let pb::EncryptBatchRequest { items } = request;
    let items = items.into_iter().map(|item| {
        let item = Encrypt::try_from(item);
        let verified = item.as_ref().map(Encrypt::verified).unwrap_or_default();
        let item = item.map(|Encrypt { to, plaintext, .. }| Plain { to, plaintext });
        (item, verified)
    });
    items.unzip()
}

/// What is to be decrypted, likewise.
pub(super) fn ciphertexts(
    request: pb::DecryptBatchRequest,
) -> (Vec<Result<Cipher, Error>>, Vec<[Verified; 2]>) {
    let pb::DecryptBatchRequest { items } = request;
    let items = items.into_iter().map(|item| {
        let item = Decrypt::try_from(item);
        let verified = item.as_ref().map(Decrypt::verified).unwrap_or_default();
        let item = item.map(
            |Decrypt {
                 from, ciphertext, ..
             }| Cipher { from, ciphertext },
        );
        (item, verified)
    });
    items.unzip()
}

pub(super) struct ReEncrypt {
    pub(super) from: Binding,
    pub(super) ciphertext: Bytes,
    pub(super) to: Binding,
    verified: [Verified; 3],
}

impl TryFrom<pb::ReEncryptRequest> for ReEncrypt {
    type Error = Error;

    fn try_from(request: pb::ReEncryptRequest) -> Result<Self, Error> {
        let pb::ReEncryptRequest {
            source_name,
            ciphertext,
            source_encryption_context,
            source_associated_data,
            destination_name,
            destination_encryption_context,
            destination_associated_data,
            ciphertext_crc32c,
            source_associated_data_crc32c,
            destination_associated_data_crc32c,
            grant_tokens,
        } = request;
        let verified = [
            verify("ciphertext", &ciphertext, ciphertext_crc32c)?,
            verify(
                "source_associated_data",
                &source_associated_data,
                source_associated_data_crc32c,
            )?,
            verify(
                "destination_associated_data",
                &destination_associated_data,
                destination_associated_data_crc32c,
            )?,
        ];
        Ok(Self {
            from: binding(
                source_name,
                source_encryption_context,
                source_associated_data,
                grant_tokens.clone(),
            ),
            ciphertext,
            to: binding(
                destination_name,
                destination_encryption_context,
                destination_associated_data,
                grant_tokens,
            ),
            verified,
        })
    }
}

impl ReEncrypt {
    pub(super) fn respond(
        verified: [Verified; 3],
        opened: &Opened,
        sealed: Sealed,
    ) -> pb::ReEncryptResponse {
        let [source, source_associated_data, destination_associated_data] = verified;
        let (ciphertext, ciphertext_crc32c) = summed(sealed.ciphertext);
        pb::ReEncryptResponse {
            source_name: String::from(&opened.name),
            source_key_version: opened.version.name.to_string(),
            destination_name: String::from(&sealed.name),
            destination_key_version: sealed.version.name.to_string(),
            ciphertext,
            ciphertext_crc32c,
            verified_ciphertext_crc32c: source.0,
            verified_source_associated_data_crc32c: source_associated_data.0,
            verified_destination_associated_data_crc32c: destination_associated_data.0,
        }
    }

    pub(super) fn verified(&self) -> [Verified; 3] {
        self.verified
    }
}

pub(super) struct GenerateDataKey {
    pub(super) to: Binding,
    pub(super) length: usize,
    verified: Verified,
}

impl TryFrom<pb::GenerateDataKeyRequest> for GenerateDataKey {
    type Error = Error;

    fn try_from(request: pb::GenerateDataKeyRequest) -> Result<Self, Error> {
        let pb::GenerateDataKeyRequest {
            name,
            number_of_bytes,
            encryption_context,
            associated_data,
            associated_data_crc32c,
            grant_tokens,
        } = request;
        let verified = verify("associated_data", &associated_data, associated_data_crc32c)?;
        let to = binding(name, encryption_context, associated_data, grant_tokens);
        Ok(Self {
            to,
            length: length(number_of_bytes)?,
            verified,
        })
    }
}

impl TryFrom<pb::GenerateDataKeyWithoutPlaintextRequest> for GenerateDataKey {
    type Error = Error;

    fn try_from(request: pb::GenerateDataKeyWithoutPlaintextRequest) -> Result<Self, Error> {
        let pb::GenerateDataKeyWithoutPlaintextRequest {
            name,
            number_of_bytes,
            encryption_context,
            associated_data,
            associated_data_crc32c,
            grant_tokens,
        } = request;
        let verified = verify("associated_data", &associated_data, associated_data_crc32c)?;
        let to = binding(name, encryption_context, associated_data, grant_tokens);
        Ok(Self {
            to,
            length: length(number_of_bytes)?,
            verified,
        })
    }
}

impl GenerateDataKey {
    pub(super) fn respond(
        verified: Verified,
        plaintext: Plaintext,
        sealed: Sealed,
    ) -> pb::GenerateDataKeyResponse {
        let (plaintext, plaintext_crc32c) = secret(plaintext);
        let (ciphertext, ciphertext_crc32c) = summed(sealed.ciphertext);
        pb::GenerateDataKeyResponse {
            name: String::from(&sealed.name),
            key_version: sealed.version.name.to_string(),
            plaintext,
            plaintext_crc32c,
            ciphertext,
            ciphertext_crc32c,
            verified_associated_data_crc32c: verified.0,
        }
    }

    pub(super) fn respond_without_plaintext(
        verified: Verified,
        sealed: Sealed,
    ) -> pb::GenerateDataKeyWithoutPlaintextResponse {
        let (ciphertext, ciphertext_crc32c) = summed(sealed.ciphertext);
        pb::GenerateDataKeyWithoutPlaintextResponse {
            name: String::from(&sealed.name),
            key_version: sealed.version.name.to_string(),
            ciphertext,
            ciphertext_crc32c,
            verified_associated_data_crc32c: verified.0,
        }
    }

    pub(super) fn verified(&self) -> Verified {
        self.verified
    }
}

pub(super) fn random_length(request: pb::GenerateRandomRequest) -> Result<usize, Error> {
    let pb::GenerateRandomRequest { number_of_bytes } = request;
    length(number_of_bytes)
}

pub(super) fn random(bytes: Plaintext) -> pb::GenerateRandomResponse {
    let (plaintext, plaintext_crc32c) = secret(bytes);
    pb::GenerateRandomResponse {
        plaintext,
        plaintext_crc32c,
    }
}

pub(super) fn key(visible: &Visible) -> pb::Key {
    let Visible { key, role } = visible;
    pb::Key {
        name: key.name().to_string(),
        kms_keys: names(key.kms().versions().map(KmsKeys::generator)),
        additional_kms_keys: names(key.kms().versions().filter_map(KmsKeys::additional)),
        role: (*role).to_owned(),
        data_key_limits: Some(pb::DataKeyLimits {
            max_age_seconds: key.limits().max_age.as_secs(),
            max_messages: key.limits().max_messages,
            max_bytes: key.limits().max_bytes,
        }),
    }
}

fn names<'k>(keys: impl Iterator<Item = &'k KeyRef>) -> Vec<String> {
    keys.map(ToString::to_string).collect()
}

pub(super) fn page(page: &Page) -> pb::ListKeysResponse {
    pb::ListKeysResponse {
        keys: page.keys.iter().map(key).collect(),
        next_page_token: page.next.clone().unwrap_or_default(),
    }
}

fn binding(
    name: String,
    context: BTreeMap<String, String>,
    associated_data: Bytes,
    tokens: Vec<String>,
) -> Binding {
    Binding {
        name,
        context: context.into_iter().collect(),
        associated_data,
        tokens,
    }
}

fn verify(field: &'static str, bytes: &[u8], sum: Option<u32>) -> Result<Verified, Error> {
    match sum {
        None => Ok(Verified(false)),
        Some(sum) if sum == crc32c::crc32c(bytes) => Ok(Verified(true)),
        Some(_) => Err(Error::Checksum(field)),
    }
}

fn summed(bytes: Vec<u8>) -> (Bytes, u32) {
    let sum = crc32c::crc32c(&bytes);
    (bytes.into(), sum)
}

/// Bytes that are wiped when the response is dropped.
fn secret(bytes: Plaintext) -> (Bytes, u32) {
    let sum = crc32c::crc32c(&bytes);
    (Bytes::from_owner(bytes), sum)
}

fn length(count: u32) -> Result<usize, Error> {
    usize::try_from(count).map_err(|_| Error::Bug("usize holds 32 bits".into()))
}
