//! A thousand callers at once who need the same data key.

use std::sync::Arc;
use std::time::Duration;

use keybroker::kms::aws::Config;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::harness::WEB;
use crate::harness::unwired::Unwired;
use crate::support::dice::Dice;
use crate::support::fake_kms::FakeKms;
use crate::support::fake_kms::Fault;
use crate::support::fake_kms::Operation;
use crate::support::scale::scaled;

/// D-5: half of them, the first among these, leave while KMS has not answered.
#[tokio::test(start_paused = true)]
async fn a_cold_herd_makes_one_kms_call_whoever_leaves() {
    let fake = FakeKms::in_virtual_time();
    fake.fail(Operation::GenerateDataKey, Fault::Delay(ANSWER));
    let arn = fake.key("eu-west-1");
    let tenants = format!(
        "[[tenant]]\nid = \"acme\"\n[[tenant.key]]\nid = \"orders\"\nkms = \"{arn}\"\n\
         users = [\"{WEB}\"]\n"
    );
    let config = Config {
        endpoint: Some(fake.endpoint()),
        ..Config::default()
    };
    let broker = Unwired::start(&fake, &config, &tenants);
    let web = Arc::new(broker.caller(WEB));
    let herds = scaled(10, 100);
    for herd in 0..herds {
        let mut dice = Dice::new(herd);
        let mut calls = JoinSet::new();
        for number in 0..HERD {
            let web = Arc::clone(&web);
            let leaves = number == 0 || dice.below(2) == 0;
            let stay = match leaves {
                true => ANSWER * u32::try_from(dice.below(100)).unwrap() / 100,
                false => Duration::MAX,
            };
            calls.spawn(async move {
                let began = Instant::now();
                let herd = herd.to_string();
                let pairs = [("herd", herd.as_str())];
                let call = web.encrypt("keys/orders", &pairs, Duration::from_secs(30));
                // Its future is dropped, as when its client goes away.
                let answer = tokio::time::timeout(stay, call).await.ok();
                (leaves, answer.map(|answer| answer.is_ok()), began.elapsed())
            });
        }
        let ended = calls.join_all().await;
        let stayed: Vec<_> = ended.iter().filter(|(leaves, ..)| !leaves).collect();
        assert!(stayed.len() > HERD / 3);
        for (_, answer, took) in stayed {
            assert_eq!(*answer, Some(true));
            assert!(*took <= ANSWER + Duration::from_millis(5), "{took:?}");
        }
    }
    assert_eq!(fake.calls(Operation::GenerateDataKey) as u64, herds);
}

const HERD: usize = 1000;
/// How long KMS takes.
const ANSWER: Duration = Duration::from_millis(200);
