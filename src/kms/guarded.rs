//! What stands between the data keys and a KMS: the time of a call, retries within a budget, and a
//! breaker.
//!
//! | file | what it holds |
//! |---|---|
//! | `retries` | which attempts are made again, and how many |
//! | `breaker` | when a key's KMS is not asked |
//! | `regions` | whose budget, whose breaker; what is counted and logged |

mod breaker;
mod regions;
mod retries;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio::time::MissedTickBehavior;

use crate::kms::DataKey;
use crate::kms::Error;
use crate::kms::KeyRef;
use crate::kms::Kms;
use crate::kms::Unwrapped;
use crate::kms::aws;
use crate::kms::guarded::regions::Regions;
use crate::kms::guarded::regions::Request;
use crate::kms::guarded::regions::chance;
use crate::kms::guarded::retries::pause;
use crate::message::EncryptedDataKey;
use crate::message::EncryptionContext;
use crate::metrics::KmsOperation;
use crate::metrics::Metrics;

/// A KMS whose calls end in time, are made again where that helps and harms nobody, and are not
/// made at all while they fail.
///
/// A call has at most three attempts, each of `attempt_timeout`, and ends within
/// `operation_timeout`. Another attempt is made only after [`Error::Throttled`] and
/// [`Error::Unavailable`], after a random pause, if it and the pause fit into the time that is left,
/// and within 10 % of what succeeds in the Region, or 10 a second.
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
    /// Guards `kms` with the timeouts of `config`, for the keys of all services.
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
    ) -> Result<Self, aws::Misconfigured> {
        let (attempt, operation) = config.timeouts()?;
        let regions = Arc::new(Regions::new(metrics));
        let tending = tokio::spawn(tend(Arc::clone(&regions)));
        Ok(Self {
            kms,
            attempt,
            operation,
            regions,
            tending,
        })
    }

    async fn call<'a, T>(
        &'a self,
        key: &KeyRef,
        operation: KmsOperation,
        ask: impl Fn() -> BoxFuture<'a, Result<T, Error>>,
    ) -> Result<T, Error> {
        let began = Instant::now();
        let deadline = began + self.operation;
        let guard = self.regions.guard(key, began);
        let Some(mut request) = guard.begin(operation, began) else {
            return Err(Error::Unavailable(NOT_ASKED.to_owned()));
        };
        let mut retries = 0;
        loop {
            let error = match self.attempt(request, key, deadline, ask()).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let now = Instant::now();
            let fits = |pause: &Duration| now + *pause + self.attempt <= deadline;
            let Some(pause) = pause(&error, retries, chance()).filter(fits) else {
                return Err(error);
            };
            if !guard.retry(now) {
                return Err(error);
            }
            tokio::time::sleep(pause).await;
            let Some(next) = guard.begin(operation, Instant::now()) else {
                return Err(error);
            };
            guard.retried();
            request = next;
            retries += 1;
        }
    }

    async fn attempt<T>(
        &self,
        request: Request<'_>,
        key: &KeyRef,
        deadline: Instant,
        call: BoxFuture<'_, Result<T, Error>>,
    ) -> Result<T, Error> {
        let late = |span| Err(Error::Unavailable(format!("no answer within {span:?}")));
        let answer = tokio::select! {
            biased;
            answer = call => answer,
            () = self.too_long(key) => late(self.attempt),
            () = tokio::time::sleep_until(deadline) => late(self.operation),
        };
        request.end(&answer, Instant::now());
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
    ) -> Result<DataKey, Error> {
        let ask = || self.kms.generate_data_key(key, context);
        self.call(key, KmsOperation::GenerateDataKey, ask).await
    }

    async fn decrypt(
        &self,
        key: &KeyRef,
        wrapped: &EncryptedDataKey,
        context: &EncryptionContext,
    ) -> Result<Unwrapped, Error> {
        let ask = || self.kms.decrypt(key, wrapped, context);
        self.call(key, KmsOperation::Decrypt, ask).await
    }

    async fn describe_key(&self, key: &KeyRef) -> Result<(), Error> {
        let ask = || self.kms.describe_key(key);
        self.call(key, KmsOperation::DescribeKey, ask).await
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
const NOT_ASKED: &str = "not asked, because calls for this key failed a moment ago: one at a time \
                         tries again every few seconds";
