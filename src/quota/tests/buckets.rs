//! What a bucket holds, and when.

use std::time::Duration;

use jiff::Timestamp;
use proptest::prelude::*;

use crate::clock::Clock as _;
use crate::clock::Manual;
use crate::quota::Rate;
use crate::quota::SIZE;
use crate::quota::bucket::Bucket;

fn rate(units: u32) -> Rate {
    Rate::new(units).unwrap()
}

#[test]
fn a_full_bucket_holds_two_seconds_of_its_rate() {
    let clock = Manual::new(Timestamp::UNIX_EPOCH);
    let (bucket, rate) = (Bucket::new(SIZE), rate(100));
    let takes = || (0..).take_while(|_| bucket.take(1, rate, clock.now()).is_ok());
    assert_eq!(takes().count(), 200);
    clock.advance(Duration::from_millis(250));
    assert_eq!(takes().count(), 25);
    clock.advance(Duration::from_secs(3600));
    assert!(bucket.is_full(clock.now()));
    assert_eq!(takes().count(), 200);
}

#[test]
fn an_empty_bucket_says_when_it_is_not() {
    let clock = Manual::new(Timestamp::UNIX_EPOCH);
    let (bucket, rate) = (Bucket::new(SIZE), rate(100));
    bucket.take(350, rate, clock.now()).unwrap();
    let wait = bucket.take(1, rate, clock.now()).unwrap_err();
    assert_eq!(wait, Duration::from_millis(1500));
    assert_eq!(bucket.owed(clock.now()), Some(wait));
    clock.advance(wait);
    let instant = bucket.take(1, rate, clock.now()).unwrap_err();
    assert_eq!(instant, Duration::from_nanos(1));
    clock.advance(instant);
    bucket.take(1, rate, clock.now()).unwrap();
}

#[test]
fn a_debt_has_an_end() {
    let clock = Manual::new(Timestamp::UNIX_EPOCH);
    let (bucket, rate) = (Bucket::new(SIZE), rate(100));
    for units in [1000, u64::MAX, 0] {
        bucket.charge(units, rate, clock.now());
    }
    assert_eq!(bucket.owed(clock.now()), Some(SIZE.debt));
}

proptest! {
    /// Against plain arithmetic: never more than what came, and one call's debt.
    #[test]
    fn what_is_taken_came_before(
        units_a_second in Rate::LEAST..=Rate::MOST,
        calls in prop::collection::vec((0..3_000_000_000_u64, 1..5_000_u64), 1..200),
    ) {
        let clock = Manual::new(Timestamp::UNIX_EPOCH);
        let start = clock.now();
        let (bucket, rate) = (Bucket::new(SIZE), rate(units_a_second));
        let (mut taken, mut last) = (0_u64, 0);
        for (pause, units) in calls {
            clock.advance(Duration::from_nanos(pause));
            let now = clock.now();
            match bucket.take(units, rate, now) {
                Ok(()) => (taken, last) = (taken + units, units),
                Err(wait) => prop_assert!(wait <= SIZE.debt),
            }
            let came = now.since(start) + SIZE.burst;
            let came = came.as_nanos() * u128::from(units_a_second) / 1_000_000_000;
            let most = came + u128::from(last);
            let forgiven = rate.nanos(last) > SIZE.debt.as_nanos().try_into().unwrap();
            prop_assume!(!forgiven);
            // One for each that rounding down to nanoseconds gives away.
            prop_assert!(u128::from(taken) <= most + 200, "{taken} of {most}");
        }
    }

    #[test]
    fn who_waits_as_long_as_it_was_told_is_let_in(
        units_a_second in Rate::LEAST..=Rate::MOST,
        spent in 0..10_000_000_u64,
    ) {
        let clock = Manual::new(Timestamp::UNIX_EPOCH);
        let (bucket, rate) = (Bucket::new(SIZE), rate(units_a_second));
        bucket.charge(spent, rate, clock.now());
        if let Err(wait) = bucket.take(1, rate, clock.now()) {
            clock.advance(wait + Duration::from_nanos(1));
            prop_assert_eq!(bucket.take(1, rate, clock.now()), Ok(()));
        }
    }
}
