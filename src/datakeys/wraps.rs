//! Which of a key's KMS keys wrap a new data key, and which unwrap an old one: where there are two,
//! one may do without the other while that does not answer, and never against its refusal.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Instant;
use crate::crypto::Secret;
use crate::datakeys::Error;
use crate::datakeys::question::Question;
use crate::datakeys::question::Wrap;
use crate::datakeys::question::Wraps;
use crate::datakeys::upstream::AHEAD;
use crate::datakeys::upstream::Upstream;
use crate::kms;
use crate::kms::Demand;
use crate::kms::KeyRef;
use crate::message::EncryptedDataKey;
use crate::metrics::KmsOperation;
use crate::sync::Mutex;
use crate::sync::lock;

/// A new data key.
pub(super) struct Made {
    pub(super) plaintext: Secret<{ kms::DATA_KEY }>,
    /// At least one.
    pub(super) wrapped: Vec<EncryptedDataKey>,
    pub(super) wrapping: Wrapping,
    /// KMS's names for its calls.
    pub(super) request_ids: Vec<String>,
}

/// Whether all KMS keys have wrapped a data key that should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wrapping {
    Complete,
    /// One has not, because it did not answer.
    Incomplete,
}

/// Of the wraps that a new data key should have.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    /// There is no hurry: what is there already serves on.
    All,
    /// Rather one than no data key.
    One,
}

impl Upstream {
    /// Has KMS make a data key: the generator key makes it, and the additional key, if there is one,
    /// wraps it too. If one of the two does not answer and one is all that is needed, the other does
    /// what it can.
    pub(super) async fn make(
        self: &Arc<Self>,
        question: &Question,
        need: Need,
    ) -> Result<Made, Error> {
        let kms_keys = question.origin.kms_keys();
        let (generator, demand) = (kms_keys.generator(), &question.demand);
        let Some(additional) = kms_keys.additional() else {
            return self.generate(question, generator, demand).await;
        };
        let first = need.of(demand.clone());
        match self.generate(question, generator, &first).await {
            Ok(made) => self.wrap_too(question, additional, need, made).await,
            Err(Error::Kms(error)) if need == Need::One && error.is_undecided() => {
                self.metrics.kms(generator.region()).failed_over();
                let ask = question.ask(additional, KmsOperation::GenerateDataKey);
                self.admit(&ask).await?;
                let demand = prolonged(demand);
                let made = self.generate(question, additional, &demand).await?;
                Ok(self.without(question, generator, &error, made))
            }
            Err(error) => Err(error),
        }
    }

    /// Has KMS unwrap one of `wraps`, and says which.
    pub(super) async fn unwrap_any<'w>(
        self: &Arc<Self>,
        question: &Question,
        wraps: &'w Wraps,
    ) -> Result<(&'w Wrap, kms::Unwrapped), Error> {
        let mut wrap = &wraps.first;
        let mut others = wraps.others.iter();
        let mut demand = question.demand.clone();
        loop {
            let next = others.next();
            let for_this = match next {
                Some(_) => demand.with_alternative(),
                None => demand.clone(),
            };
            let error = match self.unwrap(question, wrap, &for_this).await {
                Ok(unwrapped) => return Ok((wrap, unwrapped)),
                Err(error) => error,
            };
            let undecided = matches!(&error, Error::Kms(error) if error.is_undecided());
            let Some(next) = next.filter(|_| undecided) else {
                return Err(error);
            };
            self.metrics.kms(wrap.kms_key.region()).failed_over();
            let next_question = next.question(question);
            let ask = next_question.ask(&next.kms_key, KmsOperation::Decrypt);
            self.admit(&ask).await?;
            demand = prolonged(&demand);
            wrap = next;
        }
    }

    async fn generate(
        self: &Arc<Self>,
        question: &Question,
        kms_key: &KeyRef,
        demand: &Demand,
    ) -> Result<Made, Error> {
        let ask = question.ask(kms_key, KmsOperation::GenerateDataKey);
        let call = self
            .kms(question)
            .generate_data_key(kms_key, &question.context, demand);
        let made = self.answered(&ask, call.await)?;
        Ok(Made {
            plaintext: made.plaintext,
            wrapped: vec![made.wrapped],
            wrapping: Wrapping::Complete,
            request_ids: made.request_id.into_iter().collect(),
        })
    }

    async fn wrap_too(
        self: &Arc<Self>,
        question: &Question,
        additional: &KeyRef,
        need: Need,
        mut made: Made,
    ) -> Result<Made, Error> {
        let ask = question.ask(additional, KmsOperation::Encrypt);
        let demand = need.of(prolonged(&question.demand));
        let call =
            self.kms(question)
                .encrypt(additional, &made.plaintext, &question.context, &demand);
        match self.answered(&ask, call.await) {
            Ok(second) => {
                made.wrapped.push(second.wrapped);
                made.request_ids.extend(second.request_id);
                Ok(made)
            }
            Err(Error::Kms(error)) if need == Need::One && error.is_undecided() => {
                Ok(self.without(question, additional, &error, made))
            }
            Err(error) => Err(error),
        }
    }

    async fn unwrap(
        self: &Arc<Self>,
        question: &Question,
        wrap: &Wrap,
        demand: &Demand,
    ) -> Result<kms::Unwrapped, Error> {
        let question = wrap.question(question);
        let ask = question.ask(&wrap.kms_key, KmsOperation::Decrypt);
        let call =
            self.kms(&question)
                .decrypt(&wrap.kms_key, &wrap.wrapped, &question.context, demand);
        self.answered(&ask, call.await)
    }

    /// Notes that `missing` has not wrapped what was `made`.
    fn without(
        &self,
        question: &Question,
        missing: &KeyRef,
        error: &kms::Error,
        made: Made,
    ) -> Made {
        self.metrics.kms(missing.region()).wrap_missing();
        if self.reported.is_due(missing, self.clock.now()) {
            tracing::warn!(
                key = %question.origin.key().name(),
                kms_key = %missing,
                %error,
                "a new data key lacks the wrap of this KMS key, which does not answer: what it seals \
                 opens by the key's other KMS key alone; a successor with both is fetched when this \
                 one answers again; the counter keybroker_kms_missing_wraps tells of more"
            );
        }
        Made {
            wrapping: Wrapping::Incomplete,
            ..made
        }
    }
}

impl Wrap {
    /// `question`, for what this one gives.
    fn question(&self, question: &Question) -> Question {
        Question {
            origin: Arc::clone(&self.origin),
            ..question.clone()
        }
    }
}

impl Need {
    /// `demand`, for one of two calls of which the other may do.
    fn of(self, demand: Demand) -> Demand {
        match self {
            Self::All => demand,
            Self::One => demand.with_alternative(),
        }
    }
}

/// Of use as long as a call ahead of time: callers who leave between two calls leave no half.
fn prolonged(demand: &Demand) -> Demand {
    demand.prolonged(tokio::time::Instant::now() + AHEAD)
}

/// Which KMS keys were reported a moment ago.
#[derive(Default)]
pub(super) struct Reported(Mutex<HashMap<KeyRef, Instant>>);

impl Reported {
    /// Whether `key` is to be reported at `now`, which then counts as done: once a minute.
    fn is_due(&self, key: &KeyRef, now: Instant) -> bool {
        let mut reported = lock(&self.0);
        reported.retain(|_, at| now.since(*at) < MINUTE);
        let due = !reported.contains_key(key);
        if due {
            reported.insert(key.clone(), now);
        }
        due
    }
}

const MINUTE: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock as _;
    use crate::clock::System;

    #[test]
    fn a_kms_key_is_reported_once_a_minute() {
        let reported = Reported::default();
        let [one, other] = ["local:one", "local:other"].map(|name| name.parse().expect("a key"));
        let start = System.now();
        let at = |seconds| start + Duration::from_secs(seconds);
        for (key, second, due) in [
            (&one, 0, true),
            (&one, 59, false),
            (&other, 59, true),
            (&one, 60, true),
            (&one, 119, false),
            (&other, 119, true),
        ] {
            assert_eq!(reported.is_due(key, at(second)), due, "{key} {second}");
        }
    }
}
