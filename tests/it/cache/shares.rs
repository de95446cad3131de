//! A tenant's share of the cache is its own.

use keybroker::metrics::Retirement;

use super::in_table;
use crate::harness::Broker;
use crate::harness::GLOBEX;
use crate::harness::WEB;
use crate::harness::rpcs::decrypt;
use crate::harness::rpcs::encrypt;
use crate::harness::rpcs::seal;

#[tokio::test]
async fn a_tenant_with_too_many_contexts_evicts_its_own_alone() {
    let broker = Broker::start()
        .with(|setup| {
            setup.cache.tenant_entries = 50;
            setup.cache.tenant_bytes = 1 << 20;
        })
        .await;
    let mut web = broker.caller(WEB).await;
    let mut globex = broker.caller(GLOBEX).await;
    let sealed = seal(&mut globex, "keys/orders", "x").await;
    for table in 0..500 {
        web.encrypt(in_table(&table.to_string())).await.unwrap();
    }
    broker.inner().data_keys().sweep();
    let evicted = broker.metrics.retirements(Retirement::Capacity);
    assert!(evicted >= 450, "{evicted} of 500 with place for 50");
    let calls = broker.kms_calls();
    globex.encrypt(encrypt("keys/orders", "x")).await.unwrap();
    globex.decrypt(decrypt(&sealed)).await.unwrap();
    assert_eq!(broker.kms_calls(), calls);
}

#[tokio::test]
async fn a_tenants_bytes_are_bounded_as_well() {
    let broker = Broker::start()
        .with(|setup| setup.cache.tenant_bytes = 64 << 10)
        .await;
    let mut web = broker.caller(WEB).await;
    for table in 0..500 {
        web.encrypt(in_table(&table.to_string())).await.unwrap();
    }
    broker.inner().data_keys().sweep();
    let evicted = broker.metrics.retirements(Retirement::Capacity);
    assert!(evicted >= 300, "{evicted} of 500 with place for about 100");
}

#[tokio::test]
async fn when_the_whole_is_full_the_tenant_that_has_most_gives_way() {
    let broker = Broker::start()
        .with(|setup| setup.cache.entries = 100)
        .await;
    let mut web = broker.caller(WEB).await;
    let mut globex = broker.caller(GLOBEX).await;
    // Two entries each: one to seal, one to open.
    for table in 0..10 {
        globex.encrypt(in_table(&table.to_string())).await.unwrap();
    }
    for table in 0..200 {
        web.encrypt(in_table(&table.to_string())).await.unwrap();
    }
    let calls = broker.kms_calls();
    for table in 0..10 {
        globex.encrypt(in_table(&table.to_string())).await.unwrap();
    }
    assert_eq!(broker.kms_calls(), calls, "the smaller one keeps all");
    assert!(broker.metrics.retirements(Retirement::Capacity) >= 100);
}
