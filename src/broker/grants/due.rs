//! The end of grants of AWS KMS, which KMS itself does not know: by one broker at a time, for as long
//! as it takes, within KMS's own quota.

use std::time::Duration;

use jiff::SignedDuration;
use jiff::Timestamp;
use tokio::time::Instant;
use tokio::time::sleep_until;

use crate::broker::Broker;
use crate::broker::grants::kms::is_withdrawn;
use crate::error::Error;
use crate::kms;
use crate::store;
use crate::store::kms_grants::KmsGrant;

impl Broker {
    /// Ends grants of KMS that are due, and those of keys whose tenant is suspended: once a second.
    /// Does nothing while another broker than `holder` of the same store has the turn.
    ///
    /// # Errors
    /// [`store::Error`]. What KMS refuses is tried again later, without end.
    pub async fn end_due_kms_grants(&self, holder: &str) -> Result<(), store::Error> {
        let store = &self.grants.store;
        if self.delegation.is_none() || !store.take_kms_grants_turn(holder).await? {
            // Whose turn it is says how many there are.
            self.metrics().kms_grants_overdue(0);
            return Ok(());
        }
        for key in store.keys_with_kms_grants().await? {
            if is_withdrawn(self.policy().directory(), &key) {
                store.end_kms_grants(&key).await?;
            }
        }
        let due = store.due_kms_grants(A_ROUND).await?;
        self.metrics().kms_grants_overdue(due.overdue);
        let mut next = Instant::now();
        for grant in due.grants {
            sleep_until(next).await;
            next = Instant::now() + PACE;
            if !store.take_kms_grants_turn(holder).await? {
                return Ok(());
            }
            let ended = match &grant.kms_id {
                Some(_) => self.end_kms_grant(&grant).await,
                None => self.end_nameless(&grant, due.now).await,
            };
            let error = match ended {
                Ok(Ok(request_id)) => {
                    let (id, key) = (grant.id, String::from(&grant.key));
                    tracing::info!(%id, key, request_id, "a grant of KMS has ended");
                    continue;
                }
                Ok(Err(error)) => error,
                Err(Error::StoreUnavailable(why)) => {
                    tracing::warn!(%why, "grants of KMS wait for the store");
                    return Ok(());
                }
                Err(error) => kms::Error::Invalid(error.to_string()),
            };
            self.metrics().kms_grant_failed();
            let (id, key) = (grant.id, String::from(&grant.key));
            tracing::error!(%id, key, %error, "a grant of KMS that is due has not ended");
            let pause = if error.is_undecided() { SOON } else { LATER };
            store.postpone_kms_grant(&grant.id, pause).await?;
            if error == kms::Error::Throttled {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Ends `grant` in KMS, and then here; returns KMS's name for the call.
    pub(super) async fn end_kms_grant(
        &self,
        grant: &KmsGrant,
    ) -> Result<Result<Option<String>, kms::Error>, Error> {
        let Some(id) = &grant.kms_id else {
            // Whoever makes it may be about to hear of it, and sees that it is due.
            return Ok(Ok(None));
        };
        let ended = self.delegation()?.revoke_grant(&grant.arn, id).await;
        if ended.is_ok() {
            self.grants.store.kms_grant_is_over(&grant.id).await?;
        }
        Ok(ended)
    }

    /// Ends `grant`, whose maker has not heard of KMS whether there is one: looks for its name until
    /// nothing can come any more.
    async fn end_nameless(
        &self,
        grant: &KmsGrant,
        now: Timestamp,
    ) -> Result<Result<Option<String>, kms::Error>, Error> {
        let (kms, store) = (self.delegation()?, &self.grants.store);
        let found = match kms.grants_named(&grant.arn, &grant.name()).await {
            Ok(found) => found,
            Err(error) => return Ok(Err(error)),
        };
        let mut request_id = None;
        for id in &found {
            match kms.revoke_grant(&grant.arn, id).await {
                Ok(name) => request_id = name,
                Err(error) => return Ok(Err(error)),
            }
        }
        let settled = now.duration_since(grant.created) > SETTLED;
        match found.is_empty() && !settled {
            true => store.postpone_kms_grant(&grant.id, LATER).await?,
            false => store.kms_grant_is_over(&grant.id).await?,
        }
        Ok(Ok(request_id))
    }
}

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
