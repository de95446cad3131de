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

    pub(super) fn note_data_key(&self, source: &Source, version: &Version) {
        self.notes.add(|record| {
            record.resources.push(audit::Resource {
                name: Arc::clone(&version.name),
                arn: Arc::clone(&version.kms_key),
                kind: "KMSKey",
            });
            record.cache = Some(match source {
                Source::Coalesced => audit::Cache::Coalesced,
                Source::Hit => audit::Cache::Hit,
                Source::Miss(_) => audit::Cache::Miss,
                Source::Stale => audit::Cache::Stale,
            });
            if let Source::Miss(request_id) = source {
                record.kms_request_id.clone_from(request_id);
            }
        });
    }
}
