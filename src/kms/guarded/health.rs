//! Whether a Region is well enough to be the first that is asked for keys which others have too.
//! What came of an attempt and what time it is are arguments.

use std::time::Duration;

use tokio::time::Instant;

/// A Region is well until [`FEW`] attempts in a row have failed, and again when attempts succeed
/// that are made [`WHILE`] or more after the last failure. Until then it is tried first by one
/// call every [`PAUSE`].
#[derive(Default)]
pub(super) struct Health {
    failures: u32,
    illness: Option<Illness>,
}

struct Illness {
    failed: Instant,
    tried: Instant,
}

/// What an attempt changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failover {
    /// Calls go to other Regions from now on.
    Begins,
    /// Calls come back.
    Ends,
}

impl Health {
    /// Whether it is worth while to come here from a Region that has failed: one that is not well may
    /// be so again when none has for long.
    pub(super) fn is_hopeful(&self, now: Instant) -> bool {
        let is_old = |failed| now.saturating_duration_since(failed) >= WHILE;
        self.illness
            .as_ref()
            .is_none_or(|illness| is_old(illness.failed))
    }

    /// Whether the call that asks shall try this Region before others. If the Region is not well,
    /// the next ones shall not.
    pub(super) fn comes_first(&mut self, now: Instant) -> bool {
        let Some(illness) = &mut self.illness else {
            return true;
        };
        let due = now.saturating_duration_since(illness.tried) >= PAUSE;
        if due {
            illness.tried = now;
        }
        due
    }

    /// The Region has answered.
    pub(super) fn succeeded(&mut self, now: Instant) -> Option<Failover> {
        self.failures = 0;
        let failed = self.illness.as_ref()?.failed;
        if now.saturating_duration_since(failed) < WHILE {
            return None;
        }
        self.illness = None;
        Some(Failover::Ends)
    }

    /// The Region has not answered, or not as it should.
    pub(super) fn failed(&mut self, now: Instant) -> Option<Failover> {
        if let Some(illness) = &mut self.illness {
            illness.failed = illness.failed.max(now);
            return None;
        }
        self.failures += 1;
        if self.failures < FEW {
            return None;
        }
        self.failures = 0;
        self.illness = Some(Illness {
            failed: now,
            tried: now,
        });
        Some(Failover::Begins)
    }
}

/// Failures in a row that are no accident any more.
const FEW: u32 = 3;
/// Between two calls that try a Region which is not well: each may lose the time of an attempt.
const PAUSE: Duration = Duration::from_secs(2);
/// Without a failure for so long, a Region is well.
const WHILE: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What happens to a Region.
    #[derive(Clone, Copy, Debug)]
    enum Step {
        Asked,
        Failed,
        Succeeded,
        Waited(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            Just(Step::Asked),
            Just(Step::Failed),
            Just(Step::Succeeded),
            (1u64..15_000).prop_map(Step::Waited),
        ]
    }

    proptest! {
        /// Against its definition, over the whole history.
        #[test]
        fn a_region_is_left_after_three_failures_in_a_row_and_taken_back_when_it_was_well_for_a_while(
            steps in prop::collection::vec(step(), 0..60)
        ) {
            let mut now = Instant::now();
            let mut health = Health::default();
            let (mut in_a_row, mut last_failure, mut well) = (0, None, true);
            let mut tried = now;
            for step in steps {
                match step {
                    Step::Waited(millis) => now += Duration::from_millis(millis),
                    Step::Asked => {
                        let first = health.comes_first(now);
                        prop_assert_eq!(first, well || now - tried >= PAUSE);
                        if first {
                            tried = now;
                        }
                    }
                    Step::Failed => {
                        in_a_row += 1;
                        last_failure = Some(now);
                        let change = health.failed(now);
                        let away = well && in_a_row == FEW;
                        prop_assert_eq!(change, away.then_some(Failover::Begins));
                        if away {
                            (well, tried) = (false, now);
                        }
                    }
                    Step::Succeeded => {
                        in_a_row = 0;
                        let quiet = last_failure.is_none_or(|failure| now - failure >= WHILE);
                        let back = !well && quiet;
                        prop_assert_eq!(health.succeeded(now), back.then_some(Failover::Ends));
                        well |= back;
                    }
                }
                prop_assert_eq!(health.illness.is_none(), well);
                let quiet = last_failure.is_none_or(|failure| now - failure >= WHILE);
                prop_assert_eq!(health.is_hopeful(now), well || quiet);
            }
        }
    }
}
