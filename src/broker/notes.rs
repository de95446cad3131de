//! What an operation adds to its call's audit record: names, sizes and where the data key came
//! from; never content, and never the value of a context pair.

use std::sync::Arc;

use crate::audit;
use crate::broker::Call;
use crate::broker::Pairs;
use crate::datakeys::Source;
use crate::datakeys::Version;
use crate::name::KeyName;
use crate::policy::Permit;
use crate::policy::Rule;

impl Call<'_> {
    pub(super) fn note_request(&self, name: Option<&KeyName>, own: &Pairs) {
        self.notes.add(|record| {
            record.key = name.cloned();
            record.context_keys = own.iter().map(|(name, _)| name.as_str()).collect();
        });
    }

    pub(super) fn note_permit(&self, permit: &Permit) {
        self.notes.add(|record| {
            record.tenant = Some(permit.tenant().clone());
            record.key = Some(permit.key().name().clone());
        });
        self.note_rule(&permit.rule());
    }

    pub(super) fn note_rule(&self, rule: &Rule) {
        self.notes.add(|record| {
            record.rule = Some(rule.label());
            if let Rule::Grant(basis) = rule {
                record.grant_id = Some(basis.id());
            }
        });
    }

    /// Adds what the key's tenant lets stand in records of the context that the call is bound to.
    pub(super) fn note_context(&self, permit: &Permit) {
        let names = permit.key().tenant().audit_context();
        if names.len() == 0 {
            return;
        }
        let context = permit.context();
        let value = |name| Some((name, context.value(name)?));
        self.notes
            .add(|record| record.context_values = names.filter_map(value).collect());
    }

    pub(super) fn note_plaintext(&self, length: usize) {
        self.notes
            .add(|record| record.plaintext_bytes = Some(length));
    }

    /// As [`Call::note_plaintext`], for a part of it.
    pub(super) fn note_more_plaintext(&self, length: usize) {
        self.notes
            .add(|record| *record.plaintext_bytes.get_or_insert(0) += length);
    }

    /// As [`Call::note_data_key`], for one of several: each version is noted once, up to a bound.
    /// What stands for all is a miss if there is one.
    pub(super) fn note_shared_key(&self, source: &Source, version: &Version) {
        self.notes.add(|record| {
            for one in resources(version) {
                let known = record.resources.contains(&one);
                if !known && record.resources.len() < MOST_RESOURCES {
                    record.resources.push(one);
                }
            }
            match source {
                Source::Miss(request_ids) if record.kms_request_ids.is_empty() => {
                    record.cache = Some(audit::Cache::Miss);
                    record.kms_request_ids.clone_from(request_ids);
                }
                source => {
                    record.cache.get_or_insert_with(|| cache(source));
                }
            }
        });
    }

    pub(super) fn note_data_key(&self, source: &Source, version: &Version) {
        self.notes.add(|record| {
            record.resources.extend(resources(version));
            record.cache = Some(cache(source));
            if let Source::Miss(request_ids) = source {
                record.kms_request_ids.clone_from(request_ids);
            }
        });
    }
}

/// One for each KMS key.
fn resources(version: &Version) -> impl Iterator<Item = audit::Resource> {
    version.kms_keys.iter().map(|kms_key| audit::Resource {
        name: Arc::clone(&version.name),
        arn: Arc::clone(kms_key),
        kind: "KMSKey",
    })
}

fn cache(source: &Source) -> audit::Cache {
    match source {
        Source::Coalesced => audit::Cache::Coalesced,
        Source::Hit => audit::Cache::Hit,
        Source::Miss(_) => audit::Cache::Miss,
        Source::Stale => audit::Cache::Stale,
    }
}

/// Most data keys that the record of one call names.
const MOST_RESOURCES: usize = 32;
