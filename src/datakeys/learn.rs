//! What a refusal by KMS says about other entries than the one that met it.

use std::sync::Arc;
use std::time::Duration;

use crate::datakeys::Error;
use crate::datakeys::flight;
use crate::datakeys::question::Ask;
use crate::datakeys::question::Question;
use crate::datakeys::refusal::News;
use crate::datakeys::refusal::Standing;
use crate::datakeys::refusal::Subject;
use crate::datakeys::upstream::AHEAD;
use crate::datakeys::upstream::Upstream;
use crate::datakeys::upstream::ahead_of;
use crate::datakeys::upstream::chance;
use crate::directory::Owner;
use crate::kms;
use crate::kms::Statement;
use crate::metrics::Retirement;
use crate::sync::sleep;
use crate::sync::spawn;
use crate::sync::within;

impl Upstream {
    /// As [`Upstream::admit`], for all that making a data key takes.
    pub(super) async fn admit_making(self: &Arc<Self>, question: &Question) -> Result<(), Error> {
        for ask in question.making() {
            self.admit(&ask).await?;
        }
        Ok(())
    }

    /// Fails with what KMS said a moment ago, when that answers `ask` too. When it was longer ago,
    /// one caller a second finds out for all.
    pub(super) async fn admit(self: &Arc<Self>, ask: &Ask<'_>) -> Result<(), Error> {
        let now = self.clock.now();
        let refusals = &ask.question.share.refusals;
        if let Some(refusal) = refusals.of(&Subject::Entry(ask.question.id), now) {
            return Err(refusal.into());
        }
        // In doubt the call itself finds out: the state of a KMS key is the same for all.
        let unusable = self.unusable.standing(ask.kms_key.preferred(), now);
        if let Some(Standing::Refused(refusal)) = unusable {
            return Err(refusal.into());
        }
        match refusals.standing(&ask.subject(), now) {
            None => Ok(()),
            Some(Standing::Refused(refusal)) => Err(refusal.into()),
            Some(Standing::Doubtful) => self.doubt(ask).await,
        }
    }

    /// Notes that KMS did it.
    pub(super) fn allowed(&self, ask: &Ask<'_>) {
        let kms_key = ask.kms_key;
        if self.unusable.forget(kms_key.preferred()) {
            tracing::info!(%kms_key, "this KMS key can be used again");
        }
        if ask.question.share.refusals.forget(&ask.subject()) {
            let key = ask.question.origin.key().name();
            let action = ask.operation.label();
            tracing::info!(%key, %kms_key, action, "KMS allows this again");
        }
    }

    /// Draws the conclusions from `refusal`, each at its own scope.
    pub(super) fn learn(self: &Arc<Self>, ask: &Ask<'_>, refusal: &kms::Error) {
        let question = ask.question;
        match refusal {
            // Of this wrapped key and context alone: somebody sent damaged or foreign bytes.
            kms::Error::IncorrectKey | kms::Error::InvalidCiphertext => {
                self.remember(question, Subject::Entry(question.id), refusal);
            }
            // Of this context, or of the key: a probe tells.
            kms::Error::AccessDenied(_) => {
                question.share.remove(&question.id, Retirement::Denied);
                self.remember(question, Subject::Entry(question.id), refusal);
                self.probe(ask, refusal);
            }
            // Of the KMS key, whoever asks.
            kms::Error::Disabled | kms::Error::NotFound(_) | kms::Error::PendingDeletion(_) => {
                let kms_key = ask.kms_key;
                for share in self.shares.all() {
                    share.deny(|origin| origin.is_under(kms_key));
                }
                // Who hears of it from here finds no data key any more.
                let now = self.clock.now();
                let remembered =
                    self.unusable
                        .remember(kms_key.preferred().clone(), refusal, now, chance());
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

    /// Finds out whether KMS still refuses, by the call itself where that tells, else by a probe.
    async fn doubt(self: &Arc<Self>, ask: &Ask<'_>) -> Result<(), Error> {
        match ask.question.of_base() {
            Some(base) if base.context != ask.question.context => {
                let until = tokio::time::Instant::now() + AHEAD;
                let base = Question {
                    demand: base.demand.prolonged(until),
                    ..base
                };
                let upstream = Arc::clone(self);
                let (kms_key, operation) = (ask.kms_key.clone(), ask.operation);
                // Who asks for all may leave before the answer.
                let asking =
                    spawn(
                        async move { upstream.ask_for_all(&base.ask(&kms_key, operation)).await },
                    );
                let said = asking.await;
                said.unwrap_or(Err(Error::Bug("a dry run panicked")))
                    .map(drop)
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Asks KMS whether it refuses the key or one context of it, by a dry run with the pairs that
    /// every context of the key has.
    fn probe(self: &Arc<Self>, ask: &Ask<'_>, refusal: &kms::Error) {
        let question = ask.question;
        let Some(base) = question.of_base() else {
            return;
        };
        if base.context == question.context {
            return self.deny_use(ask, refusal);
        }
        let key = &question.origin.key().name().key;
        let probes = &question.share.probes;
        if !probes.begin(key, ask.operation, self.clock.now()) {
            return;
        }
        let upstream = Arc::clone(self);
        let (kms_key, operation) = (ask.kms_key.clone(), ask.operation);
        // Whom it concerns hears of it from what is remembered.
        drop(spawn(async move {
            for number in 1..=PROBES {
                let base = Question {
                    // Callers with data keys that shall not serve any more wait for nothing.
                    demand: ahead_of(Duration::ZERO, base.origin.key()),
                    ..base.clone()
                };
                match upstream.ask_for_all(&base.ask(&kms_key, operation)).await {
                    Ok(Said::Nothing) if number < PROBES => sleep(PAUSE * number).await,
                    Ok(Said::Allowed | Said::Nothing) | Err(_) => return,
                }
            }
        }));
    }

    /// Makes a probe, and draws the conclusions. Fails if KMS refuses the key.
    async fn ask_for_all(self: &Arc<Self>, base: &Ask<'_>) -> Result<Said, Error> {
        match within(flight::LONGEST, self.rehearse(base)).await {
            Some(Ok(())) => {
                self.allowed(base);
                Ok(Said::Allowed)
            }
            Some(Err(refusal @ kms::Error::AccessDenied(_))) => {
                self.deny_use(base, &refusal);
                Err(refusal.into())
            }
            Some(Err(
                refusal @ (kms::Error::Disabled
                | kms::Error::NotFound(_)
                | kms::Error::PendingDeletion(_)),
            )) => {
                self.learn(base, &refusal);
                Err(refusal.into())
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
            | None => Ok(Said::Nothing),
        }
    }

    /// The tenant may not use this version of the key at all: none of its entries there serves.
    fn deny_use(&self, ask: &Ask<'_>, refusal: &kms::Error) {
        let origin = &ask.question.origin;
        let (key, version) = (origin.key(), origin.version());
        ask.question
            .share
            .deny(|origin| origin.is_of(key) && origin.version() == version);
        if self.remember(ask.question, ask.subject(), refusal) == News::Fresh {
            tell(ask, refusal);
        }
    }
}

/// What KMS says of all contexts of a key, if it does not refuse it.
enum Said {
    Allowed,
    /// It did not answer, or has no room.
    Nothing,
}

/// Says who has to add which statement where.
fn tell(ask: &Ask<'_>, refusal: &kms::Error) {
    let key = ask.question.origin.key();
    let kms_key = match refusal {
        kms::Error::AccessDenied(denial) => denial.replica().unwrap_or(ask.kms_key),
        _ => ask.kms_key,
    };
    let statement = Statement::new(kms_key, &[ask.operation]);
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

/// Most probes after a refusal. Later callers who are refused have another one made.
const PROBES: u32 = 3;
/// After the first, and twice that after the second.
const PAUSE: Duration = Duration::from_secs(1);
