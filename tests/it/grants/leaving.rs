//! Callers that leave while the store is asked for them.

use std::fs;
use std::pin::pin;

use futures_util::poll;
use keybroker::grants::Id;
use keybroker::name::KeyName;
use keybroker::store;
use keybroker::store::Store;
use tokio::task::yield_now;

use crate::support::postgres::Postgres;
use crate::support::postgres::sql;

#[tokio::test]
async fn who_leaves_in_the_middle_of_a_query_takes_no_connection_along() {
    let postgres = Postgres::start();
    let password = fs::read_to_string(postgres.password()).unwrap();
    let config = store::Config {
        url: Some(format!(
            "postgres://keybroker@{}/postgres",
            postgres.address()
        )),
        ca: Some(postgres.ca()),
        connections: 2,
        ..store::Config::default()
    };
    let store = Store::new(&config, Some(password.trim_end())).unwrap();
    let key = KeyName {
        tenant: "acme".parse().unwrap(),
        key: "orders".parse().unwrap(),
    };
    let id = Id::from([7; 32]);
    let use_of = || store.confirm_grant(&key, &id, 1);
    let (one, other) = tokio::join!(use_of(), use_of());
    assert!(!one.unwrap() && !other.unwrap());
    let mut watching = postgres.connect().await;
    let connections = "SELECT string_agg(pid::text, ' ' ORDER BY pid) FROM pg_stat_activity
                       WHERE application_name = 'keybroker'";
    let before = sql(&mut watching, connections).await;

    let mut left = 0;
    for turns in 0..200 {
        // At another moment each time.
        let mut using = pin!(use_of());
        let mut answered = false;
        for _ in 0..turns % 10 {
            answered |= !answered && poll!(&mut using).is_ready();
            yield_now().await;
        }
        left += usize::from(!answered);
    }
    assert!(left > 0);
    assert!(!use_of().await.unwrap());
    assert_eq!(sql(&mut watching, connections).await, before);
}
