//! The encryption context: the pairs that a data key and every message under it are bound to.

use std::fmt;
use std::sync::Arc;

use super::Flaw;
use super::reader::Reader;
use super::reader::Short;

/// Names and values that authenticate a message and its data key. Not secret: they stand in the
/// message header and in CloudTrail.
///
/// Always within the limits of [`EncryptionContext::new`], and kept as its serialization, with the
/// pairs in the order of their names' UTF-8 bytes. Cheap to clone.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct EncryptionContext(Arc<[u8]>);

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
    pub fn new<N, V>(pairs: impl IntoIterator<Item = (N, V)>) -> Result<Self, Error>
    where
        N: AsRef<str>,
        V: AsRef<str>,
    {
        let mut sound = Vec::new();
        for (name, value) in pairs {
            check(&sound, name.as_ref(), value.as_ref())?;
            sound.push((name, value));
        }
        Self::serialize(&mut sound)
    }

    /// Reads a serialization, with the pairs in any order (message format, sections 4.1 and 8.3).
    ///
    /// # Errors
    /// [`Flaw::ContextMalformed`] unless count and lengths use up `bytes` exactly, and for names
    /// and values that are not UTF-8; [`Flaw::Context`] as [`EncryptionContext::new`] does.
    pub fn parse(bytes: &[u8]) -> Result<Self, Flaw> {
        if bytes.is_empty() {
            return Ok(Self::default());
        }
        let mut reader = Reader::new(bytes);
        let count = usize::from(reader.u16().map_err(malformed)?);
        if count > MAX_PAIRS {
            return Err(Error::Many(count).into());
        }
        let mut pairs = Vec::with_capacity(count);
        for _ in 0..count {
            let name = read_text(&mut reader)?;
            let value = read_text(&mut reader)?;
            check(&pairs, name, value)?;
            pairs.push((name, value));
        }
        if count == 0 || !reader.rest().is_empty() {
            return Err(Flaw::ContextMalformed);
        }
        Ok(Self::serialize(&mut pairs)?)
    }

    /// The value of `name`, compared byte by byte.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.pairs()
            .find_map(|(known, value)| (known == name).then_some(value))
    }

    /// The pairs, in the order of their names.
    pub fn pairs(&self) -> Pairs<'_> {
        Pairs(Reader::new(self.0.get(COUNT..).unwrap_or_default()))
    }

    /// Whether there are no pairs.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// `u16 count ‖ (u16 length ‖ name ‖ u16 length ‖ value)…` (message format, section 4.1),
    /// nothing when empty.
    pub fn serialized(&self) -> &[u8] {
        &self.0
    }

    /// The context of `pairs`, each of which has passed [`check`].
    fn serialize<N: AsRef<str>, V: AsRef<str>>(pairs: &mut [(N, V)]) -> Result<Self, Error> {
        if pairs.is_empty() {
            return Ok(Self::default());
        }
        pairs.sort_unstable_by(|(one, _), (other, _)| one.as_ref().cmp(other.as_ref()));
        let texts = |pair: &(N, V)| 4 + pair.0.as_ref().len() + pair.1.as_ref().len();
        let whole = COUNT + pairs.iter().map(texts).sum::<usize>();
        if whole > MAX_SERIALIZED {
            return Err(Error::Large(whole));
        }
        let length = |n: usize| {
            u16::try_from(n)
                .expect("within the limits of `check`")
                .to_be_bytes()
        };
        let mut bytes = Vec::with_capacity(whole);
        bytes.extend_from_slice(&length(pairs.len()));
        for (name, value) in pairs {
            for text in [name.as_ref(), value.as_ref()] {
                bytes.extend_from_slice(&length(text.len()));
                bytes.extend_from_slice(text.as_bytes());
            }
        }
        Ok(Self(bytes.into()))
    }
}

/// The pairs of a context: name and value.
pub struct Pairs<'a>(Reader<'a>);

impl<'a> Iterator for Pairs<'a> {
    type Item = (&'a str, &'a str);

    fn next(&mut self) -> Option<Self::Item> {
        let name = read_text(&mut self.0).ok()?;
        let value = read_text(&mut self.0);
        Some((
            name,
            value.expect("`serialize` wrote a value for each name"),
        ))
    }
}

/// Whether the pair may be added to `pairs`.
fn check<N: AsRef<str>, V>(pairs: &[(N, V)], name: &str, value: &str) -> Result<(), Error> {
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
    let alike = |(known, _): &(N, V)| known.as_ref().eq_ignore_ascii_case(name);
    if pairs.iter().any(alike) {
        return Err(Error::Duplicate(name.to_owned()));
    }
    match pairs.len() + 1 {
        count if count > MAX_PAIRS => Err(Error::Many(count)),
        _ => Ok(()),
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
        f.debug_set()
            .entries(self.pairs().map(|(name, _)| name))
            .finish()
    }
}

/// Whether callers and configuration may not set `name`: it begins with a reserved prefix.
pub fn is_reserved(name: &str) -> bool {
    RESERVED_PREFIXES.iter().any(|prefix| {
        name.get(..prefix.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(prefix))
    })
}

/// The length of the count of pairs, in bytes.
const COUNT: usize = 2;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn context(pairs: &[(&str, &str)]) -> Result<EncryptionContext, Error> {
        EncryptionContext::new(pairs.iter().copied())
    }

    #[test]
    fn the_documented_example_serializes_to_its_bytes() {
        let example = context(&[("keybroker:tenant", "acme"), ("env", "prod")]).expect("valid");
        let expected: &[u8] =
            b"\x00\x02\x00\x03env\x00\x04prod\x00\x10keybroker:tenant\x00\x04acme";
        assert_eq!(example.serialized(), expected);
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
            if let Ok(context) = EncryptionContext::new(&pairs) {
                let kept = pairs.iter().map(|(name, value)| (name.as_str(), value.as_str()));
                prop_assert!(context.pairs().eq(kept));
                prop_assert_eq!(EncryptionContext::parse(context.serialized()), Ok(context));
            }
        }
    }
}
