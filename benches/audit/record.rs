//! Records as most of them are.

use std::sync::Arc;

use keybroker::audit;
use keybroker::audit::Record;
use keybroker::clock::Clock as _;
use keybroker::clock::System;
use keybroker::name::KeyName;

/// Makes records of an Encrypt that hit the cache.
pub fn record() -> impl Fn() -> Record {
    let identity = audit::UserIdentity {
        kind: "SPIFFE",
        principal_id: "spiffe://prod.example/tenant/acme/sa/checkout".into(),
        authenticator: "x509-svid",
        session_context: Some(audit::Session {
            cert_serial: "5f3c9d0a1be24c6f8a7d".into(),
            not_after: System.wall(),
        }),
    };
    let tls = audit::Tls {
        tls_version: "TLSv1.3",
        cipher_suite: "TLS_AES_256_GCM_SHA384",
    };
    let origin = audit::Origin::new(Some(&identity), "192.0.2.17", Some(tls));
    let origin = Arc::new(origin);
    let tenant = "acme".parse().unwrap();
    let key = KeyName::parse("keys/orders", &tenant).unwrap();
    let [event, agent, version, kms_key] = [
        "Encrypt",
        "grpc-rust/1.0 (checkout)",
        "tenants/acme/keys/orders/versions/1",
        "arn:aws:kms:us-west-2:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab",
    ]
    .map(Arc::<str>::from);
    move || Record {
        event_name: Some(Arc::clone(&event)),
        origin: Some(Arc::clone(&origin)),
        tenant: Some(tenant.clone()),
        user_agent: Some(Arc::clone(&agent)),
        request_id: Some("01923c8e-7b1a-7000-8000-000000000001".into()),
        key: Some(key.clone()),
        context_keys: ["table"].into_iter().collect(),
        plaintext_bytes: Some(1024),
        resources: vec![audit::Resource {
            name: Arc::clone(&version),
            arn: Arc::clone(&kms_key),
            kind: "KMSKey",
        }],
        rule: Some("users"),
        policy_generation: Some(1),
        cache: Some(audit::Cache::Hit),
        ..Record::default()
    }
}
