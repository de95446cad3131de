//! Grant tokens: what CreateGrant hands out so that the grant works at once on every replica.
//!
//! A token says what the grant is, under a MAC that all replicas of a deployment can check, and
//! until which change that is more than they know by themselves. It is no secret: it serves nobody
//! but the grantee. It is kept out of logs all the same.
//!
//! `version (1) ‖ key id (8) ‖ grant id (32) ‖ change (8) ‖ expiry in ms since 1970 (8) ‖
//! operations (2) ‖ counted (1) ‖ ancestors (1 + 40 each: grant id, change) ‖ tenant (1 + n) ‖ key
//! (1 + n) ‖ grantee (2 + n) ‖ constraint (1 for none, or kind and 2 + n) ‖ HMAC-SHA-256 (32)`, all
//! numbers big-endian; as text base64url without padding.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;

use crate::crypto::Secret;
use crate::crypto::mac;
use crate::grants::Ancestor;
use crate::grants::Constraint;
use crate::grants::Grant;
use crate::grants::Id;
use crate::grants::Kind;
use crate::grants::Operations;
use crate::grants::Terms;
use crate::message::EncryptionContext;
use crate::message::reader::Reader;
use crate::name::KeyName;

/// What a token says of a grant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    /// Which grant.
    pub id: Id,
    /// The change that made it so: replicas that have applied it need no token.
    pub change: u64,
    /// From when on it is over.
    pub expires: Timestamp,
    /// For which key.
    pub key: KeyName,
    /// What it allows, and to whom.
    pub terms: Terms,
    /// Whether its uses are counted.
    pub counted: bool,
    /// The grants that it rests on, its parent last.
    pub ancestors: Arc<[Ancestor]>,
}

impl Claims {
    /// Those of `grant` as the change `change` has left it.
    pub fn new(grant: &Grant, change: u64) -> Self {
        Self {
            id: grant.id,
            change,
            expires: grant.expires,
            key: grant.wanted.key.clone(),
            terms: grant.wanted.terms.clone(),
            counted: grant.wanted.max_uses.is_some(),
            ancestors: Arc::clone(&grant.ancestors),
        }
    }

    /// Appends the claims, from the grant's id to the constraint.
    pub fn write(&self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(self.id.as_bytes());
        bytes.extend_from_slice(&self.change.to_be_bytes());
        bytes.extend_from_slice(&self.expires.as_millisecond().to_be_bytes());
        bytes.extend_from_slice(&self.terms.operations.bits().to_be_bytes());
        bytes.push(self.counted.into());
        bytes.push(small(self.ancestors.len()));
        for Ancestor { id, change } in &*self.ancestors {
            bytes.extend_from_slice(id.as_bytes());
            bytes.extend_from_slice(&change.to_be_bytes());
        }
        for label in [self.key.tenant.as_str(), self.key.key.as_str()] {
            bytes.push(small(label.len()));
            bytes.extend_from_slice(label.as_bytes());
        }
        write_long(bytes, self.terms.grantee.as_str().as_bytes());
        match &self.terms.constraint {
            None => bytes.push(UNCONSTRAINED),
            Some(constraint) => {
                bytes.push(match constraint.kind() {
                    Kind::Equals => EQUALS,
                    Kind::Subset => SUBSET,
                });
                write_long(bytes, constraint.pairs().serialized());
            }
        }
    }

    /// What [`Claims::write`] wrote, and nothing else. What is read so is anybody's word.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(bytes);
        let id = Id::from(*reader.array().ok()?);
        let change = reader.u64().ok()?;
        let expires = i64::from_be_bytes(*reader.array().ok()?);
        let operations = Operations::from_bits(reader.u16().ok()?)?;
        let counted = match reader.array::<1>().ok()? {
            [0] => false,
            [1] => true,
            _ => return None,
        };
        let [count] = *reader.array().ok()?;
        if usize::from(count) > Grant::MAX_ANCESTORS {
            return None;
        }
        let mut ancestors = Vec::new();
        for _ in 0..count {
            let id = Id::from(*reader.array().ok()?);
            let change = reader.u64().ok()?;
            ancestors.push(Ancestor { id, change });
        }
        let key = KeyName {
            tenant: read_label(&mut reader)?.parse().ok()?,
            key: read_label(&mut reader)?.parse().ok()?,
        };
        let grantee = str::from_utf8(read_long(&mut reader)?).ok()?;
        let kind = match reader.array::<1>().ok()? {
            [UNCONSTRAINED] => None,
            [EQUALS] => Some(Kind::Equals),
            [SUBSET] => Some(Kind::Subset),
            _ => return None,
        };
        let constraint = match kind {
            None => None,
            Some(kind) => {
                let serialized = read_long(&mut reader)?;
                let pairs = EncryptionContext::parse(serialized).ok()?;
                if pairs.serialized() != serialized {
                    return None;
                }
                Some(Constraint::new(kind, pairs).ok()?)
            }
        };
        if !reader.rest().is_empty() {
            return None;
        }
        Some(Self {
            id,
            change,
            expires: Timestamp::from_millisecond(expires).ok()?,
            key,
            terms: Terms {
                grantee: grantee.parse().ok()?,
                operations,
                constraint,
            },
            counted,
            ancestors: ancestors.into(),
        })
    }
}

/// A key under which tokens are made. All replicas of a deployment have the same.
pub struct TokenKey {
    id: [u8; KEY_ID],
    secret: Secret<32>,
}

impl TokenKey {
    /// The key of these random bytes. Its id follows from them and gives none of them away.
    pub fn new(secret: Secret<32>) -> Self {
        let [a, b, c, d, e, f, g, h, ..] = mac::hmac_sha256(&secret, &[b"keybroker token key id"]);
        Self {
            id: [a, b, c, d, e, f, g, h],
            secret,
        }
    }
}

/// The keys under which tokens are made and believed.
pub struct TokenKeys {
    current: TokenKey,
    /// Believed as well, while replicas change from it or to it.
    other: Option<TokenKey>,
}

impl TokenKeys {
    /// Makes tokens with `current`, and believes those of `other` beside them.
    pub fn new(current: TokenKey, other: Option<TokenKey>) -> Self {
        Self { current, other }
    }

    /// The token that says `claims`.
    pub fn seal(&self, claims: &Claims) -> Token {
        let TokenKey { id, secret } = &self.current;
        let mut bytes = vec![VERSION];
        bytes.extend_from_slice(id);
        claims.write(&mut bytes);
        let mac = mac::hmac_sha256(secret, &[LABEL, &bytes]);
        bytes.extend_from_slice(&mac);
        Token(URL_SAFE_NO_PAD.encode(bytes))
    }

    /// What the token `text` says, if it is one of ours.
    pub fn open(&self, text: &str) -> Option<Claims> {
        if text.len() > MAX_TOKEN {
            return None;
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (said, mac) = bytes.split_last_chunk::<{ mac::MAC }>()?;
        let (version, rest) = said.split_first()?;
        let (id, claims) = rest.split_first_chunk::<KEY_ID>()?;
        if *version != VERSION {
            return None;
        }
        let mut keys = [Some(&self.current), self.other.as_ref()]
            .into_iter()
            .flatten();
        let key = keys.find(|key| key.id == *id)?;
        // Nothing of it is read before it is known to be ours.
        match mac::is_hmac_sha256(&key.secret, &[LABEL, said], mac) {
            true => Claims::read(claims),
            false => None,
        }
    }
}

/// A token. Without `Debug` on purpose: tokens stay out of logs.
pub struct Token(String);

impl Token {
    /// As text, at most [`MAX_TOKEN`] characters.
    pub fn into_text(self) -> String {
        self.0
    }
}

/// Most tokens in a call, as in AWS KMS.
pub const MAX_TOKENS: usize = 10;
/// Longest token, in characters.
pub const MAX_TOKEN: usize = 8707;

fn small(length: usize) -> u8 {
    u8::try_from(length).expect("a label or a few ancestors, within a byte by their types")
}

fn write_long(bytes: &mut Vec<u8>, part: &[u8]) {
    let length = u16::try_from(part.len()).expect("a principal or a context, within 4 KiB");
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(part);
}

fn read_label<'a>(reader: &mut Reader<'a>) -> Option<&'a str> {
    let [length] = *reader.array().ok()?;
    str::from_utf8(reader.take(length.into()).ok()?).ok()
}

fn read_long<'a>(reader: &mut Reader<'a>) -> Option<&'a [u8]> {
    let length = reader.u16().ok()?;
    reader.take(length.into()).ok()
}

const VERSION: u8 = 1;
const KEY_ID: usize = 8;
/// What else is ever under one of these keys begins otherwise.
const LABEL: &[u8] = b"keybroker grant token\0";
const UNCONSTRAINED: u8 = 0;
const EQUALS: u8 = 1;
const SUBSET: u8 = 2;

#[cfg(test)]
mod tests;
