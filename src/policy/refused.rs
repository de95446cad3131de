//! Why there is no permit.

use crate::message::context;

/// No permit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The caller's own pairs cannot stand in a context. Only an authorized caller learns it.
    #[error(transparent)]
    Context(#[from] InvalidContext),
    /// The caller may not do it.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// The message is bound to another context; to the caller, an invalid ciphertext like any
    /// other.
    #[error(transparent)]
    Mismatch(#[from] Mismatch),
    /// No key policy allows it, and what grants say is not known at the moment.
    #[error("the store of grants is out of reach")]
    OutOfTouch,
    /// The key's tenant is suspended. Only an authorized caller learns it.
    #[error("the tenant is suspended")]
    Suspended,
}

/// Why a caller may not do something. For the audit record alone: to the caller all are one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Denied {
    /// Statements or grants name the caller, and no condition or constraint holds.
    #[error("the context meets no condition of the key policy and no grant's constraint")]
    Condition,
    /// No statement and no grant allows it to the caller.
    #[error("no statement of the key policy and no grant allows it")]
    NoStatement,
    /// There is no such tenant or key.
    #[error("there is no such key")]
    UnknownKey,
}

impl Denied {
    /// A stable name, for audit records and metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Condition => "condition",
            Self::NoStatement => "no_statement",
            Self::UnknownKey => "unknown_key",
        }
    }
}

/// Why the caller's own pairs cannot stand in the context. Holds names, never values.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidContext {
    /// Identity rules set this name.
    #[error("context name {name} is set from the caller's identity")]
    Captured {
        /// The name as the caller wrote it.
        name: String,
    },
    /// The tenant has this name fixed.
    #[error("context name {name} is fixed by the tenant")]
    Fixed {
        /// The name as the caller wrote it.
        name: String,
    },
    /// A pair, or the context as a whole, is outside the limits.
    #[error("invalid encryption context: {error}")]
    Limits {
        /// The pair that is so by itself.
        name: Option<String>,
        /// The limit.
        error: context::Error,
    },
    /// The name is ours or the format's.
    #[error("context name {name} is reserved")]
    Reserved {
        /// The name as the caller wrote it.
        name: String,
    },
}

/// How the context of a message differs from what the caller may open and says of it. For the
/// audit record alone: to the caller all are an invalid ciphertext.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Mismatch {
    /// A pair that identity rules set is not this caller's.
    #[error("the message belongs to another identity")]
    Captured,
    /// A fixed pair of the tenant is absent or has another value.
    #[error("the message lacks a fixed pair of the tenant")]
    Fixed,
    /// It names another key than the request.
    #[error("the message was sealed under another key")]
    Key,
    /// It names no key: another producer's message, or a damaged one.
    #[error("the message names no key of ours")]
    NoKey,
    /// The pairs that are left are not those that the request names.
    #[error("the message has other context pairs than the request")]
    Own,
}

impl Mismatch {
    /// A stable name, for audit records and metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Captured => "context_captured",
            Self::Fixed => "context_fixed",
            Self::Key => "context_key",
            Self::NoKey => "context_no_key",
            Self::Own => "context_own",
        }
    }
}
