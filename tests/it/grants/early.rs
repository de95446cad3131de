//! A broker that has not taken up the grants of its store yet: it asks at each use.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use keybroker::grants::PATIENCE;
use keybroker::grpc::pb;
use keybroker::grpc::pb::GrantOperation;
use keybroker::grpc::pb::decrypt_batch_result::Outcome;
use sqlx::AssertSqlSafe;
use sqlx::ConnectOptions as _;
use sqlx::Executor as _;
use sqlx::sqlite::SqliteConnectOptions;
use tokio::time::Instant;

use super::ADMIN;
use super::ORDERS;
use super::WORKER;
use super::create;
use super::decrypting;
use super::denied;
use super::opened;
use super::opening;
use super::revoke;
use super::start;
use super::subset;
use super::tenants;
use super::wish;
use crate::harness::Broker;
use crate::harness::STRANGER;
use crate::harness::WEB;
use crate::harness::reason;
use crate::harness::rpcs;
use crate::harness::rpcs::encrypt_start;
use crate::harness::rpcs::seal;
use crate::streams::Encrypting;

/// A broker that has made what is to be known, and one on the same store that knows nothing yet.
async fn pair() -> (Broker, Broker) {
    let first = start().await;
    let store = first.folder().to_owned();
    let second = Broker::start().with(|setup| {
        setup.tenants = tenants();
        setup.store = Some(store);
        setup.early = true;
    });
    let second = second.await;
    (first, second)
}

fn unknown() -> Option<String> {
    Some("STORE_UNAVAILABLE".to_owned())
}

#[tokio::test]
async fn a_grant_counts_before_its_replica_has_taken_up_any_and_its_end_at_once() {
    let (first, second) = pair().await;
    let mut admin = first.granter(ADMIN).await;
    let sealed = seal(&mut second.caller(WEB).await, "keys/orders", "secret").await;
    assert_eq!(opened(&second, WORKER, &sealed, &[]).await, denied());
    for grantee in [WORKER, "spiffe://prod.example/tenant/acme/sa/*"] {
        let wish = wish(grantee, &[GrantOperation::Decrypt]);
        let (grant, token) = create(&mut admin, wish).await.unwrap();
        assert_eq!(
            opened(&second, WORKER, &sealed, &[]).await,
            None,
            "{grantee}"
        );
        revoke(&mut admin, &grant.id).await.unwrap();
        assert_eq!(opened(&second, WORKER, &sealed, &[&token]).await, denied());
    }
    // What is taken up then says the same.
    let (grant, token) = create(&mut admin, decrypting()).await.unwrap();
    assert_eq!(opened(&second, WORKER, &sealed, &[]).await, None);
    second.hear().await;
    assert_eq!(opened(&second, WORKER, &sealed, &[]).await, None);
    revoke(&mut admin, &grant.id).await.unwrap();
    second.hear().await;
    assert_eq!(opened(&second, WORKER, &sealed, &[&token]).await, denied());
}

#[tokio::test]
async fn constraints_counts_and_parents_bind_before_grants_are_taken_up() {
    let (first, second) = pair().await;
    let mut admin = first.granter(ADMIN).await;
    let constrained = pb::CreateGrantRequest {
        constraints: subset(&[("order", "7")]),
        ..wish(WORKER, &[GrantOperation::Encrypt])
    };
    create(&mut admin, constrained).await.unwrap();
    let mut worker = second.caller(WORKER).await;
    for (order, outcome) in [("7", None), ("8", Some("POLICY_DENIED"))] {
        let request = pb::EncryptRequest {
            encryption_context: rpcs::pairs([("order", order)]),
            ..rpcs::encrypt(ORDERS, "secret")
        };
        let refused = worker.encrypt(request).await.err();
        assert_eq!(
            refused
                .map(|status| reason(Err::<(), _>(status)))
                .as_deref(),
            outcome
        );
    }

    let counted = pb::CreateGrantRequest {
        max_uses: 2,
        ..wish(WORKER, &[GrantOperation::GenerateDataKey])
    };
    create(&mut admin, counted).await.unwrap();
    for served in [true, true, false] {
        let request = pb::GenerateDataKeyRequest {
            name: ORDERS.into(),
            ..Default::default()
        };
        assert_eq!(worker.generate_data_key(request).await.is_ok(), served);
    }

    let operations = [GrantOperation::Decrypt, GrantOperation::CreateGrant];
    let (parent, _) = create(&mut admin, wish(WORKER, &operations)).await.unwrap();
    let mut delegate = second.granter(WORKER).await;
    let handed_on = wish(STRANGER, &[GrantOperation::Decrypt]);
    create(&mut delegate, handed_on).await.unwrap();
    let sealed = seal(&mut second.caller(WEB).await, "keys/orders", "secret").await;
    assert_eq!(opened(&second, STRANGER, &sealed, &[]).await, None);
    revoke(&mut admin, &parent.id).await.unwrap();
    assert_eq!(opened(&second, STRANGER, &sealed, &[]).await, denied());
}

#[tokio::test]
async fn every_way_to_use_a_key_asks_the_store_before_grants_are_taken_up() {
    let (first, second) = pair().await;
    let operations = [
        GrantOperation::Encrypt,
        GrantOperation::Decrypt,
        GrantOperation::ReEncryptFrom,
        GrantOperation::ReEncryptTo,
        GrantOperation::DescribeKey,
    ];
    create(&mut first.granter(ADMIN).await, wish(WORKER, &operations))
        .await
        .unwrap();
    let mut worker = second.caller(WORKER).await;
    let sealed = seal(&mut worker, ORDERS, "secret").await;
    worker.decrypt(opening(&sealed, &[])).await.unwrap();
    let request = pb::ReEncryptRequest {
        ciphertext: sealed.clone(),
        destination_name: ORDERS.into(),
        ..Default::default()
    };
    worker.re_encrypt(request).await.unwrap();
    let request = pb::DescribeKeyRequest {
        name: ORDERS.into(),
        ..Default::default()
    };
    worker.describe_key(request).await.unwrap();
    let items = vec![
        opening(&sealed, &[]),
        opening(&Bytes::from_static(b"x"), &[]),
    ];
    let batch = pb::DecryptBatchRequest { items };
    let results = worker
        .decrypt_batch(batch)
        .await
        .unwrap()
        .into_inner()
        .results;
    let served = |one: &pb::DecryptBatchResult| matches!(one.outcome, Some(Outcome::Response(_)));
    assert_eq!(
        results.iter().map(served).collect::<Vec<_>>(),
        [true, false]
    );
    let items = vec![rpcs::encrypt(ORDERS, "one"), rpcs::encrypt(ORDERS, "two")];
    let batch = pb::EncryptBatchRequest { items };
    let results = worker
        .encrypt_batch(batch)
        .await
        .unwrap()
        .into_inner()
        .results;
    let failed = |one: &pb::EncryptBatchResult| {
        !matches!(
            one.outcome,
            Some(pb::encrypt_batch_result::Outcome::Response(_))
        )
    };
    assert!(!results.iter().any(failed));
}

#[tokio::test]
async fn a_stream_asks_again_as_long_as_grants_are_not_taken_up_and_ends_with_its_grant() {
    let (first, second) = pair().await;
    let mut admin = first.granter(ADMIN).await;
    let (grant, _) = create(&mut admin, wish(WORKER, &[GrantOperation::Encrypt]))
        .await
        .unwrap();
    let mut worker = second.caller(WORKER).await;
    let mut stream = Encrypting::begin(&mut worker, encrypt_start(ORDERS))
        .await
        .unwrap();
    // Longer than what the store has said counts.
    let began = Instant::now();
    while began.elapsed() < PATIENCE + Duration::from_millis(1200) {
        assert!(stream.send("x").await);
    }
    revoke(&mut admin, &grant.id).await.unwrap();
    let refused = stream.rest().await.ended;
    assert_eq!(reason(refused), "POLICY_DENIED");
}

#[tokio::test]
async fn without_its_store_a_broker_that_knows_no_grant_serves_key_policies() {
    let (first, second) = pair().await;
    create(&mut first.granter(ADMIN).await, decrypting())
        .await
        .unwrap();
    let sealed = seal(&mut second.caller(WEB).await, "keys/orders", "secret").await;
    assert_eq!(opened(&second, WORKER, &sealed, &[]).await, None);
    break_store(first.folder()).await;
    assert_eq!(opened(&second, WORKER, &sealed, &[]).await, unknown());
    assert_eq!(opened(&second, WEB, &sealed, &[]).await, None);
    // Whether there is such a key shows no more than ever.
    let mut stranger = second.caller(STRANGER).await;
    for key in [ORDERS, "tenants/acme/keys/none"] {
        let refused = stranger.encrypt(rpcs::encrypt(key, "secret")).await;
        assert_eq!(reason(refused), "STORE_UNAVAILABLE", "{key}");
    }
}

/// Has the store in `folder` answer nothing about grants any more.
async fn break_store(folder: &Path) {
    let options = SqliteConnectOptions::new().filename(folder.join("store.db"));
    let mut connection = options.connect().await.unwrap();
    let text = AssertSqlSafe("ALTER TABLE grants RENAME TO lost".to_owned());
    connection.execute(sqlx::raw_sql(text)).await.unwrap();
}
