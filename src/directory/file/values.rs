//! What single settings of a tenant or a key say, within their bounds.

use std::time::Duration;

use jiff::SignedDuration;

use crate::directory::binding::Binding;
use crate::directory::binding::KmsKeys;
use crate::directory::file::Fault;
use crate::directory::file::raw;
use crate::directory::key::Key;
use crate::directory::key::Limits;
use crate::directory::key::Tenant;
use crate::kms::KeyRef;
use crate::kms::Replicas;
use crate::kms::UnfitReplicas;
use crate::message::EncryptionContext;
use crate::message::context;
use crate::name::KeyName;

/// Whether a context without any pair of a caller stays within the limits.
pub(super) fn check_context(tenant: &Tenant, name: &KeyName) -> Result<(), Fault> {
    let own = [
        (context::TENANT, tenant.id.as_str()),
        (context::KEY, name.key.as_str()),
    ];
    let pairs = own
        .into_iter()
        .chain(tenant.context())
        .map(|(name, value)| (name.to_owned(), value.to_owned()));
    match EncryptionContext::new(pairs) {
        Ok(_) => Ok(()),
        Err(error) => Err(Fault::Context { error }),
    }
}

pub(super) fn binding(list: Vec<raw::KmsKey>) -> Result<Binding, Fault> {
    let mut versions: Vec<KmsKeys> = Vec::with_capacity(list.len());
    for raw in list {
        let keys = kms_keys(raw)?;
        for key in keys.iter() {
            let named = |other: &KeyRef| other.to_string() == key.to_string();
            if versions.iter().flat_map(KmsKeys::iter).any(named) {
                return Err(Fault::RepeatedKms(key.clone()));
            }
        }
        versions.push(keys);
    }
    Binding::new(versions).ok_or(Fault::NoKms)
}

fn kms_keys(raw: raw::KmsKey) -> Result<KmsKeys, Fault> {
    let raw::KmsKey {
        key,
        replica_regions,
        additional_key,
    } = raw;
    let generator = match replica_regions {
        None => kms_key(key)?,
        Some(regions) => replicated(key, &regions)?,
    };
    let Some(additional) = additional_key else {
        return Ok(KmsKeys::of(generator));
    };
    let additional = kms_key(additional)?;
    let [key, named] = [&generator, &additional].map(ToString::to_string);
    let keys = KmsKeys::with_additional(generator, additional);
    keys.map_err(|error| Fault::Additional {
        key,
        additional: named,
        error,
    })
}

fn kms_key(name: String) -> Result<KeyRef, Fault> {
    name.parse()
        .map_err(|error| Fault::Kms { value: name, error })
}

fn replicated(key: String, regions: &[String]) -> Result<KeyRef, Fault> {
    let replicas = match kms_key(key.clone())? {
        KeyRef::Aws(arn) => Replicas::new(arn, regions.iter().map(String::as_str)),
        KeyRef::Local(_) | KeyRef::MultiRegion(_) => Err(UnfitReplicas::SingleRegion),
    };
    replicas
        .map(KeyRef::MultiRegion)
        .map_err(|error| Fault::Replicas { key, error })
}

pub(super) fn limits(raw: raw::Limits) -> Result<Limits, Fault> {
    let default = Limits::default();
    Ok(Limits {
        max_age: match raw.max_age {
            Some(age) => max_age(age)?,
            None => default.max_age,
        },
        max_messages: match raw.max_messages {
            Some(count) => counted("max_messages", count, Limits::CEILING.max_messages)?,
            None => default.max_messages,
        },
        max_bytes: match raw.max_bytes {
            Some(count) => counted("max_bytes", count, Limits::CEILING.max_bytes)?,
            None => default.max_bytes,
        },
    })
}

/// How long what is known of tenants may count without word of the store: `span`, if that is 5 s to
/// 24 h.
pub fn staleness(span: SignedDuration) -> Option<Duration> {
    let span = Duration::try_from(span).ok()?;
    (LEAST_STALENESS..=MOST_STALENESS)
        .contains(&span)
        .then_some(span)
}

pub(super) fn grant_ceiling(lifetime: Option<SignedDuration>) -> Result<Duration, Fault> {
    let Some(lifetime) = lifetime else {
        return Ok(Key::LONGEST_GRANT);
    };
    let span = Duration::try_from(lifetime).unwrap_or_default();
    match (Duration::from_secs(1)..=Key::LONGEST_GRANT).contains(&span) {
        true => Ok(span),
        false => Err(Fault::GrantLifetime(format!("{lifetime:#}"))),
    }
}

fn max_age(age: SignedDuration) -> Result<Duration, Fault> {
    let ceiling = Limits::CEILING.max_age;
    match Duration::try_from(age) {
        Ok(age) if (LEAST_AGE..=ceiling).contains(&age) => Ok(age),
        _ => Err(Fault::Limit {
            limit: "max_age",
            value: format!("{age:#}"),
            ceiling: format!("{ceiling:?}"),
        }),
    }
}

fn counted(limit: &'static str, count: u64, ceiling: u64) -> Result<u64, Fault> {
    match count {
        1.. if count <= ceiling => Ok(count),
        _ => Err(Fault::Limit {
            limit,
            value: count.to_string(),
            ceiling: ceiling.to_string(),
        }),
    }
}

/// Names of pairs whose values stand in audit records.
pub(super) fn audited(names: Vec<String>) -> Result<Box<[String]>, Fault> {
    let long = names.iter().any(|name| name.len() > context::MAX_NAME);
    match long || names.len() > context::MAX_PAIRS {
        true => Err(Fault::AuditContext),
        false => Ok(names.into()),
    }
}

/// A shorter one would end with every hiccup.
const LEAST_STALENESS: Duration = Duration::from_secs(5);
const MOST_STALENESS: Duration = Duration::from_hours(24);
/// Below it nearly every message would ask KMS.
const LEAST_AGE: Duration = Duration::from_secs(1);
