//! Grants over the wire: made, used and ended, and what records say of them.

mod early;
mod kms;
mod leaving;
mod limits;
mod replicas;
mod rights;

use std::collections::BTreeMap;

use bytes::Bytes;
use keybroker::grpc::pb;
use keybroker::grpc::pb::GrantOperation;
use keybroker::grpc::pb::grant_service_client::GrantServiceClient;
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

pub use limits::provoke;

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
        "CreateKmsGrant" => {
            let request = pb::CreateKmsGrantRequest { key, ..kms::wish() };
            let created = granter.create_kms_grant(identified(request));
            created.await.map(drop)
        }
        "ListKmsGrants" => {
            let request = pb::ListKmsGrantsRequest {
                key,
                ..Default::default()
            };
            granter.list_kms_grants(identified(request)).await.map(drop)
        }
        "RevokeKmsGrant" => {
            let request = pb::RevokeKmsGrantRequest { key, grant_id };
            let revoked = granter.revoke_kms_grant(identified(request));
            revoked.await.map(drop)
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
