//! What models of the cache have around it: tenants and keys with small limits, a KMS that writes
//! down what it made, and the rules that every use of a data key is held against.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;
use std::sync::LazyLock;
use std::sync::Mutex;
use std::sync::MutexGuard;

use async_trait::async_trait;
use keybroker::clock::Clock;
use keybroker::clock::Instant;
use keybroker::crypto::Secret;
use keybroker::directory::Directory;
use keybroker::grants::Backing;
use keybroker::identity::Peer;
use keybroker::identity::Rules;
use keybroker::kms;
use keybroker::kms::DataKey;
use keybroker::kms::Demand;
use keybroker::kms::KeyRef;
use keybroker::kms::LOCAL_PROVIDER;
use keybroker::kms::Unwrapped;
use keybroker::kms::Wrapped;
use keybroker::message::EncryptedDataKey;
use keybroker::message::EncryptionContext;
use keybroker::message::Message;
use keybroker::metrics::KmsOperation;
use keybroker::name::KeyName;
use keybroker::policy::Action;
use keybroker::policy::Permit;
use keybroker::policy::Policy;

use crate::datakeys::Scope;
use crate::yield_now;

/// Serial numbers of data keys, in the order in which KMS made them.
pub type Serial = usize;

/// Two tenants behind one KMS key, and a second key of the first. A data key seals three
/// messages or a hundred bytes within a minute.
pub const TENANTS: &str = r#"
    [[tenant]]
    id = "acme"

    [[tenant.key]]
    id = "orders"
    kms = "local:one"
    cache = { max_age = "60s", max_messages = 3, max_bytes = 100 }
    users = ["unix:uid=1"]

    [[tenant.key]]
    id = "wages"
    kms = ["local:one", "local:two"]
    cache = { max_age = "60s", max_messages = 3, max_bytes = 100 }
    users = ["unix:uid=1"]

    [[tenant]]
    id = "umbrella"

    [[tenant.key]]
    id = "orders"
    kms = "local:one"
    cache = { max_age = "60s", max_messages = 3, max_bytes = 100 }
    users = ["unix:uid=2"]
"#;

const RULES: &str = r#"
    [[rule]]
    match = "unix:gid=1"
    tenant = "acme"

    [[rule]]
    match = "unix:gid=2"
    tenant = "umbrella"
"#;

/// Of what a data key is asked for: a key of [`TENANTS`], and a context of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    pub tenant: &'static str,
    pub key: &'static str,
    pub document: &'static str,
}

impl Place {
    pub const fn new(tenant: &'static str, key: &'static str, document: &'static str) -> Self {
        Self {
            tenant,
            key,
            document,
        }
    }

    pub fn name(&self) -> KeyName {
        KeyName {
            tenant: self.tenant.parse().expect("a tenant"),
            key: self.key.parse().expect("a key"),
        }
    }
}

/// A sealed message, and what it was sealed for.
#[derive(Clone)]
pub struct Sealed {
    pub place: Place,
    pub bytes: Vec<u8>,
}

/// The directory and the rules that [`TENANTS`] make.
pub fn policy() -> &'static Policy {
    static POLICY: LazyLock<Policy> = LazyLock::new(|| policy_of(directory(TENANTS)));
    &POLICY
}

pub fn directory(text: &str) -> Directory {
    Directory::parse(text, Path::new("tenants.toml")).expect("tenants")
}

pub fn policy_of(directory: Directory) -> Policy {
    static RULES_READ: LazyLock<Arc<Rules>> = LazyLock::new(|| {
        let config = toml::from_str(RULES).expect("rules");
        Arc::new(Rules::new(&config).expect("rules"))
    });
    Policy::new(directory.into(), Arc::clone(&RULES_READ)).expect("no clash")
}

pub fn to_seal(policy: &Policy, place: Place) -> Permit {
    let caller = caller(policy, place);
    let own = own(place);
    policy
        .authorize_seal(&caller, Action::Encrypt, &place.name(), &own, Backing::NONE)
        .expect("a user")
}

pub fn to_open(policy: &Policy, place: Place, message: &Message<'_>) -> Permit {
    let caller = caller(policy, place);
    let (name, own) = (place.name(), own(place));
    policy
        .authorize_open(
            &caller,
            Action::Decrypt,
            Some(&name),
            message.context(),
            &own,
            Backing::NONE,
        )
        .expect("a user")
}

fn caller(policy: &Policy, place: Place) -> keybroker::identity::Caller {
    let id = if place.tenant == "acme" { 1 } else { 2 };
    policy.rules().map(&Peer::unix(id, id)).expect("a rule")
}

fn own(place: Place) -> [(String, String); 1] {
    [("document".to_owned(), place.document.to_owned())]
}

/// The data key that `message` was sealed with.
pub fn serial(message: &Message<'_>) -> Serial {
    let [wrapped] = message.encrypted_data_keys() else {
        panic!("one wrapped key in each message");
    };
    serial_of(wrapped).expect("a serial number")
}

/// What KMS answers from now on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mood {
    /// What it is asked for.
    #[default]
    Good,
    /// That access is denied, of this document.
    Denying(&'static str),
    /// That no key may be used.
    Deleting,
    /// Nothing of use.
    Down,
    /// Nothing at all: only who asks ends it.
    Hanging,
}

/// A KMS that knows every data key by its serial number, and who used it for what.
pub struct Ledger {
    clock: Arc<dyn Clock>,
    pages: Mutex<Pages>,
}

#[derive(Default)]
struct Pages {
    /// Counts events: what has the smaller number was first.
    now: u64,
    mood: Mood,
    made: Vec<Made>,
    under_way: HashMap<Call, usize>,
    refusals: Vec<Refusal>,
    purges: Vec<Purged>,
    calls: u64,
    served: u64,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Call {
    key: KeyRef,
    context: Vec<(String, String)>,
    wrapped: Option<Serial>,
}

struct Made {
    key: KeyRef,
    context: EncryptionContext,
    sealing: Answer,
    /// The last time that it was made or unwrapped.
    opening: Answer,
    messages: u64,
    bytes: u64,
    /// The state of the key whose permits sealed with it, and opened since KMS was last asked.
    sealed_for: Option<u64>,
    opened_for: Option<u64>,
}

#[derive(Clone, Copy)]
struct Answer {
    begun: u64,
    decided: u64,
    at: Instant,
}

struct Refusal {
    scope: Refused,
    decided: u64,
    /// When a caller first had it.
    told: Option<u64>,
}

enum Refused {
    Key(KeyRef),
    /// One message's data key.
    Opening,
    Sealing(KeyRef, EncryptionContext),
}

struct Purged {
    scope: Scope,
    begun: u64,
    ended: Option<u64>,
}

/// An attempt to use a data key, from before the cache is asked.
pub struct Attempt {
    begun: u64,
    at: Instant,
}

impl Ledger {
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            clock,
            pages: Mutex::default(),
        }
    }

    pub fn turn(&self, mood: Mood) {
        self.pages().mood = mood;
    }

    /// Calls so far.
    pub fn calls(&self) -> u64 {
        self.pages().calls
    }

    /// Uses of data keys so far.
    pub fn served(&self) -> u64 {
        self.pages().served
    }

    /// A data key was reserved and never used.
    pub fn lost(&self) {
        self.pages().served += 1;
    }

    /// How many data keys the cache was given to keep: at least and at most, since a large message
    /// has one of its own.
    pub fn kept(&self) -> RangeInclusive<usize> {
        let pages = self.pages();
        let documents = pages.made.iter().map(|made| made.context.value("document"));
        let large = documents
            .filter(|document| *document == Some("large"))
            .count();
        pages.made.len() - large..=pages.made.len()
    }

    pub fn begin(&self) -> Attempt {
        let at = self.clock.now();
        let begun = self.pages().tick();
        Attempt { begun, at }
    }

    /// What an attempt ended in instead of a data key.
    pub fn refused(&self, error: &kms::Error) {
        let mut pages = self.pages();
        let now = pages.tick();
        let text = match error {
            kms::Error::AccessDenied(denial) => Some(denial.to_string()),
            kms::Error::PendingDeletion(text) => Some(text.clone()),
            _ => None,
        };
        if let Some(text) = text {
            let number: usize = text.rsplit(' ').next().expect("text").parse().expect("one");
            pages.refusals[number].told.get_or_insert(now);
        }
    }

    /// Notes the message of `bytes` that is about to be sealed with the data key `serial`.
    pub fn seals(&self, attempt: &Attempt, permit: &Permit, serial: Serial, bytes: u64) {
        let mut pages = self.pages();
        let key = permit.key();
        let limits = key.limits();
        let now = pages.tick();
        let made = &mut pages.made[serial];
        let state = key.generation();
        let states = [&mut made.sealed_for, &mut made.opened_for];
        let known = states.map(|known| *known.get_or_insert(state));
        assert_eq!(known[0], state, "used for another state of its key");
        made.messages += 1;
        made.bytes += bytes;
        let answer = made.sealing;
        let whose = (&made.key, &made.context);
        let generator = key.kms().primary().generator();
        assert_eq!(whose, (generator, permit.context()));
        if bytes > limits.max_bytes {
            assert_eq!(
                made.messages, 1,
                "beyond the limit of bytes it is used once"
            );
        } else {
            assert!(made.messages <= limits.max_messages, "too many messages");
            assert!(made.bytes <= limits.max_bytes, "too many bytes");
        }
        pages.check(attempt, permit, serial, &answer, now);
        let denied = pages.refusals.iter().any(|refusal| match &refusal.scope {
            Refused::Sealing(key, context) => {
                (key, context) == (&pages.made[serial].key, permit.context())
                    && refusal.precedes(&answer, attempt)
            }
            Refused::Key(_) | Refused::Opening => false,
        });
        assert!(!denied, "sealed after KMS had denied it");
    }

    /// Notes the message that is about to be opened with the data key `serial`.
    pub fn opens(&self, attempt: &Attempt, permit: &Permit, serial: Serial) {
        let mut pages = self.pages();
        let now = pages.tick();
        let made = &mut pages.made[serial];
        let state = permit.key().generation();
        let known = *made.opened_for.get_or_insert(state);
        assert_eq!(known, state, "used for another state of its key");
        assert!(permit.key().kms().version_of(&made.key).is_some());
        assert_eq!(&made.context, permit.context());
        let answer = made.opening;
        pages.check(attempt, permit, serial, &answer, now);
    }

    /// A purge that begins now, by its number.
    pub fn purge_begins(&self, scope: &Scope) -> usize {
        let mut pages = self.pages();
        let begun = pages.tick();
        pages.purges.push(Purged {
            scope: scope.clone(),
            begun,
            ended: None,
        });
        pages.purges.len() - 1
    }

    pub fn purge_ends(&self, number: usize) {
        let mut pages = self.pages();
        let now = pages.tick();
        pages.purges[number].ended = Some(now);
    }

    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().expect("no panic before")
    }

    async fn call(&self, call: Call) -> Result<Answer, kms::Error> {
        let (begun, at) = {
            let mut pages = self.pages();
            pages.calls += 1;
            let under_way = pages.under_way.entry(call.clone()).or_default();
            *under_way += 1;
            assert!(
                *under_way == 1 || !call.is_single(),
                "two calls at once for one entry"
            );
            (pages.tick(), self.clock.now())
        };
        let _landing = Landing(self, &call);
        yield_now().await;
        if self.pages().mood == Mood::Hanging {
            std::future::pending::<()>().await;
        }
        let decision = self.pages().decide(&call, begun, at);
        yield_now().await;
        decision
    }
}

impl Pages {
    fn tick(&mut self) -> u64 {
        self.now += 1;
        self.now
    }

    /// What holds for either direction.
    fn check(
        &mut self,
        attempt: &Attempt,
        permit: &Permit,
        serial: Serial,
        answer: &Answer,
        now: u64,
    ) {
        self.served += 1;
        let key = permit.key();
        let made = &self.made[serial];
        let age = attempt.at.since(answer.at);
        assert!(age < key.limits().max_age, "used at the age of {age:?}");
        for purge in &self.purges {
            let meant = match &purge.scope {
                Scope::All => true,
                Scope::Key(name) => name == key.name(),
                Scope::Tenant(tenant) => tenant == permit.tenant(),
            };
            let over = purge.ended.is_some_and(|ended| ended < now);
            assert!(
                !(meant && over && answer.begun < purge.begun),
                "used after a purge had returned: {:?}",
                permit.context()
            );
        }
        let gone = self.refusals.iter().any(|refusal| match &refusal.scope {
            Refused::Opening | Refused::Sealing(..) => false,
            Refused::Key(key) => *key == made.key && refusal.precedes(answer, attempt),
        });
        assert!(!gone, "used after KMS had refused the key");
    }

    fn decide(&mut self, call: &Call, begun: u64, at: Instant) -> Result<Answer, kms::Error> {
        let decided = self.tick();
        let text = format!("refusal {}", self.refusals.len());
        let (scope, error) = match self.mood {
            Mood::Denying(document) if call.document() == Some(document) => {
                let context = EncryptionContext::new(call.context.clone()).expect("a context");
                let scope = match call.wrapped {
                    None => Refused::Sealing(call.key.clone(), context),
                    Some(_) => Refused::Opening,
                };
                (scope, kms::Error::AccessDenied(text.into()))
            }
            Mood::Deleting => {
                let scope = Refused::Key(call.key.clone());
                (scope, kms::Error::PendingDeletion(text))
            }
            Mood::Down => return Err(kms::Error::Throttled),
            Mood::Denying(_) | Mood::Good | Mood::Hanging => {
                return Ok(Answer { begun, decided, at });
            }
        };
        self.refusals.push(Refusal {
            scope,
            decided,
            told: None,
        });
        Err(error)
    }
}

impl Refusal {
    /// Whether a caller knew of it before `attempt`, which uses what KMS gave before it refused.
    fn precedes(&self, answer: &Answer, attempt: &Attempt) -> bool {
        answer.decided < self.decided && self.told.is_some_and(|told| told < attempt.begun)
    }
}

impl Call {
    fn new(key: &KeyRef, context: &EncryptionContext, wrapped: Option<Serial>) -> Self {
        let pairs = context.pairs();
        Self {
            key: key.clone(),
            context: pairs
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
            wrapped,
        }
    }

    fn document(&self) -> Option<&str> {
        let mut pairs = self.context.iter();
        let found = pairs.find(|(name, _)| name == "document");
        found.map(|(_, value)| value.as_str())
    }

    /// Whether one at a time is promised: not of probes, and not of messages beyond the limit.
    fn is_single(&self) -> bool {
        !matches!(self.document(), None | Some("large"))
    }
}

/// Takes a call out of those under way, however it ends.
struct Landing<'a>(&'a Ledger, &'a Call);

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        if let Ok(mut pages) = self.0.pages.lock() {
            *pages.under_way.entry(self.1.clone()).or_default() -= 1;
        }
    }
}

#[async_trait]
impl kms::Kms for Ledger {
    async fn generate_data_key(
        &self,
        key: &KeyRef,
        context: &EncryptionContext,
        _: &Demand,
    ) -> Result<DataKey, kms::Error> {
        let answer = self.call(Call::new(key, context, None)).await?;
        let mut pages = self.pages();
        let serial = pages.made.len();
        pages.made.push(Made {
            key: key.clone(),
            context: context.clone(),
            sealing: answer,
            opening: answer,
            messages: 0,
            bytes: 0,
            sealed_for: None,
            opened_for: None,
        });
        let KeyRef::Local(id) = key else {
            panic!("no such key: {key}");
        };
        Ok(DataKey {
            plaintext: plaintext(serial),
            wrapped: EncryptedDataKey {
                provider_id: LOCAL_PROVIDER.to_owned(),
                provider_info: format!("ring/{id}/1"),
                ciphertext: serial.to_be_bytes().to_vec(),
            },
            request_id: None,
        })
    }

    async fn encrypt(
        &self,
        key: &KeyRef,
        _: &Secret<{ kms::DATA_KEY }>,
        _: &EncryptionContext,
        _: &Demand,
    ) -> Result<Wrapped, kms::Error> {
        panic!("no key here has an additional one: {key}")
    }

    async fn decrypt(
        &self,
        key: &KeyRef,
        wrapped: &EncryptedDataKey,
        context: &EncryptionContext,
        _: &Demand,
    ) -> Result<Unwrapped, kms::Error> {
        let serial = serial_of(wrapped).ok_or(kms::Error::InvalidCiphertext)?;
        let answer = self.call(Call::new(key, context, Some(serial))).await?;
        let mut pages = self.pages();
        let made = pages.made.get_mut(serial).expect("made by this KMS");
        if made.key != *key {
            return Err(kms::Error::IncorrectKey);
        }
        if made.context != *context {
            return Err(kms::Error::InvalidCiphertext);
        }
        made.opening = answer;
        made.opened_for = None;
        Ok(Unwrapped {
            plaintext: plaintext(serial),
            current: true,
            request_id: None,
        })
    }

    async fn describe_key(&self, _: &KeyRef) -> Result<(), kms::Error> {
        Ok(())
    }

    async fn dry_run(
        &self,
        _: KmsOperation,
        key: &KeyRef,
        context: &EncryptionContext,
        _: &Demand,
    ) -> Result<(), kms::Error> {
        self.call(Call::new(key, context, None)).await.map(drop)
    }
}

fn serial_of(wrapped: &EncryptedDataKey) -> Option<Serial> {
    let bytes = wrapped.ciphertext.as_slice().try_into().ok()?;
    Some(Serial::from_be_bytes(bytes))
}

/// Each data key's own: what one has sealed no other opens.
fn plaintext(serial: Serial) -> Secret<{ kms::DATA_KEY }> {
    Secret::filled(|cell| cell[..8].copy_from_slice(&serial.to_be_bytes()))
}
