//! What clients of several brokers see of a grant at the same time, while one broker crashes or is
//! cut off: whether it can have come from a grant at all, and how stale a use may be.

mod check;

use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use futures_util::future::join_all;
use jiff::Timestamp;
use tokio::sync::Barrier;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio::time::interval;

use super::holder::Held;
use super::holder::Holder;
use super::replica::GRANTING;
use super::replica::Replica;
use super::replica::fleet;
use super::replica::strict;
use crate::harness::soon;
use crate::support::dice::Dice;
use crate::support::postgres::Postgres;
use crate::support::proxy::Proxy;
use crate::support::scale::scaled;
use check::Bounds;
use check::Event;
use check::Seen;

/// F-4: strict, there is one order of all calls, whoever answers them.
#[tokio::test(flavor = "multi_thread")]
async fn calls_of_a_strict_tenant_have_one_order_across_brokers_and_crashes() {
    let postgres = Postgres::start();
    let mut fleet = fleet(&postgres, &strict()).await;
    for round in 0..scaled(4, 250) {
        let mut histories = JoinSet::new();
        for number in [2 * round, 2 * round + 1] {
            histories.spawn(race(folders(&fleet), number));
        }
        if round % 2 == 1 {
            fleet[LAST].crash();
            fleet[LAST].start();
        }
        while let Some(history) = histories.join_next().await {
            check::explain(&history.unwrap(), STRICT).unwrap();
        }
    }
}

/// F-2, F-4: bounded, no use is staler than 5 s, by a broker without its database neither.
#[tokio::test(flavor = "multi_thread")]
async fn no_use_is_staler_than_the_bound_on_a_broker_that_is_cut_off_either() {
    let postgres = Postgres::start();
    let proxy = Proxy::start(postgres.address()).await;
    let mut fleet = fleet(&postgres, GRANTING).await;
    fleet[LAST] = Replica::of(&postgres, proxy.address()).serve();
    for round in 0..scaled(1, 10) {
        fleet[LAST].becomes("tenants/acme/keys/orders").await;
        let used = Arc::new(Barrier::new(GRANTS as usize + 1));
        let mut histories = JoinSet::new();
        for number in GRANTS * round..GRANTS * (round + 1) {
            histories.spawn(watch(folders(&fleet), number, Arc::clone(&used)));
        }
        soon(used.wait()).await;
        proxy.refuse(true);
        proxy.silence_all();
        while let Some(history) = histories.join_next().await {
            check::explain(&history.unwrap(), BOUNDED).unwrap();
        }
        proxy.refuse(false);
    }
}

/// What eight clients see of the grant `number`, which one of them takes back. It expires soon, and
/// those of brokers that stay renew it.
async fn race(folders: Vec<PathBuf>, number: u64) -> Vec<Event> {
    let calls = scaled(20, 200);
    let mut maker = Client::of(&folders[0]).await;
    let newest = Mutex::new(maker.create(number, 1).await);
    let clients = (0..CLIENTS).map(async |client| {
        let place = client % folders.len();
        let mut dice = Dice::new(number * 100 + client as u64);
        let mut client = Client::of(&folders[place]).await;
        let revokes = (place == LAST).then_some(calls * 3 / 4);
        for turn in 0..calls {
            let held = newest.lock().unwrap().clone();
            if revokes == Some(turn) {
                client.revoke(&held).await;
            } else if place != LAST && dice.below(6) == 0 {
                if let Some(renewed) = client.renew(&held).await {
                    let mut newest = newest.lock().unwrap();
                    if renewed.expires > newest.expires {
                        *newest = renewed;
                    }
                }
            } else {
                client.uses(&held).await;
            }
        }
        client.events
    });
    let seen = join_all(clients).await.concat();
    [maker.events, seen].concat()
}

/// What a client of each broker sees of the grant `number`, from before it is taken back until no
/// use may be served any more, and some time later. Waits at `used` when all have used it.
async fn watch(folders: Vec<PathBuf>, number: u64, used: Arc<Barrier>) -> Vec<Event> {
    let mut maker = Client::of(&folders[0]).await;
    let held = maker.create(number, 60).await;
    let mut clients = join_all(folders.iter().map(|folder| Client::of(folder))).await;
    for client in &mut clients {
        // Its broker may not be in touch yet.
        soon(async {
            while client.events.is_empty() {
                client.uses(&held).await;
            }
        })
        .await;
        assert_eq!(client.events[0].seen, Seen::Used);
    }
    used.wait().await;
    maker.revoke(&held).await;
    let revoked = Instant::now();
    let watching = clients.iter_mut().map(async |client| {
        let mut ticks = interval(PACE);
        while revoked.elapsed() < BOUND + BOUND / 3 {
            ticks.tick().await;
            client.uses(&held).await;
        }
    });
    join_all(watching).await;
    let seen = clients.into_iter().flat_map(|client| client.events);
    maker.events.into_iter().chain(seen).collect()
}

/// One of those who call at the same time, and what it saw.
struct Client {
    folder: PathBuf,
    holder: Holder,
    events: Vec<Event>,
}

impl Client {
    async fn of(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            holder: Holder::soon_at(folder).await,
            events: Vec::new(),
        }
    }

    async fn create(&mut self, number: u64, lifetime: u32) -> Held {
        let began = now();
        let held = self.holder.create(number, lifetime).await.unwrap();
        self.saw(began, Seen::Created(held.expires.as_millisecond()));
        held
    }

    async fn renew(&mut self, held: &Held) -> Option<Held> {
        let began = now();
        let renewed = self.holder.renew(held).await.unwrap();
        let expires = |held: &Held| Seen::Renewed(held.expires.as_millisecond());
        self.saw(began, renewed.as_ref().map_or(Seen::Unrenewed, expires));
        renewed
    }

    async fn revoke(&mut self, held: &Held) {
        let began = now();
        match self.holder.revoke(&held.id).await {
            Ok(()) => self.saw(began, Seen::Revoked),
            Err(_) => {
                self.saw(began, Seen::PerhapsRevoked);
                self.holder = Holder::soon_at(&self.folder).await;
            }
        }
    }

    async fn uses(&mut self, held: &Held) {
        let began = now();
        match self.holder.uses(held).await {
            Ok(true) => self.saw(began, Seen::Used),
            Ok(false) => self.saw(began, Seen::Refused),
            // Its broker has crashed, or cannot tell: nobody was served.
            Err(_) => self.holder = Holder::soon_at(&self.folder).await,
        }
    }

    fn saw(&mut self, began: i64, seen: Seen) {
        let ended = now() + 1;
        self.events.push(Event { began, ended, seen });
    }
}

fn folders(fleet: &[Replica]) -> Vec<PathBuf> {
    fleet.iter().map(|one| one.site.path("")).collect()
}

fn now() -> i64 {
    Timestamp::now().as_millisecond()
}

const CLIENTS: usize = 8;
/// The broker that crashes or is cut off.
const LAST: usize = 2;
/// Histories at a time.
const GRANTS: u64 = 4;
/// Between two uses of one client.
const PACE: Duration = Duration::from_millis(50);
const BOUND: Duration = Duration::from_secs(5);
/// A replica takes the time that the store's answer took for gone.
const EARLY: i64 = 1000;
const STRICT: Bounds = Bounds {
    stale: 0,
    early: EARLY,
};
const BOUNDED: Bounds = Bounds {
    stale: BOUND.as_millis() as i64,
    early: EARLY,
};
