//! JSON without a tree and without a search for what never needs an escape: lines are put together
//! from literal text and values. The bytes are those of `serde_json`, which writes what is rare.

use std::iter;

use jiff::Timestamp;
use jiff::fmt::StdIoWrite;
use jiff::fmt::temporal::DateTimePrinter;
use serde::Serialize;
use uuid::Uuid;

use crate::name::KeyName;
use crate::name::TenantId;

/// What can stand in a line.
pub(super) trait Json {
    /// Adds the value to `line`.
    fn write(&self, line: &mut Vec<u8>);
}

/// Adds `literal`, which is JSON up to a value, and `value`.
pub(super) fn put(line: &mut Vec<u8>, literal: &'static str, value: impl Json) {
    line.extend_from_slice(literal.as_bytes());
    value.write(line);
}

impl<T: Json> Json for Option<T> {
    fn write(&self, line: &mut Vec<u8>) {
        match self {
            Some(value) => value.write(line),
            None => line.extend_from_slice(b"null"),
        }
    }
}

impl<T: Json + ?Sized> Json for &T {
    fn write(&self, line: &mut Vec<u8>) {
        (**self).write(line);
    }
}

impl Json for str {
    fn write(&self, line: &mut Vec<u8>) {
        // Without an early exit the compiler looks at many bytes at once.
        let special = |byte: u8| byte < b' ' || byte == b'"' || byte == b'\\';
        if self.bytes().fold(false, |any, byte| any | special(byte)) {
            return Other(self).write(line);
        }
        plain(line, [self]);
    }
}

impl Json for u64 {
    fn write(&self, line: &mut Vec<u8>) {
        Other(self).write(line);
    }
}

impl Json for Uuid {
    fn write(&self, line: &mut Vec<u8>) {
        let mut text = Self::encode_buffer();
        plain(line, [&*self.hyphenated().encode_lower(&mut text)]);
    }
}

impl Json for Timestamp {
    fn write(&self, line: &mut Vec<u8>) {
        line.push(b'"');
        let printed = PRINTER.print_timestamp(self, StdIoWrite(&mut *line));
        debug_assert!(printed.is_ok(), "memory takes all");
        line.push(b'"');
    }
}

impl Json for TenantId {
    fn write(&self, line: &mut Vec<u8>) {
        plain(line, [self.as_str()]);
    }
}

impl Json for KeyName {
    fn write(&self, line: &mut Vec<u8>) {
        let (tenant, key) = (self.tenant.as_str(), self.key.as_str());
        plain(line, ["tenants/", tenant, "/keys/", key]);
    }
}

/// What is written by `serde_json`.
pub(super) struct Other<T>(pub(super) T);

impl<T: Serialize> Json for Other<T> {
    fn write(&self, line: &mut Vec<u8>) {
        let written = serde_json::to_writer(line, &self.0);
        debug_assert!(written.is_ok(), "strings and numbers are JSON");
    }
}

/// A value that was written before, to be copied into many lines.
#[derive(Clone)]
pub(super) struct Fragment(Box<[u8]>);

impl Fragment {
    pub(super) fn of(value: impl Json) -> Self {
        let mut text = Vec::new();
        value.write(&mut text);
        Self(text.into())
    }
}

impl Json for Fragment {
    fn write(&self, line: &mut Vec<u8>) {
        line.extend_from_slice(&self.0);
    }
}

/// A list of names, in the form that it has in a line.
#[derive(Clone, Default)]
pub struct Names(Vec<u8>);

impl<'a> FromIterator<&'a str> for Names {
    fn from_iter<T: IntoIterator<Item = &'a str>>(names: T) -> Self {
        let mut list = Vec::new();
        for (name, before) in names
            .into_iter()
            .zip(iter::once("[").chain(iter::repeat(",")))
        {
            put(&mut list, before, name);
        }
        Self(list)
    }
}

/// Names with values, in the form that they have in a line.
#[derive(Clone, Default)]
pub struct Values(Vec<u8>);

impl Values {
    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<'a> FromIterator<(&'a str, &'a str)> for Values {
    fn from_iter<T: IntoIterator<Item = (&'a str, &'a str)>>(pairs: T) -> Self {
        let mut object = Vec::new();
        for ((name, value), before) in pairs
            .into_iter()
            .zip(iter::once("{").chain(iter::repeat(",")))
        {
            put(&mut object, before, name);
            put(&mut object, ":", value);
        }
        Self(object)
    }
}

impl Json for Values {
    fn write(&self, line: &mut Vec<u8>) {
        if self.is_empty() {
            line.push(b'{');
        }
        line.extend_from_slice(&self.0);
        line.push(b'}');
    }
}

impl Json for Names {
    fn write(&self, line: &mut Vec<u8>) {
        if self.0.is_empty() {
            line.push(b'[');
        }
        line.extend_from_slice(&self.0);
        line.push(b']');
    }
}

/// Adds a string of `parts` that need no escapes.
fn plain<const N: usize>(line: &mut Vec<u8>, parts: [&str; N]) {
    line.push(b'"');
    for part in parts {
        line.extend_from_slice(part.as_bytes());
    }
    line.push(b'"');
}

/// RFC 3339 in UTC, with as many digits as there are.
static PRINTER: DateTimePrinter = DateTimePrinter::new();
