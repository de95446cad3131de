mod gate;

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use tokio::time::Instant;

use super::breaker::Breaker;
use super::breaker::Change;
use super::breaker::Verdict;
use super::regions::Regions;
use super::retries::Arrivals;
use super::retries::Budget;
use super::retries::pause;
use crate::kms::Error;
use crate::kms::KeyRef;
use crate::metrics::Circuit;
use crate::metrics::KmsOperation;
use crate::metrics::KmsOutcome;
use crate::metrics::Metrics;
use crate::trace::Tracer;

const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// Makes an attempt that ends at once.
fn attempt(breaker: &Breaker, verdict: Verdict, now: Instant) -> Option<Change> {
    let pass = breaker.admit(now).expect("it may pass");
    pass.settle(verdict, now, 0)
}

/// A breaker that opened at `now`, for a second.
fn opened(now: Instant) -> Breaker {
    let breaker = Breaker::new(now);
    let changes: Vec<_> = (0..20)
        .filter_map(|_| attempt(&breaker, Verdict::Failure, now))
        .collect();
    let (failures, attempts) = (20, 20);
    assert_eq!(changes, [Change::Open { failures, attempts }]);
    breaker
}

#[test]
fn the_twentieth_failure_opens_and_the_nineteenth_does_not() {
    let now = Instant::now();
    let breaker = Breaker::new(now);
    for _ in 0..19 {
        assert_eq!(attempt(&breaker, Verdict::Failure, now), None);
    }
    assert_eq!(breaker.circuit(), Circuit::Closed);
    let change = attempt(&breaker, Verdict::Failure, now);
    assert!(matches!(change, Some(Change::Open { .. })), "{change:?}");
    assert_eq!(breaker.circuit(), Circuit::Open);
}

#[test]
fn it_opens_when_half_of_the_attempts_failed_and_not_before() {
    let now = Instant::now();
    let breaker = Breaker::new(now);
    for _ in 0..20 {
        assert_eq!(attempt(&breaker, Verdict::Success, now), None);
    }
    for _ in 0..19 {
        assert_eq!(attempt(&breaker, Verdict::Failure, now), None);
    }
    let (failures, attempts) = (20, 40);
    let change = attempt(&breaker, Verdict::Failure, now);
    assert_eq!(change, Some(Change::Open { failures, attempts }));
}

#[test]
fn what_failed_ten_seconds_ago_does_not_count() {
    let now = Instant::now();
    for (later, circuit) in [
        (SECOND * 10 - MILLISECOND, Circuit::Open),
        (SECOND * 10, Circuit::Closed),
    ] {
        let breaker = Breaker::new(now);
        for _ in 0..19 {
            attempt(&breaker, Verdict::Failure, now);
        }
        attempt(&breaker, Verdict::Failure, now + later);
        assert_eq!(breaker.circuit(), circuit, "{later:?}");
    }
}

#[test]
fn what_says_nothing_of_the_service_neither_opens_nor_counts() {
    let now = Instant::now();
    let breaker = Breaker::new(now);
    for _ in 0..1000 {
        attempt(&breaker, Verdict::Neutral, now);
    }
    for _ in 0..19 {
        attempt(&breaker, Verdict::Failure, now);
    }
    attempt(&breaker, Verdict::Neutral, now);
    assert_eq!(breaker.circuit(), Circuit::Closed);
    attempt(&breaker, Verdict::Failure, now);
    assert_eq!(breaker.circuit(), Circuit::Open);
}

#[test]
fn it_is_open_for_one_to_five_seconds() {
    let now = Instant::now();
    for (chance, seconds) in [(0, 1), (u16::MAX, 5)] {
        let breaker = opened(now);
        let probe = breaker.admit(now + SECOND).expect("a probe");
        let failed = now + SECOND;
        assert_eq!(probe.settle(Verdict::Failure, failed, chance), None);
        let until = failed + SECOND * seconds;
        assert!(breaker.admit(until - MILLISECOND).is_none());
        assert!(breaker.admit(until).is_some());
    }
}

#[test]
fn one_probe_at_a_time_decides() {
    let now = Instant::now();
    let later = now + SECOND;
    for verdict in [Verdict::Success, Verdict::Neutral] {
        let breaker = opened(now);
        assert!(breaker.admit(now).is_none());
        let probe = breaker.admit(later).expect("a probe");
        assert!(breaker.admit(later).is_none(), "it is under way");
        assert_eq!(breaker.circuit(), Circuit::Half);
        let change = probe.settle(verdict, later, 0);
        assert_eq!(change, Some(Change::Close));
        assert_eq!(breaker.circuit(), Circuit::Closed);
        // Nothing of what was before counts.
        assert_eq!(attempt(&breaker, Verdict::Failure, later), None);
    }
}

#[test]
fn a_probe_that_is_given_up_makes_way_for_the_next() {
    let now = Instant::now();
    let breaker = opened(now);
    for _ in 0..3 {
        let probe = breaker.admit(now + SECOND).expect("a probe");
        drop(probe);
        assert_eq!(breaker.circuit(), Circuit::Half);
    }
}

#[test]
fn an_answer_from_before_changes_nothing() {
    let now = Instant::now();
    let breaker = Breaker::new(now);
    let [early, late, gone] = [(); 3].map(|()| breaker.admit(now).expect("it is closed"));
    for _ in 0..20 {
        attempt(&breaker, Verdict::Failure, now);
    }
    assert_eq!(early.settle(Verdict::Success, now, 0), None);
    assert_eq!(breaker.circuit(), Circuit::Open);
    let later = now + SECOND;
    let probe = breaker.admit(later).expect("a probe");
    assert_eq!(late.settle(Verdict::Success, later, 0), None);
    drop(gone);
    assert!(breaker.admit(later).is_none(), "the probe is under way");
    drop(probe);
}

/// Attempts that end at once, at whole seconds, against a list of all of them.
#[derive(Default)]
struct Model {
    attempts: Vec<(u64, Verdict)>,
    open_until: Option<u64>,
}

impl Model {
    fn attempt(&mut self, verdict: Verdict, now: u64) -> Option<Option<Change>> {
        match self.open_until {
            Some(until) if now < until => return None,
            Some(_) if verdict == Verdict::Failure => {
                self.open_until = Some(now + 1);
                return Some(None);
            }
            Some(_) => {
                *self = Self::default();
                return Some(Some(Change::Close));
            }
            None => self.attempts.push((now, verdict)),
        }
        let recent = self.attempts.iter().filter(|(at, _)| now - at < 10);
        let recent: Vec<_> = recent.collect();
        let count = |of| recent.iter().map(|(_, one)| u64::from(*one == of)).sum();
        let [failures, successes]: [u64; 2] = [Verdict::Failure, Verdict::Success].map(count);
        let attempts = failures + successes;
        let opens = verdict == Verdict::Failure && attempts >= 20 && failures * 2 >= attempts;
        Some(opens.then(|| {
            self.open_until = Some(now + 1);
            Change::Open { failures, attempts }
        }))
    }
}

proptest! {
    #[test]
    fn a_breaker_is_what_its_model_is(
        steps in proptest::collection::vec((0..40u64, 0..12u8), 0..400),
    ) {
        let start = Instant::now();
        let breaker = Breaker::new(start);
        let mut model = Model::default();
        let mut seconds = 0;
        for (pause, kind) in steps {
            seconds += pause.saturating_sub(36);
            let verdict = match kind {
                0..7 => Verdict::Failure,
                7 => Verdict::Neutral,
                _ => Verdict::Success,
            };
            let now = start + Duration::from_secs(seconds);
            let real = breaker.admit(now).map(|pass| pass.settle(verdict, now, 0));
            prop_assert_eq!(real, model.attempt(verdict, seconds));
        }
    }

    #[test]
    fn a_budget_is_what_its_model_is(
        steps in proptest::collection::vec((0..60u64, any::<bool>()), 0..400),
    ) {
        let start = Instant::now();
        let mut budget = Budget::default();
        let (mut given, mut earned, mut millis) = (Vec::<u64>::new(), 0, 0);
        for (pause, succeeds) in steps {
            millis += pause;
            if succeeds {
                budget.earn();
                earned += 1;
                continue;
            }
            let recent = given.iter().filter(|at| millis - **at < 1000).count();
            let taken = match (recent, earned) {
                (..10, _) => {
                    given.push(millis);
                    true
                }
                (_, 10..) => {
                    earned -= 10;
                    true
                }
                _ => false,
            };
            prop_assert_eq!(budget.take(start + Duration::from_millis(millis)), taken);
        }
    }
}

#[test]
fn a_budget_gives_ten_a_second_and_a_tenth_of_what_succeeds() {
    let now = Instant::now();
    let mut budget = Budget::default();
    let taken = |budget: &mut Budget, now| (0..1000).take_while(|_| budget.take(now)).count();
    assert_eq!(taken(&mut budget, now), 10);
    assert_eq!(taken(&mut budget, now + SECOND - MILLISECOND), 0);
    assert_eq!(taken(&mut budget, now + SECOND), 10);
    // An hour gives no more than a second.
    let later = now + SECOND * 3600;
    assert_eq!(taken(&mut budget, later), 10);
    for _ in 0..39 {
        budget.earn();
    }
    assert_eq!(taken(&mut budget, later), 3);
    for _ in 0..1_000_000 {
        budget.earn();
    }
    assert_eq!(taken(&mut budget, later), 100);
}

#[test]
fn arrivals_are_free_until_more_of_them_fail_than_succeed() {
    let now = Instant::now();
    let at = |seconds| now + SECOND * seconds;
    let mut arrivals = Arrivals::default();
    for _ in 0..1000 {
        arrivals.succeeded();
        arrivals.failed(now);
        arrivals.succeeded();
    }
    for _ in 0..7 {
        arrivals.failed(now);
    }
    assert!(arrivals.are_well(now));
    for _ in 0..1000 {
        arrivals.failed(at(1));
    }
    for _ in 0..8 {
        assert!(!arrivals.are_well(at(2)));
        arrivals.succeeded();
    }
    assert!(!arrivals.are_well(at(2)));
    arrivals.succeeded();
    assert!(arrivals.are_well(at(2)));
    arrivals.failed(at(2));
    assert!(!arrivals.are_well(at(11)));
    assert!(arrivals.are_well(at(12)), "it is long ago");
}

/// 10,000 calls, 100 a second, of which each would like to be made again twice.
#[test]
fn when_everything_fails_a_tenth_is_tried_again() {
    let start = Instant::now();
    let mut budget = Budget::default();
    let retries = (0..10_000)
        .flat_map(|call| [start + MILLISECOND * 10 * call; 2])
        .filter(|now| budget.take(*now))
        .count();
    assert_eq!(retries, 1000);
}

#[test]
fn pauses_grow_to_a_second_and_are_random() {
    let failed = Error::Unavailable("away".into());
    let longest = |error: &Error, retries| pause(error, retries, u16::MAX);
    let millis = |number| Some(Duration::from_millis(number));
    assert_eq!(longest(&failed, 0), millis(50));
    assert_eq!(longest(&failed, 1), millis(100));
    assert_eq!(longest(&failed, 2), None);
    assert_eq!(longest(&Error::Throttled, 0), millis(500));
    assert_eq!(longest(&Error::Throttled, 1), millis(1000));
    assert_eq!(longest(&Error::Throttled, 2), None);
    assert_eq!(pause(&failed, 0, 0), Some(Duration::ZERO));
    let half = pause(&failed, 0, u16::MAX / 2).expect("a pause");
    assert!((24..26).contains(&half.as_millis()), "{half:?}");
}

fn key() -> KeyRef {
    let arn = "arn:aws:kms:eu-west-1:111122223333:key/1234abcd";
    arn.parse().expect("an ARN")
}

#[tokio::test]
async fn a_key_that_nobody_asks_for_is_forgotten_and_so_is_its_circuit() {
    let metrics = Metrics::unread();
    let regions = Regions::new(1000, metrics.clone(), Tracer::off());
    let now = Instant::now();
    let guard = regions.guard(&key(), now);
    for _ in 0..20 {
        let request = guard
            .begin(KmsOperation::Decrypt, None, 1, now)
            .expect("a request");
        request.end(&Err::<(), _>(Error::Unavailable("away".into())), now);
    }
    assert!(guard.begin(KmsOperation::Decrypt, None, 1, now).is_none());
    let tally = metrics.kms("eu-west-1");
    assert_eq!(tally.circuit_state(), 2);

    regions.forget(now + SECOND * 60);
    assert!(Arc::ptr_eq(&guard, &regions.guard(&key(), now)), "in use");
    let known = Arc::downgrade(&guard);
    drop(guard);
    regions.forget(now + SECOND * 60 - MILLISECOND);
    assert_eq!((known.strong_count(), tally.circuit_state()), (1, 2));
    regions.forget(now + SECOND * 60);
    assert_eq!((known.strong_count(), tally.circuit_state()), (0, 0));
}

#[tokio::test]
async fn a_request_that_is_dropped_is_counted_and_is_no_probe() {
    let metrics = Metrics::unread();
    let regions = Regions::new(1000, metrics.clone(), Tracer::off());
    let now = Instant::now();
    let guard = regions.guard(&key(), now);
    for _ in 0..20 {
        let request = guard
            .begin(KmsOperation::Decrypt, None, 1, now)
            .expect("a request");
        request.end(&Err::<(), _>(Error::Credentials("none".into())), now);
    }
    let later = now + SECOND * 5;
    let tally = metrics.kms("eu-west-1");
    drop(
        guard
            .begin(KmsOperation::Decrypt, None, 1, later)
            .expect("a probe"),
    );
    assert_eq!(tally.circuit_state(), 1);
    let probe = guard
        .begin(KmsOperation::Decrypt, None, 1, later)
        .expect("a probe");
    assert!(guard.begin(KmsOperation::Decrypt, None, 1, later).is_none());
    probe.end(&Ok(()), later);
    assert_eq!(tally.circuit_state(), 0);
    let counted = [
        KmsOutcome::Abandoned,
        KmsOutcome::Credentials,
        KmsOutcome::Done,
    ]
    .map(|outcome| tally.requests(KmsOperation::Decrypt, outcome));
    assert_eq!(counted, [1, 20, 1]);
}
