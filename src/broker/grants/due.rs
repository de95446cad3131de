//! The end of grants of AWS KMS, which KMS itself does not know: by one broker at a time, for as long
//! as it takes, within KMS's own quota, and each on record.

use std::collections::HashMap;
use std::collections::HashSet;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;
use tokio::time::sleep_until;

use crate::audit;
use crate::audit::Audit;
use crate::broker::Broker;
use crate::broker::grants::kms::withdrawal;
use crate::broker::grants::words::name_ended;
use crate::kms;
use crate::kms::Arn;
use crate::kms::Delegation;
use crate::kms::Named;
use crate::kms::Revoked;
use crate::store;
use crate::store::Store;
use crate::store::kms_grants::Ending;
use crate::store::kms_grants::KmsGrant;
use crate::store::kms_grants::Obstacle;
use crate::store::kms_grants::SETTLED;

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
        let Some(kms) = self.delegation.as_deref() else {
            return Ok(());
        };
        if !store.has_kms_grants().await? || !store.take_kms_grants_turn(holder).await? {
            // Whose turn it is says how many there are.
            self.metrics().kms_grants_overdue(0, 0);
            return Ok(());
        }
        self.withdraw_kms_grants().await?;
        let due = store.due_kms_grants(A_ROUND).await?;
        self.metrics().kms_grants_overdue(due.overdue, due.refused);
        for id in &due.damaged {
            tracing::error!(id, "a row of kms_grants is damaged: end that grant by hand");
            store
                .postpone_kms_grant(id, LATER, Obstacle::Refused)
                .await?;
        }
        let mut round = Round {
            kms,
            store,
            audit,
            now: due.now,
            listed: HashMap::new(),
        };
        let mut out = HashSet::new();
        let mut next = Instant::now();
        for grant in &due.grants {
            if out.contains(grant.arn.scope()) {
                continue;
            }
            sleep_until(next).await;
            next = Instant::now() + PACE;
            if !store.take_kms_grants_turn(holder).await? {
                return Ok(());
            }
            let error = match round.end(grant).await {
                Ok(()) => continue,
                Err(Unended::Store(error)) => return Err(error),
                Err(error) => error,
            };
            self.metrics().kms_grant_failed();
            let (id, key) = (grant.id, String::from(&grant.key));
            tracing::error!(%id, key, %error, "a grant of KMS that is due has not ended");
            round.put_off(grant, &error).await?;
            match error.concerns() {
                Concerns::All => return Ok(()),
                Concerns::Grant => {}
                Concerns::Region => {
                    out.insert(grant.arn.scope());
                }
            }
        }
        Ok(())
    }

    /// Has the grants be due that are to end with their keys.
    async fn withdraw_kms_grants(&self) -> Result<(), store::Error> {
        let store = &self.grants.store;
        for key in store.removed_keys_with_kms_grants().await? {
            let removed = store.end_kms_grants(&key, Ending::Removed, Duration::ZERO);
            removed.await?;
        }
        for key in store.keys_with_kms_grants().await? {
            if let Some((ending, age)) = withdrawal(self.policy().directory(), &key) {
                store.end_kms_grants(&key, ending, age).await?;
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
    /// Those of this store that KMS lists, by key.
    listed: HashMap<&'a Arn, Vec<Named>>,
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

/// Who would fare no better.
#[derive(Clone, Copy)]
enum Concerns {
    All,
    Grant,
    /// The grants of all keys of its Region and account.
    Region,
}

impl Unended {
    fn concerns(&self) -> Concerns {
        match self {
            Self::Audit(_) | Self::Store(_) => Concerns::All,
            Self::Kms(kms::Error::Credentials(_)) => Concerns::Region,
            Self::Kms(error) if error.is_undecided() => Concerns::Region,
            Self::Kms(_) => Concerns::Grant,
        }
    }
}

impl<'a> Round<'a> {
    /// Ends `grant`. One whose maker has not heard of KMS whether there is one is looked for by its
    /// name, and one that KMS does not know is asked for again, until nothing can come any more.
    async fn end(&mut self, grant: &'a KmsGrant) -> Result<(), Unended> {
        let found = match &grant.kms_id {
            Some(id) => vec![id.clone()],
            None => self.named(grant).await?,
        };
        let settled = self.now.duration_since(grant.created) > SETTLED;
        let mut over = settled || !found.is_empty();
        for id in &found {
            let revoked = self.kms.revoke_grant(&grant.arn, id).await?;
            if revoked.already_gone && !settled {
                over = false;
            } else {
                self.put_on_record(grant, id, revoked).await?;
            }
        }
        match over {
            true => self.store.kms_grant_is_over(&grant.id).await?,
            false => {
                let id = grant.id.to_string();
                let unknown = Obstacle::Unknown;
                self.store.postpone_kms_grant(&id, LATER, unknown).await?;
            }
        }
        Ok(())
    }

    /// Puts off the end of `grant`, and of those that would fare no better. It comes after them: it
    /// may be to blame.
    async fn put_off(&self, grant: &KmsGrant, error: &Unended) -> Result<(), store::Error> {
        let (pause, obstacle) = match error {
            Unended::Audit(_) | Unended::Store(_) => (SOON, Obstacle::Outage),
            Unended::Kms(error) if error.is_refusal() => (LATER, Obstacle::Refused),
            Unended::Kms(_) => (LATER, Obstacle::Outage),
        };
        if let Concerns::Region = error.concerns() {
            let beside = self.store.postpone_kms_grants_beside(&grant.arn, SOON);
            beside.await?;
        }
        let id = grant.id.to_string();
        self.store.postpone_kms_grant(&id, pause, obstacle).await
    }

    /// The ids in KMS of what has the name of `grant`. A key's are listed once: it may have thousands,
    /// and several of them may be looked for.
    async fn named(&mut self, grant: &'a KmsGrant) -> Result<Vec<String>, Unended> {
        let listed = match self.listed.entry(&grant.arn) {
            Entry::Occupied(listed) => listed.into_mut(),
            Entry::Vacant(unlisted) => {
                let prefix = grant.name.trim_end_matches(|c| c != '-');
                unlisted.insert(self.kms.grants_named(&grant.arn, prefix).await?)
            }
        };
        let named = listed.iter().filter(|one| one.name == grant.name);
        Ok(named.map(|one| one.id.clone()).collect())
    }

    /// Says that `grant`, which KMS calls `id`, has ended. Whoever dies before this leaves it due: it
    /// is ended once more, and on record then.
    async fn put_on_record(
        &self,
        grant: &KmsGrant,
        id: &str,
        revoked: Revoked,
    ) -> Result<(), Unended> {
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
