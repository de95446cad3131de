//! What a refusal by KMS says about other entries than the one that met it.

use std::sync::Arc;

use crate::datakeys::Error;
use crate::datakeys::flight;
use crate::datakeys::refusal::Subject;
use crate::datakeys::upstream::Question;
use crate::datakeys::upstream::Upstream;
use crate::datakeys::upstream::ahead;
use crate::datakeys::upstream::chance;
use crate::kms;
use crate::message::EncryptionContext;
use crate::metrics::Retirement;
use crate::policy::Direction;
use crate::sync::spawn;
use crate::sync::within;

impl Upstream {
    /// Fails with what KMS said a moment ago, when that answers `question` too.
    pub(super) fn refused(&self, question: &Question) -> Result<(), Error> {
        let subjects = [
            Subject::Entry(question.id),
            question.version(question.direction),
        ];
        let refusals = &question.share.refusals;
        match refusals.of(&subjects, self.clock.now()) {
            Some(error) => Err(error.into()),
            None => Ok(()),
        }
    }

    /// Draws the conclusions from `refusal`, each at its own scope.
    pub(super) fn learn(self: &Arc<Self>, question: &Question, refusal: &kms::Error) {
        match refusal {
            // Of this wrapped key and context alone: somebody sent damaged or foreign bytes.
            kms::Error::IncorrectKey | kms::Error::InvalidCiphertext => {
                self.remember(question, Subject::Entry(question.id), refusal);
            }
            // Of this context, or of the key: a probe tells.
            kms::Error::AccessDenied(_) => {
                question.share.remove(&question.id, Retirement::Denied);
                self.remember(question, Subject::Entry(question.id), refusal);
                self.probe(question, refusal);
            }
            // Of the KMS key, whoever asks.
            kms::Error::Disabled | kms::Error::NotFound(_) | kms::Error::PendingDeletion(_) => {
                let kms_key = question.origin.kms_key();
                for share in self.shares.all() {
                    share.deny(|origin| origin.kms_key() == kms_key);
                }
                // Who hears of it from here finds no data key any more.
                for direction in [Direction::Open, Direction::Seal] {
                    self.remember(question, question.version(direction), refusal);
                }
            }
            kms::Error::Credentials(_)
            | kms::Error::Crowded { .. }
            | kms::Error::Invalid(_)
            | kms::Error::Throttled
            | kms::Error::Unavailable(_) => {}
        }
    }

    fn remember(&self, question: &Question, subject: Subject, refusal: &kms::Error) {
        let now = self.clock.now();
        let refusals = &question.share.refusals;
        refusals.remember(subject, refusal, now, chance());
    }

    /// Asks KMS whether it refuses the key or one context of it, by a call with the pairs that
    /// every context of the key has.
    fn probe(self: &Arc<Self>, question: &Question, refusal: &kms::Error) {
        let pairs = question.origin.key().context();
        let pairs = pairs.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let Ok(context) = EncryptionContext::new(pairs) else {
            return;
        };
        if context == question.context {
            return self.deny_version(question, refusal);
        }
        let key = &question.origin.key().name().key;
        if !question.share.probes.begin(key, self.clock.now()) {
            return;
        }
        let upstream = Arc::clone(self);
        let question = Question {
            context,
            demand: ahead(question.origin.key()),
            ..question.clone()
        };
        drop(spawn(async move {
            let answer = within(flight::LONGEST, upstream.ask(&question)).await;
            match answer {
                Some(Err(refusal @ kms::Error::AccessDenied(_))) => {
                    upstream.deny_version(&question, &refusal);
                }
                Some(Err(
                    refusal @ (kms::Error::Disabled
                    | kms::Error::NotFound(_)
                    | kms::Error::PendingDeletion(_)),
                )) => upstream.learn(&question, &refusal),
                Some(Err(
                    kms::Error::Credentials(_)
                    | kms::Error::Crowded { .. }
                    | kms::Error::IncorrectKey
                    | kms::Error::Invalid(_)
                    | kms::Error::InvalidCiphertext
                    | kms::Error::Throttled
                    | kms::Error::Unavailable(_),
                ))
                | Some(Ok(()))
                | None => {}
            }
        }));
    }

    /// One call for a probe: of the direction that was refused, once there is something to open.
    async fn ask(&self, question: &Question) -> Result<(), kms::Error> {
        let key = &question.origin.key().name().key;
        let probes = &question.share.probes;
        let kept = probes
            .kept(key)
            .filter(|wrapped| question.origin.kms_key().claims(wrapped));
        match (question.direction, kept) {
            (Direction::Open, Some(wrapped)) => {
                self.unwrap(question, &wrapped).await?;
            }
            (Direction::Open | Direction::Seal, _) => {
                let made = self.wrap(question).await?;
                probes.keep(key, made.wrapped);
            }
        }
        Ok(())
    }

    /// The tenant may not use this version of the key at all: none of its entries there serves.
    fn deny_version(&self, question: &Question, refusal: &kms::Error) {
        let (key, version) = (question.origin.key(), question.origin.version());
        question
            .share
            .deny(|origin| origin.is_of(key) && origin.version() == version);
        self.remember(question, question.version(question.direction), refusal);
    }
}

impl Question {
    /// All of the tenant's use of the key that is asked for, in `direction`.
    fn version(&self, direction: Direction) -> Subject {
        let key = self.origin.key();
        Subject::Version {
            key: key.name().key.clone(),
            generation: key.generation(),
            version: self.origin.version(),
            direction,
        }
    }
}
