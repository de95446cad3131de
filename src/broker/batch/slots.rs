//! Answers on their way back to the places of their items.

use std::sync::Arc;

use crate::broker::batch::Answer;
use crate::broker::batch::Done;
use crate::broker::batch::groups::Group;
use crate::error::Error;
use crate::name::KeyName;

/// A place for the answer of each item.
pub(super) type Slots<T> = Vec<Option<Answer<T>>>;

/// The items that are none yet an error, each with its place, and a slot for each answer.
pub(super) fn part<I, T>(items: Vec<Result<I, Error>>) -> (Vec<(usize, I)>, Slots<T>) {
    let mut good = Vec::with_capacity(items.len());
    let mut answers = Vec::with_capacity(items.len());
    for (at, item) in items.into_iter().enumerate() {
        match item {
            Ok(item) => {
                good.push((at, item));
                answers.push(None);
            }
            Err(error) => answers.push(Some(Answer {
                key: None,
                outcome: Err(error),
            })),
        }
    }
    (good, answers)
}

pub(super) fn refuse<T>(
    answers: &mut [Option<Answer<T>>],
    at: usize,
    named: Option<&KeyName>,
    error: Error,
) {
    if let Some(answer) = answers.get_mut(at) {
        *answer = Some(Answer {
            key: named.map(|name| name.to_string().into()),
            outcome: Err(error),
        });
    }
}

/// Puts what became of a group into its places.
pub(super) fn settle<I, T>(
    group: &Group,
    outcomes: Vec<Result<Done<T>, Error>>,
    items: &[(usize, I)],
    answers: &mut [Option<Answer<T>>],
) {
    for (place, outcome) in group.items.iter().zip(outcomes) {
        if let Some((at, _)) = items.get(*place)
            && let Some(answer) = answers.get_mut(*at)
        {
            *answer = Some(Answer {
                key: Some(Arc::clone(&group.key)),
                outcome,
            });
        }
    }
}

pub(super) fn whole<T>(answers: Slots<T>) -> Result<Vec<Answer<T>>, Error> {
    let count = answers.len();
    let answers: Vec<_> = answers.into_iter().flatten().collect();
    match answers.len() == count {
        true => Ok(answers),
        false => Err(Error::Bug("an item without an answer".into())),
    }
}
