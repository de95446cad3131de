//! The names of tenants and keys: `tenants/{tenant}/keys/{key}` (AIP-122).

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::Deserialize;
use serde::Serialize;

/// An RFC 1123 label: 1 to 63 of `a-z`, `0-9` and `-`, neither first nor last a `-`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String")]
struct Label(#[serde(serialize_with = "text")] Arc<str>);

fn text<S: serde::Serializer>(label: &Arc<str>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(label)
}

impl TryFrom<String> for Label {
    type Error = Malformed;

    fn try_from(text: String) -> Result<Self, Malformed> {
        text.parse()
    }
}

impl FromStr for Label {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let ends = !text.starts_with('-') && !text.ends_with('-');
        let alphabet = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if text.is_empty() || text.len() > MAX_LABEL || !ends || !text.bytes().all(alphabet) {
            return Err(Malformed);
        }
        Ok(Self(text.into()))
    }
}

/// The text is not the name of a tenant or key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not 1 to 63 of a-z, 0-9 and -, beginning and ending with a letter or digit")]
pub struct Malformed;

/// The longest label.
const MAX_LABEL: usize = 63;

macro_rules! label {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Label);

        impl $name {
            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0.0
            }
        }

        impl FromStr for $name {
            type Err = Malformed;

            fn from_str(text: &str) -> Result<Self, Malformed> {
                text.parse().map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

label!(
    /// The id of a tenant, an RFC 1123 label.
    TenantId
);
label!(
    /// The id of a key within its tenant, an RFC 1123 label.
    KeyId
);

/// The full name of a key: `tenants/{tenant}/keys/{key}`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyName {
    /// Whose key it is.
    pub tenant: TenantId,
    /// Which of the tenant's keys.
    pub key: KeyId,
}

impl KeyName {
    /// Reads `tenants/{tenant}/keys/{key}`, or `keys/{key}` as a key of `home`.
    ///
    /// # Errors
    /// [`Malformed`] for any other text.
    pub fn parse(text: &str, home: &TenantId) -> Result<Self, Malformed> {
        let (tenant, key) = match text.strip_prefix("tenants/") {
            Some(rest) => {
                let (tenant, key) = rest.split_once("/keys/").ok_or(Malformed)?;
                (tenant.parse()?, key)
            }
            None => (home.clone(), text.strip_prefix("keys/").ok_or(Malformed)?),
        };
        // No id has a slash in it.
        let key = key.parse()?;
        Ok(Self { tenant, key })
    }
}

impl From<&KeyName> for String {
    /// As `Display`, at a third of its cost: every answer has the name in it.
    fn from(name: &KeyName) -> Self {
        [
            "tenants/",
            name.tenant.as_str(),
            "/keys/",
            name.key.as_str(),
        ]
        .concat()
    }
}

impl fmt::Display for KeyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tenants/{}/keys/{}", self.tenant, self.key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn home() -> TenantId {
        "acme".parse().expect("a label")
    }

    #[test]
    fn a_short_name_is_a_key_of_the_callers_tenant() {
        let short = KeyName::parse("keys/orders", &home()).expect("a name");
        assert_eq!(short.to_string(), "tenants/acme/keys/orders");
        assert_eq!(
            KeyName::parse("tenants/acme/keys/orders", &home()),
            Ok(short)
        );
    }

    #[test]
    fn labels_are_strict() {
        let longest = "a".repeat(63);
        for good in ["a", "0", "a-b", "a--b", longest.as_str()] {
            assert!(good.parse::<TenantId>().is_ok(), "{good}");
        }
        let long = "a".repeat(64);
        for bad in ["", "-a", "a-", "A", "a_b", "a.b", "ä", long.as_str()] {
            assert_eq!(bad.parse::<TenantId>(), Err(Malformed), "{bad}");
        }
    }

    #[test]
    fn other_shapes_are_no_names() {
        for bad in [
            "",
            "orders",
            "keys/",
            "keys/a/b",
            "tenants/a",
            "/keys/a",
            "tenants//keys/a",
        ] {
            assert_eq!(KeyName::parse(bad, &home()), Err(Malformed), "{bad}");
        }
    }
}
