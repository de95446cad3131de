//! A peer for as long as its connection lasts, with the caller that the rules make of it.

use std::sync::Arc;

use arc_swap::ArcSwapOption;

use super::Caller;
use super::Peer;
use super::Rules;

/// A peer that is mapped once for all its calls under the same rules.
pub struct Session {
    peer: Peer,
    mapped: ArcSwapOption<Mapped>,
}

struct Mapped {
    // Kept alive, so that no other rules ever have its address.
    rules: Arc<Rules>,
    caller: Option<Arc<Caller>>,
}

impl Session {
    /// A session of `peer`, not mapped yet.
    pub fn new(peer: Peer) -> Self {
        Self {
            peer,
            mapped: ArcSwapOption::empty(),
        }
    }

    /// Who it is.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// The caller that `rules` make of it, as [`Rules::map`] says.
    pub fn caller(&self, rules: &Arc<Rules>) -> Option<Arc<Caller>> {
        if let Some(mapped) = &*self.mapped.load()
            && Arc::ptr_eq(&mapped.rules, rules)
        {
            return mapped.caller.clone();
        }
        let caller = rules.map(&self.peer).map(Arc::new);
        self.mapped.store(Some(Arc::new(Mapped {
            rules: Arc::clone(rules),
            caller: caller.clone(),
        })));
        caller
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Config;

    fn rules(tenant: &str) -> Arc<Rules> {
        let text = format!("[[rule]]\nmatch = \"unix:uid=7\"\ntenant = \"{tenant}\"");
        let config: Config = toml::from_str(&text).unwrap();
        Arc::new(Rules::new(&config).unwrap())
    }

    #[test]
    fn a_peer_is_mapped_once_under_rules_and_anew_under_others() {
        let session = Session::new(Peer::unix(7, 7));
        let first = rules("acme");
        let caller = session.caller(&first).unwrap();
        assert!(Arc::ptr_eq(&caller, &session.caller(&first).unwrap()));
        let tenant = |rules: &Arc<Rules>| session.caller(rules).unwrap().tenant().to_string();
        assert_eq!(tenant(&rules("globex")), "globex");
        assert_eq!(tenant(&first), "acme");
        let nobody = Session::new(Peer::unix(8, 8));
        assert!(nobody.caller(&first).is_none() && nobody.caller(&first).is_none());
    }
}
