//! Lists of grants, page by page.

use crate::audit;
use crate::broker::Call;
use crate::broker::binding::invalid;
use crate::broker::grants::grant_id;
use crate::error::Error;
use crate::grants::Grant;
use crate::grants::Id;
use crate::policy::Denied;
use crate::store::grants::Filter;

/// Which grants to list, as the caller wrote it.
pub struct Listing {
    /// The key's name, or the tenant's for those that may be retired.
    pub of: String,
    /// Only this one; empty for all.
    pub id: String,
    /// Only those with this grantee, or whose retiring principal this is; empty for all.
    pub principal: String,
    /// Most on the page.
    pub size: i32,
    /// The last of the page before; empty for the first page.
    pub after: String,
}

/// A page of grants.
pub struct GrantPage {
    /// The grants, in the order of their ids.
    pub grants: Vec<Grant>,
    /// The last one's id, if more may follow.
    pub next: Option<Id>,
}

impl Call<'_> {
    /// Lists the living grants of a key.
    ///
    /// # Errors
    /// Those of the RPC.
    pub async fn list_grants(&self, listing: Listing) -> Result<GrantPage, Error> {
        self.look();
        let name = self.key_name("key", &listing.of)?;
        self.notes.add(|record| record.key = Some(name.clone()));
        let filter = filter(&listing, &listing.principal)?;
        self.administers(&name)?;
        let grants = &self.broker.grants;
        let found = grants.store.grants_of_key(&name, &filter).await?;
        Ok(self.page(found, &filter))
    }

    /// Lists the living grants that the caller may retire as their retiring principal.
    ///
    /// # Errors
    /// Those of the RPC.
    pub async fn list_retirable_grants(&self, listing: Listing) -> Result<GrantPage, Error> {
        self.look();
        let tenant = self.parent(&listing.of)?;
        let filter = filter(&listing, "")?;
        let principal = self.caller.principal();
        if !listing.principal.is_empty() && listing.principal != principal.as_str() {
            return Err(Denied::NoStatement.into());
        }
        let grants = &self.broker.grants;
        let found = grants.store.retirable_grants(&tenant, principal, &filter);
        Ok(self.page(found.await?, &filter))
    }

    /// Leaves out what is over because what it rests on is.
    fn page(&self, mut grants: Vec<Grant>, filter: &Filter<'_>) -> GrantPage {
        let next = grants
            .last()
            .filter(|_| grants.len() == filter.most)
            .map(|last| last.id);
        let book = &self.broker.grants.book;
        grants.retain(|grant| book.may_live(grant));
        GrantPage { grants, next }
    }

    pub(super) fn look(&self) {
        self.notes
            .add(|record| record.category = audit::Category::Look);
    }
}

pub(super) fn filter<'a>(listing: &Listing, grantee: &'a str) -> Result<Filter<'a>, Error> {
    let most = match usize::try_from(listing.size) {
        Err(_) => {
            return Err(invalid(
                "page_size",
                format!("{} is negative", listing.size),
            ));
        }
        Ok(0) => USUAL_PAGE,
        Ok(size) => size.min(LARGEST_PAGE),
    };
    let after = match listing.after.as_str() {
        "" => None,
        text => Some(text.parse().map_err(|_| {
            let why = "it is not the next_page_token of a page".to_owned();
            invalid("page_token", why)
        })?),
    };
    let id = match listing.id.as_str() {
        "" => None,
        text => Some(grant_id(text)?),
    };
    Ok(Filter {
        after,
        id,
        grantee,
        most,
    })
}

/// Grants on a page unless the caller says how many.
const USUAL_PAGE: usize = 50;
/// Most grants on a page.
const LARGEST_PAGE: usize = 100;
