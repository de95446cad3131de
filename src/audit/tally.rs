//! What became of the items of a batch, counted by key and outcome: a record of bounded size for
//! any batch.

use std::sync::Arc;

use serde::Serialize;

/// Counts items. Beyond so many rows that name a key they are counted by outcome alone, so that no denial
/// disappears among what was served.
#[derive(Clone)]
pub struct Tally {
    items: usize,
    rows: Vec<Row>,
    keyed: usize,
}

/// So many items of one key with one outcome.
#[derive(Clone, Serialize)]
pub(super) struct Row {
    /// The key's full name; none for items that name no key, and for rows beyond the bound.
    key: Option<Arc<str>>,
    outcome: &'static str,
    count: usize,
}

impl Tally {
    /// For a batch of `items`, of which nothing is known yet.
    pub fn new(items: usize) -> Self {
        Self {
            items,
            rows: Vec::new(),
            keyed: 0,
        }
    }

    /// Counts an item of the key with the full name `key` that was served or, where there is a
    /// `reason`, failed for it.
    pub fn count(&mut self, key: Option<&Arc<str>>, reason: Option<&'static str>) {
        let outcome = reason.unwrap_or(SERVED);
        let is =
            |row: &Row, key: Option<&Arc<str>>| row.outcome == outcome && row.key.as_ref() == key;
        // The last first: most batches have one key and one outcome.
        if let Some(row) = self.rows.iter_mut().rev().find(|row| is(row, key)) {
            row.count += 1;
            return;
        }
        let key = key.filter(|_| self.keyed < MOST_KEYED);
        match self.rows.iter_mut().find(|row| is(row, key)) {
            Some(row) => row.count += 1,
            None => {
                self.keyed += usize::from(key.is_some());
                self.rows.push(Row {
                    key: key.cloned(),
                    outcome,
                    count: 1,
                });
            }
        }
    }

    /// How many items there are.
    pub(super) fn items(&self) -> usize {
        self.items
    }

    /// The rows, for the record.
    pub(super) fn rows(&self) -> &[Row] {
        &self.rows
    }
}

/// The outcome of an item that did not fail.
const SERVED: &str = "served";
/// Most rows that name a key.
const MOST_KEYED: usize = 64;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn items_beyond_the_bound_are_counted_by_outcome() {
        let mut tally = Tally::new(2 * MOST_KEYED + 3);
        for number in 0..2 * MOST_KEYED {
            tally.count(Some(&format!("k{number}").into()), None);
        }
        tally.count(Some(&"k0".into()), None);
        tally.count(Some(&"late".into()), Some("POLICY_DENIED"));
        tally.count(None, Some("FIELD_INVALID"));
        let rows = serde_json::to_value(tally.rows()).expect("rows");
        assert_eq!(
            rows[0],
            json!({"key": "k0", "outcome": "served", "count": 2})
        );
        let rest = rows.as_array().expect("rows").split_at(MOST_KEYED).1;
        let beyond = [
            json!({"key": null, "outcome": "served", "count": MOST_KEYED}),
            json!({"key": null, "outcome": "POLICY_DENIED", "count": 1}),
            json!({"key": null, "outcome": "FIELD_INVALID", "count": 1}),
        ];
        assert_eq!(rest, beyond);
    }
}
