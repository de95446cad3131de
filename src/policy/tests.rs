mod grants;

use std::path::Path;

use super::*;
use crate::identity::Config;
use crate::identity::Peer;

/// Everybody in the tables is a Unix user, whose tenant is its group. Services capture a pair.
const RULES: &str = r#"
    [[rule]]
    match = "unix:gid=1"
    tenant = "acme"

    [[rule]]
    match = "unix:gid=2"
    tenant = "umbrella"

    [[rule]]
    match = "unix:uid=50"
    tenant = "acme"
    context = { service = "web" }

    [[rule]]
    match = "unix:uid=51"
    tenant = "acme"
    context = { service = "mail" }
"#;

const TENANTS: &str = r#"
    [[tenant]]
    id = "acme"
    context = { env = "prod" }

    [[tenant.key]]
    id = "orders"
    kms = "local:orders"
    administrators = ["unix:uid=10", "unix:uid=20"]
    users = ["unix:uid=11", "unix:uid=50", "unix:uid=51"]
    encrypt_only = ["unix:uid=12"]
    decrypt_only = ["unix:uid=13"]
    external_users = ["unix:uid=20"]

    [[tenant.key]]
    id = "conditional"
    kms = "local:orders"
    users = [
        { principal = "unix:uid=11", context = { purpose = "backup", env = "prod" } },
        { principal = "unix:uid=12", context = { "keybroker:tenant" = "umbrella" } },
        { principal = "unix:uid=50", context = { service = "web" } },
    ]
    decrypt_only = [{ principal = "unix:uid=11", context = { purpose = "restore" } }]

    [[tenant.key]]
    id = "shared"
    kms = "local:orders"
    users = ["unix:uid=11", "unix:uid=50", "unix:uid=51"]
    shared_captures = ["service"]

    [[tenant]]
    id = "umbrella"

    [[tenant.key]]
    id = "orders"
    kms = "local:orders"
    users = ["unix:uid=20", "unix:uid=11"]
"#;

const ADMINISTRATOR: (u32, u32) = (10, 1);
const USER: (u32, u32) = (11, 1);
const SEALER: (u32, u32) = (12, 1);
const OPENER: (u32, u32) = (13, 1);
const STRANGER: (u32, u32) = (14, 1);
const EXTERNAL: (u32, u32) = (20, 2);
const WEB: (u32, u32) = (50, 0);
const MAIL: (u32, u32) = (51, 0);

const ACTIONS: [Action; 6] = [
    Action::Decrypt,
    Action::Encrypt,
    Action::GenerateDataKey,
    Action::GenerateDataKeyWithoutPlaintext,
    Action::ReEncryptFrom,
    Action::ReEncryptTo,
];

fn policy_of(tenants: &str) -> Policy {
    let config: Config = toml::from_str(RULES).unwrap();
    let directory = Directory::parse(tenants, Path::new("tenants.toml")).unwrap();
    let rules = Rules::new(&config).unwrap();
    Policy::new(directory.into(), rules.into()).unwrap()
}

fn policy() -> Policy {
    policy_of(TENANTS)
}

fn caller(policy: &Policy, (uid, gid): (u32, u32)) -> Caller {
    policy.rules().map(&Peer::unix(uid, gid)).unwrap()
}

fn name(text: &str) -> KeyName {
    KeyName::parse(text, &"acme".parse().unwrap()).unwrap()
}

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    pairs.iter().map(owned).collect()
}

fn seal(who: (u32, u32), key: &str, own: &[(&str, &str)]) -> Result<Permit, Refused> {
    let policy = policy();
    let caller = caller(&policy, who);
    policy.authorize_seal(
        &caller,
        Action::Encrypt,
        &name(key),
        &pairs(own),
        Backing::NONE,
    )
}

/// Opens a message with the context `header`, under the key that it names.
fn open(
    who: (u32, u32),
    header: &EncryptionContext,
    own: &[(&str, &str)],
) -> Result<Permit, Refused> {
    let policy = policy();
    let caller = caller(&policy, who);
    policy.authorize_open(
        &caller,
        Action::Decrypt,
        None,
        header,
        &pairs(own),
        Backing::NONE,
    )
}

fn header(own: &[(&str, &str)]) -> EncryptionContext {
    EncryptionContext::new(pairs(own)).unwrap()
}

/// The context under which `who` seals.
fn sealed(who: (u32, u32), key: &str, own: &[(&str, &str)]) -> EncryptionContext {
    seal(who, key, own).ok().unwrap().context().clone()
}

fn outcome(result: Result<Permit, Refused>) -> Result<&'static str, Refused> {
    result.map(|permit| permit.rule().label())
}

const NO_STATEMENT: Result<&str, Refused> = Err(Refused::Denied(Denied::NoStatement));

#[test]
fn roles_allow_their_actions_and_nothing_else() {
    let policy = policy();
    let orders = name("keys/orders");
    let header = header(&[
        (context::TENANT, "acme"),
        (context::KEY, "orders"),
        ("env", "prod"),
    ]);
    for (who, seals, opens) in [
        (ADMINISTRATOR, None, None),
        (USER, Some("users"), Some("users")),
        (SEALER, Some("encrypt_only"), None),
        (OPENER, None, Some("decrypt_only")),
        (STRANGER, None, None),
        (EXTERNAL, Some("external_users"), Some("external_users")),
    ] {
        let caller = caller(&policy, who);
        for action in ACTIONS {
            let seal = policy.authorize_seal(&caller, action, &orders, &[], Backing::NONE);
            let open =
                policy.authorize_open(&caller, action, Some(&orders), &header, &[], Backing::NONE);
            let (seals, opens) = match action.direction() {
                Direction::Seal => (seals, None),
                Direction::Open => (None, opens),
            };
            let expected = |rule: Option<&'static str>| rule.map_or(NO_STATEMENT, Ok);
            assert_eq!(outcome(seal), expected(seals), "{who:?} {action:?}");
            assert_eq!(outcome(open), expected(opens), "{who:?} {action:?}");
        }
    }
}

#[test]
fn roles_do_not_reach_across_tenants() {
    // User 11 of acme stands among the users of umbrella's key, user 20 of umbrella among the
    // administrators of acme's, where it is an external user too.
    let foreign = seal(USER, "tenants/umbrella/keys/orders", &[]);
    assert_eq!(outcome(foreign), NO_STATEMENT);
    let own = seal(EXTERNAL, "tenants/umbrella/keys/orders", &[]);
    assert_eq!(outcome(own), Ok("users"));
    let same_user_at_home = seal((20, 1), "tenants/acme/keys/orders", &[]);
    assert_eq!(outcome(same_user_at_home), NO_STATEMENT);
}

#[test]
fn unknown_keys_and_tenants_are_denied() {
    for unknown in ["keys/other", "tenants/other/keys/orders"] {
        let denied = Err(Refused::Denied(Denied::UnknownKey));
        assert_eq!(outcome(seal(USER, unknown, &[])), denied, "{unknown}");
    }
    let header = header(&[(context::TENANT, "other"), (context::KEY, "orders")]);
    assert_eq!(
        outcome(open(USER, &header, &[])),
        Err(Refused::Denied(Denied::UnknownKey))
    );
}

#[test]
fn a_permit_says_what_was_permitted() {
    let permit = seal(EXTERNAL, "tenants/acme/keys/orders", &[("order", "7")])
        .ok()
        .unwrap();
    assert_eq!(permit.tenant().as_str(), "acme");
    assert_eq!(permit.key().name(), &name("keys/orders"));
    assert_eq!(permit.action(), Action::Encrypt);
    let full = header(&[
        (context::TENANT, "acme"),
        (context::KEY, "orders"),
        ("env", "prod"),
        ("order", "7"),
    ]);
    assert_eq!(permit.context(), &full);
    assert_eq!(
        sealed(WEB, "keys/orders", &[]).value("service"),
        Some("web")
    );
}

#[test]
fn conditions_must_hold_in_the_full_context() {
    let key = "keys/conditional";
    let condition = Err(Refused::Denied(Denied::Condition));
    let backup = [("purpose", "backup")];
    assert_eq!(outcome(seal(USER, key, &backup)), Ok("users"));
    for own in [&[][..], &[("purpose", "Backup")], &[("Purpose", "backup")]] {
        assert_eq!(outcome(seal(USER, key, own)), condition, "{own:?}");
    }
    assert_eq!(outcome(seal(SEALER, key, &[])), condition);
    assert_eq!(outcome(seal(WEB, key, &[])), Ok("users"));

    let written = sealed(USER, key, &backup);
    assert_eq!(outcome(open(USER, &written, &backup)), Ok("users"));
    let restore = header(&[
        (context::TENANT, "acme"),
        (context::KEY, "conditional"),
        ("env", "prod"),
        ("purpose", "restore"),
    ]);
    let own = [("purpose", "restore")];
    assert_eq!(outcome(open(USER, &restore, &own)), Ok("decrypt_only"));
}

#[test]
fn names_of_others_are_refused_whatever_their_case() {
    let written = sealed(USER, "keys/orders", &[]);
    for (own, wrong) in [
        (
            "KEYBROKER:tenant",
            InvalidContext::Reserved {
                name: "KEYBROKER:tenant".into(),
            },
        ),
        (
            "aws-crypto-public-key",
            InvalidContext::Reserved {
                name: "aws-crypto-public-key".into(),
            },
        ),
        ("Env", InvalidContext::Fixed { name: "Env".into() }),
        // This caller's own rule captures nothing.
        (
            "Service",
            InvalidContext::Captured {
                name: "Service".into(),
            },
        ),
        (
            "",
            InvalidContext::Limits {
                name: Some(String::new()),
                error: context::Error::Empty,
            },
        ),
    ] {
        let refused = Err(Refused::Context(wrong));
        let own = [("fine", "1"), (own, "prod")];
        assert_eq!(outcome(seal(USER, "keys/orders", &own)), refused);
        assert_eq!(outcome(open(USER, &written, &own)), refused);
        assert_eq!(outcome(seal(STRANGER, "keys/orders", &own)), NO_STATEMENT);
        assert_eq!(outcome(open(STRANGER, &written, &own)), NO_STATEMENT);
    }
}

#[test]
fn limits_name_the_pair_that_breaks_them() {
    let long = "v".repeat(context::MAX_VALUE + 1);
    let own = [("a", "1"), ("b", long.as_str())];
    let written = sealed(USER, "keys/orders", &[]);
    for result in [seal(USER, "keys/orders", &own), open(USER, &written, &own)] {
        assert!(matches!(outcome(result),
            Err(Refused::Context(InvalidContext::Limits { name: Some(name), .. })) if name == "b"));
    }
    let alike = [("a", "1"), ("A", "2")];
    for result in [
        seal(USER, "keys/orders", &alike),
        open(USER, &written, &alike),
    ] {
        let error = context::Error::Duplicate("A".into());
        let name = Some("A".into());
        assert_eq!(
            outcome(result),
            Err(Refused::Context(InvalidContext::Limits { name, error }))
        );
    }
    let names: Vec<String> = (0..14).map(|n| format!("n{n}")).collect();
    let own: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "v")).collect();
    assert!(seal(USER, "keys/orders", &own[..13]).is_ok());
    assert!(matches!(
        outcome(seal(USER, "keys/orders", &own)),
        Err(Refused::Context(InvalidContext::Limits {
            name: None,
            error: context::Error::Many(17)
        }))
    ));
}

#[test]
fn the_request_must_name_exactly_the_pairs_of_the_sealing_caller() {
    let written = sealed(USER, "keys/orders", &[("order", "7"), ("item", "2")]);
    let right = [("item", "2"), ("order", "7")];
    let permit = open(OPENER, &written, &right).ok().unwrap();
    assert_eq!(permit.context(), &written);
    for wrong in [
        &[][..],
        &[("order", "7")],
        &[("order", "7"), ("item", "3")],
        &[("order", "7"), ("Item", "2")],
        &[("order", "7"), ("item", "2"), ("more", "1")],
    ] {
        let mismatch = Err(Refused::Mismatch(Mismatch::Own));
        assert_eq!(
            outcome(open(OPENER, &written, wrong)),
            mismatch,
            "{wrong:?}"
        );
    }
}

#[test]
fn the_header_must_hold_the_fixed_pairs() {
    let ours = [(context::TENANT, "acme"), (context::KEY, "orders")];
    for env in [None, Some(("env", "test")), Some(("Env", "prod"))] {
        let pairs: Vec<(&str, &str)> = ours.into_iter().chain(env).collect();
        assert_eq!(
            outcome(open(USER, &header(&pairs), &[])),
            Err(Refused::Mismatch(Mismatch::Fixed)),
            "{env:?}"
        );
    }
}

#[test]
fn another_services_message_is_refused_unless_shared() {
    let captured = Err(Refused::Mismatch(Mismatch::Captured));
    let web = sealed(WEB, "keys/orders", &[]);
    assert_eq!(outcome(open(WEB, &web, &[])), Ok("users"));
    assert_eq!(outcome(open(MAIL, &web, &[])), captured);
    // Neither does a caller without the capture pass for one, nor the other way round.
    assert_eq!(outcome(open(USER, &web, &[])), captured);
    let plain = sealed(USER, "keys/orders", &[]);
    assert_eq!(outcome(open(WEB, &plain, &[])), captured);

    let shared = sealed(WEB, "keys/shared", &[]);
    let plain = sealed(USER, "keys/shared", &[]);
    for who in [WEB, MAIL, USER] {
        assert_eq!(outcome(open(who, &shared, &[])), Ok("users"), "{who:?}");
        assert_eq!(outcome(open(who, &plain, &[])), Ok("users"), "{who:?}");
    }
}

#[test]
fn names_like_a_captured_one_are_nobodys() {
    let forged = header(&[
        (context::TENANT, "acme"),
        (context::KEY, "shared"),
        ("env", "prod"),
        ("Service", "web"),
    ]);
    let mismatch = Err(Refused::Mismatch(Mismatch::Own));
    assert_eq!(outcome(open(USER, &forged, &[])), mismatch);
    let reserved = header(&[
        (context::TENANT, "acme"),
        (context::KEY, "shared"),
        ("env", "prod"),
        ("aws-crypto-public-key", "x"),
    ]);
    assert_eq!(outcome(open(USER, &reserved, &[])), mismatch);
}

#[test]
fn a_message_that_names_no_key_of_ours_is_refused() {
    for foreign in [
        &[][..],
        &[(context::TENANT, "acme"), ("env", "prod")],
        &[(context::KEY, "orders"), ("env", "prod")],
        &[(context::TENANT, "Acme"), (context::KEY, "orders")],
    ] {
        let foreign = header(foreign);
        let none = Err(Refused::Mismatch(Mismatch::NoKey));
        assert_eq!(outcome(open(USER, &foreign, &[])), none, "{foreign:?}");

        let policy = policy();
        let under = |who| {
            let name = name("keys/orders");
            let caller = caller(&policy, who);
            outcome(policy.authorize_open(
                &caller,
                Action::Decrypt,
                Some(&name),
                &foreign,
                &[],
                Backing::NONE,
            ))
        };
        assert_eq!(under(USER), Err(Refused::Mismatch(Mismatch::Key)));
        assert_eq!(under(STRANGER), NO_STATEMENT);
    }
}

#[test]
fn the_named_key_is_authorized_and_the_message_must_be_its() {
    let policy = policy();
    let written = sealed(USER, "keys/shared", &[]);
    let under = |who, key: &str| {
        let caller = caller(&policy, who);
        outcome(policy.authorize_open(
            &caller,
            Action::Decrypt,
            Some(&name(key)),
            &written,
            &[],
            Backing::NONE,
        ))
    };
    assert_eq!(under(USER, "keys/shared"), Ok("users"));
    assert_eq!(
        under(USER, "keys/orders"),
        Err(Refused::Mismatch(Mismatch::Key))
    );
    assert_eq!(
        under(OPENER, "keys/orders"),
        Err(Refused::Mismatch(Mismatch::Key))
    );
    assert_eq!(under(OPENER, "keys/shared"), NO_STATEMENT);
    assert_eq!(
        under(USER, "keys/other"),
        Err(Refused::Denied(Denied::UnknownKey))
    );
    // The same key id of another tenant is another key.
    let umbrella = sealed(EXTERNAL, "tenants/umbrella/keys/orders", &[]);
    let external = caller(&policy, EXTERNAL);
    let acme = name("tenants/acme/keys/orders");
    assert_eq!(
        outcome(policy.authorize_open(
            &external,
            Action::Decrypt,
            Some(&acme),
            &umbrella,
            &[],
            Backing::NONE
        )),
        Err(Refused::Mismatch(Mismatch::Key))
    );
}

#[test]
fn any_role_may_describe_and_list() {
    let policy = policy();
    let acme: TenantId = "acme".parse().unwrap();
    for (who, visible) in [
        (ADMINISTRATOR, &["orders"][..]),
        (USER, &["conditional", "orders", "shared"]),
        (SEALER, &["conditional", "orders"]),
        (OPENER, &["orders"]),
        (STRANGER, &[]),
        (EXTERNAL, &["orders"]),
    ] {
        let caller = caller(&policy, who);
        let ids: Vec<&str> = policy
            .visible_keys(&caller, &acme)
            .map(|(key, _)| key.name().key.as_str())
            .collect();
        assert_eq!(ids, visible, "{who:?}");
        for key in ["conditional", "orders", "shared"] {
            let described =
                policy.authorize_describe(&caller, &name(&format!("keys/{key}")), Backing::NONE);
            assert_eq!(described.is_ok(), visible.contains(&key), "{who:?} {key}");
        }
    }
    let admin = caller(&policy, ADMINISTRATOR);
    let described = policy.authorize_describe(&admin, &name("keys/orders"), Backing::NONE);
    let rule = described.ok().unwrap().1;
    assert_eq!(rule, Rule::Policy(Role::Administrator));
    let unknown = policy.authorize_describe(&admin, &name("keys/other"), Backing::NONE);
    assert_eq!(unknown.err(), Some(Denied::UnknownKey.into()));
}

#[test]
fn rules_and_tenants_that_clash_make_no_policy() {
    let tenants = "[[tenant]]\nid = \"acme\"\ncontext = { SERVICE = \"x\" }";
    let directory = Directory::parse(tenants, Path::new("tenants.toml")).unwrap();
    let rules = Rules::new(&toml::from_str(RULES).unwrap()).unwrap();
    let clash = Policy::new(directory.into(), rules.into()).err();
    assert_eq!(
        clash,
        Some(Clash::Fixed {
            name: "SERVICE".into(),
            tenant: "acme".parse().unwrap()
        })
    );
}
