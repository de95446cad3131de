//! What the fake KMS answers when nothing goes wrong: its operations, and the blobs they wrap.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::collections::HashSet;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;
use serde_json::json;

use super::Operation;
use super::grants::Grant;
use super::keys::ACCOUNT;
use super::keys::Keys;
use super::keys::State;
use super::keys::Usage;
use super::keys::arn;
use super::keys::random;
use super::request::Answer;
use super::request::Refusal;
use super::request::Request;
use super::request::context;
use super::request::invalid;
use super::request::refuse;

/// What a blob holds. Blobs are names of entries here, so nothing about them can be ambiguous: the
/// context is compared as the map it is.
struct Sealed {
    key: String,
    material: String,
    context: BTreeMap<String, String>,
    plaintext: Vec<u8>,
}

#[derive(Default)]
pub struct Service {
    pub keys: Keys,
    pub grants: Vec<Grant>,
    blobs: HashMap<Vec<u8>, Sealed>,
    strangers: HashSet<String>,
}

impl Service {
    /// Forgets a caller's access key.
    pub fn revoke(&mut self, caller: &str) {
        self.strangers.insert(caller.to_owned());
    }

    /// What is in the blobs that were given out.
    pub fn plaintexts(&self) -> Vec<Vec<u8>> {
        let blobs = self.blobs.values();
        blobs.map(|sealed| sealed.plaintext.clone()).collect()
    }

    pub fn answer(&mut self, request: &Request) -> Answer {
        if self.strangers.contains(&request.caller) {
            return refuse(
                "UnrecognizedClientException",
                "The security token included in the request is invalid.",
            );
        }
        match request.operation {
            Operation::CreateGrant => self.create_grant(request),
            Operation::Decrypt => self.decrypt(request),
            Operation::DescribeKey => self.describe_key(request),
            Operation::Encrypt => self.encrypt(request),
            Operation::GenerateDataKey => self.generate_data_key(request, Plaintext::Returned),
            Operation::GenerateDataKeyWithoutPlaintext => {
                self.generate_data_key(request, Plaintext::Withheld)
            }
            Operation::GenerateRandom => generate_random(request),
            Operation::GetPublicKey => self.get_public_key(request),
            Operation::Sign => self.sign(request),
            Operation::ListGrants => self.list_grants(request),
            Operation::RevokeGrant => self.revoke_grant(request),
        }
    }

    fn generate_data_key(&mut self, request: &Request, plaintext: Plaintext) -> Answer {
        let length = match (&request.body["NumberOfBytes"], &request.body["KeySpec"]) {
            (Value::Null, Value::String(spec)) if spec == "AES_128" => 16,
            (Value::Null, Value::String(spec)) if spec == "AES_256" => 32,
            (Value::Number(bytes), Value::Null) => match bytes.as_u64() {
                Some(bytes @ 1..=1024) => bytes as usize,
                _ => return invalid("NumberOfBytes is not 1 to 1024"),
            },
            _ => return invalid("either NumberOfBytes or KeySpec"),
        };
        let context = context(request)?;
        let id = self.keys.usable(request)?;
        done_dry(request)?;
        let key = random(length);
        let (blob, material) = self.seal(request, &id, context, &key);
        let mut answer = json!({
            "CiphertextBlob": BASE64_STANDARD.encode(blob),
            "KeyId": arn(&request.region, &id),
            "KeyMaterialId": material,
        });
        if plaintext == Plaintext::Returned {
            answer["Plaintext"] = BASE64_STANDARD.encode(key).into();
        }
        Ok(answer)
    }

    fn encrypt(&mut self, request: &Request) -> Answer {
        let plaintext = blob(request, "Plaintext", 4096)?;
        let context = context(request)?;
        let id = self.keys.usable(request)?;
        done_dry(request)?;
        let (blob, _) = self.seal(request, &id, context, &plaintext);
        Ok(json!({
            "CiphertextBlob": BASE64_STANDARD.encode(blob),
            "KeyId": arn(&request.region, &id),
            "EncryptionAlgorithm": "SYMMETRIC_DEFAULT",
        }))
    }

    fn decrypt(&self, request: &Request) -> Answer {
        if ignores_ciphertext(request) {
            self.keys.usable(request)?;
            done_dry(request)?;
            return invalid("IGNORE_CIPHERTEXT is for dry runs");
        }
        let wrapped = blob(request, "CiphertextBlob", 6144)?;
        let context = context(request)?;
        let named = match request.body["KeyId"] {
            Value::Null => None,
            _ => Some(self.keys.usable(request)?),
        };
        let Some(sealed) = self.blobs.get(&wrapped) else {
            return refuse("InvalidCiphertextException", "");
        };
        // Without a key id KMS follows the blob.
        let id = named.unwrap_or_else(|| sealed.key.clone());
        if id != sealed.key {
            return refuse(
                "IncorrectKeyException",
                "The key ID in the request does not identify a CMK that can perform this operation.",
            );
        }
        self.keys.check(request, &id)?;
        if context != sealed.context {
            return refuse("InvalidCiphertextException", "");
        }
        done_dry(request)?;
        Ok(json!({
            "Plaintext": BASE64_STANDARD.encode(&sealed.plaintext),
            "KeyId": arn(&request.region, &id),
            "KeyMaterialId": sealed.material,
            "EncryptionAlgorithm": "SYMMETRIC_DEFAULT",
        }))
    }

    fn describe_key(&self, request: &Request) -> Answer {
        let id = self.keys.find(request)?;
        self.keys.authorize(request, &id)?;
        let key = self.keys.known(&request.region, &id);
        let (usage, spec) = match key.usage {
            Usage::Encrypt => ("ENCRYPT_DECRYPT", "SYMMETRIC_DEFAULT"),
            Usage::Mac => ("GENERATE_VERIFY_MAC", "HMAC_256"),
            Usage::Sign => ("SIGN_VERIFY", "ECC_NIST_P256"),
        };
        Ok(json!({ "KeyMetadata": {
            "AWSAccountId": ACCOUNT,
            "KeyId": id,
            "Arn": arn(&request.region, &id),
            "Enabled": key.state == State::Enabled,
            "KeyUsage": usage,
            "KeySpec": spec,
            "KeyState": format!("{:?}", key.state),
            "MultiRegion": id.starts_with("mrk-"),
        }}))
    }

    fn seal(
        &mut self,
        request: &Request,
        id: &str,
        context: BTreeMap<String, String>,
        plaintext: &[u8],
    ) -> (Vec<u8>, String) {
        let material = self.keys.known(&request.region, id).material.clone();
        let blob = random(BLOB);
        let sealed = Sealed {
            key: id.to_owned(),
            material: material.clone(),
            context,
            plaintext: plaintext.to_vec(),
        };
        self.blobs.insert(blob.clone(), sealed);
        (blob, material)
    }
}

fn generate_random(request: &Request) -> Answer {
    match request.body["NumberOfBytes"].as_u64() {
        Some(bytes @ 1..=1024) => Ok(json!({
            "Plaintext": BASE64_STANDARD.encode(random(bytes as usize)),
        })),
        _ => invalid("NumberOfBytes is not 1 to 1024"),
    }
}

/// The end of a dry run, which is an error where all is well.
pub(super) fn done_dry(request: &Request) -> Result<(), Refusal> {
    match request.is_dry() {
        true => refuse(
            "DryRunOperationException",
            "The request would have succeeded, but the DryRun option is set.",
        ),
        false => Ok(()),
    }
}

fn ignores_ciphertext(request: &Request) -> bool {
    let modifiers = request.body["DryRunModifiers"].as_array();
    modifiers.is_some_and(|all| all.iter().any(|one| one == "IGNORE_CIPHERTEXT"))
}

pub(super) fn blob(request: &Request, field: &str, limit: usize) -> Result<Vec<u8>, Refusal> {
    let bytes = request.body[field]
        .as_str()
        .map(|text| BASE64_STANDARD.decode(text));
    match bytes {
        Some(Ok(bytes)) if (1..=limit).contains(&bytes.len()) => Ok(bytes),
        _ => invalid(&format!("{field} is not 1 to {limit} bytes of base64")),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Plaintext {
    Returned,
    Withheld,
}

/// The length of a blob, as published vectors show it for a data key.
const BLOB: usize = 167;
