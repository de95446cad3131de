//! Who passes the gate, on a clock that the test moves.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::kms::Demand;
use crate::kms::guarded::gate::Answer;
use crate::kms::guarded::gate::Gate;
use crate::kms::guarded::gate::Place;
use crate::kms::guarded::gate::Turn;
use crate::metrics::KmsTally;
use crate::metrics::Metrics;

struct Scene {
    gate: Arc<Gate>,
    tally: Arc<KmsTally>,
    now: Instant,
}

impl Scene {
    /// A gate without a token left, if there are any.
    fn at(limit: Option<u32>) -> Self {
        let now = Instant::now();
        let tally = Metrics::unread().kms("eu-west-1");
        let gate = Arc::new(Gate::new(limit, 16, Arc::clone(&tally), now));
        let scene = Self { gate, tally, now };
        while limit.is_some()
            && let Answer::Pass(mut turn) = scene.ask(&scene.demand("z", 0))
        {
            turn.use_at(now);
        }
        scene
    }

    /// Of a caller of `tenant` who waits for so many milliseconds.
    fn demand(&self, tenant: &str, millis: u64) -> Demand {
        self.weighty(tenant, 1, millis)
    }

    fn weighty(&self, tenant: &str, weight: u32, millis: u64) -> Demand {
        let tenant = tenant.parse().expect("a tenant");
        Demand::new(tenant, weight, self.now + Duration::from_millis(millis))
    }

    fn ahead(&self, tenant: &str) -> Demand {
        let tenant = tenant.parse().expect("a tenant");
        Demand::ahead(tenant, 1, self.now + Duration::from_secs(30))
    }

    /// The same, until it is urgent after so many milliseconds.
    fn ahead_of(&self, tenant: &str, millis: u64) -> Demand {
        let tenant = tenant.parse().expect("a tenant");
        let urgent = self.now + Duration::from_millis(millis);
        Demand::ahead_of(urgent, tenant, 1, self.now + Duration::from_secs(30))
    }

    fn ask(&self, demand: &Demand) -> Answer {
        self.gate.ask(demand, self.now)
    }

    fn wait(&self, demand: &Demand) -> Place {
        match self.ask(demand) {
            Answer::Wait(place) => place,
            Answer::Later(pause) => panic!("told to come again after {pause:?}"),
            Answer::Pass(_) => panic!("there is no room"),
        }
    }

    fn pass(&self, demand: &Demand) -> Turn {
        match self.ask(demand) {
            Answer::Pass(mut turn) => {
                turn.use_at(self.now);
                turn
            }
            Answer::Later(pause) => panic!("told to come again after {pause:?}"),
            Answer::Wait(_) => panic!("there is room"),
        }
    }

    fn pause(&self, demand: &Demand) -> Option<Duration> {
        match self.ask(demand) {
            Answer::Later(pause) => Some(pause),
            Answer::Pass(_) | Answer::Wait(_) => None,
        }
    }

    /// Moves the clock on until nobody waits any more: the places in the order of their turns.
    fn order(&mut self, mut waiting: Vec<(&'static str, Place)>) -> String {
        let mut order = String::new();
        while !waiting.is_empty() {
            self.now = self.gate.look(self.now).expect("somebody waits");
            self.gate.look(self.now);
            waiting.retain_mut(|(name, place)| {
                let Ok(mut turn) = place.turn.try_recv() else {
                    return true;
                };
                turn.use_at(self.now);
                order.push_str(name);
                false
            });
        }
        order
    }
}

#[test]
fn tenants_pass_by_turns_and_weights_and_callers_before_what_is_ahead_of_time() {
    let mut scene = Scene::at(Some(10));
    let demands = [("r", scene.ahead("r")), ("r", scene.ahead("r"))]
        .into_iter()
        .chain((0..6).map(|_| ("a", scene.demand("a", 9000))))
        .chain((0..2).map(|_| ("b", scene.demand("b", 9000))))
        .chain((0..4).map(|_| ("c", scene.weighty("c", 2, 9000))));
    let waiting = demands.map(|(name, demand)| (name, scene.wait(&demand)));
    let waiting = waiting.collect();
    assert_eq!(scene.tally.queue_length(), 14);
    assert_eq!(scene.order(waiting), "abccabccaaaarr");
    assert_eq!(scene.tally.queue_length(), 0);
}

#[test]
fn what_is_ahead_of_time_is_urgent_when_its_time_has_come() {
    let mut scene = Scene::at(Some(10));
    let demands = [
        ("r", scene.ahead_of("r", 9000)),
        ("s", scene.ahead_of("s", 250)),
        ("t", scene.ahead_of("t", 0)),
    ]
    .into_iter()
    .chain((0..5).map(|_| ("a", scene.demand("a", 9000))));
    let waiting = demands.map(|(name, demand)| (name, scene.wait(&demand)));
    let waiting = waiting.collect();
    // One passes each 100 ms, by turns.
    assert_eq!(scene.order(waiting), "tasaaaar");
}

#[test]
fn what_is_ahead_of_time_is_urgent_when_a_caller_waits_for_it() {
    let mut scene = Scene::at(Some(10));
    let demands = [
        ("r", scene.ahead("r")),
        ("s", scene.ahead("s")),
        ("a", scene.demand("a", 9000)),
        ("a", scene.demand("a", 9000)),
    ];
    let waiting = demands.each_ref();
    let waiting = waiting.map(|(name, demand)| (*name, scene.wait(demand)));
    let [_, (_, joined), ..] = &demands;
    assert!(joined.join(scene.now + Duration::from_secs(9)));
    assert_eq!(scene.order(waiting.into()), "saar");
}

#[test]
fn who_cannot_be_served_in_time_is_told_when_there_is_room() {
    let scene = Scene::at(Some(1));
    let second = Duration::from_secs(1);
    assert_eq!(scene.pause(&scene.demand("a", 1040)), Some(second));
    let _first = scene.wait(&scene.demand("a", 1060));
    // A second one of this tenant comes after the first of any other.
    assert_eq!(scene.pause(&scene.demand("a", 1900)), Some(second * 2));
    let _second = scene.wait(&scene.demand("b", 2100));
    assert_eq!(scene.pause(&scene.demand("a", 2900)), Some(second * 3));
    let _third = scene.wait(&scene.demand("c", 3100));
    assert_eq!(
        scene.tally.sheds(),
        3 + 1,
        "and one that emptied the bucket"
    );
    assert_eq!(scene.tally.queue_length(), 3);
}

#[test]
fn who_leaves_is_not_in_the_way() {
    let scene = Scene::at(Some(1));
    let demand = || scene.demand("a", 1060);
    let first = scene.wait(&demand());
    let late = demand();
    assert!(scene.pause(&late).is_some());
    assert!(!late.join(scene.now + Duration::from_secs(9)), "it is over");
    drop(first);
    assert_eq!(scene.tally.queue_length(), 0);
    scene.wait(&demand());
}

#[test]
fn a_turn_without_a_request_costs_nothing() {
    let scene = Scene::at(Some(1));
    let mut place = scene.wait(&scene.demand("a", 5000));
    let later = scene.now + Duration::from_millis(1001);
    scene.gate.look(later);
    let turn = place.turn.try_recv().expect("its turn");
    let mut other = scene.wait(&scene.demand("b", 5000));
    drop(turn);
    scene.gate.look(later);
    assert!(other.turn.try_recv().is_ok());
}

#[test]
fn a_tenant_has_a_quarter_of_the_requests_under_way_and_all_have_the_pool() {
    let scene = Scene::at(None);
    let mut under_way = Vec::new();
    for tenant in ["a", "b", "c", "d"] {
        let demand = scene.demand(tenant, 0);
        under_way.extend((0..4).map(|_| scene.pass(&demand)));
        scene.wait(&scene.demand(tenant, 5000));
    }
    let mut waiting = ["a", "e"].map(|tenant| scene.wait(&scene.demand(tenant, 5000)));
    drop(under_way.pop());
    scene.gate.look(scene.now);
    let turns = waiting
        .each_mut()
        .map(|place| place.turn.try_recv().is_ok());
    assert_eq!(turns, [false, true], "the first has its share under way");
}

#[test]
fn the_rate_follows_what_kms_takes_and_metrics_say_so() {
    let mut scene = Scene::at(Some(100));
    let rate = |scene: &Scene| {
        scene.gate.tend(scene.now);
        scene.tally.requests_per_second().round()
    };
    assert!((rate(&scene) - 100.0).abs() < 0.1);
    scene.now += Duration::from_secs(1);
    let turn = scene.pass(&scene.demand("a", 0));
    turn.throttled(scene.now);
    assert!((rate(&scene) - 70.0).abs() < 0.1);
    let room = scene.pause(&scene.demand("a", 0)).expect("a pause");
    assert_eq!(room.as_millis(), 14);
    scene.now += Duration::from_secs(10);
    assert!((rate(&scene) - 80.0).abs() < 0.1);
    drop(turn);
    let tally = Arc::clone(&scene.tally);
    drop(scene);
    assert!(tally.requests_per_second() < 0.1, "it is gone");
}
