//! A Region of the fake, and what can go wrong in all of it at once.

use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use jiff::SignedDuration;
use jiff::Timestamp;
use keybroker::clock::Instant;
use tokio::sync::watch;

use super::FakeKms;
use super::Operation;
use super::Shared;
use super::State;
use super::door::Door;
use super::faults::Fault;
use super::faults::Rule;
use super::keys;
use super::lock;
use super::quota::Quota;
use super::request::stamp;

/// One Region, in the hands of a test.
///
/// Faults, quotas, skews and cuts last until [`Region::heal`] or [`FakeKms::heal`]; what was done
/// to keys and callers stays.
pub struct Region<'a> {
    fake: &'a FakeKms,
    name: String,
    station: Arc<Station>,
}

impl<'a> Region<'a> {
    pub(super) fn of(fake: &'a FakeKms, name: &str) -> Self {
        Self {
            fake,
            name: name.to_owned(),
            station: fake.shared.station(name),
        }
    }

    /// A port of this Region's own: `http://127.0.0.1:<port>`. Like [`FakeKms::endpoint`], it
    /// answers as the Region that the signature names.
    pub fn endpoint(&self) -> String {
        self.station.door.endpoint()
    }

    /// From now on the account may make so many calls a second, and a second's worth of them at
    /// once. [`Operation::DescribeKey`] doesn't count.
    pub fn throttle_above(&self, per_second: u32) {
        self.limit(per_second, None);
    }

    /// The same; those that are refused are told to wait for so long.
    pub fn throttle_above_asking(&self, per_second: u32, retry_after: Duration) {
        self.limit(per_second, Some(retry_after));
    }

    /// Sets the Region's clock ahead of the machine's, by which clients sign, by so much. Over five
    /// minutes, either way, no signature is good.
    pub fn skew(&self, by: SignedDuration) {
        *lock(&self.station.skew) = by;
    }

    /// Answers every `operation` with `fault`.
    pub fn fail(&self, operation: Operation, fault: Fault) {
        self.rule(Some(operation), fault);
    }

    /// Answers everything with `fault`.
    pub fn fail_all(&self, fault: Fault) {
        self.rule(None, fault);
    }

    /// Can't be connected to from now on. Connections and calls end; over [`FakeKms::endpoint`],
    /// which other Regions share, each call for this one ends with a reset. No such call is in the
    /// log.
    pub async fn cut_off(&self) {
        self.station.cut.send_replace(true);
        self.station.door.shut().await;
    }

    /// The same, but that connecting to it gets no answer at all, as when packets are lost on the
    /// way.
    pub async fn go_dark(&self) {
        self.station.cut.send_replace(true);
        self.station.door.darken().await;
    }

    /// Ends everything that was wrong in this Region alone.
    pub fn heal(&self) {
        lock(&self.fake.shared.faults).clear_region(&self.name);
        self.station.heal(&self.fake.shared);
    }

    /// Refuses `operation` with every key that the Region has now to the caller with this access
    /// key.
    pub fn deny(&self, caller: &str, operation: Operation) {
        self.each_key(|keys, id| keys.deny(caller, operation, &keys::arn(&self.name, id)));
    }

    /// Ends a [`Region::deny`].
    pub fn allow(&self, caller: &str, operation: Operation) {
        self.each_key(|keys, id| keys.allow(caller, operation, &keys::arn(&self.name, id)));
    }

    /// Puts every key that the Region has now into `state`.
    pub fn set_state(&self, state: State) {
        self.each_key(|keys, id| keys.set_state(&self.name, id, state));
    }

    fn limit(&self, per_second: u32, retry_after: Option<Duration>) {
        let now = self.fake.shared.clock.now();
        *lock(&self.station.quota) = Some(Quota::new(per_second, retry_after, now));
    }

    fn rule(&self, operation: Option<Operation>, fault: Fault) {
        lock(&self.fake.shared.faults).add(Rule {
            operation,
            key: None,
            region: Some(self.name.clone()),
            remaining: None,
            fault,
        });
    }

    fn each_key(&self, mut change: impl FnMut(&mut keys::Keys, &str)) {
        let keys = &mut lock(&self.fake.shared.service).keys;
        for id in keys.ids(&self.name) {
            change(keys, &id);
        }
    }
}

/// What the fake has of a Region.
pub struct Station {
    pub door: Door,
    cut: watch::Sender<bool>,
    quota: Mutex<Option<Quota>>,
    skew: Mutex<SignedDuration>,
}

impl Station {
    pub fn open(shared: &Arc<Shared>) -> Self {
        Self {
            door: Door::open(shared),
            cut: watch::Sender::default(),
            quota: Mutex::default(),
            skew: Mutex::default(),
        }
    }

    pub fn heal(&self, shared: &Arc<Shared>) {
        self.cut.send_replace(false);
        self.door.reopen(shared);
        *lock(&self.quota) = None;
        *lock(&self.skew) = SignedDuration::ZERO;
    }

    /// Waits until the Region is cut off.
    pub async fn lost(&self) {
        let mut cut = self.cut.subscribe();
        cut.wait_for(|cut| *cut).await.expect("the Region stands");
    }

    /// Whether the Region is cut off.
    pub fn is_lost(&self) -> bool {
        *self.cut.borrow()
    }

    /// What the Region's clock shows.
    pub fn now(&self) -> Timestamp {
        Timestamp::now() + *lock(&self.skew)
    }

    /// Whether a signature of this time is good here; if not, the sentence of AWS.
    pub fn trusts(&self, signed_at: Timestamp) -> Result<(), String> {
        let now = self.now();
        let (oldest, newest) = (now - TOLERANCE, now + TOLERANCE);
        let (signed, server) = (stamp(signed_at), stamp(now));
        if signed_at < oldest {
            return Err(format!(
                "Signature expired: {signed} is now earlier than {} ({server} - 5 min.)",
                stamp(oldest)
            ));
        }
        if signed_at > newest {
            return Err(format!(
                "Signature not yet current: {signed} is still later than {} ({server} + 5 min.)",
                stamp(newest)
            ));
        }
        Ok(())
    }

    /// Whether the quota has room for a call; if not, how long to wait, if that is told.
    pub fn admits(&self, operation: Operation, now: Instant) -> Result<(), Option<Duration>> {
        // It has a quota of its own.
        if operation == Operation::DescribeKey {
            return Ok(());
        }
        match lock(&self.quota).as_mut() {
            Some(quota) => quota.admit(now),
            None => Ok(()),
        }
    }
}

/// How far a signature's time may be from the server's.
const TOLERANCE: SignedDuration = SignedDuration::from_mins(5);
