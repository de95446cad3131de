//! Works off a backlog: one KMS call after the other at a bounded rate, patient in an outage.

use std::collections::VecDeque;
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinError;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::clock::Instant;
use crate::datakeys::Error;
use crate::datakeys::Source;
use crate::datakeys::id::Id;
use crate::datakeys::question::Question;
use crate::datakeys::question::Wraps;
use crate::datakeys::question::ours;
use crate::datakeys::upstream::Upstream;
use crate::datakeys::upstream::ahead;
use crate::datakeys::warm::Moment;
use crate::datakeys::warm::Pace;
use crate::datakeys::warm::Purpose;
use crate::datakeys::warm::Ranked;
use crate::datakeys::warm::Recent;
use crate::directory::Directory;
use crate::kms;
use crate::metrics::Retirement;
use crate::metrics::Warming;

/// How many entries came to what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Warmed {
    /// KMS gave the data key.
    pub done: u64,
    /// KMS did not answer until it was given up.
    pub failed: u64,
    /// No key of the directory, or not its KMS key or context any more: no call was made.
    pub foreign: u64,
    /// No room was left: no call was made.
    pub full: u64,
    /// A caller was faster: no call was made.
    pub known: u64,
    /// KMS refused.
    pub refused: u64,
}

/// Has KMS give what is in `queue`, its front first. Entries that are given up stay in the
/// backlog, for the next process.
pub(in crate::datakeys) async fn run(
    upstream: Arc<Upstream>,
    queue: VecDeque<Ranked>,
    pace: Pace,
    directory: impl Fn() -> Arc<Directory> + Send + 'static,
) -> Warmed {
    if queue.is_empty() {
        return Warmed::default();
    }
    sleep(pace.delay).await;
    let period = Duration::from_secs(1) / pace.rate.max(1);
    let mut run = Run::new(upstream, queue);
    while let Some(ranked) = run.next().await {
        match wish(&run.upstream, &directory(), &ranked.one) {
            Ok(wish) => {
                run.ask(ranked, wish);
                sleep(period * (1 + mem::take(&mut run.owed))).await;
            }
            Err(warming) => run.settle(ranked.rank, warming),
        }
    }
    run.give_up()
}

struct Run {
    upstream: Arc<Upstream>,
    queue: VecDeque<Ranked>,
    calls: JoinSet<(Ranked, Result<Source, Error>)>,
    /// When KMS last answered.
    answered: Instant,
    /// Whether a call has failed since the last pause.
    outage: bool,
    /// The next pause: the shortest unless KMS is known to be out of reach.
    pause: Duration,
    /// Calls that were made beside our own.
    owed: u32,
    warmed: Warmed,
}

impl Run {
    fn new(upstream: Arc<Upstream>, queue: VecDeque<Ranked>) -> Self {
        Self {
            answered: upstream.clock.now(),
            upstream,
            queue,
            calls: JoinSet::new(),
            outage: false,
            pause: LEAST_PAUSE,
            owed: 0,
            warmed: Warmed::default(),
        }
    }

    /// The next of the queue, when a call may be made for it. In an outage there is one call at a
    /// time, between pauses that grow. None at the end, or when KMS has not answered for long.
    async fn next(&mut self) -> Option<Ranked> {
        loop {
            while let Some(landed) = self.calls.try_join_next() {
                self.land(landed);
            }
            if self.outage {
                while let Some(landed) = self.calls.join_next().await {
                    self.land(landed);
                }
                if self.upstream.clock.now().since(self.answered) >= PATIENCE {
                    return None;
                }
                sleep(self.pause).await;
                self.pause = (self.pause * 2).min(MOST_PAUSE);
                self.outage = false;
            }
            let most = if self.pause == LEAST_PAUSE {
                MOST_CALLS
            } else {
                1
            };
            if self.calls.len() < most
                && let Some(next) = self.queue.pop_front()
            {
                return Some(next);
            }
            let landed = self.calls.join_next().await?;
            self.land(landed);
        }
    }

    fn ask(&mut self, ranked: Ranked, wish: Wish) {
        let upstream = Arc::clone(&self.upstream);
        self.calls.spawn(async move {
            let answer = fetch(&upstream, wish, &ranked.one).await;
            (ranked, answer)
        });
    }

    fn land(&mut self, landed: Result<(Ranked, Result<Source, Error>), JoinError>) {
        let Ok((ranked, answer)) = landed else {
            return self.count(Warming::Failed);
        };
        let warming = match answer {
            Ok(Source::Miss(_)) => Warming::Done,
            Ok(Source::Coalesced | Source::Hit | Source::Stale) => Warming::Known,
            // Others may belong to a Region that answers: they come first now.
            Err(Error::Kms(
                kms::Error::Credentials(_)
                | kms::Error::Crowded { .. }
                | kms::Error::Throttled
                | kms::Error::Unavailable(_),
            )) => {
                self.outage = true;
                return self.queue.push_back(ranked);
            }
            Err(Error::Kms(error)) if error.is_refusal() => {
                // It may have led to a probe.
                self.owed += 1;
                Warming::Refused
            }
            Err(Error::Bug(_) | Error::Full | Error::Kms(_) | Error::NoWrappedKey) => {
                Warming::Failed
            }
        };
        if matches!(warming, Warming::Done | Warming::Refused) {
            self.answered = self.upstream.clock.now();
            self.pause = LEAST_PAUSE;
        }
        self.settle(ranked.rank, warming);
    }

    fn settle(&mut self, rank: usize, warming: Warming) {
        if let Some(backlog) = &self.upstream.backlog {
            backlog.done(rank);
        }
        self.count(warming);
    }

    fn count(&mut self, warming: Warming) {
        self.upstream.metrics.warmed(warming);
        let warmed = &mut self.warmed;
        let count = match warming {
            Warming::Done => &mut warmed.done,
            Warming::Failed => &mut warmed.failed,
            Warming::Foreign => &mut warmed.foreign,
            Warming::Full => &mut warmed.full,
            Warming::Known => &mut warmed.known,
            Warming::Refused => &mut warmed.refused,
        };
        *count += 1;
    }

    fn give_up(mut self) -> Warmed {
        for _ in 0..self.queue.len() {
            self.count(Warming::Failed);
        }
        self.warmed
    }
}

/// What is to be asked for.
enum Wish {
    Opening(Question, Wraps),
    Sealing(Question),
}

/// What is to be asked for `one` under `directory`, or why nothing is.
fn wish(upstream: &Upstream, directory: &Directory, one: &Recent) -> Result<Wish, Warming> {
    let key = directory.key(&one.key).ok_or(Warming::Foreign)?;
    let mut fixed = key.context();
    if !fixed.all(|(name, value)| one.context.value(name) == Some(value)) {
        return Err(Warming::Foreign);
    }
    let binding = key.kms();
    let pairs = one.context.serialized();
    let share = upstream.shares.of(&one.key.tenant);
    let now = upstream.clock.now();
    let question = |id, origin| Question {
        origin,
        share: Arc::clone(&share),
        id,
        context: one.context.clone(),
        demand: ahead(key),
    };
    let free = |ended: Option<Option<Retirement>>| match ended {
        Some(None) => Err(Warming::Known),
        None if !upstream.shares.have_room(&share) => Err(Warming::Full),
        None | Some(Some(_)) => Ok(()),
    };
    match &one.purpose {
        Purpose::Open(wrapped) => {
            let ours = ours(key, wrapped).map(|(one, _)| one);
            let id = Id::opening(key, pairs, ours).ok_or(Warming::Foreign)?;
            let present = share.opening(&id);
            free(present.and_then(|slot| Some(slot.key()?.ended(now))))?;
            let wraps = Wraps::of(&share, key, wrapped).ok_or(Warming::Foreign)?;
            let question = question(id, Arc::clone(&wraps.first.origin));
            Ok(Wish::Opening(question, wraps))
        }
        Purpose::Seal => {
            let id = Id::sealing(key, pairs);
            let present = share.sealing(&id);
            free(present.and_then(|slot| Some(slot.key()?.ended(now))))?;
            let origin = share.origin(key, binding.primary_version(), binding.primary());
            Ok(Wish::Sealing(question(id, origin)))
        }
    }
}

/// As a caller's miss, which is not counted.
async fn fetch(upstream: &Arc<Upstream>, wish: Wish, one: &Recent) -> Result<Source, Error> {
    let (question, wraps) = match wish {
        Wish::Opening(question, wraps) => (question, wraps),
        Wish::Sealing(question) => {
            let (_, source) = upstream.sealing(question).await?;
            return Ok(source);
        }
    };
    let (share, id) = (Arc::clone(&question.share), question.id);
    let (_, source) = upstream.opening(question, wraps).await?;
    if matches!(source, Source::Miss(_))
        && let Some(slot) = share.opening(&id)
    {
        slot.rank(Moment::of(&*upstream.clock).millis(one.used));
    }
    Ok(source)
}

/// Calls under way at once.
const MOST_CALLS: usize = 16;
const LEAST_PAUSE: Duration = Duration::from_secs(1);
const MOST_PAUSE: Duration = Duration::from_secs(30);
/// So long KMS may fail to answer: by then callers have asked for what they need.
const PATIENCE: Duration = Duration::from_secs(300);
