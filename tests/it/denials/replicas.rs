//! What one Region refuses of a key that has replicas in others, behind the real SDK in virtual time.

use std::io;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use keybroker::error::Error;
use keybroker::kms::Arn;
use tracing_subscriber::fmt::MakeWriter;

use crate::harness::GLOBEX;
use crate::harness::WEB;
use crate::harness::unwired::Unwired;
use crate::support::fake_kms::BROKER;
use crate::support::fake_kms::FakeKms;
use crate::support::fake_kms::Fault;
use crate::support::fake_kms::Operation;

#[tokio::test(start_paused = true)]
async fn the_statement_that_is_missing_names_the_replica_that_refused() {
    let fake = FakeKms::in_virtual_time();
    let (near, far) = replicated(&fake);
    let broker = broker(&fake, &near);
    let web = broker.caller(WEB);
    fake.region(NEAR).fail_all(Fault::Close);
    fake.region(FAR).deny(BROKER, Operation::GenerateDataKey);
    let log = Log::default();
    let _listening = tracing::subscriber::set_default(
        tracing_subscriber::fmt()
            .with_writer(log.clone())
            .with_ansi(false)
            .finish(),
    );
    let refused = web.encrypt("keys/orders", &[("table", "a")], PATIENCE);
    assert!(matches!(
        refused.await.map(drop),
        Err(Error::KmsAccessDenied(_))
    ));
    tokio::time::sleep(Duration::from_secs(1)).await;
    let said = log.said();
    let told = said.lines().find(|line| line.contains("our own role"));
    let told = told.unwrap_or_else(|| panic!("{said}"));
    assert!(told.contains(&format!(r#""Resource":"{far}""#)), "{told}");
    assert!(!told.contains(near.as_str()), "{told}");
}

#[tokio::test(start_paused = true)]
async fn a_kms_key_that_is_disabled_is_asked_for_once_however_its_replicas_are_named() {
    let fake = FakeKms::in_virtual_time();
    let (near, _) = replicated(&fake);
    let broker = broker(&fake, &near);
    fake.disable(&near);
    for user in [WEB, GLOBEX] {
        let caller = broker.caller(user);
        let refused = caller.encrypt("keys/orders", &[], PATIENCE).await;
        assert!(matches!(refused.map(drop), Err(Error::KeyDisabled)));
    }
    assert_eq!(fake.log().len(), 1);
}

fn replicated(fake: &FakeKms) -> (Arn, Arn) {
    let near = fake.multi_region_key(NEAR);
    let far = fake.replica(&near, FAR);
    (near, far)
}

/// Acme's key has the replica, and globex's, which is the same, does not name it.
fn broker(fake: &FakeKms, near: &Arn) -> Unwired {
    let tenants = format!(
        "[[tenant]]\nid = \"acme\"\n[[tenant.key]]\nid = \"orders\"\n\
         kms = {{ key = \"{near}\", replica_regions = [\"{FAR}\"] }}\nusers = [\"{WEB}\"]\n\
         [[tenant]]\nid = \"globex\"\n[[tenant.key]]\nid = \"orders\"\n\
         kms = \"{near}\"\nusers = [\"{GLOBEX}\"]\n"
    );
    Unwired::start(fake, &fake.config(), &tenants)
}

/// What is logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn said(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

const NEAR: &str = "eu-west-1";
const FAR: &str = "us-east-1";
const PATIENCE: Duration = Duration::from_secs(5);
