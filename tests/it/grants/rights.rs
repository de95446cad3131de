//! Who may hand on, list, retire and renew a grant, and what others learn of it.

use keybroker::grpc::pb;
use keybroker::grpc::pb::GrantOperation;
use tonic::Code;

use super::ADMIN;
use super::ORDERS;
use super::RETIRER;
use super::WORKER;
use super::call;
use super::create;
use super::decrypting;
use super::opening;
use super::owned;
use super::revoke;
use super::start;
use super::subset;
use super::wish;

use crate::harness::GLOBEX;
use crate::harness::Refusal;
use crate::harness::STRANGER;
use crate::harness::WEB;
use crate::harness::reason;
use crate::harness::rpcs;

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
