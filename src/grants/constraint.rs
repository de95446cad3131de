//! Which encryption contexts a grant is for.

use crate::directory::Key;
use crate::message::EncryptionContext;
use crate::message::context;

/// What the encryption context must be for a grant to allow an operation.
///
/// Looks at what may differ between two contexts of a key: the pairs that identity rules and
/// callers set. The key's own (tenant, key, the tenant's fixed pairs) are the same in each and left
/// aside. Names and values compare byte by byte, with their case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Constraint {
    kind: Kind,
    pairs: EncryptionContext,
}

/// How a constraint compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// These pairs and no others.
    Equals,
    /// These pairs at least.
    Subset,
}

impl Constraint {
    /// Most pairs: as many as a grant of AWS KMS takes.
    pub const MAX_PAIRS: usize = 8;
    /// Longest value in characters, likewise.
    pub const MAX_VALUE: usize = 384;

    /// The constraint of these pairs.
    ///
    /// # Errors
    /// For pairs that are outside the limits, reserved, or no context at all.
    pub fn new(kind: Kind, pairs: EncryptionContext) -> Result<Self, Unfit> {
        match pairs.pairs().count() {
            0 => return Err(Unfit::Empty),
            1..=Self::MAX_PAIRS => {}
            count => return Err(Unfit::Many { count }),
        }
        for (name, value) in pairs.pairs() {
            let length = value.chars().count();
            if length > Self::MAX_VALUE {
                let name = name.to_owned();
                return Err(Unfit::Long { name, length });
            }
            if context::is_reserved(name) {
                return Err(Unfit::Own(name.to_owned()));
            }
        }
        Ok(Self { kind, pairs })
    }

    /// How it compares.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The pairs, at least one.
    pub fn pairs(&self) -> &EncryptionContext {
        &self.pairs
    }

    /// Whether it can say anything about contexts of `key`.
    ///
    /// # Errors
    /// For a pair that the key sets itself, in each context and whatever the case.
    pub fn check(&self, key: &Key) -> Result<(), Unfit> {
        for (name, _) in self.pairs.pairs() {
            if key.context().any(|(own, _)| own.eq_ignore_ascii_case(name)) {
                return Err(Unfit::Own(name.to_owned()));
            }
        }
        Ok(())
    }

    /// Whether `pairs`, a context without the key's own, is one of those it is about.
    pub fn holds(&self, pairs: &[(&str, &str)]) -> bool {
        let all = || self.pairs.pairs().all(|wanted| pairs.contains(&wanted));
        match self.kind {
            Kind::Equals => self.pairs.pairs().count() == pairs.len() && all(),
            Kind::Subset => all(),
        }
    }

    /// Whether it holds for no context for which `outer` does not: as strict, or stricter.
    pub fn is_within(&self, outer: &Self) -> bool {
        match (outer.kind, self.kind) {
            (Kind::Equals, Kind::Equals) => self.pairs == outer.pairs,
            (Kind::Equals, Kind::Subset) => false,
            (Kind::Subset, Kind::Equals | Kind::Subset) => {
                let known = |(name, value)| self.pairs.value(name) == Some(value);
                outer.pairs.pairs().all(known)
            }
        }
    }
}

/// Why pairs cannot constrain a grant. Holds names, never values.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// There are no pairs.
    #[error("there are no pairs")]
    Empty,
    /// A value is longer than [`Constraint::MAX_VALUE`].
    #[error(
        "the value of {name} has {length} characters, more than {}",
        Constraint::MAX_VALUE
    )]
    Long {
        /// The pair's name.
        name: String,
        /// How many characters its value has.
        length: usize,
    },
    /// More than [`Constraint::MAX_PAIRS`] pairs.
    #[error("{count} pairs are more than {}", Constraint::MAX_PAIRS)]
    Many {
        /// How many there are.
        count: usize,
    },
    /// A pair that the key itself sets in each of its contexts.
    #[error("{0} is set by the key itself, in each of its contexts")]
    Own(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn constraint(kind: Kind, pairs: &[(&str, &str)]) -> Result<Constraint, Unfit> {
        let pairs = pairs.iter().copied();
        Constraint::new(kind, EncryptionContext::new(pairs).unwrap())
    }

    #[test]
    fn subset_and_equals_are_those_of_kms() {
        let wanted = [("Department", "Finance"), ("Purpose", "Test")];
        let subset = constraint(Kind::Subset, &wanted).unwrap();
        let equals = constraint(Kind::Equals, &wanted).unwrap();
        for (pairs, in_subset, in_equals) in [
            (
                vec![("Department", "Finance"), ("Purpose", "Test")],
                true,
                true,
            ),
            (
                vec![("Purpose", "Test"), ("Department", "Finance")],
                true,
                true,
            ),
            (
                vec![
                    ("Department", "Finance"),
                    ("Purpose", "Test"),
                    ("More", "x"),
                ],
                true,
                false,
            ),
            (vec![("Department", "Finance")], false, false),
            (vec![], false, false),
            // Names as values count with their case.
            (
                vec![("department", "Finance"), ("Purpose", "Test")],
                false,
                false,
            ),
            (
                vec![("Department", "finance"), ("Purpose", "Test")],
                false,
                false,
            ),
            (
                vec![("Department", "Test"), ("Purpose", "Finance")],
                false,
                false,
            ),
        ] {
            assert_eq!(subset.holds(&pairs), in_subset, "{pairs:?}");
            assert_eq!(equals.holds(&pairs), in_equals, "{pairs:?}");
        }
    }

    #[test]
    fn a_stricter_constraint_is_within_and_another_is_not() {
        use Kind::Equals;
        use Kind::Subset;
        let one: &[_] = &[("a", "1")];
        let two: &[_] = &[("a", "1"), ("b", "2")];
        let other: &[_] = &[("a", "2"), ("b", "2")];
        for (outer, inner, within) in [
            ((Subset, one), (Subset, one), true),
            ((Subset, one), (Subset, two), true),
            ((Subset, one), (Equals, one), true),
            ((Subset, one), (Equals, two), true),
            ((Subset, one), (Equals, other), false),
            ((Subset, two), (Subset, one), false),
            ((Subset, two), (Equals, one), false),
            ((Equals, one), (Equals, one), true),
            ((Equals, one), (Equals, two), false),
            ((Equals, one), (Subset, one), false),
            ((Equals, one), (Subset, two), false),
        ] {
            let outer = constraint(outer.0, outer.1).unwrap();
            let inner = constraint(inner.0, inner.1).unwrap();
            assert_eq!(inner.is_within(&outer), within, "{inner:?} in {outer:?}");
        }
    }

    #[test]
    fn limits_are_those_of_kms() {
        let names: Vec<String> = (0..9).map(|n| format!("n{n}")).collect();
        let pairs: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "v")).collect();
        assert!(constraint(Kind::Subset, &pairs[..8]).is_ok());
        let many = Err(Unfit::Many { count: 9 });
        assert_eq!(constraint(Kind::Subset, &pairs), many);
        assert_eq!(constraint(Kind::Equals, &[]), Err(Unfit::Empty));
        // Characters, not bytes.
        let longest = "ä".repeat(200) + &"a".repeat(112);
        assert!(constraint(Kind::Equals, &[("a", &longest)]).is_ok());
        let over = "a".repeat(385);
        assert_eq!(
            constraint(Kind::Equals, &[("a", &over)]),
            Err(Unfit::Long {
                name: "a".to_owned(),
                length: 385
            })
        );
        let own = Err(Unfit::Own("KeyBroker:tenant".to_owned()));
        assert_eq!(constraint(Kind::Subset, &[("KeyBroker:tenant", "x")]), own);
    }
}
