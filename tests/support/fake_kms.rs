//! A fake AWS KMS: its wire protocol over HTTP, its rules, and faults on demand.
//!
//! The real SDK talks to it, so that timeouts, retries and the decoding of errors are the SDK's.
//! It checks of signatures the date alone, and lets nobody use a grant.
//!
//! ```ignore
//! let fake = FakeKms::start().await;
//! let aws = fake.aws();                                    // the real client
//! let region = fake.region("eu-west-1");
//! region.throttle_above(50);                               // a second, on the fake's clock
//! region.fail_all(Fault::Hang);
//! region.cut_off().await;                                  // refuses connections
//! region.heal();
//! let tenants = fake.counts(|call| call.tenant().map(str::to_owned));
//! let most = fake.most_at_once(|call| call.region == "eu-west-1");
//! ```
//!
//! | room | what is there |
//! |---|---|
//! | `answer` | answers as they go over the wire: whole, in pieces, or torn |
//! | `calls` | what was asked, and how it ended |
//! | `door` | a port, and the connections that come through it |
//! | `exchange` | from a request to an answer, or to the fault that takes its place |
//! | `faults` | what can go wrong, and when |
//! | `grants` | grants, made, listed and ended |
//! | `keys` | keys, their names and states, and who may use them |
//! | `memory` | the way of the real client without a network |
//! | `quota` | how many calls a second |
//! | `region` | what can go wrong in a Region as a whole |
//! | `request` | a request as it is read |
//! | `route` | the way of the real client to the port of a Region |
//! | `service` | the operations, when nothing goes wrong |
//! | `signing` | those of keys that sign |

mod answer;
mod calls;
mod door;
mod exchange;
mod faults;
mod grants;
mod keys;
mod memory;
mod quota;
mod region;
mod request;
mod route;
mod service;
mod signing;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use aws_config::BehaviorVersion;
use aws_config::SdkConfig;
use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use jiff::SignedDuration;
use keybroker::clock;
use keybroker::clock::Clock;
use keybroker::clock::Instant;
use keybroker::kms::Arn;
use keybroker::kms::aws::Aws;
use keybroker::kms::aws::Config;
use tokio::sync::watch;

pub use calls::Call;
pub use calls::Counts;
pub use calls::Outcome;
pub use faults::Fault;
pub use keys::State;
pub use region::Region;

use super::virtual_time::Virtual;
use calls::Log;
use door::Door;
use faults::Rule;
use faults::Rules;
use region::Station;
use service::Service;

/// The access key of the callers that [`FakeKms::aws`] makes.
pub const BROKER: &str = "AKIABROKER";

/// What the fake can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operation {
    CreateGrant,
    Decrypt,
    DescribeKey,
    Encrypt,
    GenerateDataKey,
    GenerateDataKeyWithoutPlaintext,
    GenerateRandom,
    GetPublicKey,
    Sign,
    ListGrants,
    RevokeGrant,
}

/// A running fake. Stops when dropped.
pub struct FakeKms {
    door: Door,
    shared: Arc<Shared>,
    way: Way,
}

/// How the clients of [`FakeKms::aws`] come here.
enum Way {
    Memory,
    Ports,
}

struct Shared {
    service: Mutex<Service>,
    faults: Mutex<Rules>,
    regions: Mutex<BTreeMap<String, Arc<Station>>>,
    log: Log,
    holds: watch::Sender<usize>,
    clock: Arc<dyn Clock>,
    began: Instant,
}

impl FakeKms {
    /// A fake on the machine's clock.
    pub async fn start() -> Self {
        Self::start_on(Arc::new(clock::System)).await
    }

    /// A fake whose quotas refill, and whose log counts, on `clock`.
    pub async fn start_on(clock: Arc<dyn Clock>) -> Self {
        Self::new(clock, Way::Ports)
    }

    /// A fake on tokio's clock, which its clients reach without a network: for tests whose time is
    /// paused.
    pub fn in_virtual_time() -> Self {
        Self::new(Arc::new(Virtual::new()), Way::Memory)
    }

    fn new(clock: Arc<dyn Clock>, way: Way) -> Self {
        let shared = Arc::new(Shared {
            service: Mutex::default(),
            faults: Mutex::default(),
            regions: Mutex::default(),
            log: Log::default(),
            holds: watch::Sender::default(),
            began: clock.now(),
            clock,
        });
        Self {
            door: Door::open(&shared),
            shared,
            way,
        }
    }

    /// Where it listens for all Regions: `http://127.0.0.1:<port>`.
    pub fn endpoint(&self) -> String {
        self.door.endpoint()
    }

    /// A Region, to be troubled as a whole.
    pub fn region(&self, name: &str) -> Region<'_> {
        Region::of(self, name)
    }

    /// The real client, aimed at this fake, with timeouts and a rate that nothing here comes near.
    /// It meets each Region on a port of its own, if on any.
    pub fn aws(&self) -> Aws {
        self.aws_with(self.config())
    }

    /// The same with another configuration.
    pub fn aws_with(&self, config: Config) -> Aws {
        let client = match self.way {
            Way::Memory => memory::in_memory(&self.shared),
            Way::Ports => route::by_region(&self.shared),
        };
        let sdk = sdk_config(BROKER)
            .into_builder()
            .http_client(client)
            .build();
        Aws::new(&sdk, config).expect("a valid configuration")
    }

    /// The configuration of [`FakeKms::aws`].
    pub fn config(&self) -> Config {
        Config {
            endpoint: Some(self.endpoint()),
            attempt_timeout: SignedDuration::from_secs(10),
            operation_timeout: SignedDuration::from_secs(30),
            requests_per_second: 100_000,
            ..Config::default()
        }
    }

    /// Knows the caller with this access key no more.
    pub fn revoke(&self, caller: &str) {
        self.service(|service| service.revoke(caller));
    }

    /// Answers every `operation` with `fault` until [`FakeKms::heal`].
    pub fn fail(&self, operation: Operation, fault: Fault) {
        self.rule(operation, None, None, fault);
    }

    /// Answers the next `calls` of `operation` with `fault`.
    pub fn fail_next(&self, calls: usize, operation: Operation, fault: Fault) {
        self.rule(operation, None, Some(calls), fault);
    }

    /// Answers every `operation` with `key` with `fault`.
    pub fn fail_key(&self, key: &Arn, operation: Operation, fault: Fault) {
        self.rule(operation, Some(key.to_string()), None, fault);
    }

    /// Ends all faults, and all that is wrong in a Region.
    pub fn heal(&self) {
        lock(&self.shared.faults).clear();
        for station in lock(&self.shared.regions).values() {
            station.heal(&self.shared);
        }
    }

    /// Holds all calls, which are counted when they arrive, until the guard is dropped.
    pub fn hold(&self) -> Hold {
        self.shared.holds.send_modify(|holds| *holds += 1);
        Hold(Arc::clone(&self.shared))
    }

    /// Waits until `operation` was called `calls` times.
    pub async fn arrived(&self, operation: Operation, calls: usize) {
        self.until(|log| count(log, operation, None) >= calls).await;
    }

    /// Waits until the log is so.
    pub async fn until(&self, reached: impl FnMut(&[Call]) -> bool) {
        self.shared.log.until(reached).await;
    }

    /// The plaintext of every data key that was given out, and of all else that was encrypted.
    pub fn plaintexts(&self) -> Vec<Vec<u8>> {
        self.service(|service| service.plaintexts())
    }

    /// How many times `operation` was called.
    pub fn calls(&self, operation: Operation) -> usize {
        self.shared.log.read(|log| count(log, operation, None))
    }

    /// How many times `operation` was called with `key`.
    pub fn calls_of(&self, key: &Arn, operation: Operation) -> usize {
        let key = Some(key.as_str());
        self.shared.log.read(|log| count(log, operation, key))
    }

    /// All calls so far, in order.
    pub fn log(&self) -> Vec<Call> {
        self.shared.log.read(<[Call]>::to_vec)
    }

    /// How the calls of each group ended: by tenant, by Region, by second of [`Call::at`], by any
    /// of these together.
    pub fn counts<G: Ord>(&self, group: impl Fn(&Call) -> G) -> BTreeMap<G, Counts> {
        let mut counts: BTreeMap<G, Counts> = BTreeMap::new();
        self.shared.log.read(|log| {
            for call in log {
                counts.entry(group(call)).or_default().add(call);
            }
        });
        counts
    }

    /// Most calls for which `which` holds that lasted at one time.
    pub fn most_at_once(&self, which: impl Fn(&Call) -> bool) -> usize {
        let log = &self.shared.log;
        log.read(|log| calls::most_at_once(log.iter().filter(|call| which(call))))
    }

    fn service<T>(&self, change: impl FnOnce(&mut Service) -> T) -> T {
        change(&mut lock(&self.shared.service))
    }

    fn rule(
        &self,
        operation: Operation,
        key: Option<String>,
        remaining: Option<usize>,
        fault: Fault,
    ) {
        lock(&self.shared.faults).add(Rule {
            operation: Some(operation),
            key,
            region: None,
            remaining,
            fault,
        });
    }
}

impl Drop for FakeKms {
    fn drop(&mut self) {
        // A call that hangs holds its Region, and so its own end.
        for station in lock(&self.shared.regions).values() {
            station.door.close();
        }
    }
}

impl Shared {
    /// A Region, which there is from the first time that it is named.
    fn station(self: &Arc<Self>, region: &str) -> Arc<Station> {
        let mut regions = lock(&self.regions);
        let station = regions
            .entry(region.to_owned())
            .or_insert_with(|| Arc::new(Station::open(self)));
        Arc::clone(station)
    }
}

/// Holds the calls of a [`FakeKms`] while it lives.
pub struct Hold(Arc<Shared>);

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.holds.send_modify(|holds| *holds -= 1);
    }
}

/// The credentials of the caller with this access key, and nothing else.
pub fn sdk_config(caller: &str) -> SdkConfig {
    let credentials = Credentials::new(caller, "no secret", None, None, "fake");
    SdkConfig::builder()
        .behavior_version(BehaviorVersion::v2026_01_12())
        .credentials_provider(SharedCredentialsProvider::new(credentials))
        .build()
}

fn count(log: &[Call], operation: Operation, key: Option<&str>) -> usize {
    log.iter()
        .filter(|call| call.operation == operation)
        .filter(|call| key.is_none() || call.key.as_deref() == key)
        .count()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
