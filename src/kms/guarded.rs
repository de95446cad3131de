//! What stands between the data keys and a KMS: the choice of a Region, the time of a call, a rate and
//! turns, retries within a budget, and a breaker.
//!
//! | file | what it holds |
//! |---|---|
//! | `errand` | one call on its way |
//! | `gate` | who passes, and who waits |
//! | `fair` | who is next |
//! | `rate` | how many requests a second |
//! | `retries` | which attempts are made again, and how many |
//! | `breaker` | when a key's KMS is not asked |
//! | `health` | whether a Region is asked before others |
//! | `regions` | whose gate, whose budget, whose breaker |
//! | `region` | what the keys of a Region share |
//! | `stop` | what an answer of a Region means |
//! | `guard` | what stands before a key; what is counted and logged |

mod breaker;
mod errand;
mod fair;
mod gate;
mod guard;
mod health;
mod rate;
mod region;
mod regions;
mod retries;
mod stop;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio::time::MissedTickBehavior;

pub(crate) use fair::Fair;

use crate::crypto::Secret;
use crate::kms::DATA_KEY;
use crate::kms::DataKey;
use crate::kms::Demand;
use crate::kms::Error;
use crate::kms::KeyRef;
use crate::kms::Kms;
use crate::kms::Unwrapped;
use crate::kms::Wrapped;
use crate::kms::aws;
use crate::kms::guarded::errand::Errand;
use crate::kms::guarded::errand::Left;
use crate::kms::guarded::errand::NOBODY;
use crate::kms::guarded::errand::begin;
use crate::kms::guarded::guard::Answered;
use crate::kms::guarded::guard::Request;
use crate::kms::guarded::guard::chance;
use crate::kms::guarded::regions::Regions;
use crate::kms::guarded::retries::pause;
use crate::kms::guarded::stop::Judged;
use crate::kms::guarded::stop::Stop;
use crate::message::EncryptedDataKey;
use crate::message::EncryptionContext;
use crate::metrics::KmsOperation;
use crate::metrics::Metrics;
use crate::trace::Tracer;

/// A KMS whose calls end in time, are made where it is well, at the rate that it takes and by turns of the tenants,
/// are made again where that helps and harms nobody, and are not made at all while they fail.
///
/// An account in a Region is sent at most `requests_per_second`, attempts included; less after each
/// [`Error::Throttled`], and slowly more again. Calls beyond that wait, and pass in proportion to
/// the weights of their tenants, those for which callers wait, or are about to, before the others. At
/// most 256 are under way at once, 64 of a tenant. A call that would not be made in time for its callers ends in
/// [`Error::Crowded`] instead, at once where that is known.
///
/// When its turn has come, a call has at most three attempts, each of `attempt_timeout`, and ends
/// within `operation_timeout`. Another attempt is made only after [`Error::Throttled`] and
/// [`Error::Unavailable`], after a random pause, if it and the pause fit into the time that is left,
/// and within 10 % of what succeeds in the Region, or 10 a second. None begins when no caller waits
/// any more, and another one is given up then. The first is not: what it brings serves those who
/// come next, who would otherwise never get a data key from a KMS that takes longer than they wait.
///
/// A key that is in several Regions is called in one after another: one attempt in each, the usual
/// ones in the last. A call goes on when a Region throttles, fails, or lets it neither pass nor have
/// an answer within `attempt_timeout`, so it may take twice that longer for each Region before the
/// last. Going on is free while most of those succeed that do, and else within the budget of retries:
/// when all Regions fail they are asked no more than one is. After three failed attempts in a row in a Region, calls begin with the next until it has
/// been well for 10 s. What was not asked of a Region tells nothing about it.
///
/// A call whose [`Demand`] has an alternative is made so in every Region, the last one too.
///
/// A key for which half of 20 or more attempts within 10 s failed is not asked for 1 to 5 s: its
/// calls end in [`Error::Unavailable`] at once. Then one at a time goes through, until one does not
/// fail. Refusals and throttling open nothing.
pub struct Guarded {
    kms: Arc<dyn Kms>,
    attempt: Duration,
    operation: Duration,
    regions: Arc<Regions>,
    tending: JoinHandle<()>,
}

impl Guarded {
    /// Guards `kms` with the timeouts of `config`, for the keys of all services. Each request has a
    /// span of `tracer`'s, or none.
    ///
    /// # Errors
    /// [`aws::Misconfigured`] for a timeout out of bounds.
    ///
    /// # Panics
    /// Outside of a Tokio runtime: what is not used any more is forgotten by a task.
    pub fn new(
        kms: Arc<dyn Kms>,
        config: &aws::Config,
        metrics: Metrics,
        tracer: Tracer,
    ) -> Result<Self, aws::Misconfigured> {
        let (attempt, operation) = config.timeouts()?;
        let regions = Regions::new(config.requests_per_second, metrics, tracer);
        let regions = Arc::new(regions);
        let tending = tokio::spawn(tend(Arc::clone(&regions)));
        Ok(Self {
            kms,
            attempt,
            operation,
            regions,
            tending,
        })
    }

    /// Calls the key in one Region after another, as long as they have no room or do not answer.
    async fn call<'a, T: Answered>(
        &'a self,
        key: &'a KeyRef,
        operation: KmsOperation,
        demand: Option<&Demand>,
        ask: impl Fn(&'a KeyRef) -> BoxFuture<'a, Result<T, Error>>,
    ) -> Result<T, Error> {
        let mut route = self.regions.route(key, Instant::now());
        let mut last = route.pop().expect("every key is in a Region");
        // A Region without room ends nothing while there is another.
        let passing = demand.map(Demand::with_alternative);
        let mut errand = Errand {
            operation,
            demand: passing.as_ref(),
            attempts: 0,
        };
        let mut left = Left::default();
        for mut stop in route {
            if !stop.admits(errand.attempts, Instant::now()) {
                continue;
            }
            left.for_another();
            let answer = self.call_once(&stop, &mut errand, || ask(stop.key)).await;
            match stop.judged(key, answer) {
                Judged::Decided(answer) => return answer,
                Judged::Undecided(error) => left.told = Some(error),
                Judged::Useless(error) => left.useless = Some(stop.useless(&error)),
            }
            left.last = Some(stop);
        }
        if !last.admits(errand.attempts, Instant::now()) {
            return Err(left.error());
        }
        left.for_another();
        errand.demand = demand;
        let ask = || ask(last.key);
        let answer = match demand.is_some_and(Demand::has_alternative) {
            true => self.call_once(&last, &mut errand, ask).await,
            false => self.call_in(&last, &mut errand, ask).await,
        };
        match last.judged(key, answer) {
            Judged::Decided(answer) => answer,
            Judged::Undecided(error) => Err(error),
            Judged::Useless(error) => Err(match left.told {
                // Where there is no room now there will be some, and that is no outage.
                Some(told @ (Error::Crowded { .. } | Error::Throttled)) => told,
                Some(_) | None => last.useless(&error),
            }),
        }
    }

    /// One attempt in a Region, if its turn comes soon: another Region or key may have room.
    async fn call_once<'a, T: Answered>(
        &'a self,
        stop: &Stop<'_>,
        errand: &mut Errand<'_>,
        ask: impl Fn() -> BoxFuture<'a, Result<T, Error>>,
    ) -> Result<T, Error> {
        let pause = self.attempt;
        let begun = tokio::time::timeout(self.attempt, begin(&stop.guard, errand)).await;
        let (request, turn) = begun.unwrap_or(Err(Error::Crowded { pause }))?;
        let deadline = Instant::now() + self.operation;
        let answer = self.attempt(stop, request, deadline, None, ask()).await;
        if let (Err(Error::Throttled), Some(turn)) = (&answer, &turn) {
            turn.throttled(Instant::now());
        }
        answer
    }

    /// As many attempts in a Region as are worth it.
    async fn call_in<'a, T: Answered>(
        &'a self,
        stop: &Stop<'_>,
        errand: &mut Errand<'_>,
        ask: impl Fn() -> BoxFuture<'a, Result<T, Error>>,
    ) -> Result<T, Error> {
        let (guard, demand) = (&stop.guard, errand.demand);
        let (mut request, mut turn) = begin(guard, errand).await?;
        let deadline = Instant::now() + self.operation;
        let mut retries = 0;
        loop {
            let awaited = demand.filter(|_| retries > 0);
            let attempted = self.attempt(stop, request, deadline, awaited, ask());
            let error = match attempted.await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let now = Instant::now();
            if let (Error::Throttled, Some(turn)) = (&error, &turn) {
                turn.throttled(now);
            }
            // Pauses are nobody's turn.
            drop(turn);
            let fits = |pause: &Duration| now + *pause + self.attempt <= deadline;
            let Some(pause) = pause(&error, retries, chance()).filter(fits) else {
                return Err(error);
            };
            let over = demand.is_some_and(|demand| demand.lapses(now + pause));
            if over || !guard.region().retry(now) {
                return Err(error);
            }
            tokio::time::sleep(pause).await;
            let latest = deadline - self.attempt;
            match tokio::time::timeout_at(latest, begin(guard, errand)).await {
                Ok(Ok(next)) => (request, turn) = next,
                Ok(Err(_)) | Err(_) => return Err(error),
            }
            guard.retried();
            retries += 1;
        }
    }

    /// One attempt, which is given up when nobody of `awaited` waits any more.
    async fn attempt<T: Answered>(
        &self,
        stop: &Stop<'_>,
        request: Request<'_>,
        deadline: Instant,
        awaited: Option<&Demand>,
        call: BoxFuture<'_, Result<T, Error>>,
    ) -> Result<T, Error> {
        let late = |span| Err(Error::Unavailable(format!("no answer within {span:?}")));
        let answer = tokio::select! {
            biased;
            answer = call => answer,
            () = self.too_long(stop.key) => late(self.attempt),
            () = tokio::time::sleep_until(deadline) => late(self.operation),
            () = over(awaited) => return Err(NOBODY),
        };
        let now = Instant::now();
        request.end(&answer, now);
        stop.diagnose(&answer, now);
        answer
    }

    /// Resolves when an attempt that begins now has had its time.
    async fn too_long(&self, key: &KeyRef) {
        let mut began = Instant::now();
        loop {
            tokio::time::sleep_until(began + self.attempt).await;
            match self.kms.ready_since(key).await {
                // The time before was not the service's.
                Some(ready) if ready > began => began = ready,
                Some(_) | None => return,
            }
        }
    }
}

/// Resolves when nobody waits any more, if it is to be heeded.
async fn over(awaited: Option<&Demand>) {
    let Some(demand) = awaited else {
        return std::future::pending().await;
    };
    while !demand.lapses(Instant::now()) {
        tokio::time::sleep_until(demand.until()).await;
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.tending.abort();
    }
}

#[async_trait]
impl Kms for Guarded {
    async fn generate_data_key(
        &self,
        key: &KeyRef,
        context: &EncryptionContext,
        demand: &Demand,
    ) -> Result<DataKey, Error> {
        let ask = |key| self.kms.generate_data_key(key, context, demand);
        let operation = KmsOperation::GenerateDataKey;
        self.call(key, operation, Some(demand), ask).await
    }

    async fn encrypt(
        &self,
        key: &KeyRef,
        plaintext: &Secret<DATA_KEY>,
        context: &EncryptionContext,
        demand: &Demand,
    ) -> Result<Wrapped, Error> {
        let ask = |key| self.kms.encrypt(key, plaintext, context, demand);
        let operation = KmsOperation::Encrypt;
        self.call(key, operation, Some(demand), ask).await
    }

    async fn decrypt(
        &self,
        key: &KeyRef,
        wrapped: &EncryptedDataKey,
        context: &EncryptionContext,
        demand: &Demand,
    ) -> Result<Unwrapped, Error> {
        let ask = |key| self.kms.decrypt(key, wrapped, context, demand);
        let operation = KmsOperation::Decrypt;
        self.call(key, operation, Some(demand), ask).await
    }

    async fn describe_key(&self, key: &KeyRef) -> Result<(), Error> {
        let ask = |key| self.kms.describe_key(key);
        // Its quota is another one.
        self.call(key, KmsOperation::DescribeKey, None, ask).await
    }

    async fn dry_run(
        &self,
        operation: KmsOperation,
        key: &KeyRef,
        context: &EncryptionContext,
        demand: &Demand,
    ) -> Result<(), Error> {
        let ask = |key| self.kms.dry_run(operation, key, context, demand);
        self.call(key, operation, Some(demand), ask).await
    }

    async fn ready_since(&self, key: &KeyRef) -> Option<Instant> {
        self.kms.ready_since(key).await
    }
}

async fn tend(regions: Arc<Regions>) {
    let mut ticks = tokio::time::interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let now = ticks.tick().await;
        regions.forget(now);
    }
}

/// Between two looks for what is not used any more.
const PERIOD: Duration = Duration::from_secs(10);
