//! What a refusal by KMS says about other entries than the one that met it.

use std::sync::Arc;

use crate::datakeys::Error;
use crate::datakeys::flight;
use crate::datakeys::refusal::News;
use crate::datakeys::refusal::Standing;
use crate::datakeys::refusal::Subject;
use crate::datakeys::upstream::Question;
use crate::datakeys::upstream::Upstream;
use crate::datakeys::upstream::ahead;
use crate::datakeys::upstream::chance;
use crate::directory::Owner;
use crate::kms;
use crate::kms::Statement;
use crate::message::EncryptionContext;
use crate::metrics::KmsOperation;
use crate::metrics::Retirement;
use crate::policy::Direction;
use crate::sync::spawn;
use crate::sync::within;

impl Upstream {
    /// Fails with what KMS said a moment ago, when that answers `question` too. When it was longer
    /// ago, one caller a second finds out for all.
    pub(super) async fn admit(self: &Arc<Self>, question: &Question) -> Result<(), Error> {
        let now = self.clock.now();
        let refusals = &question.share.refusals;
        if let Some(refusal) = refusals.of(&Subject::Entry(question.id), now) {
            return Err(refusal.into());
        }
        // In doubt the question itself finds out: the state of a KMS key is the same for all.
        let unusable = self.unusable.standing(question.origin.kms_key(), now);
        if let Some(Standing::Refused(refusal)) = unusable {
            return Err(refusal.into());
        }
        match refusals.standing(&question.version(question.direction), now) {
            None => Ok(()),
            Some(Standing::Refused(refusal)) => Err(refusal.into()),
            Some(Standing::Doubtful) => self.doubt(question).await,
        }
    }

    /// Notes that KMS did what `question` asks for.
    pub(super) fn allowed(&self, question: &Question) {
        let kms_key = question.origin.kms_key();
        if self.unusable.forget(kms_key) {
            tracing::info!(%kms_key, "this KMS key can be used again");
        }
        let version = question.version(question.direction);
        if question.share.refusals.forget(&version) {
            let key = question.origin.key().name();
            let action = question.operation().label();
            tracing::info!(%key, %kms_key, action, "KMS allows this again");
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
                let now = self.clock.now();
                let remembered = self
                    .unusable
                    .remember(kms_key.clone(), refusal, now, chance());
                if remembered == News::Fresh {
                    tracing::warn!(
                        %kms_key,
                        error = %refusal,
                        "this KMS key is of no use to anybody: all data keys under it are dropped, \
                         and calls that need one are refused until that changes, which shows by \
                         itself within seconds"
                    );
                }
            }
            kms::Error::Credentials(_)
            | kms::Error::Crowded { .. }
            | kms::Error::Invalid(_)
            | kms::Error::Throttled
            | kms::Error::Unavailable(_) => {}
        }
    }

    fn remember(&self, question: &Question, subject: Subject, refusal: &kms::Error) -> News {
        let now = self.clock.now();
        let refusals = &question.share.refusals;
        refusals.remember(subject, refusal, now, chance())
    }

    /// Finds out whether KMS still refuses the key of `question`, by the question itself where that
    /// tells, else by a probe.
    async fn doubt(self: &Arc<Self>, question: &Question) -> Result<(), Error> {
        match question.of_base() {
            Some(base) if base.context != question.context => self.ask_for_all(&base).await,
            Some(_) | None => Ok(()),
        }
    }

    /// Asks KMS whether it refuses the key or one context of it, by a dry run with the pairs that
    /// every context of the key has.
    fn probe(self: &Arc<Self>, question: &Question, refusal: &kms::Error) {
        let Some(base) = question.of_base() else {
            return;
        };
        if base.context == question.context {
            return self.deny_version(question, refusal);
        }
        let key = &question.origin.key().name().key;
        let probes = &question.share.probes;
        if !probes.begin(key, question.direction, self.clock.now()) {
            return;
        }
        let upstream = Arc::clone(self);
        let base = Question {
            demand: ahead(base.origin.key()),
            ..base
        };
        // Whom it concerns hears of it from what is remembered.
        drop(spawn(async move { upstream.ask_for_all(&base).await }));
    }

    /// Makes a probe, and draws the conclusions. Fails if KMS refuses the key.
    async fn ask_for_all(self: &Arc<Self>, base: &Question) -> Result<(), Error> {
        match within(flight::LONGEST, self.rehearse(base)).await {
            Some(Ok(())) => self.allowed(base),
            Some(Err(refusal @ kms::Error::AccessDenied(_))) => {
                self.deny_version(base, &refusal);
                return Err(refusal.into());
            }
            Some(Err(
                refusal @ (kms::Error::Disabled
                | kms::Error::NotFound(_)
                | kms::Error::PendingDeletion(_)),
            )) => {
                self.learn(base, &refusal);
                return Err(refusal.into());
            }
            Some(Err(
                kms::Error::Credentials(_)
                | kms::Error::Crowded { .. }
                | kms::Error::IncorrectKey
                | kms::Error::Invalid(_)
                | kms::Error::InvalidCiphertext
                | kms::Error::Throttled
                | kms::Error::Unavailable(_),
            ))
            | None => {}
        }
        Ok(())
    }

    /// The tenant may not use this version of the key at all: none of its entries there serves.
    fn deny_version(&self, question: &Question, refusal: &kms::Error) {
        let (key, version) = (question.origin.key(), question.origin.version());
        question
            .share
            .deny(|origin| origin.is_of(key) && origin.version() == version);
        let subject = question.version(question.direction);
        if self.remember(question, subject, refusal) == News::Fresh {
            tell(question, refusal);
        }
    }
}

/// Says who has to add which statement where.
fn tell(question: &Question, refusal: &kms::Error) {
    let (key, kms_key) = (question.origin.key(), question.origin.kms_key());
    let statement = Statement::new(kms_key, &[question.operation()]);
    match key.owner() {
        Owner::Operator => tracing::error!(
            key = %key.name(),
            %kms_key,
            error = %refusal,
            %statement,
            "our own role may not use this KMS key: give it the statement in an IAM policy, where the \
             key's policy leaves that to IAM, or else in the key's policy; callers get \
             KMS_ACCESS_DENIED until then"
        ),
        Owner::Tenant => tracing::warn!(
            key = %key.name(),
            %kms_key,
            error = %refusal,
            %statement,
            "the tenant's KMS key refuses our role: have the tenant give it the statement in the key's \
             policy, and give it the same in an IAM policy of our own; callers get TENANT_KMS_DENIED \
             until then"
        ),
    }
}

impl Question {
    /// The same for the context of the pairs that every context of the key has; none if those are
    /// none.
    fn of_base(&self) -> Option<Self> {
        let pairs = self.origin.key().context();
        let pairs = pairs.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let context = EncryptionContext::new(pairs).ok()?;
        Some(Self {
            context,
            ..self.clone()
        })
    }

    /// What is asked of KMS.
    pub(super) fn operation(&self) -> KmsOperation {
        match self.direction {
            Direction::Open => KmsOperation::Decrypt,
            Direction::Seal => KmsOperation::GenerateDataKey,
        }
    }

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
