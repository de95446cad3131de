//! The encryption context: the pairs that a data key and every message under it are bound to.

use std::collections::BTreeMap;
use std::fmt;

use super::Flaw;
use super::reader::Reader;
use super::reader::Short;

/// Names and values that authenticate a message and its data key. Not secret: they stand in the
/// message header and in CloudTrail.
///
/// Always within the limits of [`EncryptionContext::new`]; pairs are kept in the order of their
/// names' UTF-8 bytes, which is the order they are serialized in.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct EncryptionContext(BTreeMap<String, String>);

/// The pair that names the tenant in every context of ours.
pub const TENANT: &str = "keybroker:tenant";
/// The pair that names the key in every context of ours.
pub const KEY: &str = "keybroker:key";
/// Beginnings of names that callers and configuration may not set, without regard to case.
pub const RESERVED_PREFIXES: [&str; 2] = ["keybroker:", "aws-crypto-"];

/// Most pairs in a context.
pub const MAX_PAIRS: usize = 16;
/// Longest name, in bytes.
pub const MAX_NAME: usize = 128;
/// Longest value, in bytes.
pub const MAX_VALUE: usize = 512;
/// Longest serialization, in bytes.
pub const MAX_SERIALIZED: usize = 4096;

/// Why pairs are not an encryption context. Names the offending name, never a value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A name or a value is empty.
    #[error("empty name or value")]
    Empty,
    /// A name or value is longer than [`MAX_NAME`] or [`MAX_VALUE`].
    #[error("name or value too long")]
    Long {
        /// What is too long.
        what: &'static str,
        /// Its length in bytes.
        length: usize,
        /// The limit it passes, in bytes.
        limit: usize,
    },
    /// More than [`MAX_PAIRS`] pairs.
    #[error("too many pairs")]
    Many(usize),
    /// Two names are equal, or differ only in ASCII case.
    #[error("two names are alike")]
    Duplicate(String),
    /// The whole is longer than [`MAX_SERIALIZED`].
    #[error("serialization too long")]
    Large(usize),
}

impl EncryptionContext {
    /// The context of `pairs`.
    ///
    /// # Errors
    /// [`Error`] outside the limits of this module, and for two names that differ only in ASCII
    /// case, because KMS grant constraints compare names without it.
    pub fn new(pairs: impl IntoIterator<Item = (String, String)>) -> Result<Self, Error> {
        let mut context = Self::default();
        for (name, value) in pairs {
            context.check(&name, &value)?;
            context.insert(name, value)?;
        }
        context.within_limit()
    }

    /// Reads what [`EncryptionContext::serialize`] writes, with the pairs in any order (message
    /// format, sections 4.1 and 8.3).
    ///
    /// # Errors
    /// [`Flaw::ContextMalformed`] unless count and lengths use up `bytes` exactly, and for names
    /// and values that are not UTF-8; [`Flaw::Context`] as [`EncryptionContext::new`] does.
    pub fn parse(bytes: &[u8]) -> Result<Self, Flaw> {
        let mut context = Self::default();
        if bytes.is_empty() {
            return Ok(context);
        }
        let mut reader = Reader::new(bytes);
        let count = usize::from(reader.u16().map_err(malformed)?);
        if count > MAX_PAIRS {
            return Err(Error::Many(count).into());
        }
        for _ in 0..count {
            let name = read_text(&mut reader)?;
            let value = read_text(&mut reader)?;
            context.check(name, value)?;
            context.insert(name.to_owned(), value.to_owned())?;
        }
        if count == 0 || !reader.rest().is_empty() {
            return Err(Flaw::ContextMalformed);
        }
        Ok(context.within_limit()?)
    }

    /// The value of `name`, compared byte by byte.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// The pairs, in the order of their names.
    pub fn pairs(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        self.0
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Whether there are no pairs.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The length of the serialization, in bytes: 0 when empty.
    pub fn serialized_len(&self) -> usize {
        if self.0.is_empty() {
            return 0;
        }
        2 + self
            .0
            .iter()
            .map(|(name, value)| 4 + name.len() + value.len())
            .sum::<usize>()
    }

    /// Appends `u16 count ‖ (u16 length ‖ name ‖ u16 length ‖ value)…` (message format, section
    /// 4.1), nothing when empty.
    pub fn serialize(&self, out: &mut Vec<u8>) {
        if self.0.is_empty() {
            return;
        }
        let length = |n: usize| {
            u16::try_from(n)
                .expect("within the limits of `new`")
                .to_be_bytes()
        };
        out.extend_from_slice(&length(self.0.len()));
        for (name, value) in &self.0 {
            for text in [name, value] {
                out.extend_from_slice(&length(text.len()));
                out.extend_from_slice(text.as_bytes());
            }
        }
    }

    /// Whether the pair may be inserted, before anything is copied.
    fn check(&self, name: &str, value: &str) -> Result<(), Error> {
        if name.is_empty() || value.is_empty() {
            return Err(Error::Empty);
        }
        for (what, text, limit) in [("name", name, MAX_NAME), ("value", value, MAX_VALUE)] {
            if text.len() > limit {
                return Err(Error::Long {
                    what,
                    length: text.len(),
                    limit,
                });
            }
        }
        if self.0.keys().any(|known| known.eq_ignore_ascii_case(name)) {
            return Err(Error::Duplicate(name.to_owned()));
        }
        Ok(())
    }

    fn insert(&mut self, name: String, value: String) -> Result<(), Error> {
        self.0.insert(name, value);
        match self.0.len() {
            count if count > MAX_PAIRS => Err(Error::Many(count)),
            _ => Ok(()),
        }
    }

    fn within_limit(self) -> Result<Self, Error> {
        match self.serialized_len() {
            length if length > MAX_SERIALIZED => Err(Error::Large(length)),
            _ => Ok(self),
        }
    }
}

fn read_text<'a>(reader: &mut Reader<'a>) -> Result<&'a str, Flaw> {
    let length = usize::from(reader.u16().map_err(malformed)?);
    let text = reader.take(length).map_err(malformed)?;
    str::from_utf8(text).map_err(|_| Flaw::ContextMalformed)
}

/// The context ends within its own length, which is no truncation of the message.
fn malformed(Short: Short) -> Flaw {
    Flaw::ContextMalformed
}

/// Names alone: a value can be personal data, which belongs in no log.
impl fmt::Debug for EncryptionContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// Whether callers and configuration may not set `name`: it begins with a reserved prefix.
pub fn is_reserved(name: &str) -> bool {
    RESERVED_PREFIXES.iter().any(|prefix| {
        name.get(..prefix.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(prefix))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn context(pairs: &[(&str, &str)]) -> Result<EncryptionContext, Error> {
        EncryptionContext::new(pairs.iter().map(|&(n, v)| (n.to_owned(), v.to_owned())))
    }

    #[test]
    fn the_documented_example_serializes_to_its_bytes() {
        let mut bytes = Vec::new();
        let example = context(&[("keybroker:tenant", "acme"), ("env", "prod")]).expect("valid");
        example.serialize(&mut bytes);
        let expected: &[u8] =
            b"\x00\x02\x00\x03env\x00\x04prod\x00\x10keybroker:tenant\x00\x04acme";
        assert_eq!(bytes, expected);
        assert_eq!(example.serialized_len(), 37);
    }

    #[test]
    fn limits_hold_at_the_edge_and_one_beyond() {
        let name = "n".repeat(MAX_NAME);
        let value = "v".repeat(MAX_VALUE);
        assert!(context(&[(&name, &value)]).is_ok());
        let long = format!("{name}n");
        assert!(matches!(
            context(&[(&long, "v")]),
            Err(Error::Long { what: "name", .. })
        ));
        let long = format!("{value}v");
        assert!(matches!(
            context(&[("n", &long)]),
            Err(Error::Long { what: "value", .. })
        ));

        let names: Vec<String> = (0..=MAX_PAIRS).map(|n| format!("n{n}")).collect();
        let pairs: Vec<(&str, &str)> = names.iter().map(|n| (n.as_str(), "v")).collect();
        assert!(context(pairs.get(1..).expect("16 pairs")).is_ok());
        assert_eq!(context(&pairs), Err(Error::Many(17)));
    }

    #[test]
    fn the_whole_is_limited_too() {
        let value = "v".repeat(MAX_VALUE);
        let names: Vec<String> = (0..8).map(|n| format!("n{n}")).collect();
        let pairs: Vec<(&str, &str)> = names.iter().map(|n| (n.as_str(), value.as_str())).collect();
        assert!(context(pairs.get(..7).expect("seven")).is_ok());
        assert_eq!(context(&pairs), Err(Error::Large(2 + 8 * (4 + 2 + 512))));
    }

    #[test]
    fn names_that_differ_only_in_case_are_alike() {
        assert_eq!(
            context(&[("Env", "a"), ("env", "b")]),
            Err(Error::Duplicate("env".into()))
        );
        assert_eq!(context(&[("", "a")]), Err(Error::Empty));
        assert_eq!(context(&[("a", "")]), Err(Error::Empty));
    }

    #[test]
    fn reserved_names_are_known_without_case() {
        assert!(is_reserved("KeyBroker:x") && is_reserved("aws-crypto-public-key"));
        assert!(!is_reserved("keybroker") && !is_reserved("käybroker:") && !is_reserved("a"));
    }

    #[test]
    fn pairs_are_read_in_any_order() {
        let sorted = context(&[("a", "1"), ("b", "2")]).expect("valid");
        let bytes = b"\0\x02\0\x01b\0\x012\0\x01a\0\x011";
        assert_eq!(EncryptionContext::parse(bytes), Ok(sorted));
        assert_eq!(
            EncryptionContext::parse(b""),
            Ok(EncryptionContext::default())
        );
    }

    #[test]
    fn a_context_that_contradicts_itself_is_malformed() {
        let malformed: [&[u8]; 8] = [
            b"\0",                      // no count
            b"\0\0",                    // a count of none
            b"\0\0\0\x01a\0\x011",      // fewer counted than there are
            b"\0\x02\0\x01a\0\x011",    // more counted than there are
            b"\0\x01\0\x01a\0\x011!",   // bytes left over
            b"\0\x01\0\x01a\0\x02!",    // a value that ends early
            b"\0\x01\0\x01\xff\0\x011", // a name that is not UTF-8
            b"\0\x01\0\x01a\0\x01\xff", // a value that is not UTF-8
        ];
        for bytes in malformed {
            assert_eq!(
                EncryptionContext::parse(bytes),
                Err(Flaw::ContextMalformed),
                "{bytes:02x?}"
            );
        }
    }

    #[test]
    fn a_context_is_read_within_the_limits_of_a_new_one() {
        let refused: [(&[u8], Error); 4] = [
            (b"\0\x11", Error::Many(17)),
            (b"\0\x01\0\0\0\x011", Error::Empty),
            (b"\0\x01\0\x01a\0\0", Error::Empty),
            (
                b"\0\x02\0\x01a\0\x011\0\x01A\0\x012",
                Error::Duplicate("A".into()),
            ),
        ];
        for (bytes, error) in refused {
            assert_eq!(EncryptionContext::parse(bytes), Err(Flaw::Context(error)));
        }
    }

    proptest! {
        #[test]
        fn what_is_serialized_is_read_back(
            pairs in prop::collection::btree_map("[a-z\u{e4}]{1,40}", ".{1,100}", 0..=16)
        ) {
            if let Ok(context) = EncryptionContext::new(pairs) {
                let mut bytes = Vec::new();
                context.serialize(&mut bytes);
                prop_assert_eq!(bytes.len(), context.serialized_len());
                prop_assert_eq!(EncryptionContext::parse(&bytes), Ok(context));
            }
        }
    }
}
