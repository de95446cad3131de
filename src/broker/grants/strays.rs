//! Grants of AWS KMS that have a name of this store's, and that the store does not know: made after
//! the backup that it was restored from. Nothing would ever end them, as KMS does not.

use std::collections::HashSet;
use std::time::Duration;

use tokio::time::Instant;
use tokio::time::sleep_until;

use crate::broker::Broker;
use crate::directory::Directory;
use crate::kms;
use crate::kms::Arn;
use crate::kms::Delegation;
use crate::kms::Named;
use crate::store;

impl Broker {
    /// Looks for them under all KMS keys that the directory names, a key a second, and tells of them:
    /// in the log, and by number in the metrics. It ends none: a copy of the store has the same name,
    /// and what this one does not know, brokers of the other may have made a minute ago.
    ///
    /// Whether it has looked: not while another than `holder` has the turn to end grants.
    ///
    /// # Errors
    /// [`store::Error`]. What KMS does not let be looked at is left out.
    pub async fn tell_of_stray_kms_grants(&self, holder: &str) -> Result<bool, store::Error> {
        let store = &self.grants.store;
        let kms = match &self.delegation {
            Some(kms) if store.take_kms_grants_turn(holder).await? => kms.as_ref(),
            Some(_) | None => {
                self.metrics().stray_kms_grants(0);
                return Ok(false);
            }
        };
        // Who has made none asks KMS nothing: his role may not be for that.
        let Some(prefix) = store.kms_grants_prefix().await? else {
            return Ok(true);
        };
        let (mut strays, mut unseen) = (0, 0);
        let mut next = Instant::now();
        for key in kms_keys(self.policy().directory()) {
            sleep_until(next).await;
            next = Instant::now() + PACE;
            if !store.take_kms_grants_turn(holder).await? {
                return Ok(false);
            }
            match self.strays(kms, &key, &prefix).await? {
                Ok(found) => strays += found,
                Err(error) => {
                    unseen += 1;
                    tracing::debug!(key = key.as_str(), %error, "its grants cannot be looked at");
                }
            }
        }
        self.metrics().stray_kms_grants(strays);
        if unseen > 0 {
            tracing::warn!(
                keys = unseen,
                "there may be grants of KMS there that this store does not know: KMS does not list \
                 them"
            );
        }
        Ok(true)
    }

    /// Tells of those of `key`; how many there are.
    async fn strays(
        &self,
        kms: &dyn Delegation,
        key: &Arn,
        prefix: &str,
    ) -> Result<Result<u64, kms::Error>, store::Error> {
        // Whoever makes one writes it down before: what is listed now is known by now.
        let found = match kms.grants_named(key, prefix).await {
            Ok(found) => found,
            Err(error) => return Ok(Err(error)),
        };
        let mut strays = 0;
        for Named { id, name } in found {
            if self.grants.store.knows_kms_grant(&name).await? {
                continue;
            }
            strays += 1;
            tracing::error!(
                key = key.as_str(),
                kms_grant_id = id,
                name,
                "a grant of KMS that this store has named, and does not know, has no end"
            );
        }
        Ok(Ok(strays))
    }
}

/// Those that grants may be of: now, or before the directory changed.
fn kms_keys(directory: &Directory) -> HashSet<Arn> {
    let keys = directory
        .tenants()
        .flat_map(|tenant| directory.keys(tenant.id()));
    keys.flat_map(|key| key.kms().versions())
        .flat_map(|version| version.generator().in_regions())
        .filter_map(|one| one.arn().cloned())
        .collect()
}

/// Between two keys: there may be thousands, and there is time.
const PACE: Duration = Duration::from_secs(1);
