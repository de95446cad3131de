//! Grants of AWS KMS itself: made for administrators, and ended by the broker in time.

mod ending;
mod making;
mod moto;
mod orphans;
mod postponed;
mod records;
mod strays;
mod turns;

use std::path::Path;
use std::sync::Arc;

use keybroker::grants::Id;
use keybroker::grants::Operations;
use keybroker::grpc::pb;
use keybroker::grpc::pb::GrantOperation;
use keybroker::kms::Arn;
use keybroker::store;
use keybroker::store::Store;
use keybroker::store::kms_grants::KmsGrant;
use sqlx::ConnectOptions as _;
use sqlx::Connection as _;
use sqlx::Executor as _;
use sqlx::SqliteConnection;
use sqlx::sqlite::SqliteConnectOptions;

use super::ADMIN;
use super::ORDERS;
use crate::harness::Broker;
use crate::harness::soon;
use crate::support::fake_kms::FakeKms;

const ROLE: &str = "arn:aws:iam::111122223333:role/etl";
/// As if KMS had long known all grants, and all pauses were over.
const LONG_AGO: &str = "UPDATE kms_grants SET created = 1, retry = 0";

pub fn wish() -> pb::CreateKmsGrantRequest {
    pb::CreateKmsGrantRequest {
        key: ORDERS.into(),
        grantee_principal: ROLE.into(),
        operations: vec![GrantOperation::Decrypt.into()],
        ..Default::default()
    }
}

/// The usual tenants, whose `orders` is a key of `fake`'s.
fn tenants(key: &Arn) -> String {
    super::tenants().replace("local:acme-orders", key.as_str())
}

async fn start(fake: &FakeKms, key: &Arn) -> Broker {
    Broker::start()
        .with(|setup| {
            setup.tenants = tenants(key);
            setup.delegation = Some(Arc::new(fake.aws()));
        })
        .await
}

/// The store of `broker`, as another process sees it.
fn beside(broker: &Broker) -> Store {
    open(broker.folder())
}

fn open(folder: &Path) -> Store {
    let config = store::Config {
        file: folder.join("store.db"),
        ..store::Config::default()
    };
    Store::new(&config, None).unwrap()
}

async fn connect(folder: &Path) -> SqliteConnection {
    let options = SqliteConnectOptions::new().filename(folder.join("store.db"));
    options.connect().await.unwrap()
}

/// Changes the store in `folder` as none of ours would.
async fn meddle(folder: &Path, statement: &'static str) {
    let mut connection = connect(folder).await;
    connection.execute(statement).await.unwrap();
    connection.close().await.unwrap();
}

async fn create(broker: &Broker, wish: pb::CreateKmsGrantRequest) -> pb::KmsGrant {
    let mut admin = broker.granter(ADMIN).await;
    let created = admin.create_kms_grant(wish).await.unwrap().into_inner();
    assert!(!created.grant_token.is_empty());
    created.grant.unwrap()
}

/// Has the broker end what is due until KMS has no grants of `key`.
async fn ended(broker: &Broker, fake: &FakeKms, key: &Arn) {
    let rounds = async {
        while !fake.grants(key).is_empty() {
            broker.end_due_kms_grants("one").await;
            tokio::task::yield_now().await;
        }
    };
    soon(rounds).await;
}

fn intention(key: &Arn) -> KmsGrant {
    KmsGrant {
        id: Id::random().unwrap(),
        name: String::new(),
        key: keybroker::name::KeyName::parse(ORDERS, &"acme".parse().unwrap()).unwrap(),
        arn: key.clone(),
        grantee: ROLE.parse().unwrap(),
        operations: Operations::new([keybroker::grants::Operation::Decrypt]).unwrap(),
        creator: ADMIN.parse().unwrap(),
        created: jiff::Timestamp::MIN,
        expires: jiff::Timestamp::MIN,
        kms_id: None,
        ending: None,
    }
}
