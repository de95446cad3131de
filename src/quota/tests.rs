//! What is let in, and what it costs.

mod buckets;
mod shares;

use jiff::Timestamp;

use super::*;
use crate::clock::Manual;
use crate::identity;
use crate::identity::Peer;
use crate::identity::Rules;

const RULES: &str = "
    [[rule]]
    match = \"unix:gid=1\"
    tenant = \"acme\"
    [[rule]]
    match = \"unix:gid=2\"
    tenant = \"globex\"";

const USUAL: Terms = Terms {
    rate: None,
    weight: 1,
};

struct Scene {
    clock: Arc<Manual>,
    metrics: Metrics,
    quotas: Quotas,
    rules: Rules,
}

impl Scene {
    fn new(tenant_rate: u32, principal_rate: u32) -> Self {
        let clock = Arc::new(Manual::new(Timestamp::UNIX_EPOCH));
        let metrics = Metrics::unread();
        let config = Config {
            tenant_rate,
            principal_rate,
        };
        let rules: identity::Config = toml::from_str(RULES).unwrap();
        Self {
            quotas: Quotas::new(&config, metrics.clone(), clock.clone()),
            rules: Rules::new(&rules).unwrap(),
            clock,
            metrics,
        }
    }

    /// On a connection of its own.
    fn account(&self, uid: u32, gid: u32) -> Arc<Account> {
        let caller = self.rules.map(&Peer::unix(uid, gid)).unwrap();
        self.quotas.account(&Known::default(), 1, &caller, USUAL)
    }
}

/// How many calls `account` is let in for, and why no more.
fn calls(account: &Account) -> (u64, Exceeded) {
    let mut calls = 0;
    loop {
        match account.spend(CALL) {
            Ok(()) => calls += 1,
            Err(exceeded) => return (calls, exceeded),
        }
    }
}

#[test]
fn principals_share_what_their_tenant_has_and_tenants_share_nothing() {
    let scene = Scene::new(200, 125);
    let (calls_of_one, exceeded) = calls(&scene.account(1, 1));
    assert_eq!((calls_of_one, exceeded.scope), (250, RateScope::Principal));
    let (calls_of_another, exceeded) = calls(&scene.account(2, 1));
    assert_eq!((calls_of_another, exceeded.scope), (150, RateScope::Tenant));
    assert_eq!(calls(&scene.account(1, 2)).0, 250);
    let limited = RateScope::ALL.map(|scope| scene.metrics.rates_limited(scope));
    assert_eq!(limited, [2, 1]);
}

#[test]
fn a_principal_has_one_limit_on_all_its_connections() {
    let scene = Scene::new(1000, 100);
    assert_eq!(calls(&scene.account(1, 1)).0, 200);
    assert_eq!(calls(&scene.account(1, 1)).0, 0);
    assert_eq!(calls(&scene.account(2, 1)).0, 200);
}

#[test]
fn what_a_tenant_refuses_costs_its_principals_nothing() {
    let scene = Scene::new(100, 100);
    let (noisy, quiet) = (scene.account(1, 1), scene.account(2, 1));
    noisy.charge(300);
    for _ in 0..1000 {
        assert_eq!(quiet.spend(CALL).unwrap_err().scope, RateScope::Tenant);
    }
    scene.clock.advance(Duration::from_secs(10));
    assert_eq!(calls(&quiet).0, 200);
}

#[test]
fn what_was_charged_is_owed_and_who_waits_is_told_how_long() {
    let scene = Scene::new(1000, 100);
    let account = scene.account(1, 1);
    account.charge(100);
    account.try_spend(CALL).unwrap();
    account.charge(149);
    let wait = account.try_spend(CALL).unwrap_err();
    assert_eq!(wait, Duration::from_millis(500));
    scene.clock.advance(wait + Duration::from_nanos(1));
    account.try_spend(CALL).unwrap();
}

#[test]
fn a_rate_of_its_own_holds_from_the_next_generation_on() {
    let scene = Scene::new(1000, 1000);
    let caller = scene.rules.map(&Peer::unix(1, 1)).unwrap();
    let known = Known::default();
    let own = Terms {
        rate: Rate::new(100),
        ..USUAL
    };
    let account = |generation, terms| scene.quotas.account(&known, generation, &caller, terms);
    let first = account(1, USUAL);
    assert!(Arc::ptr_eq(&first, &account(1, own)));
    assert_eq!(calls(&account(2, own)).1.rate, 100);
}

#[test]
fn who_comes_back_finds_what_it_has_left() {
    let scene = Scene::new(1000, 100);
    calls(&scene.account(1, 1));
    scene.quotas.sweep();
    assert_eq!(calls(&scene.account(1, 1)).0, 0);
    scene.clock.advance(Duration::from_secs(2));
    scene.quotas.sweep();
    assert_eq!(scene.quotas.principals.len(), 0);
    assert_eq!(calls(&scene.account(1, 1)).0, 200);
}

#[test]
fn no_crowd_takes_memory_without_end() {
    let scene = Scene::new(Rate::MOST, 100);
    let kept = scene.account(0, 1);
    for uid in 1..100_000 {
        let account = scene.account(uid, 1);
        account.spend(CALL).unwrap();
    }
    assert_eq!(scene.quotas.principals.len(), table::MOST);
    let late = scene.account(200_000, 1);
    assert_eq!(calls(&late).0, 200, "limited all the same");
    scene.clock.advance(Duration::from_secs(2));
    scene.quotas.sweep();
    assert_eq!(scene.quotas.principals.len(), 1);
    drop(kept);
    scene.quotas.sweep();
    assert_eq!(scene.quotas.principals.len(), 0);
}

#[test]
fn rates_out_of_bounds_are_refused() {
    let config = |tenant_rate, principal_rate| Config {
        tenant_rate,
        principal_rate,
    };
    config(100, 10_000_000).check().unwrap();
    assert_eq!(
        config(99, 100).check().unwrap_err().name,
        "quota.tenant_rate"
    );
    assert_eq!(
        config(100, 10_000_001).check().unwrap_err().name,
        "quota.principal_rate"
    );
}
