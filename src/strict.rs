//! Strict TOML: reads a file into a type that knows all its keys, and says where and why it
//! could not, in a form that an operator can act upon.

use serde::de::DeserializeOwned;

/// A text is not the TOML that its type asks for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {sentence}{}", question(suggestion.as_deref()))]
pub struct Error {
    /// The line, counted from 1.
    pub line: usize,
    /// The column in characters, counted from 1.
    pub column: usize,
    /// What is wrong there. Holds names of keys, never a text that the file gives as a value.
    pub sentence: String,
    /// For an unknown key or choice, the known one that looks most like it.
    pub suggestion: Option<String>,
}

/// A setting is outside its bounds: settings are refused, not clamped.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name} = {value} is not {least} to {most}")]
pub struct OutOfBounds {
    /// Which, by its name in the file.
    pub name: &'static str,
    /// As configured.
    pub value: String,
    /// The least that makes sense.
    pub least: &'static str,
    /// The ceiling.
    pub most: &'static str,
}

/// Reads `text` as a `T`, which should deny unknown fields.
///
/// # Errors
/// [`Error`] at the first thing that is wrong.
pub fn parse<T: DeserializeOwned>(text: &str) -> Result<T, Error> {
    toml::from_str(text).map_err(|error| {
        let (line, column) = position(text, error.span().map_or(0, |span| span.start));
        Error {
            line,
            column,
            suggestion: nearest(error.message()),
            sentence: without_text(error.message()),
        }
    })
}

/// The line and the column, in characters, of the byte `offset`, both counted from 1; the end of
/// `text` for an offset beyond it.
pub fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
    (line, column)
}

/// serde quotes a text of the wrong type, which may be a password in the wrong place.
fn without_text(message: &str) -> String {
    for kind in ["invalid type: string ", "invalid value: string "] {
        if let Some(rest) = message.strip_prefix(kind)
            && let Some(end) = rest.rfind(", expected ")
        {
            return format!("{}{}", kind.trim_end(), rest.get(end..).unwrap_or_default());
        }
    }
    message.to_owned()
}

/// What serde expected instead of an unknown name, if something looks much like it:
/// "unknown field `x`, expected one of `a`, `b`".
fn nearest(message: &str) -> Option<String> {
    let rest = ["unknown field `", "unknown variant `"]
        .iter()
        .find_map(|kind| message.strip_prefix(kind))?;
    let (unknown, expected) = rest.split_once('`')?;
    expected
        .split('`')
        .skip(1)
        .step_by(2)
        .map(|known| (strsim::damerau_levenshtein(unknown, known), known))
        .filter(|(distance, known)| *distance <= known.chars().count().div_ceil(3))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, known)| known.to_owned())
}

fn question(suggestion: Option<&str>) -> String {
    suggestion.map_or_else(String::new, |name| format!("; did you mean `{name}`?"))
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct File {
        #[serde(rename = "max_age")]
        _max_age: Option<u64>,
        #[serde(rename = "owner")]
        _owner: Option<Owner>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Owner {
        Operator,
        Tenant,
    }

    fn error(text: &str) -> Error {
        parse::<File>(text).unwrap_err()
    }

    #[test]
    fn an_unknown_key_comes_with_its_place_and_the_nearest_known_one() {
        let wrong = error("# ä\n  max_agee = 5");
        assert_eq!((wrong.line, wrong.column), (2, 3));
        assert_eq!(wrong.suggestion.as_deref(), Some("max_age"));
        assert!(wrong.to_string().ends_with("; did you mean `max_age`?"));
        assert_eq!(error("zebra = 1").suggestion, None);
    }

    #[test]
    fn an_unknown_choice_comes_with_the_nearest_known_one() {
        let error = error("owner = \"tennant\"");
        assert_eq!(error.suggestion.as_deref(), Some("tenant"));
        assert_eq!((error.line, error.column), (1, 9));
    }

    #[test]
    fn values_are_not_repeated() {
        let error = error("max_age = \"hunter2, expected \"");
        assert_eq!(error.sentence, "invalid type: string, expected u64");
    }

    #[test]
    fn columns_count_characters() {
        assert_eq!(position("ä\näx", 3), (2, 1));
        assert_eq!(position("ä\näx", 5), (2, 2));
        assert_eq!(position("ab", 9), (1, 3));
        assert_eq!(position("", 0), (1, 1));
    }

    #[test]
    fn malformed_toml_has_a_place_too() {
        let error = error("max_age = 1\nowner = = 2");
        assert_eq!((error.line, error.column), (2, 9));
    }
}
