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
            record.rule = Some(permit.rule());
        });
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
            let known = record.resources.iter().any(|one| one.name == version.name);
            if !known && record.resources.len() < MOST_RESOURCES {
                record.resources.push(resource(version));
            }
            match source {
                Source::Miss(request_id) if record.kms_request_id.is_none() => {
                    record.cache = Some(audit::Cache::Miss);
                    record.kms_request_id.clone_from(request_id);
                }
                source => {
                    record.cache.get_or_insert_with(|| cache(source));
                }
            }
        });
    }

    pub(super) fn note_data_key(&self, source: &Source, version: &Version) {
        self.notes.add(|record| {
            record.resources.push(resource(version));
            record.cache = Some(cache(source));
            if let Source::Miss(request_id) = source {
                record.kms_request_id.clone_from(request_id);
            }
        });
    }
}

fn resource(version: &Version) -> audit::Resource {
    audit::Resource {
        name: Arc::clone(&version.name),
        arn: Arc::clone(&version.kms_key),
        kind: "KMSKey",
    }
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
