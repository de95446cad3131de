//! The grants of the fake: made once under each name, listed in pages, ended.

use std::collections::BTreeMap;

use keybroker::kms::Arn;
use serde_json::Value;
use serde_json::json;
use uuid::Uuid;

use super::FakeKms;
use super::keys::arn;
use super::request::Answer;
use super::request::Request;
use super::request::invalid;
use super::request::refuse;
use super::service::Service;

/// A grant, as it was asked for.
#[derive(Clone, Debug)]
pub struct Grant {
    pub id: String,
    pub token: String,
    /// The ARN of its key.
    pub key: String,
    /// `GranteePrincipal`, `Operations`, `Constraints`, `Name`.
    pub wanted: BTreeMap<&'static str, Value>,
}

impl FakeKms {
    /// The living grants of `key`.
    pub fn grants(&self, key: &Arn) -> Vec<Grant> {
        let of_key = |grant: &&Grant| grant.key == key.as_str();
        self.service(|service| service.grants.iter().filter(of_key).cloned().collect())
    }

    /// Ends the grants of `key`, as somebody else than the broker may.
    pub fn forget_grants(&self, key: &Arn) {
        self.service(|service| service.grants.retain(|one| one.key != key.as_str()));
    }
}

impl Service {
    pub fn create_grant(&mut self, request: &Request) -> Answer {
        let key = arn(&request.region, &self.keys.usable(request)?);
        let fields = ["GranteePrincipal", "Operations", "Constraints", "Name"];
        let wanted = fields.map(|field| (field, request.body[field].clone()));
        let wanted = BTreeMap::from(wanted);
        let Some(operations) = wanted["Operations"].as_array() else {
            return invalid("Operations is missing");
        };
        if operations.is_empty()
            || !operations
                .iter()
                .all(|one| KNOWN.contains(&one.as_str().unwrap_or_default()))
        {
            return invalid("Operations has one that no grant takes");
        }
        if !wanted["GranteePrincipal"]
            .as_str()
            .unwrap_or_default()
            .starts_with("arn:aws:")
        {
            return refuse(
                "InvalidArnException",
                "ARN does not refer to a valid principal",
            );
        }
        for kind in ["EncryptionContextEquals", "EncryptionContextSubset"] {
            let pairs = wanted["Constraints"][kind].as_object();
            if pairs.is_some_and(|pairs| pairs.len() > 8) {
                return invalid("Constraints has more than 8 pairs");
            }
        }
        let named = |grant: &&Grant| {
            grant.key == key && grant.wanted == wanted && !wanted["Name"].is_null()
        };
        let grant = match self.grants.iter().find(named) {
            Some(grant) => grant.clone(),
            None => {
                let grant = Grant {
                    id: format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple()),
                    token: format!("AQpA{}", Uuid::new_v4().simple()),
                    key,
                    wanted,
                };
                self.grants.push(grant.clone());
                grant
            }
        };
        Ok(json!({ "GrantId": grant.id, "GrantToken": grant.token }))
    }

    pub fn list_grants(&self, request: &Request) -> Answer {
        let found = self.keys.find(request)?;
        self.keys.authorize(request, &found)?;
        let key = arn(&request.region, &found);
        let limit = request.body["Limit"].as_u64().unwrap_or(50) as usize;
        if !(1..=100).contains(&limit) {
            return invalid("Limit is not 1 to 100");
        }
        let first: usize = match request.body["Marker"].as_str() {
            None => 0,
            Some(marker) => match marker.parse() {
                Ok(first) => first,
                Err(_) => return refuse("InvalidMarkerException", ""),
            },
        };
        let all: Vec<&Grant> = self.grants.iter().filter(|one| one.key == key).collect();
        // KMS may give fewer than it is asked for.
        let page = all.iter().skip(first).take(limit.min(10));
        let grants: Vec<Value> = page
            .map(|grant| {
                let mut entry = json!({ "GrantId": grant.id, "KeyId": grant.key });
                for (field, value) in &grant.wanted {
                    entry[*field] = value.clone();
                }
                entry
            })
            .collect();
        let next = first + grants.len();
        let truncated = next < all.len();
        Ok(json!({
            "Grants": grants,
            "Truncated": truncated,
            "NextMarker": truncated.then(|| next.to_string()),
        }))
    }

    pub fn revoke_grant(&mut self, request: &Request) -> Answer {
        let found = self.keys.find(request)?;
        self.keys.authorize(request, &found)?;
        let key = arn(&request.region, &found);
        let id = request.body["GrantId"].as_str().unwrap_or_default();
        let position = self
            .grants
            .iter()
            .position(|one| one.key == key && one.id == id);
        match position {
            Some(position) => {
                self.grants.remove(position);
                Ok(json!({}))
            }
            None => refuse("NotFoundException", &format!("Grant ID {id} not found")),
        }
    }
}

const KNOWN: [&str; 9] = [
    "CreateGrant",
    "Decrypt",
    "DescribeKey",
    "Encrypt",
    "GenerateDataKey",
    "GenerateDataKeyWithoutPlaintext",
    "ReEncryptFrom",
    "ReEncryptTo",
    "RetireGrant",
];
