//! Grants on brokers that share a store: tokens, counted uses, revocation, and lost touch.

use keybroker::grpc::pb;
use keybroker::grpc::pb::GrantOperation;

use super::ADMIN;
use super::ORDERS;
use super::WORKER;
use super::call;
use super::create;
use super::decrypting;
use super::denied;
use super::opened;
use super::opening;
use super::revoke;
use super::start;
use super::tenants;
use super::wish;

use crate::harness::Broker;
use crate::harness::GLOBEX;
use crate::harness::Refusal;
use crate::harness::STRANGER;
use crate::harness::WEB;
use crate::harness::reason;
use crate::harness::rpcs::seal;

#[tokio::test]
async fn a_token_makes_a_grant_work_on_a_replica_that_has_not_heard_of_it() {
    let first = start().await;
    let store = first.folder().to_owned();
    let second = Broker::start()
        .with(|setup| {
            setup.tenants = tenants();
            setup.store = Some(store);
        })
        .await;
    let sealed = seal(&mut second.caller(WEB).await, "keys/orders", "secret").await;
    let mut admin = first.granter(ADMIN).await;
    let (grant, token) = create(&mut admin, decrypting()).await.unwrap();
    assert_eq!(opened(&second, WORKER, &sealed, &[]).await, denied());
    assert_eq!(opened(&second, WORKER, &sealed, &[&token]).await, None);
    assert_eq!(opened(&second, GLOBEX, &sealed, &[&token]).await, denied());
    let mut worker = second.caller(WORKER).await;
    let items = vec![opening(&sealed, &[&token]), opening(&sealed, &[])];
    let batch = worker
        .decrypt_batch(pb::DecryptBatchRequest { items })
        .await;
    let results = batch.unwrap().into_inner().results;
    let served = |result: &pb::DecryptBatchResult| {
        matches!(
            result.outcome,
            Some(pb::decrypt_batch_result::Outcome::Response(_))
        )
    };
    assert_eq!(
        results.iter().map(served).collect::<Vec<_>>(),
        [true, false]
    );

    second.hear().await;
    assert_eq!(opened(&second, WORKER, &sealed, &[]).await, None);
    revoke(&mut admin, &grant.id).await.unwrap();
    // The other has not heard of it, and is in touch: within the bound.
    assert_eq!(opened(&second, WORKER, &sealed, &[&token]).await, None);
    second.hear().await;
    assert_eq!(opened(&second, WORKER, &sealed, &[&token]).await, denied());
}

#[tokio::test]
async fn a_strict_tenants_revocation_counts_on_every_replica_at_once() {
    let strict = || {
        tenants().replace(
            "id = \"acme\"\n",
            "id = \"acme\"\nrevocation = \"strict\"\n",
        )
    };
    let first = Broker::start().with(|setup| setup.tenants = strict()).await;
    let store = first.folder().to_owned();
    let second = Broker::start()
        .with(|setup| {
            setup.tenants = strict();
            setup.store = Some(store);
        })
        .await;
    let sealed = seal(&mut second.caller(WEB).await, "keys/orders", "secret").await;
    let mut admin = first.granter(ADMIN).await;
    for round in 0..5 {
        let (grant, token) = create(&mut admin, decrypting()).await.unwrap();
        if round % 2 == 0 {
            second.hear().await;
        }
        assert_eq!(opened(&second, WORKER, &sealed, &[&token]).await, None);
        revoke(&mut admin, &grant.id).await.unwrap();
        assert_eq!(opened(&second, WORKER, &sealed, &[&token]).await, denied());
        assert_eq!(opened(&second, WORKER, &sealed, &[]).await, denied());
    }
}

#[tokio::test]
async fn a_grant_is_used_as_often_as_it_may_be_on_all_replicas_together() {
    let first = start().await;
    let store = first.folder().to_owned();
    let second = Broker::start()
        .with(|setup| {
            setup.tenants = tenants();
            setup.store = Some(store);
        })
        .await;
    let wish = pb::CreateGrantRequest {
        max_uses: 7,
        ..wish(WORKER, &[GrantOperation::GenerateDataKey])
    };
    create(&mut first.granter(ADMIN).await, wish).await.unwrap();
    second.hear().await;
    let uses = [&first, &second].map(|broker| async move {
        let mut calls = Vec::new();
        for _ in 0..8 {
            let mut worker = broker.caller(WORKER).await;
            calls.push(async move {
                let name = ORDERS.to_owned();
                let request = pb::GenerateDataKeyRequest {
                    name,
                    ..Default::default()
                };
                worker.generate_data_key(request).await.is_ok()
            });
        }
        futures_util::future::join_all(calls).await
    });
    let served = futures_util::future::join_all(uses).await;
    assert_eq!(
        served
            .into_iter()
            .flatten()
            .filter(|served| *served)
            .count(),
        7
    );
}

#[tokio::test]
async fn out_of_touch_a_replica_refuses_what_grants_allow_and_serves_key_policies() {
    let clock = std::sync::Arc::new(keybroker::clock::Manual::new(jiff::Timestamp::now()));
    let broker = Broker::start()
        .with(|setup| {
            setup.tenants = tenants();
            setup.clock = clock.clone();
        })
        .await;
    let sealed = seal(&mut broker.caller(WEB).await, "keys/orders", "secret").await;
    create(&mut broker.granter(ADMIN).await, decrypting())
        .await
        .unwrap();
    assert_eq!(opened(&broker, WORKER, &sealed, &[]).await, None);
    clock.advance(std::time::Duration::from_secs(5));
    let unknown = Some("STORE_UNAVAILABLE".to_owned());
    assert_eq!(opened(&broker, WORKER, &sealed, &[]).await, unknown);
    assert_eq!(opened(&broker, WEB, &sealed, &[]).await, None);
    assert_eq!(opened(&broker, STRANGER, &sealed, &[]).await, denied());
    broker.hear().await;
    assert_eq!(opened(&broker, WORKER, &sealed, &[]).await, None);
}

#[tokio::test]
async fn a_replica_whose_clock_is_wrong_ends_grants_in_time_and_makes_none() {
    let hour = jiff::SignedDuration::from_hours(1);
    let first = start().await;
    for wrong in [hour, -hour] {
        let wall = jiff::Timestamp::now().checked_add(wrong).unwrap();
        let clock = std::sync::Arc::new(keybroker::clock::Manual::new(wall));
        let second = Broker::start()
            .with(|setup| {
                setup.tenants = tenants();
                setup.clock = clock.clone();
                setup.store = Some(first.folder().to_owned());
            })
            .await;
        let wish = pb::CreateGrantRequest {
            lifetime_seconds: 3,
            renewable_for_seconds: 60,
            ..decrypting()
        };
        let (grant, _) = create(&mut first.granter(ADMIN).await, wish).await.unwrap();
        second.hear().await;
        let sealed = seal(&mut second.caller(WEB).await, "keys/orders", "secret").await;
        assert_eq!(opened(&second, WORKER, &sealed, &[]).await, None);
        clock.advance(std::time::Duration::from_secs(1));
        assert_eq!(opened(&second, WORKER, &sealed, &[]).await, None);
        clock.advance(std::time::Duration::from_secs(2));
        assert_eq!(opened(&second, WORKER, &sealed, &[]).await, denied());

        let mut admin = second.granter(ADMIN).await;
        let refused = create(&mut admin, decrypting()).await.unwrap_err();
        assert_eq!(Refusal::of(&refused).reason, "STORE_UNAVAILABLE");
        let refused = call(&mut admin, "RenewGrant", ORDERS, &grant.id).await;
        assert_eq!(reason(refused), "STORE_UNAVAILABLE");
        revoke(&mut admin, &grant.id).await.unwrap();
    }
}
