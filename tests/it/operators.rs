//! The AdminService: for operators alone, and all that they do on record.

use keybroker::broker::Management;
use keybroker::broker::Origin;
use keybroker::grpc::pb;
use keybroker::grpc::pb::admin_service_client::AdminServiceClient;
use keybroker::identity::Operators;
use keybroker::kms::Reach;
use serde_json::json;
use tonic::Code;
use tonic::Status;

use crate::harness::ADMIN;
use crate::harness::Broker;
use crate::harness::GLOBEX;
use crate::harness::Refusal;
use crate::harness::STRANGER;
use crate::harness::WEB;
use crate::harness::Wire;
use crate::harness::reason;
use crate::harness::rpcs;
use crate::harness::rpcs::encrypt;
use crate::harness::rpcs::identified;

/// Of no tenant.
const ALICE: &str = "spiffe://prod.example/ops/alice";
const BOB: &str = "spiffe://prod.example/ops/bob";

fn operators(who: &str) -> Operators {
    Operators {
        principals: vec![who.parse().unwrap()],
    }
}

async fn start() -> Broker {
    Broker::start()
        .with(|setup| setup.operators = operators(ALICE))
        .await
}

/// Calls `rpc`, about `tenant` where it is about one.
async fn call(
    client: &mut AdminServiceClient<Wire>,
    rpc: &str,
    tenant: &str,
) -> Result<(), Status> {
    let name = format!("tenants/{tenant}");
    match rpc {
        "Apply" => {
            let request = pb::ApplyRequest {
                tenants: format!("[[tenant]]\nid = \"{tenant}\"\n"),
                prune: false,
            };
            client.apply(identified(request)).await.map(drop)
        }
        "Explain" => {
            let request = pb::ExplainRequest {
                principal: WEB.into(),
                operation: pb::GrantOperation::Encrypt.into(),
                key: format!("{name}/keys/orders"),
                ..Default::default()
            };
            client.explain(identified(request)).await.map(drop)
        }
        "PurgeTenant" => {
            let request = pb::PurgeTenantRequest { name };
            client.purge_tenant(identified(request)).await.map(drop)
        }
        "ResumeTenant" => {
            let request = pb::ResumeTenantRequest { name };
            client.resume_tenant(identified(request)).await.map(drop)
        }
        "SuspendTenant" => {
            let request = pb::SuspendTenantRequest { name };
            client.suspend_tenant(identified(request)).await.map(drop)
        }
        unlisted => panic!("no test knows the RPC {unlisted}: list it here"),
    }
}

/// A status with `reason`.
pub async fn provoke(reason: &str) -> Status {
    let broker = start().await;
    let who = match reason {
        "NOT_AN_OPERATOR" => WEB,
        "TENANTS_FILE_SET" => ALICE,
        unlisted => panic!("nothing provokes {unlisted}"),
    };
    broker.inner().manage(Management {
        operators: operators(ALICE),
        origin: Origin::File,
        reach: Reach::Local,
    });
    let mut client = broker.operator(who).await;
    call(&mut client, "Apply", "acme").await.unwrap_err()
}

#[tokio::test]
async fn every_rpc_is_for_operators_and_tells_nobody_else_anything() {
    let broker = start().await;
    let mut alice = broker.operator(ALICE).await;
    call(&mut alice, "Apply", "acme").await.unwrap();
    let mut expected = None;
    // Administrators of keys, users, strangers, one whom no rule maps; of what is there and is not.
    for who in [ADMIN, WEB, GLOBEX, STRANGER, BOB] {
        let mut client = broker.operator(who).await;
        for tenant in ["acme", "globex", "absent", "No-Tenant"] {
            for rpc in rpcs::names_of("AdminService") {
                let refused = call(&mut client, &rpc, tenant).await;
                let status = refused.expect_err(&format!("{rpc} {who} {tenant}"));
                assert_eq!(status.code(), Code::PermissionDenied, "{rpc} {who}");
                assert_eq!(Refusal::of(&status).reason, "NOT_AN_OPERATOR");
                let seen = (status.message().to_owned(), status.details().to_vec());
                let expected = expected.get_or_insert_with(|| seen.clone());
                assert_eq!(seen, *expected, "{rpc} by {who} on {tenant}");
            }
        }
    }
    for rpc in rpcs::names_of("AdminService") {
        call(&mut alice, &rpc, "acme").await.expect(&rpc);
    }
}

#[tokio::test]
async fn an_operator_is_nobody_to_the_other_services() {
    let broker = start().await;
    let mut alice = broker.caller(ALICE).await;
    let refused = reason(
        alice
            .encrypt(encrypt("tenants/acme/keys/orders", "x"))
            .await,
    );
    assert_eq!(refused, "IDENTITY_UNMAPPED");
    // One who is a caller as well is that caller, and no more.
    broker.inner().manage(Management {
        operators: operators(GLOBEX),
        ..Management::default()
    });
    let mut globex = broker.caller(GLOBEX).await;
    let refused = reason(
        globex
            .encrypt(encrypt("tenants/acme/keys/orders", "x"))
            .await,
    );
    assert_eq!(refused, "POLICY_DENIED");
    let mut client = broker.operator(GLOBEX).await;
    call(&mut client, "Apply", "acme").await.unwrap();
    // Who is taken from the list is none from the next call on.
    broker.inner().manage(Management::default());
    let refused = call(&mut client, "Apply", "acme").await;
    assert_eq!(reason(refused), "NOT_AN_OPERATOR");
}

#[tokio::test]
async fn a_file_that_cannot_be_served_and_a_tenant_that_never_was_are_refused() {
    let broker = start().await;
    let mut alice = broker.operator(ALICE).await;
    let key = "[[tenant]]\nid = \"acme\"\n[[tenant.key]]\nid = \"k\"\nkms = \"local:k\"\n";
    let aws = key.replace("local:k", "arn:aws:kms:eu-west-1:1:key/a");
    for (tenants, word) in [
        ("[[tenant]]\nid = \"No\"\n", "tenants:2"),
        ("tenant = 7", "line 1"),
        (&aws, "tenants:4"),
        (
            "[[tenant]]\nid = \"acme\"\ncontext = { app = \"x\" }\n",
            "[[identity.rule]]",
        ),
    ] {
        let request = pb::ApplyRequest {
            tenants: tenants.into(),
            prune: false,
        };
        let status = alice.apply(request).await.unwrap_err();
        let refusal = Refusal::of(&status);
        assert_eq!(refusal.reason, "FIELD_INVALID", "{tenants}");
        assert!(refusal.message.contains(word), "{}", refusal.message);
    }
    for rpc in ["PurgeTenant", "ResumeTenant", "SuspendTenant"] {
        for tenant in ["absent", "No-Tenant", ""] {
            let refused = call(&mut alice, rpc, tenant).await;
            assert_eq!(reason(refused), "FIELD_INVALID", "{rpc} {tenant}");
        }
    }
    // Keys that this broker cannot call.
    broker.inner().manage(Management {
        operators: operators(ALICE),
        ..Management::default()
    });
    let request = pb::ApplyRequest {
        tenants: key.into(),
        prune: false,
    };
    let refused = Refusal::of(&alice.apply(request).await.unwrap_err());
    assert!(refused.message.contains("kms.local"), "{}", refused.message);
}

#[tokio::test]
async fn records_say_what_operators_did_and_who_tried() {
    let broker = start().await;
    let mut alice = broker.operator(ALICE).await;
    call(&mut alice, "Apply", "acme").await.unwrap();
    call(&mut alice, "SuspendTenant", "acme").await.unwrap();
    let mut web = broker.operator(WEB).await;
    call(&mut web, "ResumeTenant", "acme").await.unwrap_err();
    let records = broker.records();
    let [applied, suspended, tried] = records.as_slice() else {
        panic!("three records");
    };
    for (record, name, who, rule, change) in [
        (applied, "Apply", ALICE, json!("operators"), json!(1)),
        (
            suspended,
            "SuspendTenant",
            ALICE,
            json!("operators"),
            json!(2),
        ),
        (tried, "ResumeTenant", WEB, json!(null), json!(null)),
    ] {
        assert_eq!(record["eventName"], name);
        assert_eq!(record["eventCategory"], "Management");
        assert_eq!(record["readOnly"], false);
        assert_eq!(record["userIdentity"]["principalId"], who);
        assert_eq!(record["additionalEventData"]["rule"], rule);
        assert_eq!(record["additionalEventData"]["change"], change);
    }
    assert_eq!(suspended["tenant"], "acme");
    assert_eq!(tried["errorCode"], "NOT_AN_OPERATOR");
}

#[tokio::test]
async fn an_operator_gets_through_to_a_broker_that_has_too_much_to_do() {
    let broker = Broker::start()
        .with(|setup| {
            setup.operators = operators(ALICE);
            setup.limits.in_flight = 0;
        })
        .await;
    let mut web = broker.caller(WEB).await;
    let refused = reason(web.encrypt(encrypt("keys/orders", "x")).await);
    assert_eq!(refused, "OVERLOADED");
    let mut alice = broker.operator(ALICE).await;
    call(&mut alice, "Apply", "acme").await.unwrap();
    call(&mut alice, "SuspendTenant", "acme").await.unwrap();
}
