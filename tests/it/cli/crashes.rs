//! Crashes under load: what was acknowledged of a grant is so afterwards.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio::time::interval;

use super::holder::Held;
use super::holder::Holder;
use super::replica::GRANTING;
use super::replica::fleet;
use super::site::Running;
use super::site::Site;
use super::site::uid;
use super::tenants::sql;
use crate::harness::soon;
use crate::support::dice::Dice;
use crate::support::figures;
use crate::support::postgres::Postgres;
use crate::support::scale::scaled;

/// F-5, with SQLite.
#[tokio::test(flavor = "multi_thread")]
async fn no_crash_loses_a_grant_or_a_revocation_that_was_acknowledged() {
    let site = site();
    let folder = site.path("");
    let mut known = Acknowledged::default();
    let mut dice = Dice::new(7);
    let mut longest = Duration::ZERO;
    for cycle in 0..scaled(50, 1_000) {
        let starting = Instant::now();
        let server = Running::logging(site.command(&["serve"]));
        known.check(&mut Holder::soon_at(&folder).await).await;
        longest = longest.max(starting.elapsed());
        let load = Load::begin(&folder, cycle);
        // At another point of its way each time.
        load.reaches(1 + dice.below(20)).await;
        server.crash();
        known.add(load.end().await);
        if cycle % 50 == 49 {
            // To look at thousands of them each time would take longer than all else.
            sql(&site, "DELETE FROM grants");
            known.made.clear();
        }
        let integrity = sql(&site, "PRAGMA integrity_check");
        assert_eq!(integrity.as_deref(), Some("ok"), "cycle {cycle}");
    }
    let _server = Running::logging(site.command(&["serve"]));
    known.check(&mut Holder::soon_at(&folder).await).await;
    println!("{}, checked {longest:?} after a start", known.counts());
    figures::record("grants", [("kill9_lost", known.lost)]);
    assert!(known.revoked.len() > 50, "{}", known.counts());
    assert_eq!(known.lost, 0);
    assert!(longest <= RESTART, "{longest:?}");
}

/// F-5, F-9, with PostgreSQL, which crashes as well.
#[tokio::test(flavor = "multi_thread")]
async fn no_crash_of_a_broker_or_its_database_loses_what_was_acknowledged() {
    let mut postgres = Postgres::start();
    let mut fleet = fleet(&postgres, GRANTING).await;
    let folders = fleet.each_ref().map(|one| one.site.path(""));
    let mut known = Acknowledged::default();
    for cycle in 0..scaled(4, 100) {
        let loads = [0, 1].map(|n| Load::begin(&folders[n], 2 * cycle + n as u64));
        for load in &loads {
            load.reaches(10).await;
        }
        match cycle % 2 {
            0 => {
                fleet[0].crash();
                fleet[0].start();
            }
            _ => {
                postgres.stop();
                postgres.restart();
            }
        }
        for load in loads {
            known.add(load.end().await);
        }
        for replica in &fleet {
            replica.becomes("tenants/acme/keys/orders").await;
        }
        known.check(&mut Holder::soon_at(&folders[2]).await).await;
    }
    println!("{}", known.counts());
    assert!(known.revoked.len() > 5, "{}", known.counts());
    assert_eq!(known.lost, 0);
}

/// The longest from a start until all that was acknowledged has been looked at.
const RESTART: Duration = Duration::from_secs(2);

/// What has been acknowledged, by the ids of grants.
#[derive(Default)]
pub(super) struct Acknowledged {
    made: BTreeSet<String>,
    pub(super) revoked: BTreeSet<String>,
    /// Of those, what was not so later.
    pub(super) lost: usize,
}

impl Acknowledged {
    pub(super) fn add(&mut self, fates: Vec<Fate>) {
        for fate in fates {
            match fate {
                Fate::Made(id) => {
                    self.made.insert(id);
                }
                Fate::Revoked(id) => {
                    self.revoked.insert(id);
                }
                // It may be either.
                Fate::Open => {}
            }
        }
    }

    /// Looks whether the broker has it all.
    pub(super) async fn check(&mut self, holder: &mut Holder) {
        let listed = soon(async {
            loop {
                // Its store may have come back just now.
                if let Ok(listed) = holder.list().await {
                    return listed;
                }
            }
        });
        let listed: BTreeSet<String> = listed.await.into_iter().collect();
        self.lost += self.made.difference(&listed).count();
        self.lost += self.revoked.intersection(&listed).count();
    }

    pub(super) fn counts(&self) -> String {
        let Self {
            made,
            revoked,
            lost,
        } = self;
        format!(
            "{} grants, {} revocations, {lost} lost",
            made.len(),
            revoked.len()
        )
    }
}

/// What became of a grant, as its maker knows it.
pub(super) enum Fate {
    Made(String),
    Revoked(String),
    /// Nobody answered: revoked or not.
    Open,
}

/// Four clients of a broker that make grants and take every other one back, the first to begin with,
/// until it is gone.
pub(super) struct Load {
    over: Arc<AtomicBool>,
    /// How many grants were made.
    made: Arc<AtomicU64>,
    clients: JoinSet<Vec<Fate>>,
}

impl Load {
    pub(super) fn begin(folder: &Path, cycle: u64) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let made = Arc::new(AtomicU64::new(0));
        let mut clients = JoinSet::new();
        for client in 0..4 {
            let (folder, over) = (folder.to_owned(), Arc::clone(&over));
            let made = Arc::clone(&made);
            clients.spawn(async move {
                let mut fates = Vec::new();
                let Ok(mut holder) = Holder::at(&folder).await else {
                    return fates;
                };
                for turn in 0.. {
                    let number = (cycle * 4 + client) * 100_000 + turn;
                    if over.load(Ordering::Relaxed) {
                        break;
                    }
                    let Ok(Held { id, .. }) = holder.create(number, 3600).await else {
                        break;
                    };
                    made.fetch_add(1, Ordering::Relaxed);
                    if turn % 2 == 1 {
                        fates.push(Fate::Made(id));
                        continue;
                    }
                    match holder.revoke(&id).await {
                        Ok(()) => fates.push(Fate::Revoked(id)),
                        Err(_) => {
                            fates.push(Fate::Open);
                            break;
                        }
                    }
                }
                fates
            });
        }
        Self {
            over,
            made,
            clients,
        }
    }

    /// Waits until so many grants were made. Of more than four, one was taken back.
    pub(super) async fn reaches(&self, count: u64) {
        soon(async {
            let mut ticks = interval(Duration::from_millis(1));
            while self.made.load(Ordering::Relaxed) < count {
                ticks.tick().await;
            }
        })
        .await;
    }

    /// What became of all that they made.
    pub(super) async fn end(mut self) -> Vec<Fate> {
        self.over.store(true, Ordering::Relaxed);
        let mut fates = Vec::new();
        while let Some(client) = self.clients.join_next().await {
            fates.extend(client.unwrap());
        }
        fates
    }
}

/// A site where whoever runs the tests administers the key `orders`.
pub(super) fn site() -> Site {
    let site = Site::with_operator();
    let uid = uid();
    let administrators = format!("administrators = [\"unix:uid={uid}\"]\nusers = [");
    site.edit("tenants.toml", "users = [", &administrators);
    site
}
