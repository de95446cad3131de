//! A tenant as the store keeps it: read by the code that reads the tenants file, and trusted no more.

use std::path::Path;
use std::sync::Arc;

use crate::directory::Error;
use crate::directory::Home;
use crate::directory::Standing;
use crate::directory::file::Shared;
use crate::name::TenantId;

/// What the store says of a tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The tenant's id, as it stands there.
    pub id: String,
    /// What there is under it.
    pub content: Content,
    /// Whether it may do anything.
    pub standing: Standing,
    /// The number of the change that last dropped its data keys; 0 before the first.
    pub purged: u64,
}

/// What the store holds of a tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Something that the store never writes.
    Damaged,
    /// A tenants file of this tenant alone.
    Document(String),
    /// Nothing: the tenant was removed.
    Removed,
}

/// Why the store's word of a tenant is not usable: the tenant is denied everything.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// The row holds something that the store never writes.
    #[error("its row is damaged")]
    Damaged,
    /// The document is no tenants file.
    #[error(transparent)]
    Document(Box<Error>),
    /// The row's id is none.
    #[error("its id is malformed")]
    Id,
    /// The document is of other tenants than the row, or of none.
    #[error("its document is not of this tenant alone")]
    Other,
}

/// Reads rows, and keeps equal texts in them once.
#[derive(Default)]
pub(super) struct Reader {
    shared: Shared,
}

impl Reader {
    /// The tenant `id` by its row; none if it was removed.
    pub(super) fn home(
        &mut self,
        id: &TenantId,
        content: Content,
        standing: Standing,
        purged: u64,
    ) -> Result<Option<Arc<Home>>, Unusable> {
        let document = match content {
            Content::Damaged => return Err(Unusable::Damaged),
            Content::Document(document) => document,
            Content::Removed => return Ok(None),
        };
        let read = self.shared.homes(&document, Path::new("store"));
        let mut homes = read.map_err(|error| Unusable::Document(error.into()))?;
        match (homes.remove(id), homes.is_empty()) {
            (Some(mut home), true) => {
                if (standing, purged) != (Standing::Active, 0) {
                    Arc::make_mut(&mut home).mark(standing, purged);
                }
                Ok(Some(home))
            }
            _ => Err(Unusable::Other),
        }
    }
}
