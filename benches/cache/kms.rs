//! A KMS in memory whose answers have the size of AWS's.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use keybroker::crypto::Secret;
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

/// Has every key, keeps no secret, and counts.
pub struct FakeKms {
    latency: Duration,
    calls: AtomicU64,
    gate: Arc<Semaphore>,
}

impl FakeKms {
    /// A KMS that answers after `latency`.
    pub fn new(latency: Duration) -> Self {
        Self {
            latency,
            calls: AtomicU64::new(0),
            gate: Arc::new(Semaphore::new(GATE)),
        }
    }

    /// Calls so far, those that wait included.
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::SeqCst)
    }

    /// Calls from now on wait until the result is dropped.
    pub async fn hold(&self) -> OwnedSemaphorePermit {
        let gate = Arc::clone(&self.gate);
        gate.acquire_many_owned(GATE as u32).await.unwrap()
    }

    /// Counts a call, returns its number.
    async fn arrive(&self) -> u64 {
        let number = self.calls.fetch_add(1, Ordering::SeqCst);
        drop(self.gate.acquire().await.unwrap());
        match self.latency {
            Duration::ZERO => tokio::task::yield_now().await,
            latency => tokio::time::sleep(latency).await,
        }
        number
    }
}

/// The data key number `number` as `key` wraps it: of the length of AWS's.
pub fn wrapped(key: &KeyRef, number: u64) -> EncryptedDataKey {
    let mut ciphertext = vec![7; 184];
    ciphertext[..8].copy_from_slice(&number.to_be_bytes());
    EncryptedDataKey {
        provider_id: key.provider_id().to_owned(),
        provider_info: key.to_string(),
        ciphertext,
    }
}

/// What [`wrapped`] is the wrapping of.
pub fn plaintext(wrapped: &EncryptedDataKey) -> Secret<DATA_KEY> {
    Secret::filled(|cell| cell[..8].copy_from_slice(&wrapped.ciphertext[..8]))
}

#[async_trait]
impl Kms for FakeKms {
    async fn generate_data_key(
        &self,
        key: &KeyRef,
        _context: &EncryptionContext,
        _demand: &Demand,
    ) -> Result<DataKey, Error> {
        let wrapped = wrapped(key, self.arrive().await);
        Ok(DataKey {
            plaintext: plaintext(&wrapped),
            wrapped,
            request_id: None,
        })
    }

    async fn encrypt(
        &self,
        key: &KeyRef,
        plaintext: &Secret<DATA_KEY>,
        _context: &EncryptionContext,
        _demand: &Demand,
    ) -> Result<Wrapped, Error> {
        let (number, _) = plaintext.expose().split_at(8);
        let number = u64::from_be_bytes(number.try_into().expect("8 bytes"));
        Ok(Wrapped {
            wrapped: wrapped(key, number),
            request_id: None,
        })
    }

    async fn decrypt(
        &self,
        _key: &KeyRef,
        wrapped: &EncryptedDataKey,
        _context: &EncryptionContext,
        _demand: &Demand,
    ) -> Result<Unwrapped, Error> {
        self.arrive().await;
        Ok(Unwrapped {
            plaintext: plaintext(wrapped),
            current: true,
            request_id: None,
        })
    }

    async fn describe_key(&self, _key: &KeyRef) -> Result<(), Error> {
        Ok(())
    }

    async fn dry_run(
        &self,
        _operation: KmsOperation,
        _key: &KeyRef,
        _context: &EncryptionContext,
        _demand: &Demand,
    ) -> Result<(), Error> {
        Ok(())
    }
}

/// More calls than there are at once.
const GATE: usize = 1 << 20;
