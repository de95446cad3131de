//! What a request says of a message besides its content: the key's name, and what the message is
//! bound to; and what it means when that cannot be.

use bytes::Bytes;

use crate::broker::Call;
use crate::error::Error;
use crate::grants::MAX_TOKEN;
use crate::grants::MAX_TOKENS;
use crate::message::context;
use crate::name::KeyName;
use crate::policy::Action;
use crate::policy::InvalidContext;
use crate::policy::Refused;

/// Names a key, and what a message under it is bound to.
pub struct Binding {
    /// The key's name as the caller wrote it; empty for "as the message says".
    pub name: String,
    /// The caller's own pairs.
    pub context: Pairs,
    /// Authenticated and not stored; empty for none.
    pub associated_data: Bytes,
    /// Tokens of grants that may allow it.
    pub tokens: Vec<String>,
}

/// Pairs of an encryption context, as they came.
pub type Pairs = Vec<(String, String)>;

/// The request's own names of a [`Binding`]'s parts, for errors.
pub(super) struct Fields {
    pub(super) name: &'static str,
    context: &'static str,
    associated_data: &'static str,
}

impl Fields {
    /// Those of the binding that `action` is about.
    pub(super) fn of(action: Action) -> &'static Self {
        match action {
            Action::Decrypt
            | Action::Encrypt
            | Action::GenerateDataKey
            | Action::GenerateDataKeyWithoutPlaintext => &PLAIN,
            Action::ReEncryptFrom => &SOURCE,
            Action::ReEncryptTo => &DESTINATION,
        }
    }
}

impl Call<'_> {
    pub(super) fn key_name(&self, field: &'static str, text: &str) -> Result<KeyName, Error> {
        KeyName::parse(text, self.caller.tenant()).map_err(|_| {
            // Not quoted: a text in the wrong field may be anything, a plaintext too.
            let why = "it is not keys/{key} or tenants/{tenant}/keys/{key}";
            invalid(field, why.to_owned())
        })
    }
}

/// Refuses what no key takes, before any of it is looked into or recorded.
pub(super) fn bound(action: Action, binding: &Binding) -> Result<(), Error> {
    let fields = Fields::of(action);
    let refused = |name: Option<&String>, error| Error::Context {
        field: fields.context,
        why: InvalidContext::Limits {
            name: name.cloned(),
            error,
        },
    };
    tokens_bound(&binding.tokens)?;
    if binding.context.len() > context::MAX_PAIRS {
        return Err(refused(None, context::Error::Many(binding.context.len())));
    }
    for (name, value) in &binding.context {
        for (what, length, limit) in [
            ("name", name.len(), context::MAX_NAME),
            ("value", value.len(), context::MAX_VALUE),
        ] {
            if length > limit {
                let error = context::Error::Long {
                    what,
                    length,
                    limit,
                };
                return Err(refused((what == "value").then_some(name), error));
            }
        }
    }
    match binding.associated_data.len() {
        0..=MAX_ASSOCIATED_DATA => Ok(()),
        length => Err(invalid(
            fields.associated_data,
            format!("{length} bytes are over the limit of {MAX_ASSOCIATED_DATA}"),
        )),
    }
}

/// Refuses more tokens than anybody needs, and longer ones than there are.
pub(super) fn tokens_bound(tokens: &[String]) -> Result<(), Error> {
    let length = |token: &String| (1..=MAX_TOKEN).contains(&token.len());
    if tokens.len() <= MAX_TOKENS && tokens.iter().all(length) {
        return Ok(());
    }
    let why = format!("more than {MAX_TOKENS} tokens, or one not of 1 to {MAX_TOKEN} characters");
    Err(invalid("grant_tokens", why))
}

/// Nothing can be said of grants.
pub(super) fn out_of_touch() -> Error {
    Error::StoreUnavailable("not heard of for 5 s".into())
}

pub(super) fn bounded(field: &'static str, length: usize) -> Result<(), Error> {
    match length {
        0 => Err(invalid(field, "there is no plaintext in it".into())),
        1..=MAX_PLAINTEXT => Ok(()),
        _ => Err(Error::PlaintextTooLarge {
            length: u64::try_from(length).unwrap_or(u64::MAX),
            limit: u64::try_from(MAX_PLAINTEXT).unwrap_or(u64::MAX),
        }),
    }
}

pub(super) fn refusal(refused: Refused, action: Action) -> Error {
    match refused {
        Refused::Context(why) => Error::Context {
            field: Fields::of(action).context,
            why,
        },
        Refused::Denied(denied) => Error::Denied(denied),
        Refused::Mismatch(mismatch) => Error::Unverified(mismatch.into()),
        Refused::OutOfTouch => out_of_touch(),
        Refused::Suspended => Error::TenantSuspended,
    }
}

pub(super) fn invalid(field: &'static str, why: String) -> Error {
    Error::Invalid { field, why }
}

const PLAIN: Fields = Fields {
    name: "name",
    context: "encryption_context",
    associated_data: "associated_data",
};

const SOURCE: Fields = Fields {
    name: "source_name",
    context: "source_encryption_context",
    associated_data: "source_associated_data",
};

const DESTINATION: Fields = Fields {
    name: "destination_name",
    context: "destination_encryption_context",
    associated_data: "destination_associated_data",
};

/// Longest plaintext of one message, in bytes.
pub const MAX_PLAINTEXT: usize = 1 << 20;
/// Longest associated data, in bytes.
pub const MAX_ASSOCIATED_DATA: usize = 32 << 10;
