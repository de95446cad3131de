//! The gate before one KMS: requests pass at the rate that it takes, by turns of the tenants, and
//! no tenant has more than its share of those under way. What time it is is an argument.
//!
//! Interleavings are tried in `tests/models`, which includes this file.

use std::collections::HashMap;
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::kms::Demand;
use crate::kms::guarded::fair::Fair;
use crate::kms::guarded::rate::Rate;
use crate::metrics::KmsTally;
use crate::name::TenantId;
use crate::sync::Mutex;
use crate::sync::lock;

/// Lets requests pass. Whoever asks is let through, or waits, or is told to come back later.
pub(super) struct Gate {
    state: Mutex<State>,
    /// Rings when somebody who waits might pass now.
    pub(super) bell: Notify,
    tally: Arc<KmsTally>,
}

struct State {
    /// Most requests under way at once; a tenant may have a quarter of them.
    pool: usize,
    /// None where nothing counts requests.
    rate: Option<Rate>,
    callers: Fair<Ticket>,
    /// For which nobody waits: they pass when no caller can.
    ahead: Fair<Ticket>,
    tickets: u64,
    /// Requests under way.
    running: HashMap<TenantId, usize>,
    total: usize,
    /// What the gauges say.
    shown: Shown,
}

#[derive(Clone, Copy, Default)]
struct Shown {
    rate: f64,
    queued: usize,
}

struct Ticket {
    demand: Demand,
    turn: oneshot::Sender<Turn>,
}

/// What becomes of one that asks to pass.
pub(super) enum Answer {
    /// It can't pass in time, and may try again after so long.
    Later(Duration),
    /// It passes.
    Pass(Turn),
    /// It has a place in the queue.
    Wait(Place),
}

/// A place in the queue, until it is dropped.
pub(super) struct Place {
    gate: Arc<Gate>,
    demand: Demand,
    ticket: u64,
    pub(super) turn: oneshot::Receiver<Turn>,
}

/// Leave to make one request, which is under way until this is dropped.
pub(super) struct Turn {
    gate: Arc<Gate>,
    tenant: TenantId,
    /// When the request was made.
    made: Option<Instant>,
}

impl Gate {
    /// A gate for at most `limit` requests a second, or for as many as come, of which at most
    /// `pool` are under way at once.
    pub(super) fn new(limit: Option<u32>, pool: usize, tally: Arc<KmsTally>, now: Instant) -> Self {
        let gate = Self {
            state: Mutex::new(State {
                pool,
                rate: limit.map(|limit| Rate::new(limit, now)),
                callers: Fair::default(),
                ahead: Fair::default(),
                tickets: 0,
                running: HashMap::new(),
                total: 0,
                shown: Shown::default(),
            }),
            bell: Notify::new(),
            tally,
        };
        gate.show(&mut lock(&gate.state));
        gate
    }

    /// Asks to pass for `demand`.
    pub(super) fn ask(self: &Arc<Self>, demand: &Demand, now: Instant) -> Answer {
        let (mut place, wait) = self.enter(demand, now);
        self.look(now);
        if let Ok(turn) = place.turn.try_recv() {
            return Answer::Pass(turn);
        }
        if demand.lapses(now + wait + LEAST) {
            self.tally.shed();
            return Answer::Later(wait);
        }
        self.bell.notify_one();
        Answer::Wait(place)
    }

    /// A place in the queue, and how long it takes until its turn comes.
    fn enter(self: &Arc<Self>, demand: &Demand, now: Instant) -> (Place, Duration) {
        let (tenant, weight) = (demand.tenant(), demand.weight());
        let (granted, turn) = oneshot::channel();
        let ticket = Ticket {
            demand: demand.clone(),
            turn: granted,
        };
        let mut state = lock(&self.state);
        state.tickets += 1;
        let number = state.tickets;
        let before = match demand.is_urgent(now) {
            true => {
                let before = state.callers.before(tenant, weight);
                state.callers.push(tenant, weight, number, ticket);
                before
            }
            false => {
                let before = state.callers.len() + state.ahead.before(tenant, weight);
                state.ahead.push(tenant, weight, number, ticket);
                before
            }
        };
        let place = Place {
            gate: Arc::clone(self),
            demand: demand.clone(),
            ticket: number,
            turn,
        };
        (place, state.span(before + 1, now))
    }

    /// Lets those pass who may at `now`. Returns when time alone may let the next one pass; with
    /// none, nobody may until the bell rings.
    pub(super) fn look(self: &Arc<Self>, now: Instant) -> Option<Instant> {
        loop {
            let mut state = lock(&self.state);
            state.promote(now);
            let pause = match state.queued() {
                0 => None,
                _ => state.rate.as_mut().and_then(|rate| rate.pause(now)),
            };
            let ticket = match pause {
                Some(_) => None,
                None => state.next(),
            };
            let Some(Ticket { demand, turn }) = ticket else {
                self.show(&mut state);
                return pause;
            };
            state.take(now);
            let granted = self.turn(&mut state, demand.tenant());
            drop(state);
            // Who has gone in between leaves the turn to the next.
            drop(turn.send(granted));
        }
    }

    /// Keeps the gauges right while nobody asks.
    pub(super) fn tend(&self, now: Instant) {
        let mut state = lock(&self.state);
        if let Some(rate) = &mut state.rate {
            rate.pause(now);
        }
        self.show(&mut state);
    }

    fn give_up(&self, demand: &Demand, now: Instant) -> Duration {
        self.tally.shed();
        let mut state = lock(&self.state);
        let before = state.callers.before(demand.tenant(), demand.weight());
        state.span(before + 1, now)
    }

    fn turn(self: &Arc<Self>, state: &mut State, tenant: &TenantId) -> Turn {
        *state.running.entry(tenant.clone()).or_default() += 1;
        state.total += 1;
        Turn {
            gate: Arc::clone(self),
            tenant: tenant.clone(),
            made: None,
        }
    }

    fn show(&self, state: &mut State) {
        let shown = Shown {
            rate: state.rate.as_ref().map_or(0.0, Rate::current),
            queued: state.queued(),
        };
        let before = mem::replace(&mut state.shown, shown);
        self.tally.rate(shown.rate - before.rate);
        self.tally.queued(before.queued, shown.queued);
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        let shown = lock(&self.state).shown;
        self.tally.rate(-shown.rate);
        self.tally.queued(shown.queued, 0);
    }
}

impl State {
    fn queued(&self) -> usize {
        self.callers.len() + self.ahead.len()
    }

    /// The next ticket of a tenant that may pass.
    fn next(&mut self) -> Option<Ticket> {
        let (running, full) = (&self.running, self.total >= self.pool);
        let share = self.pool / 4;
        let may = |tenant: &TenantId| !full && running.get(tenant).is_none_or(|own| *own < share);
        self.callers.pop(may).or_else(|| self.ahead.pop(may))
    }

    /// Takes what one request costs, if it is there.
    fn take(&mut self, now: Instant) -> bool {
        self.rate.as_mut().is_none_or(|rate| rate.take(now))
    }

    /// How long it takes from `now` on until so many requests have passed.
    fn span(&mut self, requests: usize, now: Instant) -> Duration {
        let rate = self.rate.as_mut();
        rate.map_or(Duration::ZERO, |rate| rate.span(requests, now))
    }

    /// Callers have come to wait for what was ahead of time, or are about to.
    fn promote(&mut self, now: Instant) {
        if self.ahead.len() == 0 {
            return;
        }
        for (number, ticket) in self.ahead.take(|ticket| ticket.demand.is_urgent(now)) {
            let demand = ticket.demand.clone();
            let queue = &mut self.callers;
            queue.push(demand.tenant(), demand.weight(), number, ticket);
        }
    }
}

impl Place {
    /// Waits for the turn, until nobody who waits could make use of it any more: then they may try
    /// again after so long.
    pub(super) async fn turn(mut self) -> Result<Turn, Duration> {
        loop {
            let until = self.demand.until();
            tokio::select! {
                biased;
                // Err: nobody lets a ticket go without a turn.
                turn = &mut self.turn => return turn.map_err(|_| Duration::ZERO),
                () = tokio::time::sleep_until(until.checked_sub(LEAST).unwrap_or(until)) => {}
            }
            let now = Instant::now();
            if self.demand.lapses(now + LEAST) {
                return Err(self.gate.give_up(&self.demand, now));
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let (tenant, ticket) = (self.demand.tenant(), self.ticket);
        let mut state = lock(&self.gate.state);
        let callers = state.callers.remove(tenant, ticket);
        if callers
            .or_else(|| state.ahead.remove(tenant, ticket))
            .is_some()
        {
            self.gate.show(&mut state);
        }
    }
}

impl Turn {
    /// The request is made at `now`. A turn without one costs nothing.
    pub(super) fn use_at(&mut self, now: Instant) {
        self.made = Some(now);
    }

    /// The service has throttled the request.
    pub(super) fn throttled(&self, now: Instant) {
        let mut state = lock(&self.gate.state);
        if let (Some(rate), Some(made)) = (&mut state.rate, self.made) {
            rate.throttled(made, now);
            self.gate.show(&mut state);
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut state = lock(&self.gate.state);
        state.total -= 1;
        if let Some(own) = state.running.get_mut(&self.tenant) {
            *own -= 1;
            if *own == 0 {
                state.running.remove(&self.tenant);
            }
        }
        if self.made.is_none()
            && let Some(rate) = &mut state.rate
        {
            rate.give_back();
        }
        let queued = state.queued();
        drop(state);
        if queued > 0 {
            self.gate.bell.notify_one();
        }
    }
}

/// With less time left than KMS takes as a rule, a request is not worth its cost.
const LEAST: Duration = Duration::from_millis(50);
