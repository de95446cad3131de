//! What a caller may know of keys: the operations that use none.

use std::sync::Arc;

use crate::broker::Call;
use crate::broker::binding::invalid;
use crate::broker::binding::tokens_bound;
use crate::directory::Key;
use crate::error::Error;
use crate::name::KeyId;
use crate::name::TenantId;
use crate::policy::Action;

/// A page of keys.
pub struct Page {
    /// The keys, in the order of their ids.
    pub keys: Vec<Visible>,
    /// The last key's id, if more follow.
    pub next: Option<String>,
}

/// A key as its caller sees it.
pub struct Visible {
    /// The key.
    pub key: Arc<Key>,
    /// The list of its policy that names the caller, the first of several, or `grant`.
    pub role: &'static str,
}

impl Call<'_> {
    /// Describes a key on which the caller holds any role, or that a grant shows it.
    ///
    /// # Errors
    /// Those of the RPC.
    pub async fn describe_key(&self, name: &str, tokens: &[String]) -> Result<Visible, Error> {
        tokens_bound(tokens)?;
        let name = self.key_name("name", name)?;
        self.notes.add(|record| record.key = Some(name.clone()));
        let ask = || {
            self.decide(Action::Decrypt, || {
                let backing = self.backing(Some(&name), tokens);
                self.policy.authorize_describe(&self.caller, &name, backing)
            })
        };
        let (key, rule) = self.knowing(Some(&name), ask).await?;
        self.note_rule(&rule);
        Ok(Visible {
            key: Arc::clone(key),
            role: rule.label(),
        })
    }

    /// Lists the keys of `parent` (`tenants/{tenant}`, or empty for the caller's own) on which the
    /// caller holds any role: at most `size`, those after the key `after`.
    ///
    /// # Errors
    /// Those of the RPC.
    pub fn list_keys(&self, parent: &str, size: i32, after: &str) -> Result<Page, Error> {
        let tenant = self.parent(parent)?;
        let size = match usize::try_from(size) {
            Err(_) => return Err(invalid("page_size", format!("{size} is negative"))),
            Ok(0) => USUAL_PAGE,
            Ok(size) => size.min(LARGEST_PAGE),
        };
        if !after.is_empty() && after.parse::<KeyId>().is_err() {
            let why = "it is not the next_page_token of a page".to_owned();
            return Err(invalid("page_token", why));
        }
        let mut visible = self
            .policy
            .visible_keys(&self.caller, &tenant)
            .filter(|(key, _)| key.name().key.as_str() > after)
            .map(|(key, role)| Visible {
                key: Arc::clone(key),
                role: role.label(),
            });
        let keys: Vec<Visible> = visible.by_ref().take(size).collect();
        let more = visible.next().is_some();
        let next = keys
            .last()
            .filter(|_| more)
            .map(|last| last.key.name().key.to_string());
        Ok(Page { keys, next })
    }

    pub(super) fn parent(&self, text: &str) -> Result<TenantId, Error> {
        if text.is_empty() {
            return Ok(self.caller.tenant().clone());
        }
        text.strip_prefix("tenants/")
            .and_then(|id| id.parse().ok())
            .ok_or_else(|| invalid("parent", "it is not tenants/{tenant}".to_owned()))
    }
}

/// Keys on a page unless the caller says how many.
const USUAL_PAGE: usize = 50;
/// Most keys on a page.
const LARGEST_PAGE: usize = 1000;
