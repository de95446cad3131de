//! Texts with captures in them: `{service}`, `team-{team}`, `{namespace}/{service}`.

use super::Fault;
use crate::identity::spiffe;

/// A text of literals and captures, which are segments of the matched id by their position.
#[derive(Debug)]
pub(super) struct Template(Vec<Part>);

#[derive(Debug)]
enum Part {
    Capture(usize),
    Literal(String),
}

impl Template {
    /// Reads `text`, where `{name}` stands for the segment that `captures` calls so.
    ///
    /// Different captures make different texts: between two captures something must stand that
    /// no segment can hold, else `a` and `b-c` would meet `a-b` and `c`.
    pub(super) fn new(text: &str, captures: &[Option<&str>]) -> Result<Self, Fault> {
        let malformed = || Fault::Template(text.to_owned());
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((literal, tail)) = rest.split_once('{') {
            let (name, tail) = tail.split_once('}').ok_or_else(malformed)?;
            if !is_name(name) {
                return Err(malformed());
            }
            let position = captures
                .iter()
                .position(|capture| *capture == Some(name))
                .ok_or_else(|| Fault::Capture {
                    capture: name.to_owned(),
                    known: captures
                        .iter()
                        .flatten()
                        .map(|&name| name.to_owned())
                        .collect(),
                })?;
            let apart = literal
                .chars()
                .any(|c| !spiffe::is_segment(c.encode_utf8(&mut [0; 4])) && c != '.');
            if !parts.is_empty() && !apart && parts.iter().any(Part::is_capture) {
                return Err(Fault::Ambiguous {
                    template: text.to_owned(),
                });
            }
            if !literal.is_empty() {
                parts.push(Part::Literal(literal.to_owned()));
            }
            parts.push(Part::Capture(position));
            rest = tail;
        }
        if !rest.is_empty() {
            parts.push(Part::Literal(rest.to_owned()));
        }
        let braces = |part: &Part| matches!(part, Part::Literal(text) if text.contains('}'));
        match parts.is_empty() || parts.iter().any(braces) {
            true => Err(malformed()),
            false => Ok(Self(parts)),
        }
    }

    /// The text for an id with these `segments`.
    pub(super) fn fill(&self, segments: &[&str]) -> String {
        let part = |part: &Part| match part {
            Part::Capture(position) => segments
                .get(*position)
                .copied()
                .unwrap_or_default()
                .to_owned(),
            Part::Literal(text) => text.clone(),
        };
        self.0.iter().map(part).collect()
    }

    /// Whether it is one text for all ids.
    pub(super) fn is_constant(&self) -> bool {
        !self.0.iter().any(Part::is_capture)
    }
}

impl Part {
    fn is_capture(&self) -> bool {
        matches!(self, Self::Capture(_))
    }
}

/// Whether `text` can name a capture: `a-z`, `0-9` and `_`, beginning with a letter.
pub(super) fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_lowercase())
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}
