//! The operations, a short method each: permit → data key → message.
//!
//! Unaware of gRPC. A request here is decoded and its checksums hold; everything else about it is
//! still the caller's word.
//!
//! | file | what it holds |
//! |---|---|
//! | `binding` | what a request says of a message besides its content |
//! | `deciding` | whether the caller may use a key |
//! | `sealing`, `opening` | from there over the permit to the data key |
//! | `batch`, `stream` | several messages in one call, and those of any length |
//! | `admin`, `receipt` | what operators do to tenants, and which brokers have confirmed it |
//! | `explain` | why a principal would be allowed or denied something |
//! | `grants` | leave to use a key: made, listed, renewed, ended; and what of it a use asks the store |
//! | `keys` | what a caller may know of keys |
//! | `notes` | what all these add to the audit record |

mod admin;
mod batch;
mod binding;
mod deciding;
mod explain;
mod grants;
mod keys;
mod notes;
mod opening;
mod receipt;
mod sealing;
pub mod stream;

use std::sync::Arc;
use std::time::Duration;

pub use admin::AdminCall;
pub use admin::Management;
pub use admin::Operator;
pub use admin::Origin;
pub use batch::Answer;
pub use batch::Cipher;
pub use batch::Done;
pub use batch::MAX_ITEMS;
pub use batch::Plain;
pub use binding::Binding;
pub use binding::MAX_ASSOCIATED_DATA;
pub use binding::MAX_PLAINTEXT;
pub use binding::Pairs;
pub use explain::Explanation;
pub use explain::Leave;
pub use explain::Question;
pub use grants::Creation;
pub use grants::GrantPage;
pub use grants::Granted;
pub use grants::Grants;
pub use grants::KmsCreation;
pub use grants::KmsGrantPage;
pub use grants::KmsGranted;
pub use grants::Listing;
pub use grants::Retirement;
pub use keys::Page;
pub use keys::Visible;
pub use receipt::Receipt;

use arc_swap::ArcSwap;

use crate::audit::Notes;
use crate::crypto::Plaintext;
use crate::crypto::random;
use crate::datakeys::DataKeys;
use crate::datakeys::Patience;
use crate::datakeys::Source;
use crate::datakeys::Version;
use crate::directory::Directory;
use crate::directory::Standing;
use crate::directory::Tenant;
use crate::error::Error;
use crate::identity::Caller;
use crate::identity::Session;
use crate::kms::Delegation;
use crate::message::Message;
use crate::metrics::Metrics;
use crate::name::KeyName;
use crate::policy::Action;
use crate::policy::Permit;
use crate::policy::Policy;
use crate::quota;
use crate::quota::Account;
use crate::quota::Known;
use crate::quota::Quotas;
use crate::store::Freshness;

use binding::bounded;
use binding::invalid;
use grants::Asked;
use opening::Request;

/// Identities, policies, limits and data keys, joined.
pub struct Broker {
    policy: ArcSwap<Policy>,
    quotas: Quotas,
    data_keys: DataKeys,
    /// Of the tenants; none where nobody else can change them.
    freshness: Option<Arc<Freshness>>,
    grants: Grants,
    /// Where grants of KMS are made; none where they cannot be.
    delegation: Option<Arc<dyn Delegation>>,
    management: ArcSwap<Management>,
}

impl Broker {
    /// A broker under `policy`, which holds until another takes its place.
    pub fn new(policy: Policy, quotas: Quotas, data_keys: DataKeys, grants: Grants) -> Self {
        Self {
            policy: ArcSwap::from_pointee(policy),
            quotas,
            data_keys,
            freshness: None,
            grants,
            delegation: None,
            management: ArcSwap::default(),
        }
    }

    /// The same broker, which goes by its policy as long as `freshness` says that it counts.
    #[must_use]
    pub fn following(self, freshness: Arc<Freshness>) -> Self {
        Self {
            freshness: Some(freshness),
            ..self
        }
    }

    /// The same broker, which makes and ends grants of KMS by `delegation`.
    #[must_use]
    pub fn delegating(self, delegation: Arc<dyn Delegation>) -> Self {
        Self {
            delegation: Some(delegation),
            ..self
        }
    }

    /// Swaps the policy whole. Calls under way end under the one that they began with; data keys
    /// of keys that are no longer what they were serve no more.
    pub fn reload(&self, policy: Policy) {
        let directory = Arc::clone(policy.directory());
        self.policy.store(Arc::new(policy));
        self.data_keys.follow(&directory);
    }

    /// The policy in force.
    pub fn policy(&self) -> Arc<Policy> {
        self.policy.load_full()
    }

    /// What callers may spend.
    pub fn quotas(&self) -> &Quotas {
        &self.quotas
    }

    /// The data keys.
    pub fn data_keys(&self) -> &DataKeys {
        &self.data_keys
    }

    /// What is counted.
    pub fn metrics(&self) -> &Metrics {
        self.data_keys.metrics()
    }

    /// The grants.
    pub fn grants(&self) -> &Grants {
        &self.grants
    }

    /// Clears away what has ended: once a second.
    pub fn sweep(&self) {
        self.grants.book().sweep();
        self.quotas.sweep();
        self.data_keys.sweep();
    }

    /// Says who calls in `session`, under the policy of this moment. `known` is what its connection
    /// keeps of its account.
    ///
    /// # Errors
    /// [`Error::Unmapped`] when no identity rule maps the peer to a tenant; then
    /// [`Error::StoreUnavailable`] and [`Error::TenantSuspended`].
    pub fn visitor(
        &self,
        session: &Session,
        known: &Known,
        notes: &Notes,
    ) -> Result<Visitor, Error> {
        let policy = self.policy();
        let caller = session.caller(policy.rules()).ok_or(Error::Unmapped)?;
        let directory = policy.directory();
        notes.add(|record| {
            record.tenant = Some(caller.tenant().clone());
            record.policy_generation = Some(directory.generation());
        });
        let tenant = self.admit(directory, &caller)?;
        let terms = quota::Terms {
            rate: tenant.and_then(|tenant| tenant.rate()),
            weight: tenant.map_or(1, |tenant| tenant.weight()),
        };
        let generation = directory.generation();
        let account = self.quotas.account(known, generation, &caller, terms);
        Ok(Visitor {
            policy,
            caller,
            account,
        })
    }

    /// The tenant of `caller`, if there is one: whether it may ask for anything.
    fn admit<'d>(
        &self,
        directory: &'d Directory,
        caller: &Caller,
    ) -> Result<Option<&'d Arc<Tenant>>, Error> {
        let tenant = directory.tenant(caller.tenant());
        self.check_freshness(tenant.and_then(|tenant| tenant.max_staleness()))?;
        match tenant.map(|tenant| tenant.standing()) {
            None | Some(Standing::Active) => Ok(tenant),
            Some(Standing::Suspended) => Err(Error::TenantSuspended),
        }
    }

    /// Whether what is known of tenants counts, of one with this `limit` of its own.
    fn check_freshness(&self, limit: Option<Duration>) -> Result<(), Error> {
        match &self.freshness {
            Some(freshness) if !freshness.is_good(limit) => {
                Err(Error::StoreUnavailable("tenants may have changed".into()))
            }
            None | Some(_) => Ok(()),
        }
    }

    /// Begins a call of `visitor`, which waits for KMS with `patience`.
    pub fn call(&self, visitor: &Visitor, notes: Notes, patience: Arc<Patience>) -> Call<'_> {
        let Visitor {
            policy,
            caller,
            account,
        } = visitor.clone();
        Call {
            broker: self,
            policy,
            caller,
            account,
            notes,
            patience,
            asked: Asked::default(),
        }
    }
}

/// Who calls, under which policy, and what it may spend.
#[derive(Clone)]
pub struct Visitor {
    policy: Arc<Policy>,
    caller: Arc<Caller>,
    account: Arc<Account>,
}

impl Visitor {
    /// What it may spend.
    pub fn account(&self) -> &Arc<Account> {
        &self.account
    }
}

/// One call of one caller.
pub struct Call<'a> {
    broker: &'a Broker,
    policy: Arc<Policy>,
    caller: Arc<Caller>,
    account: Arc<Account>,
    notes: Notes,
    patience: Arc<Patience>,
    asked: Asked,
}

/// A sealed message.
pub struct Sealed {
    /// The key's full name.
    pub name: KeyName,
    /// The version that wraps its data key.
    pub version: Arc<Version>,
    /// The message.
    pub ciphertext: Vec<u8>,
}

/// An opened message.
pub struct Opened {
    /// The key's full name.
    pub name: KeyName,
    /// The version that wrapped its data key.
    pub version: Arc<Version>,
    /// The plaintext, wiped when dropped.
    pub plaintext: Plaintext,
}

impl Call<'_> {
    /// Who calls.
    pub fn caller(&self) -> &Caller {
        &self.caller
    }

    /// Pays for a request of `bytes`, beside what the call itself costs.
    pub fn pay_for_bytes(&self, bytes: usize) {
        self.pay(quota::of_bytes(bytes));
    }

    /// Pays for what a look-up had of KMS. Failures are free: most of them ask KMS nothing, and an
    /// outage shall not take away what is cached.
    fn pay_for_kms(&self, source: &Source) {
        match source {
            Source::Miss(_) => self.pay(quota::KMS),
            Source::Coalesced | Source::Hit | Source::Stale => {}
        }
    }

    /// A call that was let in is not refused for what it costs.
    fn pay(&self, units: u64) {
        if units > 0 {
            self.account.charge(units);
        }
    }

    /// Encrypts 1 byte to [`MAX_PLAINTEXT`].
    ///
    /// # Errors
    /// Those of the RPC.
    pub async fn encrypt(&self, to: Binding, plaintext: &[u8]) -> Result<Sealed, Error> {
        bounded("plaintext", plaintext.len())?;
        self.seal(Action::Encrypt, to, plaintext).await
    }

    /// Decrypts a message.
    ///
    /// # Errors
    /// Those of the RPC.
    pub async fn decrypt(&self, from: Binding, ciphertext: &[u8]) -> Result<Opened, Error> {
        self.open(Action::Decrypt, from, ciphertext).await
    }

    /// Decrypts a message and encrypts it anew.
    ///
    /// # Errors
    /// Those of the RPC.
    pub async fn re_encrypt(
        &self,
        from: Binding,
        ciphertext: &[u8],
        to: Binding,
    ) -> Result<(Opened, Sealed), Error> {
        // Both permits come first: a caller who lacks one learns nothing by the other.
        let sealing = self.permit(Action::ReEncryptTo, &to).await?;
        let opened = self.open(Action::ReEncryptFrom, from, ciphertext).await?;
        // A message of the SDKs may hold more than we take as a plaintext.
        bounded("ciphertext", opened.plaintext.len())?;
        let sealed = self
            .seal_under(&sealing, &to.associated_data, &opened.plaintext)
            .await?;
        Ok((opened, sealed))
    }

    /// Makes a data key of `length` bytes, fresh each time, and encrypts it.
    ///
    /// # Errors
    /// Those of the RPC.
    pub async fn generate_data_key(
        &self,
        action: Action,
        to: Binding,
        length: usize,
    ) -> Result<(Plaintext, Sealed), Error> {
        let plaintext = random_bytes(if length == 0 { DATA_KEY } else { length })?;
        let sealed = self.seal(action, to, &plaintext).await?;
        Ok((plaintext, sealed))
    }

    /// Random bytes, 1 to [`MAX_RANDOM`].
    ///
    /// # Errors
    /// Those of the RPC.
    pub fn generate_random(&self, length: usize) -> Result<Plaintext, Error> {
        random_bytes(length)
    }

    async fn seal(&self, action: Action, to: Binding, plaintext: &[u8]) -> Result<Sealed, Error> {
        let permit = self.permit(action, &to).await?;
        self.seal_under(&permit, &to.associated_data, plaintext)
            .await
    }

    async fn seal_under(
        &self,
        permit: &Permit,
        associated_data: &[u8],
        plaintext: &[u8],
    ) -> Result<Sealed, Error> {
        let length =
            u64::try_from(plaintext.len()).map_err(|_| Error::Bug("a length over u64".into()))?;
        let reserved = self.reserve(permit, Some(length)).await?;
        let version = Arc::clone(reserved.version());
        self.note_plaintext(plaintext.len());
        let ciphertext = reserved
            .seal(associated_data, plaintext)
            .map_err(|error| no_randomness(&error))?;
        self.stands(permit)?;
        Ok(Sealed {
            name: permit.key().name().clone(),
            version,
            ciphertext,
        })
    }

    async fn open(
        &self,
        action: Action,
        from: Binding,
        ciphertext: &[u8],
    ) -> Result<Opened, Error> {
        let name = self.key_wanted(action, &from)?;
        self.note_request(name.as_ref(), &from.context);
        let request = Request {
            action,
            from: &from,
            name: name.as_ref(),
        };
        let message = match Message::parse(ciphertext) {
            Ok(message) => message,
            Err(flaw) => return Err(self.flawed(request, flaw).await),
        };
        let (permit, opener) = self.opener(request, &message).await?;
        let plaintext = opener.open(&message, &from.associated_data)?;
        self.note_plaintext(plaintext.len());
        self.stands(&permit)?;
        Ok(Opened {
            name: permit.key().name().clone(),
            version: Arc::clone(opener.version()),
            plaintext,
        })
    }
}

fn random_bytes(length: usize) -> Result<Plaintext, Error> {
    if !(1..=MAX_RANDOM).contains(&length) {
        let why = format!("{length} is not 1 to {MAX_RANDOM}");
        return Err(invalid("number_of_bytes", why));
    }
    let mut bytes = Plaintext::from(vec![0; length]);
    random::fill(&mut bytes).map_err(|error| no_randomness(&error))?;
    Ok(bytes)
}

fn no_randomness(_: &random::Error) -> Error {
    Error::Bug("the operating system's random generator failed".into())
}

/// Most random bytes at a time, and the longest data key.
pub const MAX_RANDOM: usize = 1024;
/// The length of a data key unless the caller names one.
const DATA_KEY: usize = 32;
