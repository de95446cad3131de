use std::io;
use std::io::Write;
use std::path::Path;

use async_trait::async_trait;
use tokio::sync::Semaphore;

use super::*;
use crate::audit::Sink;
use crate::audit::verify::Known;
use crate::audit::verify::Report;
use crate::audit::verify::Trust;
use crate::audit::verify::Verdict;
use crate::audit::verify::Verifier;
use crate::clock::System;
use crate::crypto::signature::SigningKey;
use crate::kms::Arn;

#[tokio::test]
async fn the_first_record_is_countersigned_at_once_and_the_rest_by_the_end() {
    let scene = Scene::new();
    let countersigning = scene.audit.countersign(scene.signer()).unwrap();
    scene.answers.add_permits(1);
    scene.begun(1).await;
    for _ in 0..3 {
        scene.audit.begin().finish().await.unwrap();
    }
    scene.answers.add_permits(1);
    countersigning.end().await;
    let report = scene.end();
    assert_eq!(report.verdict, Verdict::Whole, "{report:?}");
    let chain = &report.chains[0];
    assert_eq!(chain.trust, Some(Trust::Vouched));
    // Behind it, what carries it and the last record.
    let countersigned = chain.countersigned.as_ref().unwrap();
    assert_eq!(
        (countersigned.behind, chain.last),
        (2, countersigned.last + 2)
    );
}

#[tokio::test]
async fn calls_wait_for_no_countersignature_and_a_quiet_chain_asks_for_no_other() {
    let scene = Scene::new();
    let countersigning = scene.audit.countersign(scene.signer()).unwrap();
    // KMS hangs.
    scene.begun(1).await;
    for _ in 0..2000 {
        scene.audit.begin().finish().await.unwrap();
    }
    // One for the first attempt, one for what came meanwhile; what carries them needs none.
    scene.answers.add_permits(100);
    countersigning.end().await;
    assert!(98 <= scene.answers.available_permits());
    let report = scene.end();
    assert_eq!(report.verdict, Verdict::Whole, "{report:?}");
    assert_eq!(report.chains[0].countersigned.as_ref().unwrap().behind, 2);
}

/// A trail in memory, and a KMS that answers when it is let.
struct Scene {
    audit: Arc<Audit>,
    taken: Arc<Mutex<Vec<u8>>>,
    key: Arc<SigningKey>,
    begun: Arc<Semaphore>,
    answers: Arc<Semaphore>,
}

impl Scene {
    fn new() -> Self {
        let taken = Arc::default();
        let sink = Sink::to(Taken(Arc::clone(&taken)));
        Self {
            audit: Audit::new(sink, Arc::new(System)),
            taken,
            key: Arc::new(SigningKey::random().unwrap()),
            begun: Arc::new(Semaphore::new(0)),
            answers: Arc::new(Semaphore::new(0)),
        }
    }

    fn signer(&self) -> Box<dyn Signer> {
        Box::new(Held {
            arn: "arn:aws:kms:eu-west-1:111122223333:key/1234abcd"
                .parse()
                .unwrap(),
            key: Arc::clone(&self.key),
            begun: Arc::clone(&self.begun),
            answers: Arc::clone(&self.answers),
        })
    }

    /// Waits until KMS was asked so many times more.
    async fn begun(&self, calls: u32) {
        self.begun.acquire_many(calls).await.unwrap().forget();
    }

    /// Ends the trail; what is found of it with the KMS key alone.
    fn end(self) -> Report {
        let Self {
            audit, taken, key, ..
        } = self;
        drop(audit);
        let known = Known {
            keys: vec![key.public()],
            ..Known::default()
        };
        let mut verifier = Verifier::new(known);
        let text = taken.lock().unwrap();
        verifier.read(Path::new("audit.jsonl"), &**text).unwrap();
        verifier.report()
    }
}

struct Held {
    arn: Arn,
    key: Arc<SigningKey>,
    begun: Arc<Semaphore>,
    answers: Arc<Semaphore>,
}

#[async_trait]
impl Signer for Held {
    fn key(&self) -> &Arn {
        &self.arn
    }

    async fn public_key(&self) -> Result<PublicKey, Error> {
        Ok(self.key.public())
    }

    async fn sign(&self, _: &PublicKey, message: &[u8]) -> Result<Vec<u8>, Error> {
        self.begun.add_permits(1);
        self.answers.acquire().await.unwrap().forget();
        Ok(self.key.sign(message).as_ref().to_vec())
    }
}

struct Taken(Arc<Mutex<Vec<u8>>>);

impl Write for Taken {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
