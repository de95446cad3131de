//! Asymmetric keys of AWS KMS, which sign.

use async_trait::async_trait;
use aws_sdk_kms::Client;
use aws_sdk_kms::operation::sign::builders::SignFluentBuilder;
use aws_sdk_kms::primitives::Blob;
use aws_sdk_kms::types::KeyUsageType;
use aws_sdk_kms::types::MessageType;
use aws_sdk_kms::types::SigningAlgorithmSpec;

use crate::crypto::signature::Algorithm;
use crate::crypto::signature::PublicKey;
use crate::kms::Arn;
use crate::kms::Error;
use crate::kms::Signer;
use crate::kms::aws::Aws;
use crate::kms::aws::failure::failure;
use crate::kms::aws::rehearsed;
use crate::kms::aws::same_key;
use crate::message::EncryptionContext;

/// A key of AWS KMS with the usage `SIGN_VERIFY`, of the spec `ECC_NIST_P256`, `ECC_NIST_P384` or
/// `ECC_NIST_EDWARDS25519`.
pub struct SigningKey {
    client: Client,
    arn: Arn,
}

impl Aws {
    /// The signing key `arn`, which is not looked at before it is used.
    pub fn signing_key(&self, arn: &Arn) -> SigningKey {
        SigningKey {
            client: self.client(arn),
            arn: arn.clone(),
        }
    }
}

impl SigningKey {
    /// Asks whether we may have the public key and signatures, and makes none.
    ///
    /// # Errors
    /// What [`Signer`]'s calls would meet, as far as the service tells.
    pub async fn dry_run(&self) -> Result<(), Error> {
        let public = self.public_key().await?;
        let call = self.call(&public, b"dry run").dry_run(true);
        rehearsed(call.send().await, &EncryptionContext::default())
    }

    fn call(&self, public: &PublicKey, message: &[u8]) -> SignFluentBuilder {
        let algorithm = match public.algorithm() {
            Algorithm::EcdsaSha256 => SigningAlgorithmSpec::EcdsaSha256,
            Algorithm::EcdsaSha384 => SigningAlgorithmSpec::EcdsaSha384,
            Algorithm::Ed25519 => SigningAlgorithmSpec::Ed25519Sha512,
        };
        self.client
            .sign()
            .key_id(self.arn.as_str())
            .message_type(MessageType::Raw)
            .signing_algorithm(algorithm)
            .message(Blob::new(message))
    }
}

#[async_trait]
impl Signer for SigningKey {
    fn key(&self) -> &Arn {
        &self.arn
    }

    async fn public_key(&self) -> Result<PublicKey, Error> {
        let call = self.client.get_public_key().key_id(self.arn.as_str());
        let answer = call.send().await;
        let answer = answer.map_err(|error| failure(error, &EncryptionContext::default()))?;
        same_key(&self.arn, answer.key_id())?;
        if answer.key_usage() != Some(&KeyUsageType::SignVerify) {
            return Err(Error::NotFound("not a key that signs".to_owned()));
        }
        let der = answer.public_key().map(Blob::as_ref).unwrap_or_default();
        PublicKey::from_der(der).map_err(|error| Error::NotFound(error.to_string()))
    }

    async fn sign(&self, public: &PublicKey, message: &[u8]) -> Result<Vec<u8>, Error> {
        let answer = self.call(public, message).send().await;
        let answer = answer.map_err(|error| failure(error, &EncryptionContext::default()))?;
        same_key(&self.arn, answer.key_id())?;
        let signature = answer.signature.map(Blob::into_inner).unwrap_or_default();
        match public.verifies(message, &signature) {
            true => Ok(signature),
            false => Err(Error::Invalid("a signature that is not good".to_owned())),
        }
    }
}
