//! What a grant allows and to whom, and what somebody wants to do.

use crate::directory::Key;
use crate::grants::Constraint;
use crate::grants::Operation;
use crate::grants::Operations;
use crate::identity::Principal;
use crate::identity::PrincipalPattern;

/// Who may do what in which contexts, while a grant lives. It never changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Who: compared with the calling identity on every use.
    pub grantee: PrincipalPattern,
    /// What.
    pub operations: Operations,
    /// In which contexts; in all where there is none.
    pub constraint: Option<Constraint>,
}

impl Terms {
    /// Whether they allow `wanted`.
    pub fn allow(&self, wanted: &Use<'_>) -> bool {
        let Self {
            grantee,
            operations,
            constraint,
        } = self;
        // As in KMS: operations that have no context are not bound to one.
        let fits = |constraint: &Constraint| {
            let pairs = wanted.pairs.as_ref();
            !wanted.operation.is_use() || pairs.is_none_or(|pairs| constraint.holds(pairs))
        };
        grantee.matches(wanted.principal)
            && operations.contain(wanted.operation)
            && constraint.as_ref().is_none_or(fits)
    }

    /// Whether one who has `outer` can hand these on: they allow nothing that `outer` does not,
    /// save to others.
    ///
    /// # Errors
    /// [`Excess`].
    pub fn check_within(&self, outer: &Self) -> Result<(), Excess> {
        if !outer.operations.contain(Operation::CreateGrant) {
            return Err(Excess::Delegation);
        }
        if !self.operations.are_within(outer.operations) {
            return Err(Excess::Operations);
        }
        match (&outer.constraint, &self.constraint) {
            (None, _) => Ok(()),
            (Some(outer), Some(inner)) if inner.is_within(outer) => Ok(()),
            (Some(_), _) => Err(Excess::Constraint),
        }
    }
}

/// Somebody wants to do something with a key.
pub struct Use<'a> {
    pub(super) key: &'a Key,
    pub(super) principal: &'a Principal,
    pub(super) operation: Operation,
    /// The context without the key's own pairs, ordered; in some context if none.
    pub(super) pairs: Option<Vec<(&'a str, &'a str)>>,
}

impl<'a> Use<'a> {
    /// `principal` wants to do `operation` with `key`, where the whole context would be `pairs`.
    pub fn new(
        key: &'a Key,
        principal: &'a Principal,
        operation: Operation,
        pairs: impl Iterator<Item = (&'a str, &'a str)>,
    ) -> Self {
        let own = |pair: &(&str, &str)| key.context().any(|own| own == *pair);
        let mut pairs: Vec<_> = pairs.filter(|pair| !own(pair)).collect();
        pairs.sort_unstable();
        Self {
            pairs: Some(pairs),
            ..Self::somewhere(key, principal, operation)
        }
    }

    /// `principal` wants to do `operation` with `key`, in any one context.
    pub fn somewhere(key: &'a Key, principal: &'a Principal, operation: Operation) -> Self {
        Self {
            key,
            principal,
            operation,
            pairs: None,
        }
    }
}

/// How a grant would allow more than the one that it would rest on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Excess {
    /// Contexts that the other does not allow.
    #[error("its constraint is not as strict as the grant's that it rests on")]
    Constraint,
    /// The other allows to make no grants.
    #[error("the grant that it rests on does not allow CreateGrant")]
    Delegation,
    /// It would live longer.
    #[error("it would outlive the grant that it rests on")]
    Lifetime,
    /// Operations that the other does not allow.
    #[error("it has operations that the grant that it rests on has not")]
    Operations,
}
