//! What is made of delays, and what becomes of a line that is watched.

use std::collections::VecDeque;

use jiff::Timestamp;

use super::*;
use crate::clock::Manual;
use crate::identity;
use crate::identity::Peer;
use crate::identity::Rules;
use crate::metrics::Metrics;
use crate::quota;
use crate::quota::Account;
use crate::quota::Known;
use crate::quota::Quotas;
use crate::quota::Terms;

const TARGET: Duration = Duration::from_millis(5);
const LATE: Duration = Duration::from_millis(20);
/// Below what is aimed at under a level.
const SHORT: Duration = Duration::from_micros(100);

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Looks at the time that `control` wants, for `span`, each late by `delay`.
fn look(control: &mut Control, clock: &Manual, delay: Duration, span: Duration, passed: Passed) {
    let end = clock.now() + span;
    while clock.now() < end {
        let due = clock.now() + control.pause();
        clock.advance(control.pause() + delay);
        control.see(due, clock.now(), || passed);
    }
}

fn clock() -> Manual {
    Manual::new(Timestamp::UNIX_EPOCH)
}

fn passed(units: u64, refused: u64) -> Passed {
    Passed { units, refused }
}

#[test]
fn a_burst_is_let_alone_however_often_it_comes() {
    let (clock, mut control) = (clock(), Control::new(TARGET));
    assert_eq!(control.pause(), IDLE);
    for _ in 0..100 {
        look(&mut control, &clock, LATE, millis(70), passed(0, 0));
        assert_eq!(control.pause(), BUSY);
        look(&mut control, &clock, millis(4), millis(1), passed(0, 0));
        assert_eq!((control.level, control.pause()), (None, IDLE));
    }
}

#[test]
fn delay_that_stands_brings_a_level_below_what_passes() {
    let (clock, mut control) = (clock(), Control::new(TARGET));
    look(&mut control, &clock, LATE, millis(150), passed(0, 0));
    assert_eq!(control.level, Some(COUNTING));
    look(&mut control, &clock, LATE, millis(26), passed(50, 0));
    assert_eq!(control.level.unwrap().units, 800, "of 1000 a second");
}

#[test]
fn one_look_that_is_as_late_as_a_window_is_enough() {
    let (clock, mut control) = (clock(), Control::new(TARGET));
    look(&mut control, &clock, WINDOW, millis(1), passed(0, 0));
    assert_eq!(control.level, Some(COUNTING));
    look(&mut control, &clock, WINDOW, millis(1), passed(105, 0));
    assert_eq!(control.level.unwrap().units, 800);
}

#[test]
fn delay_that_ends_while_it_is_counted_brings_no_level() {
    let (clock, mut control) = (clock(), Control::new(TARGET));
    look(&mut control, &clock, WINDOW, millis(1), passed(0, 0));
    assert_eq!(control.level, Some(COUNTING));
    look(&mut control, &clock, millis(1), millis(51), passed(10, 0));
    assert_eq!((control.level, control.pause()), (None, IDLE));
}

#[test]
fn where_others_have_the_processor_who_asks_for_little_is_refused_nothing() {
    let (clock, mut control) = (clock(), Control::new(TARGET));
    for _ in 0..50 {
        look(&mut control, &clock, LATE, millis(100), passed(1, 0));
        assert!(matches!(control.level, None | Some(COUNTING)));
    }
}

/// Under a level of 10,000 units.
fn shedding() -> Control {
    Control {
        level: Some(Level {
            units: 10_000,
            hold: millis(100),
        }),
        ..Control::new(TARGET)
    }
}

#[test]
fn a_level_that_refuses_nobody_is_halved_while_the_delay_stands() {
    let (clock, mut control) = (clock(), shedding());
    look(&mut control, &clock, LATE, millis(110), passed(100_000, 0));
    assert_eq!(control.level.unwrap().units, 5000);
    look(&mut control, &clock, LATE, millis(5000), passed(0, 0));
    assert_eq!(control.level.unwrap().units, Rate::LEAST);
}

#[test]
fn a_level_rises_faster_and_faster_without_delay_and_goes_when_nobody_is_over_it() {
    let (clock, mut control) = (clock(), shedding());
    let mut risen = vec![10_000];
    while risen.len() < 5 {
        look(&mut control, &clock, SHORT, millis(1), passed(1000, 100));
        let units = control.level.unwrap().units;
        if Some(&units) != risen.last() {
            risen.push(units);
        }
    }
    let rises: Vec<u32> = risen.windows(2).map(|two| two[1] - two[0]).collect();
    assert!(rises.is_sorted(), "{risen:?}");
    look(&mut control, &clock, SHORT, millis(2900), passed(1000, 0));
    assert!(control.level.is_some());
    look(&mut control, &clock, SHORT, millis(500), passed(1000, 0));
    assert_eq!(control.level, None);
}

#[test]
fn from_the_lowest_level_to_the_highest_it_takes_seconds() {
    let (clock, mut control) = (clock(), shedding());
    look(&mut control, &clock, LATE, millis(5000), passed(0, 1));
    assert_eq!(control.level.unwrap().units, Rate::LEAST);
    look(&mut control, &clock, millis(0), millis(4500), passed(0, 1));
    let units = control.level.unwrap().units;
    assert!(units > 200_000, "{units}");
}

#[test]
fn a_short_line_is_made_shorter_as_long_as_that_costs_little() {
    let (clock, mut control) = (clock(), shedding());
    (control.rate, control.best) = (20_000, 20_000);
    let within = millis(2);
    // Units of half a window.
    look(&mut control, &clock, within, millis(51), passed(1000, 100));
    assert_eq!(control.level.unwrap().units, 9500);
    look(&mut control, &clock, within, millis(2000), passed(350, 100));
    let units = control.level.unwrap().units;
    assert!(units > 9500, "it had cost more than half: {units}");
    look(&mut control, &clock, LATE, millis(60), passed(500, 100));
    let less = control.level.unwrap().units;
    assert!(less < units, "a long one whatever it costs");
}

#[test]
fn the_longer_the_line_the_less_of_the_level_counts() {
    let (clock, mut control) = (clock(), shedding());
    let in_force = |control: &mut Control, delay| {
        let due = clock.now();
        clock.advance(delay);
        control.see(due, clock.now(), || passed(0, 0));
        control.in_force().unwrap().units
    };
    assert_eq!(in_force(&mut control, SHORT), 10_000);
    assert_eq!(in_force(&mut control, millis(3)), 5000);
    assert_eq!(in_force(&mut control, LATE), 2500);
    assert_eq!(in_force(&mut control, SHORT), 10_000);
    control.level = Some(COUNTING);
    assert_eq!(control.in_force(), Some(COUNTING));
}

#[test]
fn refusals_are_held_back_for_longer_while_there_are_many() {
    let (clock, mut control) = (clock(), shedding());
    look(&mut control, &clock, LATE, millis(1000), passed(1000, 1000));
    assert_eq!(control.level.unwrap().hold, LONGEST_HOLD);
    look(&mut control, &clock, LATE, millis(1000), passed(1000, 100));
    assert_eq!(control.level.unwrap().hold, LONGEST_HOLD);
    look(&mut control, &clock, LATE, millis(1000), passed(1000, 10));
    assert_eq!(control.level.unwrap().hold, COUNTING.hold);
}

/// A line of calls in front of one thread: a model of what is watched.
struct Line {
    clock: Arc<Manual>,
    quotas: Quotas,
    control: Control,
    accounts: [Arc<Account>; 2],
    waiting: VecDeque<Waiting>,
    /// Streams of the storm that are taken, and those of which until when a refusal is held back.
    taken: usize,
    held: Vec<Instant>,
    served: [Vec<Duration>; 2],
    refused: [usize; 2],
}

enum Waiting {
    Call { tenant: usize, since: Instant },
    Look { due: Instant },
}

const STORM: usize = 0;
const CALM: usize = 1;
const STREAMS: usize = 768;
/// Of the thread's time.
const SERVE: Duration = Duration::from_micros(50);
const REFUSE: Duration = Duration::from_micros(20);

impl Line {
    fn new() -> Self {
        let rules = "
            [[rule]]
            match = \"unix:gid=0\"
            tenant = \"storm\"
            [[rule]]
            match = \"unix:gid=1\"
            tenant = \"calm\"";
        let rules: identity::Config = toml::from_str(rules).unwrap();
        let rules = Rules::new(&rules).unwrap();
        let clock = Arc::new(clock());
        let config = quota::Config::default();
        let quotas = Quotas::new(&config, Metrics::unread(), clock.clone());
        let accounts = [0, 1].map(|gid| {
            let caller = rules.map(&Peer::unix(1, gid)).unwrap();
            let terms = Terms {
                rate: None,
                weight: 1,
            };
            quotas.account(&Known::default(), 1, &caller, terms)
        });
        Self {
            clock,
            quotas,
            control: Control::new(TARGET),
            accounts,
            waiting: VecDeque::new(),
            taken: 0,
            held: Vec::new(),
            served: Default::default(),
            refused: [0; 2],
        }
    }

    /// Lets so many calls a second come, for `span`.
    fn run(&mut self, rates: [u32; 2], span: Duration) {
        let began = self.clock.now();
        let mut came = [0; 2];
        let mut look = Some(began);
        while self.clock.now() < began + span {
            let now = self.clock.now();
            let held = self.held.len();
            self.held.retain(|until| *until > now);
            self.taken -= held - self.held.len();
            for tenant in [STORM, CALM] {
                let by_now = now.since(began).as_micros() * u128::from(rates[tenant]) / 1_000_000;
                for _ in came[tenant]..by_now {
                    if tenant == CALM || self.taken < STREAMS {
                        self.taken += usize::from(tenant == STORM);
                        self.waiting.push_back(Waiting::Call { tenant, since: now });
                    }
                }
                came[tenant] = by_now;
            }
            if let Some(due) = look
                && due <= now
            {
                look = None;
                self.waiting.push_back(Waiting::Look { due });
            }
            match self.waiting.pop_front() {
                Some(Waiting::Call { tenant, since }) => self.call(tenant, since),
                Some(Waiting::Look { due }) => {
                    self.control.see(due, now, || self.quotas.passed());
                    self.quotas.set_level(self.control.in_force());
                    look = Some(now + self.control.pause());
                }
                None => self.clock.advance(Duration::from_micros(50)),
            }
        }
    }

    fn call(&mut self, tenant: usize, since: Instant) {
        let account = &self.accounts[tenant];
        if account.enter().is_ok() {
            account.spend(quota::CALL).unwrap();
            self.clock.advance(SERVE);
            self.served[tenant].push(self.clock.now().since(since));
            self.taken -= usize::from(tenant == STORM);
        } else {
            self.clock.advance(REFUSE);
            self.refused[tenant] += 1;
            let spread = u32::try_from(self.refused[tenant] % 64).unwrap();
            let hold = self.quotas.hold();
            if tenant == STORM {
                let until = self.clock.now() + hold / 2 + hold * spread / 64;
                self.held.push(until);
            }
        }
    }

    fn p99(&self) -> Duration {
        let mut took = self.served.concat();
        took.sort_unstable();
        took[took.len() * 99 / 100]
    }
}

/// The thread serves 20,000 calls a second; 100,000 come.
#[test]
fn a_line_five_times_as_long_as_can_be_served_stays_short_and_loses_little() {
    let mut line = Line::new();
    line.run([100_000, 2000], Duration::from_secs(1));
    line.served = Default::default();
    line.run([100_000, 2000], Duration::from_secs(15));
    let served = line.served.each_ref().map(Vec::len);
    assert!(served.iter().sum::<usize>() >= 255_000, "{served:?}");
    assert!(served[CALM] >= 29_900, "{served:?}");
    assert_eq!(line.refused[CALM], 0);
    assert!(line.p99() <= TARGET, "{:?}", line.p99());

    // Who was refused comes back once more.
    line.run([10_000, 2000], Duration::from_secs(1));
    line.refused = [0; 2];
    line.run([10_000, 2000], Duration::from_secs(4));
    assert_eq!(line.refused, [0; 2]);
    assert_eq!(line.control.level, None);
}

/// Without a storm nobody is refused, however busy the thread is.
#[test]
fn a_line_that_can_be_served_is_left_alone() {
    let mut line = Line::new();
    line.run([16_000, 3000], Duration::from_secs(10));
    assert_eq!((line.refused, line.control.level), ([0; 2], None));
}
