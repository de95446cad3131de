//! One call on its way from Region to Region: what it asks, how often it has, and what it was told.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::kms::Demand;
use crate::kms::Error;
use crate::kms::guarded::gate::Answer;
use crate::kms::guarded::gate::Gate;
use crate::kms::guarded::gate::Turn;
use crate::kms::guarded::guard::Guard;
use crate::kms::guarded::guard::Request;
use crate::kms::guarded::stop::Stop;
use crate::metrics::KmsOperation;

/// What is asked in one Region after another.
pub(super) struct Errand<'d> {
    pub(super) operation: KmsOperation,
    pub(super) demand: Option<&'d Demand>,
    /// Requests that were begun, wherever.
    pub(super) attempts: u32,
}

/// What the Regions said that had no answer.
#[derive(Default)]
pub(super) struct Left<'k> {
    pub(super) last: Option<Stop<'k>>,
    /// That they could not decide.
    pub(super) told: Option<Error>,
    /// That a replica is of no use.
    pub(super) useless: Option<Error>,
}

impl Left<'_> {
    /// The call goes on to another Region.
    pub(super) fn for_another(&self) {
        if let Some(stop) = &self.last {
            stop.guard.failed_over();
        }
    }

    /// What the call comes to when it goes nowhere else.
    pub(super) fn error(self) -> Error {
        self.told
            .or(self.useless)
            .expect("a Region was asked, and the call has not ended")
    }
}

/// Begins a request when its turn has come, unless it shall not be made.
pub(super) async fn begin<'g>(
    guard: &'g Guard,
    errand: &mut Errand<'_>,
) -> Result<(Request<'g>, Option<Turn>), Error> {
    let not_asked = || Error::Unavailable(NOT_ASKED.to_owned());
    if guard.refuses(Instant::now()) {
        return Err(not_asked());
    }
    let demand = errand.demand;
    let mut turn = match demand {
        Some(demand) => Some(pass(guard.gate(), demand).await?),
        None => None,
    };
    let now = Instant::now();
    if demand.is_some_and(|demand| demand.lapses(now)) {
        return Err(NOBODY);
    }
    let request = guard.begin(errand.operation, demand, errand.attempts + 1, now);
    let request = request.ok_or_else(not_asked)?;
    errand.attempts += 1;
    if let Some(turn) = &mut turn {
        turn.use_at(now);
    }
    Ok((request, turn))
}

async fn pass(gate: &Arc<Gate>, demand: &Demand) -> Result<Turn, Error> {
    match gate.ask(demand, Instant::now()) {
        Answer::Later(pause) => Err(Error::Crowded { pause }),
        Answer::Pass(turn) => Ok(turn),
        Answer::Wait(place) => place.turn().await.map_err(|pause| Error::Crowded { pause }),
    }
}

const NOT_ASKED: &str = "not asked, because calls for this key failed a moment ago: one at a time \
                         tries again every few seconds";
/// Nobody waits any more. It tells nothing about the service: that was not asked.
pub(super) const NOBODY: Error = Error::Crowded {
    pause: Duration::ZERO,
};
