//! The tenants file as it is written. Unknown keys are errors; nothing is checked beyond types. And
//! the one form in which a tenant of it is written down again.

use std::collections::BTreeMap;
use std::fmt;

use jiff::SignedDuration;
use serde::Deserialize;
use serde::Deserializer;
use serde::Serialize;
use serde::Serializer;
use serde::de::Error;
use serde::de::MapAccess;
use serde::de::SeqAccess;
use serde::de::Visitor;
use serde::de::value::MapAccessDeserializer;
use serde::de::value::SeqAccessDeserializer;
use serde::de::value::StrDeserializer;
use serde::ser::SerializeStruct as _;
use toml::Spanned;

use crate::directory::key::Owner;
use crate::directory::key::Revocation;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    #[serde(default)]
    pub(super) tenant: Vec<Tenant>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Tenant {
    pub(super) id: Spanned<String>,
    #[serde(default = "one")]
    pub(super) weight: u32,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) context: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) audit_context: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) rate: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) max_staleness: Option<SignedDuration>,
    #[serde(default, skip_serializing_if = "Revocation::is_usual")]
    pub(super) revocation: Revocation,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) key: Vec<Key>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Key {
    pub(super) id: Spanned<String>,
    #[serde(deserialize_with = "one_or_many")]
    pub(super) kms: Vec<KmsKey>,
    #[serde(default)]
    pub(super) owner: Owner,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) administrators: Vec<Statement>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) users: Vec<Statement>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) encrypt_only: Vec<Statement>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) decrypt_only: Vec<Statement>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) external_users: Vec<Statement>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) shared_captures: Vec<String>,
    #[serde(default, skip_serializing_if = "Limits::are_usual")]
    pub(super) cache: Limits,
    #[serde(default, skip_serializing_if = "Grants::are_usual")]
    pub(super) grants: Grants,
}

#[derive(Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Grants {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) max_lifetime: Option<SignedDuration>,
}

impl Grants {
    fn are_usual(&self) -> bool {
        *self == Self::default()
    }
}

#[derive(Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Limits {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) max_age: Option<SignedDuration>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) max_messages: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) max_bytes: Option<u64>,
}

impl Limits {
    fn are_usual(&self) -> bool {
        *self == Self::default()
    }
}

impl Tenant {
    /// A tenants file of this tenant alone.
    pub(super) fn document(&self) -> String {
        #[derive(Serialize)]
        struct File<'a> {
            tenant: [&'a Tenant; 1],
        }

        toml::to_string(&File { tenant: [self] }).expect("what came from TOML goes into TOML")
    }
}

/// The name of a KMS key alone, or
/// `{ key = "…", replica_regions = ["…"], additional_key = "…" }`.
pub(super) struct KmsKey {
    pub(super) key: String,
    pub(super) replica_regions: Option<Vec<String>>,
    pub(super) additional_key: Option<String>,
}

/// A principal alone, or `{ principal = "…", context = { … } }`.
pub(super) struct Statement {
    pub(super) principal: String,
    pub(super) context: BTreeMap<String, String>,
}

impl Serialize for Statement {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { principal, context } = self;
        if context.is_empty() {
            return serializer.serialize_str(principal);
        }
        let mut table = serializer.serialize_struct("Statement", 2)?;
        table.serialize_field("principal", principal)?;
        table.serialize_field("context", context)?;
        table.end()
    }
}

impl Serialize for KmsKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self {
            key,
            replica_regions,
            additional_key,
        } = self;
        if replica_regions.is_none() && additional_key.is_none() {
            return serializer.serialize_str(key);
        }
        let mut table = serializer.serialize_struct("KmsKey", 3)?;
        table.serialize_field("key", key)?;
        if let Some(regions) = replica_regions {
            table.serialize_field("replica_regions", regions)?;
        }
        if let Some(additional) = additional_key {
            table.serialize_field("additional_key", additional)?;
        }
        table.end()
    }
}

impl<'de> Deserialize<'de> for Statement {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = Statement;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a principal, or a table of principal and context")
            }

            fn visit_str<E: Error>(self, principal: &str) -> Result<Statement, E> {
                Ok(Statement {
                    principal: principal.to_owned(),
                    context: BTreeMap::new(),
                })
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Statement, A::Error> {
                #[derive(Deserialize)]
                #[serde(deny_unknown_fields)]
                struct Table {
                    principal: String,
                    #[serde(default)]
                    context: BTreeMap<String, String>,
                }

                let Table { principal, context } =
                    Table::deserialize(MapAccessDeserializer::new(map))?;
                Ok(Statement { principal, context })
            }
        }

        deserializer.deserialize_any(Either)
    }
}

impl<'de> Deserialize<'de> for KmsKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = KmsKey;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a KMS key, or a table of key, replica_regions and additional_key")
            }

            fn visit_str<E: Error>(self, key: &str) -> Result<KmsKey, E> {
                Ok(KmsKey {
                    key: key.to_owned(),
                    replica_regions: None,
                    additional_key: None,
                })
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<KmsKey, A::Error> {
                #[derive(Deserialize)]
                #[serde(deny_unknown_fields)]
                struct Table {
                    key: String,
                    replica_regions: Option<Vec<String>>,
                    additional_key: Option<String>,
                }

                let Table {
                    key,
                    replica_regions,
                    additional_key,
                } = Table::deserialize(MapAccessDeserializer::new(map))?;
                Ok(KmsKey {
                    key,
                    replica_regions,
                    additional_key,
                })
            }
        }

        deserializer.deserialize_any(Either)
    }
}

fn one() -> u32 {
    1
}

/// A KMS key alone, or a list of them.
fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<KmsKey>, D::Error> {
    struct Either;

    impl<'de> Visitor<'de> for Either {
        type Value = Vec<KmsKey>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a KMS key, or a list of them")
        }

        fn visit_str<E: Error>(self, key: &str) -> Result<Vec<KmsKey>, E> {
            KmsKey::deserialize(StrDeserializer::new(key)).map(|key| vec![key])
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Vec<KmsKey>, A::Error> {
            KmsKey::deserialize(MapAccessDeserializer::new(map)).map(|key| vec![key])
        }

        fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Vec<KmsKey>, A::Error> {
            Vec::deserialize(SeqAccessDeserializer::new(list))
        }
    }

    deserializer.deserialize_any(Either)
}
