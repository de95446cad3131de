//! What is left for whom when there is too much to do.

use super::*;

const HELD: Duration = Duration::from_millis(300);

impl Scene {
    fn level(&self, units: u32) {
        let level = Level { units, hold: HELD };
        self.quotas.set_level(Some(level));
    }

    fn weighing(&self, uid: u32, gid: u32, weight: u32) -> Arc<Account> {
        let caller = self.rules.map(&Peer::unix(uid, gid)).unwrap();
        let terms = Terms { weight, ..USUAL };
        self.quotas.account(&Known::default(), 1, &caller, terms)
    }

    /// How many of `calls`, evenly over a second, are let in.
    fn second(&self, account: &Account, calls: u32) -> u32 {
        let mut passed = 0;
        for _ in 0..calls {
            if account.enter().is_ok() {
                account.spend(CALL).unwrap();
                passed += 1;
            }
            self.clock.advance(Duration::from_secs(1) / calls);
        }
        passed
    }
}

fn scene() -> Scene {
    Scene::new(Rate::MOST, Rate::MOST)
}

#[test]
fn without_a_level_all_come_in_and_nothing_is_counted() {
    let scene = scene();
    assert_eq!(scene.second(&scene.account(1, 1), 5000), 5000);
    assert_eq!(scene.quotas.passed(), Passed::default());
    assert_eq!(scene.quotas.hold(), share::HOLD);
}

#[test]
fn a_tenant_below_the_level_is_never_refused_and_one_above_gets_the_level() {
    let scene = scene();
    scene.level(1000);
    assert_eq!(scene.quotas.hold(), HELD);
    assert_eq!(scene.second(&scene.account(1, 2), 990), 990);
    let passed = scene.second(&scene.account(1, 1), 5000);
    assert!((1000..=1011).contains(&passed), "{passed}");
    let units = u64::from(990 + passed);
    let refused = u64::from(5000 - passed);
    assert_eq!(scene.quotas.passed(), Passed { units, refused });
    assert_eq!(scene.quotas.passed(), Passed::default());
    scene.quotas.set_level(None);
    assert_eq!(scene.second(&scene.account(1, 1), 5000), 5000);
}

#[test]
fn principals_share_what_their_tenant_has() {
    let scene = scene();
    scene.level(1000);
    let (one, another) = (scene.account(1, 1), scene.account(2, 1));
    let mut passed = 0;
    for _ in 0..100 {
        for account in [&one, &another] {
            if account.enter().is_ok() {
                account.spend(CALL).unwrap();
                passed += 1;
            }
        }
        scene.clock.advance(Duration::from_millis(1));
    }
    assert!((100..=111).contains(&passed), "{passed}");
}

#[test]
fn weights_count_and_nobody_is_left_with_less_than_the_lowest_rate() {
    let scene = scene();
    scene.level(500);
    let passed = scene.second(&scene.weighing(1, 1, 4), 10_000);
    assert!((2000..=2021).contains(&passed), "{passed}");
    scene.level(1);
    let passed = scene.second(&scene.weighing(1, 2, 1), 10_000);
    assert!((100..=102).contains(&passed), "{passed}");
}

#[test]
fn a_share_is_spent_by_what_calls_cost_and_the_debt_has_an_end() {
    let scene = scene();
    scene.level(1000);
    let account = scene.account(1, 1);
    account.enter().unwrap();
    account.charge(60);
    account.enter().unwrap_err();
    let wait = account.try_spend(CALL).unwrap_err();
    assert_eq!(wait, Duration::from_millis(50));
    account.charge(1_000_000);
    assert_eq!(account.try_spend(CALL).unwrap_err(), Duration::from_secs(1));
    scene.clock.advance(Duration::from_millis(1001));
    account.try_spend(CALL).unwrap();
}
