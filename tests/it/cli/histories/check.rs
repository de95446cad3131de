//! Whether what several clients saw of one grant can have come from a grant: each call takes effect
//! at one moment between its start and its end, in one order that explains all answers.

use std::collections::HashSet;

/// A call and how it ended. Times are in milliseconds, of the clock that expiries are by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Event {
    pub(super) began: i64,
    pub(super) ended: i64,
    pub(super) seen: Seen,
}

/// What the client saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// The grant was made, and expires then.
    Created(i64),
    /// It was renewed, and expires then.
    Renewed(i64),
    /// It is over, said the refusal of a renewal.
    Unrenewed,
    /// It was taken back.
    Revoked,
    /// So it was, perhaps, at any time since: nobody answered.
    PerhapsRevoked,
    Used,
    Refused,
}

/// How far answers may be from the truth, in milliseconds.
#[derive(Clone, Copy)]
pub(super) struct Bounds {
    /// A use may go by what was true so long before it.
    pub(super) stale: i64,
    /// A grant may be over so long before its expiry, for replicas whose news took as long.
    pub(super) early: i64,
}

/// Finds no order that explains `events`: the longest that explains some of them is told.
pub(super) fn explain(events: &[Event], bounds: Bounds) -> Result<(), String> {
    let mut events = events.to_vec();
    for event in &mut events {
        match event.seen {
            Seen::Used | Seen::Refused => event.began -= bounds.stale,
            Seen::PerhapsRevoked => event.ended = i64::MAX,
            _ => {}
        }
    }
    events.sort_by_key(|event| event.began);
    let start = State {
        now: i64::MIN,
        expires: None,
        ended: false,
    };
    let mut search = Search {
        events: &events,
        early: bounds.early,
        known: HashSet::new(),
        longest: Vec::new(),
    };
    let mut done = vec![false; events.len()];
    match search.goes_on(&mut done, &mut Vec::new(), start) {
        true => Ok(()),
        false => Err(format!(
            "after {:#?}\nnothing explains the rest of {events:#?}",
            search.longest
        )),
    }
}

/// A grant as it is at a moment.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct State {
    now: i64,
    /// None before it is made.
    expires: Option<i64>,
    ended: bool,
}

impl State {
    /// What `event` leaves behind, at the earliest moment that explains it: what a later one would
    /// explain as well, an earlier one leaves possible.
    fn after(self, event: &Event, early: i64) -> Option<Self> {
        let now = self.now.max(event.began);
        let at = |now| (now <= event.ended).then_some(Self { now, ..self });
        let lives = |expires| !self.ended && now < expires;
        match (event.seen, self.expires) {
            (Seen::Created(expires), None) => Some(Self {
                expires: Some(expires),
                ..at(now)?
            }),
            (Seen::Created(_), Some(_)) | (_, None) => None,
            (Seen::Renewed(later), Some(expires)) => Some(Self {
                expires: Some(later),
                ..at(now).filter(|_| lives(expires) && later >= expires)?
            }),
            (Seen::Used, Some(expires)) => at(now).filter(|_| lives(expires)),
            (Seen::Revoked | Seen::PerhapsRevoked, Some(_)) => Some(Self {
                ended: true,
                ..at(now)?
            }),
            (Seen::Refused | Seen::Unrenewed, Some(_)) if self.ended => at(now),
            (Seen::Refused | Seen::Unrenewed, Some(expires)) => at(now.max(expires - early)),
        }
    }
}

struct Search<'a> {
    events: &'a [Event],
    early: i64,
    /// From where nothing was found.
    known: HashSet<(Vec<bool>, State)>,
    longest: Vec<Event>,
}

impl Search<'_> {
    fn goes_on(&mut self, done: &mut [bool], order: &mut Vec<Event>, state: State) -> bool {
        if order.len() > self.longest.len() {
            self.longest.clone_from(order);
        }
        let left = || (0..self.events.len()).filter(|n| !done[*n]);
        if left().all(|n| self.events[n].seen == Seen::PerhapsRevoked) {
            return true;
        }
        if !self.known.insert((done.to_vec(), state)) {
            return false;
        }
        // What began after something else had ended does not come before it.
        let first_end = left().map(|n| self.events[n].ended).min();
        let first_end = first_end.expect("something is left");
        let next: Vec<usize> = left()
            .filter(|n| self.events[*n].began <= first_end)
            .collect();
        for n in next {
            let Some(after) = state.after(&self.events[n], self.early) else {
                continue;
            };
            done[n] = true;
            order.push(self.events[n]);
            let found = self.goes_on(done, order, after);
            order.pop();
            done[n] = false;
            if found {
                return true;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::Bounds;
    use super::Event;
    use super::Seen;
    use super::Seen::Created;
    use super::Seen::PerhapsRevoked;
    use super::Seen::Refused;
    use super::Seen::Renewed;
    use super::Seen::Revoked;
    use super::Seen::Unrenewed;
    use super::Seen::Used;

    fn explains(events: &[(i64, i64, Seen)], stale: i64) -> bool {
        let event = |(began, ended, seen): &(i64, i64, Seen)| Event {
            began: *began,
            ended: *ended,
            seen: *seen,
        };
        let events: Vec<Event> = events.iter().map(event).collect();
        super::explain(&events, Bounds { stale, early: 10 }).is_ok()
    }

    #[test]
    fn what_a_grant_does_is_explained() {
        for history in [
            &[(0, 1, Created(100)), (2, 3, Used), (99, 120, Used)][..],
            // Of calls at the same time either may come first.
            &[(0, 1, Created(100)), (5, 20, Revoked), (6, 19, Used)],
            &[(0, 1, Created(100)), (5, 20, Revoked), (6, 19, Refused)],
            &[
                (0, 1, Created(100)),
                (5, 20, Revoked),
                (6, 8, Used),
                (9, 10, Refused),
            ],
            // A renewal that is under way may be seen before its end.
            &[
                (0, 1, Created(100)),
                (80, 200, Renewed(180)),
                (150, 160, Used),
                (181, 182, Refused),
            ],
            &[
                (0, 1, Created(100)),
                (95, 96, Refused),
                (100, 101, Unrenewed),
            ],
            &[(0, 1, Created(100)), (2, 3, Revoked), (4, 5, Revoked)],
            // A revocation that nobody answered happens late, or never.
            &[
                (0, 1, Created(100)),
                (2, 3, PerhapsRevoked),
                (50, 51, Used),
                (60, 61, Refused),
            ],
            &[(0, 1, Created(100)), (2, 3, PerhapsRevoked), (50, 51, Used)],
        ] {
            assert!(explains(history, 0), "{history:?}");
        }
    }

    #[test]
    fn what_no_grant_does_is_found() {
        for history in [
            &[(0, 1, Created(100)), (2, 3, Revoked), (4, 5, Used)][..],
            &[(0, 1, Created(100)), (101, 102, Used)],
            &[(0, 1, Created(100)), (2, 3, Refused)],
            &[(5, 6, Created(100)), (2, 3, Used)],
            &[(0, 1, Created(100)), (2, 3, Revoked), (4, 5, Renewed(200))],
            &[(0, 1, Created(100)), (120, 121, Renewed(200))],
            &[(0, 1, Created(100)), (2, 3, Renewed(90))],
            &[(0, 1, Created(100)), (2, 3, Unrenewed)],
            // One saw the end, and another the grant after that.
            &[
                (0, 1, Created(100)),
                (5, 30, Revoked),
                (6, 8, Refused),
                (9, 10, Used),
            ],
            &[
                (0, 1, Created(100)),
                (2, 3, PerhapsRevoked),
                (50, 51, Refused),
                (60, 61, Used),
            ],
            // The acknowledged renewal is not seen.
            &[
                (0, 1, Created(100)),
                (50, 51, Renewed(150)),
                (120, 121, Refused),
            ],
        ] {
            assert!(!explains(history, 0), "{history:?}");
        }
    }

    #[test]
    fn a_use_may_be_stale_within_the_bound_and_not_beyond() {
        let history = [
            (0, 1, Created(9000)),
            (2, 3, Revoked),
            (4, 5, Refused),
            (900, 901, Used),
        ];
        assert!(!explains(&history, 0));
        assert!(!explains(&history, 896));
        assert!(explains(&history, 1000));
        // That it was made or taken back is never stale to who does it.
        let twice = [(0, 1, Created(9000)), (500, 501, Created(9000))];
        assert!(!explains(&twice, 1000));
    }
}
