//! Interleavings of those who come to a gate, wait there, go away and come back from KMS.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use keybroker::kms::Demand;
use keybroker::metrics::Metrics;
use loom::thread;
use tokio::time::Instant;

use crate::done;
use crate::explore;
use crate::gate::Answer;
use crate::gate::Gate;
use crate::gate::Place;
use crate::gate::Turn;

/// While the one request that a tenant may have under way ends, another one comes, and the
/// porter heeds the bell: it passes, by itself or by the porter.
#[test]
fn the_end_of_a_request_lets_the_next_pass() {
    explore(|| {
        let now = Instant::now();
        let gate = gate(None, now);
        let first = pass(&gate, "a", now);
        let ending = thread::spawn(move || drop(first));
        let coming = {
            let gate = Arc::clone(&gate);
            thread::spawn(move || gate.ask(&demand("a", now), now))
        };
        gate.look(now);
        heed(&gate, now);
        done(ending);
        let answer = done(coming);
        heed(&gate, now);
        let _turn = match answer {
            Answer::Later(_) => panic!("nobody is before it"),
            Answer::Pass(turn) => turn,
            Answer::Wait(mut place) => granted(&mut place).expect("its turn"),
        };
        let full = gate.ask(&demand("a", now), now);
        assert!(matches!(full, Answer::Wait(_)), "a share is a share");
    });
}

/// While one of two who wait goes away, the one token there is comes up: the other one gets it.
#[test]
fn who_goes_away_takes_no_token_along() {
    explore(|| {
        let now = Instant::now();
        let gate = gate(Some(1), now);
        let _first = pass(&gate, "z", now);
        let (leaving, mut staying) = (wait(&gate, "a", now), wait(&gate, "b", now));
        let later = now + Duration::from_millis(1100);
        let gone = thread::spawn(move || drop(leaving));
        let looking = {
            let gate = Arc::clone(&gate);
            thread::spawn(move || gate.look(later))
        };
        done(gone);
        done(looking);
        heed(&gate, later);
        let _turn = granted(&mut staying).expect("its turn");
        let next = gate.ask(&demand("c", later), later);
        assert!(matches!(next, Answer::Wait(_)), "one token a second");
    });
}

/// While a caller joins what was asked ahead of time, a token comes up that another caller waits
/// for: one of both gets it, and the other the next.
#[test]
fn who_is_joined_is_in_the_queue_once() {
    explore(|| {
        let now = Instant::now();
        let gate = gate(Some(1), now);
        let _first = pass(&gate, "z", now);
        let until = now + Duration::from_secs(30);
        let early = Demand::ahead("a".parse().expect("a tenant"), 1, until);
        let Answer::Wait(mut ahead) = gate.ask(&early, now) else {
            panic!("there is no token");
        };
        let mut caller = wait(&gate, "b", now);
        let joining = thread::spawn(move || early.join(until));
        gate.look(now + Duration::from_millis(1100));
        assert!(done(joining));
        let turns = [granted(&mut ahead), granted(&mut caller)];
        assert_eq!(turns.iter().flatten().count(), 1);
        gate.look(now + Duration::from_millis(2200));
        let others = [granted(&mut ahead), granted(&mut caller)];
        assert_eq!(others.iter().flatten().count(), 1);
    });
}

fn gate(limit: Option<u32>, now: Instant) -> Arc<Gate> {
    let tally = Metrics::unread().kms("eu-west-1");
    Arc::new(Gate::new(limit, 4, tally, now))
}

fn demand(tenant: &str, now: Instant) -> Demand {
    let tenant = tenant.parse().expect("a tenant");
    Demand::new(tenant, 1, now + Duration::from_secs(30))
}

/// The turn of one that need not wait, whose request is made.
fn pass(gate: &Arc<Gate>, tenant: &str, now: Instant) -> Turn {
    let Answer::Pass(mut turn) = gate.ask(&demand(tenant, now), now) else {
        panic!("there is room");
    };
    turn.use_at(now);
    turn
}

fn wait(gate: &Arc<Gate>, tenant: &str, now: Instant) -> Place {
    let Answer::Wait(place) = gate.ask(&demand(tenant, now), now) else {
        panic!("there is no token");
    };
    place
}

fn granted(place: &mut Place) -> Option<Turn> {
    place.turn.try_recv().ok()
}

/// Looks as often as the bell has rung.
fn heed(gate: &Arc<Gate>, now: Instant) {
    while gate.bell.notified().now_or_never().is_some() {
        gate.look(now);
    }
}
