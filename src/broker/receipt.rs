//! The receipt of a change: which brokers have confirmed it, and by when the others go by what was
//! before it no more.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;
use tokio::time::sleep;

use crate::directory::Directory;
use crate::name::TenantId;
use crate::store;
use crate::store::Marked;
use crate::store::Replica;
use crate::store::Store;

/// What became of a change of one tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// The change.
    pub marked: Marked,
    /// The brokers that go by it: what they drop is dropped.
    pub confirmed: Vec<Replica>,
    /// The others, each with the time, by the store's clock, from which on it refuses the tenant
    /// unless it has heard of the change.
    pub unconfirmed: Vec<(Replica, Timestamp)>,
}

impl Receipt {
    /// Waits until all brokers on `store` have confirmed `marked`, which was made just now, and for
    /// [`PATIENCE`] at most, or to `end`.
    pub(super) async fn of(
        store: &Store,
        tenant: &TenantId,
        marked: Marked,
        end: Instant,
    ) -> Result<Self, store::Error> {
        let end = end.min(Instant::now() + PATIENCE);
        let mut known = store.replicas().await?;
        // Who has not read the change has last heard of the store before this.
        let made = known.now;
        let confirms = |replica: &Replica| replica.applied >= marked.change;
        while !known.all.iter().all(confirms) && Instant::now() + PAUSE < end {
            sleep(PAUSE).await;
            known = store.replicas().await?;
        }
        let (confirmed, others): (_, Vec<_>) = known.all.into_iter().partition(confirms);
        let own = match others.is_empty() {
            true => None,
            false => own_limit(store, tenant, marked).await?,
        };
        let refuses_from = |replica: Replica| {
            // Of the tenant's own limit only those know who have read the change that set it.
            let own = own.filter(|_| replica.applied >= marked.before);
            let limit = own.map_or(replica.staleness, |own| own.min(replica.staleness));
            let from = made.saturating_add(limit).unwrap_or(Timestamp::MAX);
            (replica, from)
        };
        Ok(Self {
            marked,
            confirmed,
            unconfirmed: others.into_iter().map(refuses_from).collect(),
        })
    }
}

/// How long what is known of `tenant` counted when it was `marked`, if that was not as long as for
/// every tenant. None, too, if the tenant has changed since: then nobody can say.
async fn own_limit(
    store: &Store,
    tenant: &TenantId,
    marked: Marked,
) -> Result<Option<Duration>, store::Error> {
    let row = store.tenant(tenant, marked.change).await?;
    let (directory, _) = Directory::default().with(row);
    let tenant = directory.tenant(tenant);
    Ok(tenant.and_then(|tenant| tenant.max_staleness()))
}

/// For those that are in touch, many times as long as they take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use std::path::Path;

    use uuid::Uuid;

    use super::*;
    use crate::directory::Standing;
    use crate::store::Absent;
    use crate::store::Config;

    #[tokio::test]
    async fn a_tenants_own_limit_counts_for_those_who_know_it() {
        let folder = tempfile::tempdir().unwrap();
        let config = Config {
            file: folder.path().join("store.db"),
            ..Config::default()
        };
        let store = Store::new(&config, None).unwrap();
        let text = "[[tenant]]\nid = \"acme\"\nmax_staleness = \"5s\"\n";
        let read = Directory::parse_with_documents(text, Path::new("tenants.toml"));
        let (_, documents) = read.unwrap();
        store.apply(&documents, Absent::Keep).await.unwrap();
        let replica = |applied: u8| Replica {
            id: Uuid::from_bytes([applied; 16]),
            name: "host".into(),
            applied: applied.into(),
            staleness: Duration::from_secs(60),
        };
        let [ignorant, knowing, confirming] = [0, 1, 2].map(replica);
        for one in [&ignorant, &knowing, &confirming] {
            store.report(one).await.unwrap();
        }
        let acme = "acme".parse().unwrap();
        let marked = store.stand(&acme, Standing::Suspended).await.unwrap();
        let receipt = Receipt::of(&store, &acme, marked, Instant::now());
        let receipt = receipt.await.unwrap();
        assert_eq!(receipt.confirmed, [confirming]);
        let [(first, late), (second, soon)] = receipt.unconfirmed.as_slice() else {
            panic!("two have not confirmed");
        };
        assert_eq!([first, second], [&ignorant, &knowing]);
        let difference = late.duration_since(*soon);
        assert_eq!(difference.as_secs(), 55);

        // Once the tenant is another, its own limit of before is nobody's to know.
        store.purge(&acme).await.unwrap();
        let receipt = Receipt::of(&store, &acme, marked, Instant::now());
        let times: Vec<_> = receipt.await.unwrap().unconfirmed;
        assert_eq!(times[0].1, times[1].1);
    }
}
