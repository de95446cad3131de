//! Grants: short-lived, revocable leave to use a key, with the semantics of AWS KMS and what KMS
//! lacks, an expiry and a bound on how long a revoked grant can still be used.
//!
//! Pure logic, on times that are handed in: what outlives the process is the store's, and whether
//! a caller may do something is the policy room's to decide. All times are of the store's clock.
//!
//! | file | what it holds |
//! |---|---|
//! | `operation`, `constraint`, `terms` | what a grant allows, to whom, and what it may hand on |
//! | `grant` | how long it lives, and who may end or renew it |
//! | `token` | what makes a new grant usable before the store's news of it |
//! | `living` | the grants that a replica knows, found in a time that their number does not change |
//! | `book` | these with how fresh they are: what a decision may rest on |

mod book;
mod config;
mod constraint;
mod grant;
mod living;
mod operation;
#[cfg(test)]
mod samples;
mod terms;
mod token;

pub use book::Backing;
pub use book::Basis;
pub use book::Book;
pub use book::Contact;
pub use book::Found;
pub use book::MOST_SKEW;
pub use book::PATIENCE;
pub use config::Config;
pub use constraint::Constraint;
pub use constraint::Kind;
pub use grant::Ancestor;
pub use grant::Ended;
pub use grant::Ending;
pub use grant::Grant;
pub use grant::Id;
pub use grant::MalformedId;
pub use grant::Name;
pub use grant::Unfit;
pub use grant::Wanted;
pub use living::Live;
pub use living::Living;
pub use operation::Operation;
pub use operation::Operations;
pub use terms::Excess;
pub use terms::Terms;
pub use terms::Use;
pub use token::Claims;
pub use token::MAX_TOKEN;
pub use token::MAX_TOKENS;
pub use token::Token;
pub use token::TokenKey;
pub use token::TokenKeys;
