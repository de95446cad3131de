//! The keys of the fake: their states and material, their names, and who may use them. Tests change
//! them here.

use std::collections::HashMap;
use std::collections::HashSet;

use keybroker::kms::Arn;
use rcgen::KeyPair;
use serde_json::Value;
use uuid::Uuid;

use super::FakeKms;
use super::Operation;
use super::request::Refusal;
use super::request::Request;
use super::request::invalid;
use super::request::refuse;

/// The account that owns every key.
pub const ACCOUNT: &str = "111122223333";

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

impl FakeKms {
    /// A new symmetric key in `region`.
    pub fn key(&self, region: &str) -> Arn {
        self.add_key(region, &Uuid::new_v4().to_string(), Usage::Encrypt)
    }

    /// A new key in `region` that can only make MACs.
    pub fn hmac_key(&self, region: &str) -> Arn {
        self.add_key(region, &Uuid::new_v4().to_string(), Usage::Mac)
    }

    /// A new key in `region` that signs, of the spec `ECC_NIST_P256`.
    pub fn signing_key(&self, region: &str) -> Arn {
        self.add_key(region, &Uuid::new_v4().to_string(), Usage::Sign)
    }

    /// A new multi-Region key, with its primary in `region`.
    pub fn multi_region_key(&self, region: &str) -> Arn {
        let id = format!("mrk-{}", Uuid::new_v4().simple());
        self.add_key(region, &id, Usage::Encrypt)
    }

    /// A replica of a multi-Region key in another Region, with a state and denials of its own.
    pub fn replica(&self, primary: &Arn, region: &str) -> Arn {
        self.add_key(region, id(primary), Usage::Encrypt)
    }

    /// A second name, `alias/<name>`, in the key's Region.
    pub fn alias(&self, key: &Arn, name: &str) {
        self.keys(|keys| keys.alias(key.region(), name, id(key)));
    }

    pub fn disable(&self, key: &Arn) {
        self.set_state(key, State::Disabled);
    }

    pub fn enable(&self, key: &Arn) {
        self.set_state(key, State::Enabled);
    }

    pub fn schedule_deletion(&self, key: &Arn) {
        self.set_state(key, State::PendingDeletion);
    }

    pub fn set_state(&self, key: &Arn, state: State) {
        self.keys(|keys| keys.set_state(key.region(), id(key), state));
    }

    /// Gives the key new material; what the old one wrapped still opens.
    pub fn rotate(&self, key: &Arn) {
        self.keys(|keys| keys.rotate(id(key)));
    }

    /// Refuses `operation` with `key` to the caller with this access key.
    pub fn deny(&self, caller: &str, operation: Operation, key: &Arn) {
        self.keys(|keys| keys.deny(caller, operation, key.as_str()));
    }

    /// Ends a [`FakeKms::deny`].
    pub fn allow(&self, caller: &str, operation: Operation, key: &Arn) {
        self.keys(|keys| keys.allow(caller, operation, key.as_str()));
    }

    fn add_key(&self, region: &str, id: &str, usage: Usage) -> Arn {
        self.keys(|keys| keys.add(region, id, usage));
        arn(region, id).parse().expect("a valid ARN")
    }

    fn keys<T>(&self, change: impl FnOnce(&mut Keys) -> T) -> T {
        self.service(|service| change(&mut service.keys))
    }
}

/// What a key is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    Encrypt,
    Mac,
    Sign,
}

impl Usage {
    fn label(self) -> &'static str {
        match self {
            Self::Encrypt => "ENCRYPT_DECRYPT",
            Self::Mac => "GENERATE_VERIFY_MAC",
            Self::Sign => "SIGN_VERIFY",
        }
    }
}

pub struct Key {
    pub state: State,
    pub usage: Usage,
    pub material: String,
    /// Of keys that sign.
    pub pair: Option<KeyPair>,
}

#[derive(Default)]
pub struct Keys {
    /// By Region and id.
    keys: HashMap<(String, String), Key>,
    /// By Region and name; the id they lead to.
    aliases: HashMap<(String, String), String>,
    denied: HashSet<(String, Operation, String)>,
}

impl Keys {
    pub fn add(&mut self, region: &str, id: &str, usage: Usage) {
        // Replicas share the material.
        let twin = self.keys.iter().find(|((_, other), _)| other == id);
        let material = twin.map_or_else(material, |(_, key)| key.material.clone());
        let key = Key {
            state: State::Enabled,
            usage,
            material,
            pair: (usage == Usage::Sign).then(|| KeyPair::generate().expect("randomness")),
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

    /// The ids of a Region's keys.
    pub fn ids(&self, region: &str) -> Vec<String> {
        let places = self.keys.keys().filter(|(place, _)| place == region);
        places.map(|(_, id)| id.clone()).collect()
    }

    /// The key that [`Keys::find`] found.
    pub fn known(&self, region: &str, id: &str) -> &Key {
        &self.keys[&(region.to_owned(), id.to_owned())]
    }

    /// The ARN of the key that a request names, if there is one.
    pub fn arn_of(&self, request: &Request) -> Option<String> {
        let id = self.find(request).ok()?;
        Some(arn(&request.region, &id))
    }

    /// The id of the key that the request names, if this caller may use it now.
    pub fn usable(&self, request: &Request) -> Result<String, Refusal> {
        let id = self.find(request)?;
        self.check(request, &id)?;
        Ok(id)
    }

    /// The id of the signing key that the request names, if this caller may use it now.
    pub fn signing(&self, request: &Request) -> Result<String, Refusal> {
        let id = self.find(request)?;
        self.check_for(request, &id, Usage::Sign)?;
        Ok(id)
    }

    pub fn check(&self, request: &Request, id: &str) -> Result<(), Refusal> {
        self.check_for(request, id, Usage::Encrypt)
    }

    fn check_for(&self, request: &Request, id: &str, usage: Usage) -> Result<(), Refusal> {
        self.authorize(request, id)?;
        let arn = arn(&request.region, id);
        let Some(key) = self.keys.get(&(request.region.clone(), id.to_owned())) else {
            return refuse("NotFoundException", &format!("Key '{arn}' does not exist"));
        };
        if key.usage != usage {
            let message = format!("{arn} key usage is {}", key.usage.label());
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

    pub fn authorize(&self, request: &Request, id: &str) -> Result<(), Refusal> {
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
    pub fn find(&self, request: &Request) -> Result<String, Refusal> {
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

fn id(arn: &Arn) -> &str {
    let (_, id) = arn.as_str().rsplit_once('/').expect("an ARN of a key");
    id
}

/// The ARN of a key.
pub fn arn(region: &str, id: &str) -> String {
    format!("arn:aws:kms:{region}:{ACCOUNT}:key/{id}")
}

pub fn random(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    keybroker::crypto::random::fill(&mut bytes).expect("randomness");
    bytes
}

/// An id of key material: 64 hex digits.
fn material() -> String {
    random(32)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
