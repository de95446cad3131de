//! The end of grants of AWS KMS, which KMS itself does not know: by one broker at a time, for as long
//! as it takes, within KMS's own quota, and each on record.

use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;
use jiff::Timestamp;
use tokio::time::Instant;
use tokio::time::sleep_until;

use crate::audit;
use crate::audit::Audit;
use crate::broker::Broker;
use crate::broker::grants::kms::withdrawal;
use crate::broker::grants::words::name_ended;
use crate::kms;
use crate::kms::Delegation;
use crate::store;
use crate::store::Store;
use crate::store::kms_grants::Ending;
use crate::store::kms_grants::KmsGrant;

impl Broker {
    /// Ends grants of KMS that are due, and those of keys that are gone or whose tenant is suspended:
    /// once a second.
    /// Each that ends has a record in `audit`, `EndKmsGrant`. Does nothing while another broker than
    /// `holder` of the same store has the turn.
    ///
    /// # Errors
    /// [`store::Error`]. What KMS refuses, or no sink takes the record of, is tried again later,
    /// without end.
    pub async fn end_due_kms_grants(
        &self,
        holder: &str,
        audit: &Arc<Audit>,
    ) -> Result<(), store::Error> {
        let store = &self.grants.store;
        let kms = match &self.delegation {
            Some(kms) if store.take_kms_grants_turn(holder).await? => kms.as_ref(),
            Some(_) | None => {
                // Whose turn it is says how many there are.
                self.metrics().kms_grants_overdue(0);
                return Ok(());
            }
        };
        for key in store.removed_keys_with_kms_grants().await? {
            let removed = store.end_kms_grants(&key, Ending::Removed, Duration::ZERO);
            removed.await?;
        }
        for key in store.keys_with_kms_grants().await? {
            if let Some((ending, age)) = withdrawal(self.policy().directory(), &key) {
                store.end_kms_grants(&key, ending, age).await?;
            }
        }
        let due = store.due_kms_grants(A_ROUND).await?;
        self.metrics().kms_grants_overdue(due.overdue);
        let round = Round {
            kms,
            store,
            audit,
            now: due.now,
        };
        let mut next = Instant::now();
        for grant in due.grants {
            sleep_until(next).await;
            next = Instant::now() + PACE;
            if !store.take_kms_grants_turn(holder).await? {
                return Ok(());
            }
            let error = match round.end(&grant).await {
                Ok(()) => continue,
                Err(Unended::Store(error)) => return Err(error),
                Err(error) => error,
            };
            self.metrics().kms_grant_failed();
            let (id, key) = (grant.id, String::from(&grant.key));
            tracing::error!(%id, key, %error, "a grant of KMS that is due has not ended");
            store.postpone_kms_grant(&grant.id, error.pause()).await?;
            if matches!(error, Unended::Kms(kms::Error::Throttled)) {
                return Ok(());
            }
        }
        Ok(())
    }
}

/// What ends grants that are due at `now`.
struct Round<'a> {
    kms: &'a dyn Delegation,
    store: &'a Store,
    audit: &'a Arc<Audit>,
    now: Timestamp,
}

/// Why a grant that is due has not ended, or is not known to have.
#[derive(Debug, thiserror::Error)]
enum Unended {
    #[error(transparent)]
    Audit(#[from] audit::Unavailable),
    #[error(transparent)]
    Kms(#[from] kms::Error),
    #[error(transparent)]
    Store(#[from] store::Error),
}

impl Unended {
    /// Before the next try.
    fn pause(&self) -> Duration {
        match self {
            Self::Kms(error) if !error.is_undecided() => LATER,
            Self::Audit(_) | Self::Kms(_) | Self::Store(_) => SOON,
        }
    }
}

impl Round<'_> {
    /// Ends `grant`. One whose maker has not heard of KMS whether there is one is looked for by its
    /// name, until nothing can come any more.
    async fn end(&self, grant: &KmsGrant) -> Result<(), Unended> {
        let found = match &grant.kms_id {
            Some(id) => vec![id.clone()],
            None => {
                let found = self.kms.grants_named(&grant.arn, &grant.name).await?;
                found.into_iter().map(|one| one.id).collect()
            }
        };
        for id in &found {
            self.revoke(grant, id).await?;
        }
        let settled = self.now.duration_since(grant.created) > SETTLED;
        match found.is_empty() && !settled {
            true => self.store.postpone_kms_grant(&grant.id, LATER).await?,
            false => self.store.kms_grant_is_over(&grant.id).await?,
        }
        Ok(())
    }

    /// Ends `grant`, which KMS calls `id`, in KMS, and then says so. Whoever dies between the two
    /// leaves it due: it is ended once more, and on record then.
    async fn revoke(&self, grant: &KmsGrant, id: &str) -> Result<(), Unended> {
        let revoked = self.kms.revoke_grant(&grant.arn, id).await?;
        let cause = grant.cause(self.now);
        tracing::info!(
            id = %grant.id,
            key = String::from(&grant.key),
            cause = cause.label(),
            request_id = revoked.request_id,
            "a grant of KMS has ended"
        );
        let entry = self.audit.begin();
        entry.notes().add(|record| {
            record.event_name = Some(EVENT.into());
            record.origin = Some(Arc::new(audit::Origin::broker()));
            record.category = audit::Category::Manage;
            record.tenant = Some(grant.key.tenant.clone());
            record.key = Some(grant.key.clone());
            name_ended(record, grant, id, cause, revoked);
        });
        Ok(entry.finish().await?)
    }
}

/// Of the record of a grant that the broker has ended by itself.
const EVENT: &str = "EndKmsGrant";
/// Most grants in one round.
const A_ROUND: usize = 40;
/// Between two calls: 40 a second in all Regions together, of the 50 that KMS takes in each.
const PACE: Duration = Duration::from_millis(25);
/// Before the next try after an outage.
const SOON: Duration = Duration::from_secs(5);
/// Before the next try after a refusal.
const LATER: Duration = Duration::from_secs(60);
/// How long after its creation a grant is seen in a list at the latest.
const SETTLED: SignedDuration = SignedDuration::from_mins(15);
