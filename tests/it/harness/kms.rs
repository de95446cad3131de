//! A KMS in memory that keeps the contract, counts its calls, and fails, panics or holds them on
//! demand.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use keybroker::crypto::Secret;
use keybroker::crypto::aead;
use keybroker::crypto::random;
use keybroker::kms::DATA_KEY;
use keybroker::kms::DataKey;
use keybroker::kms::Demand;
use keybroker::kms::Error;
use keybroker::kms::KeyRef;
use keybroker::kms::Kms;
use keybroker::kms::Unwrapped;
use keybroker::kms::Wrapped;
use keybroker::message::EncryptedDataKey;
use keybroker::message::EncryptionContext;
use keybroker::metrics::KmsOperation;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::Semaphore;
use tokio::sync::watch;
use tokio::time::Instant;

use super::soon;

/// Has every key that it is asked for.
pub struct FakeKms {
    keys: Mutex<HashMap<String, Arc<aead::Key>>>,
    mood: Mutex<Mood>,
    generated: AtomicUsize,
    opened: AtomicUsize,
    rehearsed: AtomicUsize,
    arrived: watch::Sender<usize>,
    gate: Arc<Semaphore>,
}

#[derive(Clone)]
enum Mood {
    Good,
    Failing(Error),
    Panicking,
    Ruled(Rule),
}

type Rule = Arc<dyn Fn(&Call<'_>) -> Result<(), Error> + Send + Sync>;

/// What is asked of KMS.
pub struct Call<'a> {
    /// `GenerateDataKey`, `Encrypt` or `Decrypt`.
    pub operation: &'static str,
    /// Of which key.
    pub key: String,
    /// With which context.
    pub context: &'a EncryptionContext,
    /// Whether it is made for callers who wait, or are about to.
    pub urgent: bool,
}

/// While it lives, calls that arrive wait.
pub struct Held {
    _permit: OwnedSemaphorePermit,
}

impl Default for FakeKms {
    fn default() -> Self {
        Self::new()
    }
}

impl FakeKms {
    pub(super) fn new() -> Self {
        Self {
            keys: Mutex::default(),
            mood: Mutex::new(Mood::Good),
            generated: AtomicUsize::new(0),
            opened: AtomicUsize::new(0),
            rehearsed: AtomicUsize::new(0),
            arrived: watch::Sender::new(0),
            gate: Arc::new(Semaphore::new(GATE)),
        }
    }

    /// All calls so far.
    pub fn calls(&self) -> usize {
        *self.arrived.borrow()
    }

    /// Calls to make a data key.
    pub fn generate_calls(&self) -> usize {
        self.generated.load(Ordering::SeqCst)
    }

    /// Calls to unwrap one.
    pub fn decrypt_calls(&self) -> usize {
        self.opened.load(Ordering::SeqCst)
    }

    /// Dry runs.
    pub fn dry_runs(&self) -> usize {
        self.rehearsed.load(Ordering::SeqCst)
    }

    /// Waits until so many calls have arrived, held ones included.
    pub async fn reached(&self, calls: usize) {
        let mut arrived = self.arrived.subscribe();
        soon(arrived.wait_for(|arrived| *arrived >= calls))
            .await
            .unwrap();
    }

    /// From now on, every call fails so.
    pub fn fail(&self, error: Error) {
        *self.mood.lock().unwrap() = Mood::Failing(error);
    }

    /// From now on, every call panics.
    pub fn panic(&self) {
        *self.mood.lock().unwrap() = Mood::Panicking;
    }

    /// From now on, every call for which `rule` has an error fails so.
    pub fn rule(&self, rule: impl Fn(&Call<'_>) -> Result<(), Error> + Send + Sync + 'static) {
        *self.mood.lock().unwrap() = Mood::Ruled(Arc::new(rule));
    }

    /// From now on, calls are answered.
    pub fn heal(&self) {
        *self.mood.lock().unwrap() = Mood::Good;
    }

    /// Makes calls that arrive from now on wait until the result is dropped.
    pub async fn hold(&self) -> Held {
        let all = GATE.try_into().unwrap();
        let permit = soon(Arc::clone(&self.gate).acquire_many_owned(all)).await;
        Held {
            _permit: permit.unwrap(),
        }
    }

    /// Wraps `plaintext` as a call to make a data key would: for messages that tests make.
    pub fn wrap(
        &self,
        key: &KeyRef,
        plaintext: &Secret<DATA_KEY>,
        context: &EncryptionContext,
    ) -> EncryptedDataKey {
        let mut nonce = [0; aead::NONCE];
        random::fill(&mut nonce).unwrap();
        let mut sealed = *plaintext.expose();
        let tag = self
            .key(key)
            .seal_in_place(&nonce, context.serialized(), &mut sealed);
        EncryptedDataKey {
            provider_id: key.provider_id().to_owned(),
            provider_info: match key {
                KeyRef::Aws(_) | KeyRef::MultiRegion(_) => key.to_string(),
                KeyRef::Local(id) => format!("fake/{id}/1"),
            },
            ciphertext: [nonce.as_slice(), &sealed, &tag.0].concat(),
        }
    }

    fn key(&self, key: &KeyRef) -> Arc<aead::Key> {
        let fresh = || Arc::new(aead::Key::new(&Secret::random().unwrap()));
        let mut keys = self.keys.lock().unwrap();
        Arc::clone(keys.entry(key.to_string()).or_insert_with(fresh))
    }

    async fn arrive(
        &self,
        operation: &'static str,
        key: &KeyRef,
        context: &EncryptionContext,
        demand: &Demand,
    ) -> Result<(), Error> {
        self.arrived.send_modify(|arrived| *arrived += 1);
        let _open = self.gate.acquire().await.unwrap();
        let mood = self.mood.lock().unwrap().clone();
        match mood {
            Mood::Good => Ok(()),
            Mood::Failing(error) => Err(error),
            Mood::Panicking => panic!("a KMS that was told to panic"),
            Mood::Ruled(rule) => rule(&Call {
                operation,
                key: key.to_string(),
                context,
                urgent: demand.is_urgent(Instant::now()),
            }),
        }
    }
}

#[async_trait]
impl Kms for FakeKms {
    async fn generate_data_key(
        &self,
        key: &KeyRef,
        context: &EncryptionContext,
        demand: &Demand,
    ) -> Result<DataKey, Error> {
        self.generated.fetch_add(1, Ordering::SeqCst);
        self.arrive("GenerateDataKey", key, context, demand).await?;
        let plaintext = Secret::random().unwrap();
        Ok(DataKey {
            wrapped: self.wrap(key, &plaintext, context),
            plaintext,
            request_id: Some(format!("request-{}", self.calls())),
        })
    }

    async fn encrypt(
        &self,
        key: &KeyRef,
        plaintext: &Secret<DATA_KEY>,
        context: &EncryptionContext,
        demand: &Demand,
    ) -> Result<Wrapped, Error> {
        self.arrive("Encrypt", key, context, demand).await?;
        Ok(Wrapped {
            wrapped: self.wrap(key, plaintext, context),
            request_id: Some(format!("request-{}", self.calls())),
        })
    }

    async fn decrypt(
        &self,
        key: &KeyRef,
        wrapped: &EncryptedDataKey,
        context: &EncryptionContext,
        demand: &Demand,
    ) -> Result<Unwrapped, Error> {
        self.opened.fetch_add(1, Ordering::SeqCst);
        self.arrive("Decrypt", key, context, demand).await?;
        if !key.claims(wrapped) {
            return Err(Error::IncorrectKey);
        }
        let bytes = &wrapped.ciphertext;
        if bytes.len() != aead::NONCE + DATA_KEY + aead::TAG {
            return Err(Error::InvalidCiphertext);
        }
        let (nonce, rest) = bytes.split_at(aead::NONCE);
        let (sealed, tag) = rest.split_at(DATA_KEY);
        let mut plaintext: [u8; DATA_KEY] = sealed.try_into().unwrap();
        self.key(key)
            .open_in_place(
                nonce.try_into().unwrap(),
                context.serialized(),
                &mut plaintext,
                &aead::Tag(tag.try_into().unwrap()),
            )
            .map_err(|_| Error::InvalidCiphertext)?;
        Ok(Unwrapped {
            plaintext: Secret::filled(|cell| *cell = plaintext),
            current: true,
            request_id: Some(format!("request-{}", self.calls())),
        })
    }

    async fn describe_key(&self, _: &KeyRef) -> Result<(), Error> {
        Ok(())
    }

    async fn dry_run(
        &self,
        operation: KmsOperation,
        key: &KeyRef,
        context: &EncryptionContext,
        demand: &Demand,
    ) -> Result<(), Error> {
        self.rehearsed.fetch_add(1, Ordering::SeqCst);
        self.arrive(operation.label(), key, context, demand).await
    }
}

/// A demand of somebody who waits long.
pub fn demand() -> Demand {
    let tenant = "acme".parse().unwrap();
    Demand::new(tenant, 1, Instant::now() + Duration::from_secs(600))
}

/// More than all calls of any test at once.
const GATE: usize = 10_000;
