//! What the fake KMS knows and answers: keys and their states, callers, wrapped blobs.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::collections::HashSet;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;
use serde_json::json;

use super::Operation;

/// The account that owns every key.
pub const ACCOUNT: &str = "111122223333";

/// A request, authenticated as far as the fake does that.
pub struct Request {
    pub operation: Operation,
    pub caller: String,
    pub region: String,
    pub body: Value,
}

/// An error of the service: code and message.
#[derive(Debug)]
pub struct Refusal {
    pub code: &'static str,
    pub message: String,
}

pub type Answer = Result<Value, Refusal>;

/// The state of a key, as AWS names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Creating,
    Disabled,
    Enabled,
    PendingDeletion,
    PendingImport,
    PendingReplicaDeletion,
    Unavailable,
    Updating,
}

/// What a key is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    Encrypt,
    Mac,
}

struct Key {
    state: State,
    usage: Usage,
    material: String,
}

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
    /// By Region and id.
    keys: HashMap<(String, String), Key>,
    /// By Region and name; the id they lead to.
    aliases: HashMap<(String, String), String>,
    blobs: HashMap<Vec<u8>, Sealed>,
    denied: HashSet<(String, Operation, String)>,
    strangers: HashSet<String>,
}

impl Service {
    pub fn add(&mut self, region: &str, id: &str, usage: Usage) {
        // Replicas share the material.
        let twin = self.keys.iter().find(|((_, other), _)| other == id);
        let material = twin.map_or_else(material, |(_, key)| key.material.clone());
        let key = Key {
            state: State::Enabled,
            usage,
            material,
        };
        self.keys.insert((region.to_owned(), id.to_owned()), key);
    }

    pub fn alias(&mut self, region: &str, name: &str, id: &str) {
        self.aliases
            .insert((region.to_owned(), name.to_owned()), id.to_owned());
    }

    pub fn set_state(&mut self, region: &str, id: &str, state: State) {
        let place = (region.to_owned(), id.to_owned());
        self.keys.get_mut(&place).expect("a known key").state = state;
    }

    /// New material under the same id, in all Regions; what the old one wrapped still opens.
    pub fn rotate(&mut self, id: &str) {
        let new = material();
        for ((_, other), key) in &mut self.keys {
            if other == id {
                key.material.clone_from(&new);
            }
        }
    }

    pub fn deny(&mut self, caller: &str, operation: Operation, arn: &str) {
        self.denied
            .insert((caller.to_owned(), operation, arn.to_owned()));
    }

    pub fn allow(&mut self, caller: &str, operation: Operation, arn: &str) {
        self.denied
            .remove(&(caller.to_owned(), operation, arn.to_owned()));
    }

    /// Forgets a caller's access key.
    pub fn revoke(&mut self, caller: &str) {
        self.strangers.insert(caller.to_owned());
    }

    /// What is in the blobs that were given out.
    pub fn plaintexts(&self) -> Vec<Vec<u8>> {
        let blobs = self.blobs.values();
        blobs.map(|sealed| sealed.plaintext.clone()).collect()
    }

    /// The ARN of the key that a request names, if there is one.
    pub fn arn_of(&self, request: &Request) -> Option<String> {
        let id = self.find(request).ok()?;
        Some(arn(&request.region, &id))
    }

    pub fn answer(&mut self, request: &Request) -> Answer {
        if self.strangers.contains(&request.caller) {
            return refuse(
                "UnrecognizedClientException",
                "The security token included in the request is invalid.",
            );
        }
        match request.operation {
            Operation::Decrypt => self.decrypt(request),
            Operation::DescribeKey => self.describe_key(request),
            Operation::Encrypt => self.encrypt(request),
            Operation::GenerateDataKey => self.generate_data_key(request, Plaintext::Returned),
            Operation::GenerateDataKeyWithoutPlaintext => {
                self.generate_data_key(request, Plaintext::Withheld)
            }
            Operation::GenerateRandom => generate_random(request),
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
        let id = self.usable(request)?;
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
        let id = self.usable(request)?;
        let (blob, _) = self.seal(request, &id, context, &plaintext);
        Ok(json!({
            "CiphertextBlob": BASE64_STANDARD.encode(blob),
            "KeyId": arn(&request.region, &id),
            "EncryptionAlgorithm": "SYMMETRIC_DEFAULT",
        }))
    }

    fn decrypt(&self, request: &Request) -> Answer {
        let wrapped = blob(request, "CiphertextBlob", 6144)?;
        let context = context(request)?;
        let named = match request.body["KeyId"] {
            Value::Null => None,
            _ => Some(self.usable(request)?),
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
        self.check(request, &id)?;
        if context != sealed.context {
            return refuse("InvalidCiphertextException", "");
        }
        Ok(json!({
            "Plaintext": BASE64_STANDARD.encode(&sealed.plaintext),
            "KeyId": arn(&request.region, &id),
            "KeyMaterialId": sealed.material,
            "EncryptionAlgorithm": "SYMMETRIC_DEFAULT",
        }))
    }

    fn describe_key(&self, request: &Request) -> Answer {
        let id = self.find(request)?;
        self.authorize(request, &id)?;
        let key = &self.keys[&(request.region.clone(), id.clone())];
        let (usage, spec) = match key.usage {
            Usage::Encrypt => ("ENCRYPT_DECRYPT", "SYMMETRIC_DEFAULT"),
            Usage::Mac => ("GENERATE_VERIFY_MAC", "HMAC_256"),
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
        let key = &self.keys[&(request.region.clone(), id.to_owned())];
        let material = key.material.clone();
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

    /// The id of the key that the request names, if this caller may use it now.
    fn usable(&self, request: &Request) -> Result<String, Refusal> {
        let id = self.find(request)?;
        self.check(request, &id)?;
        Ok(id)
    }

    fn check(&self, request: &Request, id: &str) -> Result<(), Refusal> {
        self.authorize(request, id)?;
        let arn = arn(&request.region, id);
        let Some(key) = self.keys.get(&(request.region.clone(), id.to_owned())) else {
            return refuse("NotFoundException", &format!("Key '{arn}' does not exist"));
        };
        if key.usage != Usage::Encrypt {
            let message = format!("{arn} key usage is GENERATE_VERIFY_MAC");
            return refuse("InvalidKeyUsageException", &message);
        }
        match key.state {
            State::Enabled | State::Updating => Ok(()),
            State::Disabled => refuse("DisabledException", &format!("{arn} is disabled.")),
            State::Creating
            | State::PendingDeletion
            | State::PendingImport
            | State::PendingReplicaDeletion
            | State::Unavailable => {
                let message = format!("{arn} is {:?}.", key.state);
                refuse("KMSInvalidStateException", &message)
            }
        }
    }

    fn authorize(&self, request: &Request, id: &str) -> Result<(), Refusal> {
        let arn = arn(&request.region, id);
        let what = (request.caller.clone(), request.operation, arn);
        if !self.denied.contains(&what) {
            return Ok(());
        }
        let (caller, operation, arn) = what;
        let message = format!(
            "User: arn:aws:iam::{ACCOUNT}:user/{caller} is not authorized to perform: \
             kms:{operation:?} on resource: {arn}"
        );
        refuse("AccessDeniedException", &message)
    }

    /// The id of the key that the request names: by id, ARN, alias or ARN of an alias.
    fn find(&self, request: &Request) -> Result<String, Refusal> {
        let Value::String(name) = &request.body["KeyId"] else {
            return invalid("KeyId is missing");
        };
        if name.is_empty() || name.len() > 2048 {
            return invalid("KeyId is not 1 to 2048 characters");
        }
        let prefix = format!("arn:aws:kms:{}:{ACCOUNT}:", request.region);
        let unknown = || Refusal {
            code: "NotFoundException",
            message: format!("Invalid keyId '{name}'"),
        };
        let local = match name.strip_prefix(&prefix) {
            Some(local) => local.strip_prefix("key/").unwrap_or(local),
            None if name.starts_with("arn:") => return Err(unknown()),
            None => name,
        };
        let id = match local.strip_prefix("alias/") {
            Some(alias) => self
                .aliases
                .get(&(request.region.clone(), alias.to_owned()))
                .ok_or_else(unknown)?,
            None => local,
        };
        match self
            .keys
            .contains_key(&(request.region.clone(), id.to_owned()))
        {
            true => Ok(id.to_owned()),
            false => Err(unknown()),
        }
    }
}

/// The ARN of a key.
pub fn arn(region: &str, id: &str) -> String {
    format!("arn:aws:kms:{region}:{ACCOUNT}:key/{id}")
}

/// The context of a request.
pub fn context(request: &Request) -> Result<BTreeMap<String, String>, Refusal> {
    match &request.body["EncryptionContext"] {
        Value::Null => Ok(BTreeMap::new()),
        pairs => match serde_json::from_value(pairs.clone()) {
            Ok(pairs) => Ok(pairs),
            Err(_) => invalid("EncryptionContext is no map of strings"),
        },
    }
}

pub fn random(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    keybroker::crypto::random::fill(&mut bytes).expect("randomness");
    bytes
}

pub fn refuse<T>(code: &'static str, message: &str) -> Result<T, Refusal> {
    Err(Refusal {
        code,
        message: message.to_owned(),
    })
}

fn invalid<T>(why: &str) -> Result<T, Refusal> {
    refuse("ValidationException", why)
}

fn generate_random(request: &Request) -> Answer {
    match request.body["NumberOfBytes"].as_u64() {
        Some(bytes @ 1..=1024) => Ok(json!({
            "Plaintext": BASE64_STANDARD.encode(random(bytes as usize)),
        })),
        _ => invalid("NumberOfBytes is not 1 to 1024"),
    }
}

fn blob(request: &Request, field: &str, limit: usize) -> Result<Vec<u8>, Refusal> {
    let bytes = request.body[field]
        .as_str()
        .map(|text| BASE64_STANDARD.decode(text));
    match bytes {
        Some(Ok(bytes)) if (1..=limit).contains(&bytes.len()) => Ok(bytes),
        _ => invalid(&format!("{field} is not 1 to {limit} bytes of base64")),
    }
}

/// An id of key material: 64 hex digits.
fn material() -> String {
    random(32)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Plaintext {
    Returned,
    Withheld,
}

/// The length of a blob, as published vectors show it for a data key.
const BLOB: usize = 167;
