//! What no grant can be, and what a name makes of two.

use bytes::Bytes;
use keybroker::grpc::pb;
use tonic::Code;
use tonic::Status;

use super::ADMIN;
use super::ORDERS;
use super::WORKER;
use super::create;
use super::decrypting;
use super::opening;
use super::revoke;
use super::start;
use super::subset;

use crate::harness::Broker;
use crate::harness::Refusal;

#[tokio::test]
async fn the_same_name_and_parameters_are_the_same_grant_with_a_token_that_works() {
    let broker = start().await;
    let mut admin = broker.granter(ADMIN).await;
    let named = || pb::CreateGrantRequest {
        name: "job/7".into(),
        constraints: subset(&[("order", "7")]),
        ..decrypting()
    };
    let (first, _) = create(&mut admin, named()).await.unwrap();
    let (again, token) = create(&mut admin, named()).await.unwrap();
    assert_eq!(first.id, again.id);
    assert_eq!(first.expire_time, again.expire_time, "it is not extended");
    assert!(!token.is_empty());
    let longer = pb::CreateGrantRequest {
        lifetime_seconds: 1000,
        ..named()
    };
    let taken = create(&mut admin, longer.clone()).await.unwrap_err();
    assert_eq!(taken.code(), Code::AlreadyExists);
    assert_eq!(Refusal::of(&taken).reason, "GRANT_NAME_TAKEN");
    // Without a name each is one of its own; the name of one that is over is free.
    let (one, _) = create(&mut admin, decrypting()).await.unwrap();
    let (other, _) = create(&mut admin, decrypting()).await.unwrap();
    assert_ne!(one.id, other.id);
    revoke(&mut admin, &first.id).await.unwrap();
    let (fresh, _) = create(&mut admin, longer).await.unwrap();
    assert_ne!(fresh.id, first.id);
}

#[tokio::test]
async fn what_no_grant_can_be_is_refused_by_its_field() {
    let broker = start().await;
    let mut admin = broker.granter(ADMIN).await;
    let good = decrypting;
    for (field, wish) in [
        (
            "grantee_principal",
            pb::CreateGrantRequest {
                grantee_principal: "worker".into(),
                ..good()
            },
        ),
        (
            "retiring_principal",
            pb::CreateGrantRequest {
                retiring_principal: "unix:uid=1".into(),
                ..good()
            },
        ),
        (
            "operations",
            pb::CreateGrantRequest {
                operations: vec![],
                ..good()
            },
        ),
        (
            "operations",
            pb::CreateGrantRequest {
                operations: vec![0],
                ..good()
            },
        ),
        (
            "operations",
            pb::CreateGrantRequest {
                operations: vec![2, 99],
                ..good()
            },
        ),
        (
            "name",
            pb::CreateGrantRequest {
                name: "a b".into(),
                ..good()
            },
        ),
        (
            "lifetime_seconds",
            pb::CreateGrantRequest {
                lifetime_seconds: 3601,
                ..good()
            },
        ),
        (
            "lifetime_seconds",
            pb::CreateGrantRequest {
                renewable_for_seconds: 3601,
                ..good()
            },
        ),
        (
            "renewable_for_seconds",
            pb::CreateGrantRequest {
                lifetime_seconds: 60,
                renewable_for_seconds: 59,
                ..good()
            },
        ),
        (
            "max_uses",
            pb::CreateGrantRequest {
                max_uses: 1,
                operations: vec![1, 2],
                ..good()
            },
        ),
        (
            "constraints",
            pb::CreateGrantRequest {
                constraints: subset(&[("stage", "test")]),
                ..good()
            },
        ),
        (
            "constraints",
            pb::CreateGrantRequest {
                constraints: subset(&[("Stage", "x")]),
                ..good()
            },
        ),
        (
            "constraints",
            pb::CreateGrantRequest {
                constraints: subset(&[("keybroker:x", "x")]),
                ..good()
            },
        ),
        (
            "constraints",
            pb::CreateGrantRequest {
                constraints: subset(&[("a", "x"), ("A", "x")]),
                ..good()
            },
        ),
        (
            "grant_tokens",
            pb::CreateGrantRequest {
                grant_tokens: vec!["t".into(); 11],
                ..good()
            },
        ),
        (
            "grant_tokens",
            pb::CreateGrantRequest {
                grant_tokens: vec!["t".repeat(8708)],
                ..good()
            },
        ),
        (
            "key",
            pb::CreateGrantRequest {
                key: "orders".into(),
                ..good()
            },
        ),
    ] {
        let refused = create(&mut admin, wish).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{field}");
        assert_eq!(
            Refusal::of(&refused).fields.concat(),
            field,
            "{}",
            refused.message()
        );
    }
    let longest = pb::CreateGrantRequest {
        lifetime_seconds: 3600,
        renewable_for_seconds: 3600,
        grant_tokens: vec!["t".repeat(8707); 10],
        ..good()
    };
    create(&mut admin, longest).await.unwrap();
    let mut worker = broker.caller(WORKER).await;
    let eleven = opening(&Bytes::from_static(b"x"), &["t"; 11]);
    let refused = worker.decrypt(eleven).await.unwrap_err();
    assert_eq!(Refusal::of(&refused).fields.concat(), "grant_tokens");
}

/// A status with `reason`.
pub async fn provoke(reason: &str) -> Status {
    let broker = start().await;
    let mut admin = broker.granter(ADMIN).await;
    let named = pb::CreateGrantRequest {
        name: "job".into(),
        ..decrypting()
    };
    let (grant, _) = create(&mut admin, named.clone()).await.unwrap();
    match reason {
        "GRANT_NAME_TAKEN" => {
            let other = pb::CreateGrantRequest {
                lifetime_seconds: 7,
                ..named
            };
            create(&mut admin, other).await.unwrap_err()
        }
        "GRANT_NOT_RENEWABLE" => {
            let request = pb::RenewGrantRequest {
                key: ORDERS.into(),
                grant_id: grant.id,
                lifetime_seconds: 0,
            };
            admin.renew_grant(request).await.unwrap_err()
        }
        "GRANTS_EXHAUSTED" => {
            crowd(&broker);
            create(&mut admin, decrypting()).await.unwrap_err()
        }
        "KMS_GRANTS_UNSUPPORTED" => {
            let request = super::kms::wish();
            admin.create_kms_grant(request).await.unwrap_err()
        }
        unlisted => panic!("nothing provokes {unlisted}"),
    }
}

/// Has the broker know of as many grants of a key as there may be.
fn crowd(broker: &Broker) {
    use keybroker::grants;
    let wanted = grants::Wanted {
        key: keybroker::name::KeyName::parse(ORDERS, &"acme".parse().unwrap()).unwrap(),
        terms: grants::Terms {
            grantee: WORKER.parse().unwrap(),
            operations: grants::Operations::new([grants::Operation::Decrypt]).unwrap(),
            constraint: None,
        },
        retiring: None,
        name: None,
        lifetime: None,
        renewable: None,
        max_uses: None,
    };
    for _ in 0..50_000 {
        let id = grants::Id::random().unwrap();
        let (admin, ceiling) = (ADMIN.parse().unwrap(), grants::Grant::LONGEST_LIFETIME);
        let now = jiff::Timestamp::now();
        let grant = grants::Grant::make(wanted.clone(), id, &admin, None, ceiling, now);
        broker.inner().grants().book().apply(&grant.unwrap());
    }
}
