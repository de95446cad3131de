//! The other side of the wire, for our own command line: dials, retries what may be retried, checks
//! checksums, and gives plain types back.

mod address;
mod admin;
mod grants;
mod kms_grants;
mod route;

use std::error::Error as StdError;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http::Uri;
use hyper_util::rt::TokioIo;
use tonic::Code;
use tonic::Request;
use tonic::Response;
use tonic::Status;
use tonic::transport::Channel;
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt as _;
use tower::service_fn;
use zeroize::Zeroize as _;
use zeroize::Zeroizing;

pub use address::Address;
pub use address::MalformedAddress;
pub use address::Place;
pub use admin::Applied;
pub use admin::Case;
pub use admin::Measure;
pub use admin::Receipt;
pub use admin::Replica;
pub use admin::Verdict;
pub use grants::Grant;
pub use grants::Which;
pub use grants::Wish;
pub use kms_grants::KmsGrant;
pub use kms_grants::KmsWish;

use crate::broker::Binding;
use crate::grpc::MAX_MESSAGE;
use crate::grpc::pb;
use crate::grpc::pb::key_broker_service_client::KeyBrokerServiceClient;
use crate::grpc::tls;

use route::Death;
use route::Epitaph;
use route::Route;

/// A connection to a broker. It is dialed again when it breaks.
pub struct Client {
    address: Address,
    channel: Channel,
    epitaph: Epitaph,
}

impl Client {
    /// Connects to the broker at `address`; `credentials` are needed for [`Address::Tls`] and
    /// count there alone.
    ///
    /// # Errors
    /// [`Error::NoCredentials`], [`Error::ServerName`], [`Error::Tls`], [`Error::Unreachable`].
    pub async fn connect(
        address: &Address,
        credentials: Option<&Credentials>,
    ) -> Result<Self, Error> {
        let route = Route::new(address, credentials)?;
        let endpoint = Endpoint::from_static("http://localhost")
            .origin(address.origin())
            .connect_timeout(CONNECT)
            .user_agent(concat!("keybroker/", env!("CARGO_PKG_VERSION")))
            .expect("letters, digits, a slash and dots make a header value");
        let epitaph = Epitaph::default();
        let watched = epitaph.clone();
        let dial = service_fn(move |_: Uri| {
            let (route, epitaph) = (route.clone(), watched.clone());
            async move { route.dial(epitaph).await.map(TokioIo::new) }
        });
        let channel = endpoint
            .connect_with_connector(dial)
            .await
            .map_err(|error| Error::broken(address, &epitaph, &error))?;
        Ok(Self {
            address: address.clone(),
            channel,
            epitaph,
        })
    }

    /// Encrypts `plaintext`.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::Unreachable`], [`Error::Damaged`].
    pub async fn encrypt(&self, to: Binding, plaintext: Bytes) -> Result<Encrypted, Error> {
        let request = pb::EncryptRequest {
            plaintext_crc32c: Some(crc32c::crc32c(&plaintext)),
            associated_data_crc32c: Some(crc32c::crc32c(&to.associated_data)),
            name: to.name,
            plaintext,
            encryption_context: to.context.into_iter().collect(),
            associated_data: to.associated_data,
            grant_tokens: to.tokens,
        };
        let response = self
            .call(async |service| service.encrypt(timed(request.clone())).await)
            .await?;
        whole(
            "ciphertext",
            &response.ciphertext,
            response.ciphertext_crc32c,
        )?;
        Ok(Encrypted {
            name: response.name,
            version: response.key_version,
            ciphertext: response.ciphertext,
        })
    }

    /// Decrypts `ciphertext`.
    ///
    /// # Errors
    /// As [`Client::encrypt`].
    pub async fn decrypt(&self, from: Binding, ciphertext: Bytes) -> Result<Decrypted, Error> {
        let request = pb::DecryptRequest {
            ciphertext_crc32c: Some(crc32c::crc32c(&ciphertext)),
            associated_data_crc32c: Some(crc32c::crc32c(&from.associated_data)),
            name: from.name,
            ciphertext,
            encryption_context: from.context.into_iter().collect(),
            associated_data: from.associated_data,
            grant_tokens: from.tokens,
        };
        let response = self
            .call(async |service| service.decrypt(timed(request.clone())).await)
            .await?;
        let plaintext = kept(response.plaintext);
        whole("plaintext", &plaintext, response.plaintext_crc32c)?;
        Ok(Decrypted {
            name: response.name,
            version: response.key_version,
            plaintext,
        })
    }

    /// All keys of `parent` (`tenants/{tenant}`, or empty for one's own) on which one holds a
    /// role, page after page.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::Unreachable`].
    pub async fn list_keys(&self, parent: &str) -> Result<Vec<Key>, Error> {
        let mut keys = Vec::new();
        let mut request = pb::ListKeysRequest {
            parent: parent.to_owned(),
            page_size: 0,
            page_token: String::new(),
        };
        loop {
            let page = self
                .call(async |service| service.list_keys(timed(request.clone())).await)
                .await?;
            keys.extend(page.keys.into_iter().map(|key| Key {
                name: key.name,
                role: key.role,
                kms_keys: key.kms_keys,
                additional_kms_keys: key.additional_kms_keys,
            }));
            if page.next_page_token.is_empty() {
                return Ok(keys);
            }
            request.page_token = page.next_page_token;
        }
    }

    /// Whether the broker says that it serves. Asked once: a probe asks again by itself.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::Unreachable`].
    pub async fn is_serving(&self) -> Result<bool, Error> {
        let request = Request::new(HealthCheckRequest {
            service: String::new(),
        });
        let answer = HealthClient::new(self.channel.clone())
            .check(request)
            .await
            .map_err(|status| self.refusal(&status))?;
        Ok(answer.into_inner().status() == ServingStatus::Serving)
    }

    /// Calls, and calls again while that may help: every method called so is idempotent.
    async fn call<T>(
        &self,
        attempt: impl AsyncFn(&mut KeyBrokerServiceClient<Channel>) -> Result<Response<T>, Status>,
    ) -> Result<T, Error> {
        let service = KeyBrokerServiceClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE);
        self.again(async || attempt(&mut service.clone()).await)
            .await
    }

    async fn again<T>(
        &self,
        attempt: impl AsyncFn() -> Result<Response<T>, Status>,
    ) -> Result<T, Error> {
        let mut pause = FIRST_PAUSE;
        let mut left = ATTEMPTS;
        loop {
            left -= 1;
            match attempt().await {
                Ok(response) => return Ok(response.into_inner()),
                Err(status) if left > 0 && passes(&status) && !self.is_refused() => {
                    let asked = status
                        .get_details_retry_info()
                        .and_then(|info| info.retry_delay);
                    tokio::time::sleep(asked.unwrap_or(pause).min(LONGEST_PAUSE)).await;
                    pause *= 2;
                }
                Err(status) => return Err(self.refusal(&status)),
            }
        }
    }

    /// Whether TLS has refused us, which it would do again.
    fn is_refused(&self) -> bool {
        matches!(self.epitaph.read(), Some(Death::Alert(_)))
    }

    fn refusal(&self, status: &Status) -> Error {
        match status.get_details_error_info() {
            Some(info) => Error::Refused {
                class: class(status.code()),
                reason: info.reason,
                message: status.message().to_owned(),
            },
            // Not our broker's answer: the connection's, or a stranger's.
            None if status.source().is_some() || status.code() == Code::Unavailable => {
                Error::broken(&self.address, &self.epitaph, status)
            }
            None => Error::Refused {
                class: class(status.code()),
                reason: format!("{:?}", status.code()),
                message: status.message().to_owned(),
            },
        }
    }
}

/// Whom we trust, and who we are.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// A PEM file: the CA certificates that vouch for the broker.
    pub ca: PathBuf,
    /// Our certificate and its private key.
    pub own: tls::Config,
    /// The name that the broker's certificate must have, if not the address's host.
    pub server_name: Option<String>,
}

/// A message, encrypted.
pub struct Encrypted {
    /// The key's full name.
    pub name: String,
    /// The key version that wraps its data key.
    pub version: String,
    /// The message.
    pub ciphertext: Bytes,
}

/// A message, decrypted.
pub struct Decrypted {
    /// The key's full name.
    pub name: String,
    /// The key version that wrapped its data key.
    pub version: String,
    /// The plaintext, wiped when dropped.
    pub plaintext: Zeroizing<Vec<u8>>,
}

/// A key as its caller sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// The full name.
    pub name: String,
    /// The role that the caller holds.
    pub role: String,
    /// The KMS keys behind it, oldest first.
    pub kms_keys: Vec<String>,
    /// The KMS keys that wrap for one of those as well, likewise.
    pub additional_kms_keys: Vec<String>,
}

/// Why a broker did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The broker ended the handshake.
    #[error(
        "the broker at {address} refuses our certificate: {why}: connect with one that is good \
         and of a trust domain that it knows"
    )]
    Certificate {
        /// Where.
        address: String,
        /// TLS's own word.
        why: String,
    },
    /// An answer does not have the checksum that came with it.
    #[error("{0} was damaged on its way: its CRC32C does not match")]
    Damaged(&'static str),
    /// TLS was asked for without certificates.
    #[error("TLS needs a CA, a certificate and its private key")]
    NoCredentials,
    /// The broker refused.
    #[error("{reason}: {message}")]
    Refused {
        /// Whose turn it is.
        class: Class,
        /// The stable name of the reason.
        reason: String,
        /// The broker's sentence.
        message: String,
    },
    /// The name that the certificate must have is none.
    #[error("{0:?} is no name that a certificate can have")]
    ServerName(String),
    /// Our certificates are not usable.
    #[error(transparent)]
    Tls(#[from] tls::Error),
    /// The broker was not reached, or the connection broke again and again.
    #[error("cannot reach the broker at {address}: {why}")]
    Unreachable {
        /// Where.
        address: String,
        /// Why.
        why: String,
    },
}

impl Error {
    /// A connection to `address` broke: why, as its own stream knows or else those above it.
    fn broken(address: &Address, epitaph: &Epitaph, error: &(dyn StdError + 'static)) -> Self {
        let address = address.to_string();
        match epitaph.read() {
            Some(Death::Alert(why)) => Self::Certificate { address, why },
            Some(Death::Network(why)) => Self::Unreachable { address, why },
            None => Self::Unreachable {
                address,
                why: root(error),
            },
        }
    }
}

/// What kind of refusal it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// We may not, or are nobody.
    Denied,
    /// The broker's own fault.
    Fault,
    /// What we sent cannot be done.
    Invalid,
    /// Not now, or not until somebody changes the key's state.
    Unavailable,
}

fn timed<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(PATIENCE);
    request
}

/// Whether the same call may succeed a little later: UNAVAILABLE says so, and a call that met the
/// end of its connection comes as tonic's own "operation was canceled".
fn passes(status: &Status) -> bool {
    match status.code() {
        Code::Unavailable => true,
        Code::Cancelled | Code::Unknown => status.get_details_error_info().is_none(),
        _ => false,
    }
}

fn class(code: Code) -> Class {
    match code {
        Code::PermissionDenied | Code::Unauthenticated => Class::Denied,
        Code::InvalidArgument | Code::OutOfRange | Code::NotFound | Code::AlreadyExists => {
            Class::Invalid
        }
        Code::Aborted
        | Code::Cancelled
        | Code::DeadlineExceeded
        | Code::FailedPrecondition
        | Code::ResourceExhausted
        | Code::Unavailable => Class::Unavailable,
        Code::Ok | Code::Unknown | Code::Unimplemented | Code::Internal | Code::DataLoss => {
            Class::Fault
        }
    }
}

/// The error at the bottom, which is the one that says something.
fn root(error: &(dyn StdError + 'static)) -> String {
    sources(error).last().unwrap_or(error).to_string()
}

fn sources<'a>(
    error: &'a (dyn StdError + 'static),
) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(error.source(), |&error| error.source())
}

fn whole(field: &'static str, bytes: &[u8], sum: u32) -> Result<(), Error> {
    match crc32c::crc32c(bytes) == sum {
        true => Ok(()),
        false => Err(Error::Damaged(field)),
    }
}

/// The secret in a buffer of its own; the one that it came in is wiped where nobody else holds it.
fn kept(secret: Bytes) -> Zeroizing<Vec<u8>> {
    let copy = Zeroizing::new(secret.to_vec());
    if let Ok(mut original) = secret.try_into_mut() {
        original.zeroize();
    }
    copy
}

/// For TCP and TLS together.
const CONNECT: Duration = Duration::from_secs(5);
/// For one attempt of a call.
const PATIENCE: Duration = Duration::from_secs(10);
/// The policy that our documentation gives to all clients.
const ATTEMPTS: u32 = 4;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_that_met_the_end_of_its_connection_is_tried_again() {
        assert!(passes(&Status::cancelled("operation was canceled")));
        assert!(passes(&Status::unavailable("later")));
        assert!(!passes(&Status::invalid_argument("never")));
        assert!(!passes(&Status::resource_exhausted("not by itself")));
    }
}
