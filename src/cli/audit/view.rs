//! A record for people: one line, without what could make a terminal do something.

use std::fmt::Write as _;
use std::io;
use std::io::Write as _;

use jiff::Timestamp;
use serde::Deserialize;

use crate::cli::Exit;
use crate::cli::Failure;

/// What people ask of a record.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct View {
    pub(super) event_time: Timestamp,
    pub(super) event_name: String,
    #[serde(default)]
    user_identity: Option<Identity>,
    #[serde(default)]
    pub(super) tenant: Option<String>,
    #[serde(default)]
    request_parameters: Option<Parameters>,
    #[serde(default)]
    additional_event_data: Option<Additional>,
    #[serde(default)]
    pub(super) error_code: Option<String>,
    #[serde(default)]
    error_message: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Identity {
    principal_id: String,
}

#[derive(Deserialize)]
struct Parameters {
    #[serde(default)]
    key: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Additional {
    #[serde(default)]
    cache: Option<String>,
    #[serde(default)]
    duration_micros: Option<i64>,
    #[serde(default)]
    items: Vec<Item>,
}

#[derive(Deserialize)]
struct Item {
    #[serde(default)]
    key: Option<String>,
    outcome: String,
    count: u64,
}

impl View {
    /// Reads a record; nothing of what is none.
    pub(super) fn read(line: &[u8]) -> Option<Self> {
        serde_json::from_slice(line).ok()
    }

    pub(super) fn principal(&self) -> Option<&str> {
        let identity = self.user_identity.as_ref()?;
        Some(&identity.principal_id)
    }

    /// The keys that it names.
    pub(super) fn keys(&self) -> impl Iterator<Item = &str> {
        let own = self.request_parameters.as_ref();
        let own = own.and_then(|parameters| parameters.key.as_deref());
        let items = self.items().iter().filter_map(|item| item.key.as_deref());
        own.into_iter().chain(items)
    }

    /// The reasons of what failed, of the whole call or of items of it.
    pub(super) fn outcomes(&self) -> impl Iterator<Item = &str> {
        let own = self.error_code.as_deref().unwrap_or("served");
        let items = self.items().iter().map(|item| item.outcome.as_str());
        [own].into_iter().chain(items)
    }

    fn items(&self) -> &[Item] {
        match &self.additional_event_data {
            Some(additional) => &additional.items,
            None => &[],
        }
    }

    /// One line, without a newline.
    pub(super) fn line(&self) -> String {
        let or_none = |text: Option<&str>| text.unwrap_or("-").to_owned();
        let mut line = format!(
            "{:.3}  {}  {}  {}",
            self.event_time,
            self.event_name,
            or_none(self.principal().or(self.tenant.as_deref())),
            or_none(self.keys().next()),
        );
        if let Some(additional) = &self.additional_event_data {
            if let Some(cache) = &additional.cache {
                line += &format!("  {cache}");
            }
            if let Some(micros) = additional.duration_micros {
                line += &format!("  {micros} us");
            }
        }
        for Item {
            key,
            outcome,
            count,
        } in self.items()
        {
            let key = or_none(key.as_deref());
            line += &format!("  {count} x {key} {outcome}");
        }
        if let Some(code) = &self.error_code {
            line += &format!("  {code}: {}", or_none(self.error_message.as_deref()));
        }
        harmless(&line)
    }
}

/// The text with every character escaped that a terminal takes for a command, or that hides others.
fn harmless(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        let plain = !c.is_control()
            && !matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}');
        match plain {
            true => shown.push(c),
            // Err: memory takes all.
            false => drop(write!(shown, "{}", c.escape_unicode())),
        }
    }
    shown
}

/// A line on standard output. `false` when nobody reads it any more.
pub(super) fn print(line: &[u8]) -> Result<bool, Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(line).and_then(|()| out.write_all(b"\n")) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => {
            let sentence = format!("cannot write to standard output: {error}");
            Err(Failure::new(Exit::Io, sentence))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_commands_no_terminal() {
        let record = br#"{"eventTime":"2026-01-01T00:00:00.1234Z","eventName":"Encrypt",
            "userIdentity":{"principalId":"spiffe://a/b"},"requestParameters":{"key":"tenants/a/keys/b"},
            "additionalEventData":{"cache":"hit","durationMicros":12},
            "errorCode":"X","errorMessage":"\u001b[2Jred\u202e"}"#;
        let line = View::read(record).unwrap().line();
        assert_eq!(
            line,
            "2026-01-01T00:00:00.123Z  Encrypt  spiffe://a/b  tenants/a/keys/b  hit  12 us  \
             X: \\u{1b}[2Jred\\u{202e}"
        );
    }
}
