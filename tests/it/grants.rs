//! Grants over the wire: made, used, listed, renewed and ended, and what others learn of them.

use std::collections::BTreeMap;

use bytes::Bytes;
use keybroker::grpc::pb;
use keybroker::grpc::pb::GrantOperation;
use keybroker::grpc::pb::grant_service_client::GrantServiceClient;
use tonic::Code;
use tonic::Status;

use crate::harness::Broker;
use crate::harness::GLOBEX;
use crate::harness::Refusal;
use crate::harness::STRANGER;
use crate::harness::TENANTS;
use crate::harness::WEB;
use crate::harness::Wire;
use crate::harness::reason;
use crate::harness::rpcs;
use crate::harness::rpcs::identified;
use crate::harness::rpcs::seal;

type Granter = GrantServiceClient<Wire>;

/// Administers acme's `orders` here.
const ADMIN: &str = crate::harness::ADMIN;
/// Of acme, in no list of any key.
const WORKER: &str = "spiffe://prod.example/tenant/acme/sa/worker";
const RETIRER: &str = "spiffe://prod.example/tenant/acme/sa/retirer";
const ORDERS: &str = "tenants/acme/keys/orders";

/// The usual tenants, where `orders` has an administrator.
fn tenants() -> String {
    let orders = "kms = \"local:acme-orders\"\n";
    assert!(TENANTS.contains(orders));
    TENANTS.replace(
        orders,
        &format!("{orders}administrators = [\"{ADMIN}\"]\ngrants.max_lifetime = \"1h\"\n"),
    )
}

async fn start() -> Broker {
    Broker::start()
        .with(|setup| setup.tenants = tenants())
        .await
}

fn wish(grantee: &str, operations: &[GrantOperation]) -> pb::CreateGrantRequest {
    pb::CreateGrantRequest {
        key: ORDERS.into(),
        grantee_principal: grantee.into(),
        operations: operations.iter().map(|one| (*one).into()).collect(),
        ..Default::default()
    }
}

fn decrypting() -> pb::CreateGrantRequest {
    wish(WORKER, &[GrantOperation::Decrypt])
}

fn subset(pairs: &[(&str, &str)]) -> Option<pb::GrantConstraints> {
    Some(pb::GrantConstraints {
        encryption_context_subset: owned(pairs),
        ..Default::default()
    })
}

fn owned(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    pairs.iter().map(owned).collect()
}

async fn create(
    granter: &mut Granter,
    wish: pb::CreateGrantRequest,
) -> Result<(pb::Grant, String), Status> {
    let created = granter.create_grant(wish).await?.into_inner();
    Ok((created.grant.unwrap(), created.grant_token))
}

async fn revoke(granter: &mut Granter, id: &str) -> Result<(), Status> {
    let request = pb::RevokeGrantRequest {
        key: ORDERS.into(),
        grant_id: id.into(),
    };
    granter.revoke_grant(request).await.map(drop)
}

fn opening(ciphertext: &Bytes, tokens: &[&str]) -> pb::DecryptRequest {
    pb::DecryptRequest {
        ciphertext: ciphertext.clone(),
        grant_tokens: tokens.iter().map(|one| (*one).to_owned()).collect(),
        ..Default::default()
    }
}

/// How a call by `who` to decrypt `ciphertext` ends.
async fn opened(broker: &Broker, who: &str, ciphertext: &Bytes, tokens: &[&str]) -> Option<String> {
    let mut caller = broker.caller(who).await;
    match caller.decrypt(opening(ciphertext, tokens)).await {
        Ok(answer) => {
            assert_eq!(answer.into_inner().plaintext, "secret");
            None
        }
        Err(status) => Some(Refusal::of(&status).reason),
    }
}

fn denied() -> Option<String> {
    Some("POLICY_DENIED".to_owned())
}

#[tokio::test]
async fn a_grant_lets_its_grantee_do_what_it_says_until_it_is_revoked() {
    let broker = start().await;
    let sealed = seal(&mut broker.caller(WEB).await, "keys/orders", "secret").await;
    let mut admin = broker.granter(ADMIN).await;
    assert_eq!(opened(&broker, WORKER, &sealed, &[]).await, denied());
    let (grant, token) = create(&mut admin, decrypting()).await.unwrap();
    assert_eq!(opened(&broker, WORKER, &sealed, &[]).await, None);
    // Another identity of the tenant, and one of another tenant, have nothing of it.
    for other in [RETIRER, ADMIN, GLOBEX, STRANGER] {
        let outcome = opened(&broker, other, &sealed, &[&token]).await;
        assert_eq!(outcome, denied(), "{other}");
    }
    let mut worker = broker.caller(WORKER).await;
    for rpc in [
        "Encrypt",
        "GenerateDataKey",
        "DescribeKey",
        "EncryptStream",
        "ReEncrypt",
    ] {
        let refused = rpcs::call(&mut worker, rpc, ORDERS, &sealed).await;
        assert_eq!(reason(refused), "POLICY_DENIED", "{rpc}");
    }
    for rpc in ["Decrypt", "DecryptBatch", "DecryptStream"] {
        rpcs::call(&mut worker, rpc, ORDERS, &sealed).await.unwrap();
        rpcs::call(&mut worker, rpc, "", &sealed).await.unwrap();
    }
    let record = broker.records().pop().unwrap();
    let event = &record["additionalEventData"];
    assert_eq!(
        (&event["rule"], &event["grantId"]),
        (&"grant".into(), &grant.id.clone().into())
    );

    revoke(&mut admin, &grant.id).await.unwrap();
    for tokens in [&[][..], &[token.as_str()]] {
        assert_eq!(opened(&broker, WORKER, &sealed, tokens).await, denied());
    }
    revoke(&mut admin, &grant.id).await.unwrap();
}

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
async fn a_grantee_hands_on_what_it_has_and_nothing_else() {
    let broker = start().await;
    let other = "spiffe://prod.example/tenant/globex/sa/other";
    let mut web = broker.caller(WEB).await;
    let request = pb::EncryptRequest {
        encryption_context: owned(&[("order", "7")]),
        ..rpcs::encrypt(ORDERS, "secret")
    };
    let sealed = web.encrypt(request).await.unwrap().into_inner().ciphertext;
    let mut admin = broker.granter(ADMIN).await;
    let operations = [GrantOperation::Decrypt, GrantOperation::CreateGrant];
    let (parent, _) = create(
        &mut admin,
        pb::CreateGrantRequest {
            constraints: subset(&[("order", "7")]),
            ..wish(WORKER, &operations)
        },
    )
    .await
    .unwrap();
    let mut worker = broker.granter(WORKER).await;
    let child = pb::CreateGrantRequest {
        constraints: subset(&[("order", "7")]),
        ..wish(other, &[GrantOperation::Decrypt])
    };
    for (field, excess) in [
        ("constraints", wish(other, &[GrantOperation::Decrypt])),
        (
            "operations",
            pb::CreateGrantRequest {
                operations: vec![GrantOperation::Encrypt.into()],
                ..child.clone()
            },
        ),
        (
            "lifetime_seconds",
            pb::CreateGrantRequest {
                lifetime_seconds: 3000,
                ..child.clone()
            },
        ),
    ] {
        let refused = create(&mut worker, excess).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{field}");
        assert_eq!(Refusal::of(&refused).fields.concat(), field);
    }
    let (given, _) = create(&mut worker, child.clone()).await.unwrap();
    assert_eq!(given.parent_id, parent.id);
    let open = || async {
        let mut caller = broker.caller(other).await;
        let request = pb::DecryptRequest {
            encryption_context: owned(&[("order", "7")]),
            ..opening(&sealed, &[])
        };
        caller.decrypt(request).await.map(drop)
    };
    open().await.unwrap();
    // The child has no right to go on.
    let mut grandchild = broker.granter(other).await;
    let refused = create(&mut grandchild, child.clone()).await.map(drop);
    assert_eq!(reason(refused), "POLICY_DENIED");
    revoke(&mut admin, &parent.id).await.unwrap();
    assert_eq!(reason(open().await), "POLICY_DENIED");
    assert_eq!(
        reason(create(&mut worker, child).await.map(drop)),
        "POLICY_DENIED"
    );
}

#[tokio::test]
async fn grants_are_listed_page_by_page_and_filtered() {
    let broker = start().await;
    let mut admin = broker.granter(ADMIN).await;
    let mut ids = Vec::new();
    for n in 0..5 {
        let grantee = format!("spiffe://prod.example/tenant/acme/sa/worker-{}", n % 2);
        let wish = pb::CreateGrantRequest {
            retiring_principal: RETIRER.into(),
            ..wish(&grantee, &[GrantOperation::Decrypt])
        };
        ids.push(create(&mut admin, wish).await.unwrap().0.id);
    }
    ids.sort();
    let all = pb::ListGrantsRequest {
        key: ORDERS.into(),
        page_size: 2,
        ..Default::default()
    };
    let mut found = Vec::new();
    let mut request = all.clone();
    loop {
        let page = admin
            .list_grants(request.clone())
            .await
            .unwrap()
            .into_inner();
        assert!(page.grants.len() <= 2);
        found.extend(page.grants.into_iter().map(|grant| grant.id));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    assert_eq!(found, ids);
    let count = async |request: pb::ListGrantsRequest| {
        let mut admin = broker.granter(ADMIN).await;
        admin
            .list_grants(request)
            .await
            .unwrap()
            .into_inner()
            .grants
            .len()
    };
    let by = |grantee: &str, id: &str| pb::ListGrantsRequest {
        grantee_principal: grantee.into(),
        grant_id: id.into(),
        page_size: 0,
        ..all.clone()
    };
    assert_eq!(
        count(by("spiffe://prod.example/tenant/acme/sa/worker-0", "")).await,
        3
    );
    assert_eq!(count(by("", &ids[0])).await, 1);
    assert_eq!(count(by("dns:none.example", &ids[0])).await, 0);
    for (request, field) in [
        (
            pb::ListGrantsRequest {
                page_size: -1,
                ..all.clone()
            },
            "page_size",
        ),
        (
            pb::ListGrantsRequest {
                page_token: "x".into(),
                ..all.clone()
            },
            "page_token",
        ),
        (
            pb::ListGrantsRequest {
                grant_id: "x".into(),
                ..all.clone()
            },
            "grant_id",
        ),
    ] {
        let refused = admin.list_grants(request).await.unwrap_err();
        assert_eq!(Refusal::of(&refused).fields.concat(), field);
    }
    let mut retirer = broker.granter(RETIRER).await;
    let mine = pb::ListRetirableGrantsRequest::default();
    let page = retirer.list_retirable_grants(mine.clone()).await.unwrap();
    assert_eq!(page.into_inner().grants.len(), 5);
    let nobody = admin.list_retirable_grants(mine).await.unwrap();
    assert!(nobody.into_inner().grants.is_empty());
    let others = pb::ListRetirableGrantsRequest {
        retiring_principal: RETIRER.into(),
        ..Default::default()
    };
    let refused = admin.list_retirable_grants(others).await.map(drop);
    assert_eq!(reason(refused), "POLICY_DENIED");
}

#[tokio::test]
async fn who_may_retire_and_renew_a_grant_does_and_nobody_else() {
    let broker = start().await;
    let mut admin = broker.granter(ADMIN).await;
    let wish = pb::CreateGrantRequest {
        retiring_principal: RETIRER.into(),
        lifetime_seconds: 60,
        renewable_for_seconds: 3600,
        ..wish(WORKER, &[GrantOperation::Decrypt])
    };
    let (grant, token) = create(&mut admin, wish.clone()).await.unwrap();
    let renewal = pb::RenewGrantRequest {
        key: ORDERS.into(),
        grant_id: grant.id.clone(),
        lifetime_seconds: 600,
    };
    for other in [RETIRER, GLOBEX, STRANGER] {
        let mut other = broker.granter(other).await;
        let refused = other.renew_grant(renewal.clone()).await.map(drop);
        assert_eq!(reason(refused), "POLICY_DENIED");
    }
    let before = grant.expire_time.unwrap().seconds;
    for one in [WORKER, ADMIN] {
        let mut one = broker.granter(one).await;
        let renewed = one.renew_grant(renewal.clone()).await.unwrap().into_inner();
        let after = renewed.grant.unwrap().expire_time.unwrap().seconds;
        assert!(
            (539..=545).contains(&(after - before)),
            "{}",
            after - before
        );
    }
    let retirement = pb::RetireGrantRequest {
        key: ORDERS.into(),
        grant_id: grant.id.clone(),
        ..Default::default()
    };
    let by_token = pb::RetireGrantRequest {
        grant_token: token,
        ..Default::default()
    };
    for other in [WORKER, ADMIN, GLOBEX] {
        let mut other = broker.granter(other).await;
        for request in [&retirement, &by_token] {
            let refused = other.retire_grant(request.clone()).await.map(drop);
            assert_eq!(reason(refused), "POLICY_DENIED");
        }
    }
    let mut retirer = broker.granter(RETIRER).await;
    retirer.retire_grant(by_token).await.unwrap();
    retirer.retire_grant(retirement).await.unwrap();
    let refused = admin.renew_grant(renewal).await.map(drop);
    assert_eq!(reason(refused), "POLICY_DENIED");
    let fixed = pb::CreateGrantRequest {
        renewable_for_seconds: 0,
        ..wish
    };
    let (fixed, _) = create(&mut admin, fixed).await.unwrap();
    let refused = admin.renew_grant(pb::RenewGrantRequest {
        key: ORDERS.into(),
        grant_id: fixed.id,
        lifetime_seconds: 0,
    });
    let refused = refused.await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert_eq!(Refusal::of(&refused).reason, "GRANT_NOT_RENEWABLE");
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

/// Calls `rpc` about the grant `id` of `key`.
async fn call(granter: &mut Granter, rpc: &str, key: &str, id: &str) -> Result<(), Status> {
    let (key, grant_id) = (key.to_owned(), id.to_owned());
    match rpc {
        "CreateGrant" => {
            let request = pb::CreateGrantRequest {
                key,
                ..decrypting()
            };
            granter.create_grant(identified(request)).await.map(drop)
        }
        "ListGrants" => {
            let request = pb::ListGrantsRequest {
                key,
                ..Default::default()
            };
            granter.list_grants(identified(request)).await.map(drop)
        }
        "ListRetirableGrants" => {
            let retiring_principal = RETIRER.to_owned();
            let request = pb::ListRetirableGrantsRequest {
                retiring_principal,
                ..Default::default()
            };
            granter
                .list_retirable_grants(identified(request))
                .await
                .map(drop)
        }
        "RetireGrant" => {
            let request = pb::RetireGrantRequest {
                key,
                grant_id,
                ..Default::default()
            };
            granter.retire_grant(identified(request)).await.map(drop)
        }
        "RevokeGrant" => {
            let request = pb::RevokeGrantRequest { key, grant_id };
            granter.revoke_grant(identified(request)).await.map(drop)
        }
        "RenewGrant" => {
            let request = pb::RenewGrantRequest {
                key,
                grant_id,
                lifetime_seconds: 0,
            };
            granter.renew_grant(identified(request)).await.map(drop)
        }
        unlisted => panic!("no test knows the RPC {unlisted}: list it here"),
    }
}

#[tokio::test]
async fn absent_foreign_and_forbidden_grants_read_the_same_in_every_rpc() {
    let broker = start().await;
    let wish = pb::CreateGrantRequest {
        renewable_for_seconds: 900,
        retiring_principal: RETIRER.into(),
        ..decrypting()
    };
    let (grant, _) = create(&mut broker.granter(ADMIN).await, wish)
        .await
        .unwrap();
    let unknown = "ab".repeat(32);
    let mut expected = None;
    for (who, key, id) in [
        (STRANGER, ORDERS, &grant.id),
        (STRANGER, ORDERS, &unknown),
        (STRANGER, "tenants/acme/keys/absent", &grant.id),
        (STRANGER, "tenants/absent/keys/orders", &grant.id),
        (STRANGER, "keys/orders", &grant.id),
        (GLOBEX, ORDERS, &grant.id),
        (GLOBEX, "keys/orders", &grant.id),
        (GLOBEX, "keys/absent", &unknown),
        // Of the tenant, and even a user of the key.
        (WEB, ORDERS, &grant.id),
        (WEB, ORDERS, &unknown),
        // The administrator of another key; the right one, of no such grant or key.
        (ADMIN, "tenants/acme/keys/invoices", &grant.id),
        (ADMIN, "tenants/globex/keys/orders", &grant.id),
        (ADMIN, "keys/absent", &grant.id),
    ] {
        let mut granter = broker.granter(who).await;
        for rpc in rpcs::names_of("GrantService") {
            let refused = call(&mut granter, &rpc, key, id).await;
            let status = refused.expect_err(&format!("{rpc} {who} {key}"));
            assert_eq!(
                Refusal::of(&status).reason,
                "POLICY_DENIED",
                "{rpc} {who} {key}"
            );
            let seen = (
                status.code(),
                status.message().to_owned(),
                status.details().to_vec(),
            );
            let expected = expected.get_or_insert_with(|| seen.clone());
            assert_eq!(seen, *expected, "{rpc} by {who} on {key}");
        }
    }
    // The grantee does not retire, the retiring principal does not renew, neither revokes.
    for (who, rpcs) in [
        (
            WORKER,
            &["RetireGrant", "RevokeGrant", "ListGrants", "CreateGrant"][..],
        ),
        (
            RETIRER,
            &["RenewGrant", "RevokeGrant", "ListGrants", "CreateGrant"],
        ),
        (ADMIN, &["RetireGrant"]),
    ] {
        let mut granter = broker.granter(who).await;
        for rpc in rpcs {
            let refused = call(&mut granter, rpc, ORDERS, &grant.id).await;
            assert_eq!(reason(refused), "POLICY_DENIED", "{rpc} {who}");
        }
    }
}

#[tokio::test]
async fn records_say_what_became_of_a_grant() {
    let broker = start().await;
    let mut admin = broker.granter(ADMIN).await;
    let wish = pb::CreateGrantRequest {
        name: "job".into(),
        constraints: subset(&[("order", "very-private")]),
        ..decrypting()
    };
    let (grant, token) = create(&mut admin, wish).await.unwrap();
    let list = pb::ListGrantsRequest {
        key: ORDERS.into(),
        ..Default::default()
    };
    admin.list_grants(list).await.unwrap();
    revoke(&mut admin, &grant.id).await.unwrap();
    let records = broker.records();
    let [created, listed, revoked] = records.as_slice() else {
        panic!("three records");
    };
    for (record, name, read_only) in [
        (created, "CreateGrant", false),
        (listed, "ListGrants", true),
        (revoked, "RevokeGrant", false),
    ] {
        assert_eq!(record["eventName"], name);
        assert_eq!(record["eventCategory"], "Management");
        assert_eq!(record["readOnly"], read_only);
        assert_eq!(record["additionalEventData"]["rule"], "administrators");
        assert_eq!(record["requestParameters"]["key"], ORDERS);
    }
    for record in [created, revoked] {
        assert_eq!(record["additionalEventData"]["grantId"], grant.id);
    }
    let said = &created["requestParameters"]["grant"];
    assert_eq!(said["granteePrincipal"], WORKER);
    assert_eq!(said["operations"][0], "Decrypt");
    assert_eq!(said["constraint"], "EncryptionContextSubset");
    assert_eq!(said["encryptionContextKeys"][0], "order");
    let text = serde_json::to_string(&records).unwrap();
    assert!(!text.contains("very-private") && !text.contains(&token));
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
