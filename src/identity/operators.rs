//! Who runs the broker: named by its configuration alone, never by what it serves.

use serde::Deserialize;

use super::Peer;
use super::Principal;
use super::PrincipalPattern;

/// The `operators` part of the configuration: nobody by default.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct Operators {
    /// Who they are, as key policies name principals.
    pub principals: Vec<PrincipalPattern>,
}

impl Operators {
    /// Whether `peer` is one of them, whatever identity rules make of it.
    pub fn include(&self, peer: &Peer) -> bool {
        let principal = Principal::from(peer.id());
        self.principals.iter().any(|one| one.matches(&principal))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_an_operator_who_is_not_named() {
        let root = Peer::unix(0, 0);
        assert!(!Operators::default().include(&root));
        let named: Operators = toml::from_str("principals = [\"unix:uid=0\"]").unwrap();
        assert!(named.include(&root) && !named.include(&Peer::unix(1, 0)));
        let bad = toml::from_str::<Operators>("principals = [\"*\"]").unwrap_err();
        assert!(bad.to_string().contains("unix:uid=<uid>"), "{bad}");
    }
}
