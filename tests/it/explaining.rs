//! What the broker says of why somebody would be allowed or denied something, beside what becomes of
//! it when they try.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use keybroker::clock::Clock;
use keybroker::clock::Manual;
use keybroker::directory::Standing;
use keybroker::grpc::pb;
use keybroker::grpc::pb::GrantOperation;
use keybroker::grpc::pb::admin_service_client::AdminServiceClient;
use keybroker::identity::Operators;
use keybroker::store::Freshness;
use serde_json::json;
use tonic::Status;

use crate::harness::ADMIN;
use crate::harness::Broker;
use crate::harness::GLOBEX;
use crate::harness::Refusal;
use crate::harness::STRANGER;
use crate::harness::Setup;
use crate::harness::TENANTS;
use crate::harness::WEB;
use crate::harness::Wire;
use crate::harness::reason;
use crate::harness::rpcs;
use crate::harness::rpcs::pairs;
use crate::harness::rpcs::seal;

const ALICE: &str = "spiffe://prod.example/ops/alice";
const ORDERS: &str = "tenants/acme/keys/orders";

async fn start(change: impl FnOnce(&mut Setup)) -> Broker {
    Broker::start()
        .with(|setup| {
            setup.operators = Operators {
                principals: vec![ALICE.parse().unwrap()],
            };
            change(setup);
        })
        .await
}

async fn explained(
    alice: &mut AdminServiceClient<Wire>,
    principal: &str,
    operation: GrantOperation,
    key: &str,
) -> pb::ExplainResponse {
    let request = pb::ExplainRequest {
        principal: principal.into(),
        operation: operation.into(),
        key: key.into(),
        ..Default::default()
    };
    alice.explain(request).await.unwrap().into_inner()
}

fn outcome(called: Result<(), Status>) -> String {
    match called {
        Ok(()) => String::new(),
        Err(status) => Refusal::of(&status).reason,
    }
}

#[tokio::test]
async fn an_explanation_is_what_becomes_of_the_call() {
    let broker = start(|_| {}).await;
    let mut alice = broker.operator(ALICE).await;
    let mut web = broker.caller(WEB).await;
    let sealed = seal(&mut web, "keys/orders", "x").await;
    let shared = seal(&mut web, "keys/shared", "x").await;
    let of = |service| format!("spiffe://prod.example/tenant/acme/sa/{service}");
    let callers = [
        WEB.to_owned(),
        ADMIN.to_owned(),
        GLOBEX.to_owned(),
        STRANGER.to_owned(),
        ALICE.to_owned(),
        of("writer"),
        of("reader"),
        of("nobody"),
    ];
    for caller in &callers {
        let mut client = broker.caller(caller).await;
        for (key, ciphertext) in [
            (ORDERS, &sealed),
            ("keys/orders", &sealed),
            ("tenants/acme/keys/shared", &shared),
            ("tenants/acme/keys/locked", &sealed),
            ("tenants/acme/keys/absent", &sealed),
            ("tenants/absent/keys/orders", &sealed),
        ] {
            for (rpc, operation) in [
                ("Encrypt", GrantOperation::Encrypt),
                ("Decrypt", GrantOperation::Decrypt),
                ("GenerateDataKey", GrantOperation::GenerateDataKey),
                (
                    "GenerateDataKeyWithoutPlaintext",
                    GrantOperation::GenerateDataKeyWithoutPlaintext,
                ),
                ("DescribeKey", GrantOperation::DescribeKey),
            ] {
                let foreign = (caller.as_str(), key, rpc) == (GLOBEX, "keys/orders", "Decrypt");
                if foreign {
                    // Allowed, and the message is another tenant's.
                    continue;
                }
                let called = rpcs::call(&mut client, rpc, key, ciphertext).await;
                let said = explained(&mut alice, caller, operation, key).await;
                let context = format!("{rpc} by {caller} on {key}: {said:?}");
                assert_eq!(said.reason, outcome(called), "{context}");
                assert_eq!(said.allowed, said.reason.is_empty(), "{context}");
                assert_eq!(said.rule.is_empty(), !said.allowed, "{context}");
                assert!(!said.explanation.is_empty(), "{context}");
            }
        }
    }
}

#[tokio::test]
async fn an_explanation_names_the_rule_the_grant_or_what_is_missing() {
    let orders = "kms = \"local:acme-orders\"\n";
    let web = format!("\"{WEB}\", ");
    let conditional = format!("{{ principal = \"{WEB}\", context = {{ order = \"7\" }} }}, ");
    let tenants = TENANTS
        .replacen(
            orders,
            &format!("{orders}administrators = [\"{ADMIN}\"]\n"),
            1,
        )
        .replacen(&web, &conditional, 1);
    let broker = start(|setup| setup.tenants = tenants).await;
    let mut alice = broker.operator(ALICE).await;
    let encrypt = GrantOperation::Encrypt;
    let cases = [
        (WEB, "keys/invoices", "users", "users", "POLICY: users"),
        (WEB, "keys/orders", "", "users", "no condition"),
        (ADMIN, "keys/orders", "", "administrators", "no statement"),
        (ADMIN, "keys/absent", "", "", "no such key"),
        (STRANGER, ORDERS, "", "", "no statement"),
        (ALICE, ORDERS, "", "", "maps to no tenant"),
    ];
    for (who, key, rule, role, word) in cases {
        let said = explained(&mut alice, who, encrypt, key).await;
        assert_eq!((&*said.rule, &*said.role), (rule, role), "{who} {key}");
        let word = word.trim_start_matches("POLICY: ");
        assert!(said.explanation.contains(word), "{}", said.explanation);
    }
    // The context decides.
    let request = pb::ExplainRequest {
        principal: WEB.into(),
        operation: encrypt.into(),
        key: "keys/orders".into(),
        encryption_context: pairs([("order", "7")]),
        ..Default::default()
    };
    let said = alice.explain(request.clone()).await.unwrap().into_inner();
    assert!(said.allowed && said.rule == "users", "{said:?}");
    assert_eq!(said.tenant, "acme");
    let reserved = pb::ExplainRequest {
        encryption_context: pairs([("order", "7"), ("keybroker:key", "x")]),
        ..request
    };
    let said = alice.explain(reserved).await.unwrap().into_inner();
    assert_eq!(said.reason, "CONTEXT_INVALID");

    // A grant.
    let worker = "spiffe://prod.example/tenant/initech/sa/worker";
    let wish = pb::CreateGrantRequest {
        key: ORDERS.into(),
        grantee_principal: worker.into(),
        operations: vec![encrypt.into()],
        max_uses: 1,
        ..Default::default()
    };
    let mut granter = broker.granter(ADMIN).await;
    let made = granter.create_grant(wish).await.unwrap().into_inner();
    let id = made.grant.unwrap().id;
    // To ask is no use of it.
    for _ in 0..3 {
        let said = explained(&mut alice, worker, encrypt, ORDERS).await;
        assert!(said.allowed, "{said:?}");
        assert_eq!((said.rule, said.grant_id), ("grant".into(), id.clone()));
    }
    let said = explained(&mut alice, worker, GrantOperation::Decrypt, ORDERS).await;
    assert_eq!(said.reason, "POLICY_DENIED");
    let mut worker = broker.caller(worker).await;
    let used = rpcs::call(&mut worker, "Encrypt", ORDERS, &Bytes::new()).await;
    used.unwrap();
}

#[tokio::test]
async fn who_may_make_and_give_back_a_grant_is_explained() {
    let orders = "kms = \"local:acme-orders\"\n";
    let administered = format!("{orders}administrators = [\"{ADMIN}\"]\n");
    let tenants = TENANTS.replacen(orders, &administered, 1);
    let broker = start(|setup| setup.tenants = tenants).await;
    let mut alice = broker.operator(ALICE).await;
    let of = |service| format!("spiffe://prod.example/tenant/acme/sa/{service}");
    let (worker, retirer) = (of("worker"), of("retirer"));
    let operations = [GrantOperation::Encrypt, GrantOperation::CreateGrant];
    let wish = pb::CreateGrantRequest {
        key: ORDERS.into(),
        grantee_principal: worker.clone(),
        retiring_principal: retirer.clone(),
        operations: operations.map(Into::into).into(),
        ..Default::default()
    };
    let made = broker.granter(ADMIN).await.create_grant(wish).await;
    let id = made.unwrap().into_inner().grant.unwrap().id;

    let create = GrantOperation::CreateGrant;
    for (who, rule) in [(ADMIN, "administrators"), (&worker, "grant"), (WEB, "")] {
        let said = explained(&mut alice, who, create, ORDERS).await;
        assert_eq!(
            (said.allowed, &*said.rule),
            (!rule.is_empty(), rule),
            "{who}"
        );
        let handed_on = pb::CreateGrantRequest {
            key: ORDERS.into(),
            grantee_principal: of("other"),
            operations: vec![GrantOperation::Encrypt.into()],
            ..Default::default()
        };
        let made = broker.granter(who).await.create_grant(handed_on).await;
        assert_eq!(said.reason, outcome(made.map(drop)), "{who}");
    }
    for (who, reason) in [(&*worker, "POLICY_DENIED"), (&*retirer, "")] {
        let request = pb::ExplainRequest {
            principal: who.into(),
            operation: GrantOperation::RetireGrant.into(),
            key: ORDERS.into(),
            grant_id: id.clone(),
            ..Default::default()
        };
        let said = alice.explain(request).await.unwrap().into_inner();
        assert_eq!(said.reason, reason, "{who}");
        let request = pb::RetireGrantRequest {
            key: ORDERS.into(),
            grant_id: id.clone(),
            ..Default::default()
        };
        let retired = broker.granter(who).await.retire_grant(request).await;
        assert_eq!(outcome(retired.map(drop)), reason, "{who}");
    }
}

#[tokio::test]
async fn standing_and_lost_touch_are_explained_too() {
    let clock = Arc::new(Manual::new(jiff::Timestamp::now()));
    let freshness = Arc::new(Freshness::new(clock.clone(), Duration::from_secs(60)));
    freshness.heard(clock.now());
    let broker = start(|setup| {
        setup.clock = clock.clone();
        setup.freshness = Some(freshness);
    })
    .await;
    let mut alice = broker.operator(ALICE).await;
    let shared = "tenants/acme/keys/shared";
    let encrypt = GrantOperation::Encrypt;
    assert!(explained(&mut alice, GLOBEX, encrypt, shared).await.allowed);
    for tenant in ["acme", "globex"] {
        broker.stand(TENANTS, tenant, Standing::Suspended);
        let said = explained(&mut alice, GLOBEX, encrypt, shared).await;
        assert_eq!(said.reason, "TENANT_SUSPENDED", "{tenant}");
    }
    broker.stand(TENANTS, "acme", Standing::Active);
    clock.advance(Duration::from_secs(60));
    let said = explained(&mut alice, GLOBEX, encrypt, shared).await;
    assert_eq!(said.reason, "STORE_UNAVAILABLE");
}

#[tokio::test]
async fn a_question_that_is_none_is_refused_and_a_good_one_is_on_record() {
    let broker = start(|_| {}).await;
    let mut alice = broker.operator(ALICE).await;
    let good = pb::ExplainRequest {
        principal: WEB.into(),
        operation: GrantOperation::Encrypt.into(),
        key: "keys/orders".into(),
        encryption_context: pairs([("order", "very-private")]),
        ..Default::default()
    };
    for bad in [
        pb::ExplainRequest {
            principal: "spiffe://prod.example/tenant/*/sa/web".into(),
            ..good.clone()
        },
        pb::ExplainRequest {
            principal: "unix:uid=1".into(),
            ..good.clone()
        },
        pb::ExplainRequest {
            key: "orders".into(),
            ..good.clone()
        },
        pb::ExplainRequest {
            operation: 0,
            ..good.clone()
        },
        pb::ExplainRequest {
            operation: GrantOperation::RetireGrant.into(),
            ..good.clone()
        },
        pb::ExplainRequest {
            grant_id: "00".repeat(32),
            ..good.clone()
        },
    ] {
        assert_eq!(reason(alice.explain(bad).await), "FIELD_INVALID");
    }
    alice.explain(good).await.unwrap();
    let record = broker.records().pop().unwrap();
    assert_eq!(record["eventName"], "Explain");
    assert_eq!(record["readOnly"], true);
    assert_eq!(record["requestParameters"]["key"], ORDERS);
    let names = &record["requestParameters"]["encryptionContextKeys"];
    assert_eq!(*names, json!(["order"]));
    assert!(!record.to_string().contains("very-private"));
}
