//! How KMS keys are named: by the directory, and by what they have wrapped.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::Deserialize;

use crate::kms::AWS_PROVIDER;
use crate::kms::LOCAL_PROVIDER;
use crate::message::EncryptedDataKey;

/// Names a KMS key as the directory does: `arn:aws:kms:…:key/…`, or `local:<key id>`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum KeyRef {
    /// A key of AWS KMS, called in the Region that its ARN names.
    Aws(Arn),
    /// A multi-Region key of AWS KMS, called in one of several Regions. It is shown as its
    /// preferred replica.
    MultiRegion(Replicas),
    /// A key of the embedded local KMS, by its id in the keyring.
    Local(String),
}

/// Which keys a broker can call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reach {
    /// Those of AWS KMS.
    #[default]
    Aws,
    /// Those of AWS KMS, and of the embedded local KMS.
    AwsAndLocal,
    /// Those of the embedded local KMS.
    Local,
}

impl Reach {
    /// Whether `key` is one of them.
    pub fn includes(self, key: &KeyRef) -> bool {
        match (self, key) {
            (Self::Aws | Self::AwsAndLocal, KeyRef::Aws(_) | KeyRef::MultiRegion(_))
            | (Self::AwsAndLocal | Self::Local, KeyRef::Local(_)) => true,
            (Self::Aws, KeyRef::Local(_))
            | (Self::Local, KeyRef::Aws(_) | KeyRef::MultiRegion(_)) => false,
        }
    }
}

impl KeyRef {
    /// The key in each Region that it may be called in, in order of preference. None of these has
    /// others.
    pub fn in_regions(&self) -> &[Self] {
        match self {
            Self::MultiRegion(replicas) => &replicas.all,
            Self::Aws(_) | Self::Local(_) => std::slice::from_ref(self),
        }
    }

    /// The key in its preferred Region, where its state is believed: it has no others.
    pub fn preferred(&self) -> &Self {
        self.in_regions().first().unwrap_or(self)
    }

    /// The ARN of a key of AWS KMS, in the preferred Region.
    pub fn arn(&self) -> Option<&Arn> {
        match self {
            Self::Aws(arn) => Some(arn),
            Self::MultiRegion(replicas) => Some(&replicas.preferred),
            Self::Local(_) => None,
        }
    }

    /// The Region that the key is called in if possible; `local` for keys of the embedded KMS.
    pub fn region(&self) -> &str {
        self.arn().map_or("local", Arn::region)
    }

    /// The account that the key's calls are counted for; empty for keys of the embedded KMS.
    pub fn account(&self) -> &str {
        self.arn().map_or("", Arn::account)
    }

    /// The provider id of the data keys that this key wraps.
    pub fn provider_id(&self) -> &'static str {
        match self {
            Self::Aws(_) | Self::MultiRegion(_) => AWS_PROVIDER,
            Self::Local(_) => LOCAL_PROVIDER,
        }
    }

    /// Whether `wrapped` says that this key wrapped it. Says nothing about whether it did.
    ///
    /// A multi-Region key answers to its replicas in all Regions. A local key answers to all its
    /// versions, in whatever keyring: `<keyring id>/<key id>/<version>`.
    pub fn claims(&self, wrapped: &EncryptedDataKey) -> bool {
        if wrapped.provider_id != self.provider_id() {
            return false;
        }
        match self {
            Self::Aws(arn) | Self::MultiRegion(Replicas { preferred: arn, .. }) => wrapped
                .provider_info
                .parse()
                .is_ok_and(|other: Arn| arn.is_replica_of(&other)),
            Self::Local(id) => wrapped.provider_info.split('/').nth(1) == Some(id.as_str()),
        }
    }

    /// Whether `wrapped` names this very key, and not only a replica that it is not called by.
    pub fn is_named_by(&self, wrapped: &EncryptedDataKey) -> bool {
        let mut names = self.in_regions().iter().map(Self::to_string);
        names.any(|name| name == wrapped.provider_info)
    }
}

impl FromStr for KeyRef {
    type Err = MalformedRef;

    fn from_str(text: &str) -> Result<Self, MalformedRef> {
        match text.strip_prefix("local:") {
            Some(id) => match id.parse::<crate::name::KeyId>() {
                Ok(_) => Ok(Self::Local(id.to_owned())),
                Err(_) => Err(MalformedRef),
            },
            None => text.parse().map(Self::Aws),
        }
    }
}

impl fmt::Display for KeyRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Aws(arn) | Self::MultiRegion(Replicas { preferred: arn, .. }) => arn.fmt(f),
            Self::Local(id) => write!(f, "local:{id}"),
        }
    }
}

impl fmt::Debug for KeyRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A multi-Region key of AWS KMS and its replicas in other Regions: two or more, all in different
/// Regions, in order of preference.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Replicas {
    preferred: Arn,
    /// As [`KeyRef::Aws`].
    all: Arc<[KeyRef]>,
}

impl Replicas {
    /// The replica `preferred`, and those in `regions` after it.
    ///
    /// # Errors
    /// [`UnfitReplicas`].
    pub fn new<'r>(
        preferred: Arn,
        regions: impl IntoIterator<Item = &'r str>,
    ) -> Result<Self, UnfitReplicas> {
        if !preferred.is_multi_region() {
            return Err(UnfitReplicas::SingleRegion);
        }
        let mut all = vec![KeyRef::Aws(preferred.clone())];
        for region in regions {
            let replica = preferred.in_region(region).map(KeyRef::Aws);
            let replica = replica.map_err(|_| UnfitReplicas::Malformed(region.to_owned()))?;
            if all.contains(&replica) {
                return Err(UnfitReplicas::Repeated(region.to_owned()));
            }
            all.push(replica);
        }
        match all.len() {
            1 => Err(UnfitReplicas::None),
            _ => Ok(Self {
                preferred,
                all: all.into(),
            }),
        }
    }
}

/// A key cannot have the replicas that are named for it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnfitReplicas {
    /// A name that no Region has.
    #[error("{0:?} is no Region, as us-east-1 is")]
    Malformed(String),
    /// No Region is named.
    #[error("no Region is named: leave replica_regions out for a key that is called in one")]
    None,
    /// A Region twice, or the key's own.
    #[error("{0} is named twice, or is the key's own Region")]
    Repeated(String),
    /// The key is not a multi-Region key.
    #[error("the key has no replicas: the id of a multi-Region key begins with mrk-")]
    SingleRegion,
}

/// The ARN of an AWS KMS key: `arn:<partition>:kms:<region>:<account>:key/<id>`; no alias, since
/// an alias can move away from what it wrapped.
#[derive(Clone, PartialEq, Eq, Hash, Deserialize)]
#[serde(try_from = "String")]
pub struct Arn {
    text: String,
    region: std::ops::Range<usize>,
    id: usize,
}

impl Arn {
    /// The whole ARN.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The Region it names.
    pub fn region(&self) -> &str {
        self.text.get(self.region.clone()).unwrap_or_default()
    }

    /// The account that it names.
    pub fn account(&self) -> &str {
        let rest = self.text.get(self.region.end + 1..);
        let parts = rest.and_then(|rest| rest.split_once(':'));
        parts.map_or("", |(account, _)| account)
    }

    /// What the ARNs of all keys of its Region and account begin with.
    pub fn scope(&self) -> &str {
        let end = self.region.end + ":".len() + self.account().len() + ":".len();
        self.text.get(..end).unwrap_or_default()
    }

    /// The same key in another Region.
    fn in_region(&self, region: &str) -> Result<Self, MalformedRef> {
        let text = |range: Option<&str>| range.unwrap_or_default().to_owned();
        let before = text(self.text.get(..self.region.start));
        let after = text(self.text.get(self.region.end..));
        format!("{before}{region}{after}").parse()
    }

    /// Whether the key can have replicas in other Regions.
    pub fn is_multi_region(&self) -> bool {
        let id = self.text.get(self.id..);
        id.is_some_and(|id| id.starts_with("mrk-"))
    }

    /// Whether both name one key: the same ARN, or replicas of one multi-Region key.
    pub fn is_replica_of(&self, other: &Self) -> bool {
        let rest = |arn: &Self| {
            let before = arn.text.get(..arn.region.start).map(str::to_owned);
            let after = arn.text.get(arn.region.end..).map(str::to_owned);
            (before, after)
        };
        self == other || (self.is_multi_region() && rest(self) == rest(other))
    }
}

impl FromStr for Arn {
    type Err = MalformedRef;

    fn from_str(text: &str) -> Result<Self, MalformedRef> {
        let plain = |part: &str| {
            !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        };
        let parts: Vec<&str> = text.split(':').collect();
        let ["arn", partition, "kms", region, account, resource] = parts.as_slice() else {
            return Err(MalformedRef);
        };
        let id = resource.strip_prefix("key/").ok_or(MalformedRef)?;
        let digits = account.len() == 12 && account.bytes().all(|b| b.is_ascii_digit());
        if text.len() > MAX_ARN || !digits || ![*partition, *region, id].into_iter().all(plain) {
            return Err(MalformedRef);
        }
        let start = "arn:".len() + partition.len() + ":kms:".len();
        Ok(Self {
            text: text.to_owned(),
            region: start..start + region.len(),
            id: text.len() - id.len(),
        })
    }
}

impl TryFrom<String> for Arn {
    type Error = MalformedRef;

    fn try_from(text: String) -> Result<Self, MalformedRef> {
        text.parse()
    }
}

impl fmt::Display for Arn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Arn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The text names no KMS key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("neither local:<key id> nor arn:<partition>:kms:<region>:<account>:key/<id>")]
pub struct MalformedRef;

/// Longest ARN, in bytes: what KMS takes as a key id.
const MAX_ARN: usize = 2048;

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "arn:aws:kms:eu-west-1:111122223333:key/mrk-12ab";

    fn replicas(key: &str, regions: &[&str]) -> Result<Replicas, UnfitReplicas> {
        Replicas::new(key.parse().expect("an ARN"), regions.iter().copied())
    }

    #[test]
    fn a_key_is_called_in_its_regions_in_order() {
        let key = KeyRef::MultiRegion(replicas(KEY, &["us-east-1", "eu-north-1"]).expect("fit"));
        let names: Vec<_> = key.in_regions().iter().map(KeyRef::to_string).collect();
        let expected =
            ["eu-west-1", "us-east-1", "eu-north-1"].map(|region| KEY.replace("eu-west-1", region));
        assert_eq!(names, expected);
        assert_eq!((key.to_string().as_str(), key.region()), (KEY, "eu-west-1"));
    }

    #[test]
    fn keys_of_a_region_and_an_account_have_one_scope() {
        let scope = |key: &str| key.parse::<Arn>().expect("an ARN").scope().to_owned();
        assert_eq!(scope(KEY), "arn:aws:kms:eu-west-1:111122223333:");
        for other in ["eu-west-2:111122223333", "eu-west-1:111122223334"] {
            let other = KEY.replace("eu-west-1:111122223333", other);
            assert_ne!(scope(&other), scope(KEY));
        }
    }

    #[test]
    fn replicas_that_cannot_be_are_refused() {
        let single = KEY.replace("mrk-", "");
        for (key, regions, fault) in [
            (KEY, &[][..], UnfitReplicas::None),
            (&single, &["us-east-1"], UnfitReplicas::SingleRegion),
            (
                KEY,
                &["eu west"],
                UnfitReplicas::Malformed("eu west".into()),
            ),
            (
                KEY,
                &["a:key/b"],
                UnfitReplicas::Malformed("a:key/b".into()),
            ),
            (KEY, &[""], UnfitReplicas::Malformed(String::new())),
            (
                KEY,
                &["eu-west-1"],
                UnfitReplicas::Repeated("eu-west-1".into()),
            ),
            (KEY, &["a-1", "a-1"], UnfitReplicas::Repeated("a-1".into())),
        ] {
            assert_eq!(replicas(key, regions), Err(fault), "{key} {regions:?}");
        }
    }

    #[test]
    fn what_a_replica_wrapped_is_the_keys_own() {
        let key = KeyRef::MultiRegion(replicas(KEY, &["us-east-1"]).expect("fit"));
        let wrapped = |region: &str| EncryptedDataKey {
            provider_id: AWS_PROVIDER.to_owned(),
            provider_info: KEY.replace("eu-west-1", region),
            ciphertext: vec![1],
        };
        for (region, named) in [
            ("eu-west-1", true),
            ("us-east-1", true),
            ("sa-east-1", false),
        ] {
            assert!(key.claims(&wrapped(region)), "{region}");
            assert_eq!(key.is_named_by(&wrapped(region)), named, "{region}");
        }
    }
}
