mod rows;

use proptest::prelude::*;

use super::*;
use crate::identity::Config;
use crate::kms::KeyRef;
use crate::kms::UnfitReplicas;

const ARN: &str = "arn:aws:kms:eu-central-1:111122223333:key/0001";
const NEWER: &str = "arn:aws:kms:eu-central-1:111122223333:key/0002";
const MULTI_REGION: &str = "arn:aws:kms:eu-central-1:111122223333:key/mrk-0003";

const FULL: &str = r#"
    [[tenant]]
    id = "acme"
    weight = 20
    context = { env = "prod" }

    [[tenant.key]]
    id = "orders"
    kms = ["arn:aws:kms:eu-central-1:111122223333:key/0001", "arn:aws:kms:eu-central-1:111122223333:key/0002"]
    owner = "tenant"
    administrators = ["spiffe://prod.example/tenant/acme/sa/admin"]
    users = [
        "spiffe://prod.example/tenant/acme/sa/*",
        { principal = "dns:batch.acme.example", context = { env = "prod" } },
    ]
    encrypt_only = ["unix:uid=1000"]
    decrypt_only = ["unix:gid=1000"]
    external_users = ["spiffe://prod.example/tenant/umbrella/sa/audit"]
    shared_captures = ["service"]
    [tenant.key.cache]
    max_age = "10m"
    max_messages = 4294967296
    max_bytes = 9223372036854775807

    [[tenant.key]]
    id = "invoices"
    kms = "local:invoices"

    [[tenant]]
    id = "empty"
"#;

fn parse(text: &str) -> Result<Directory, Error> {
    Directory::parse(text, Path::new("tenants.toml"))
}

fn name(text: &str) -> KeyName {
    KeyName::parse(text, &"acme".parse().unwrap()).unwrap()
}

/// A file of tenant acme with key orders, each with these further lines.
fn file(tenant: &str, key: &str) -> String {
    format!("[[tenant]]\nid = \"acme\"\n{tenant}\n[[tenant.key]]\nid = \"orders\"\n{key}\n")
}

/// What is wrong with key orders, which has these lines.
fn key_fault(key: &str) -> Fault {
    match parse(&file("", key)) {
        Err(Error::Key {
            tenant, key, fault, ..
        }) => {
            assert_eq!((tenant.as_str(), key.as_str()), ("acme", "orders"));
            *fault
        }
        other => panic!("{other:?}"),
    }
}

fn kms(lines: &str) -> String {
    format!("kms = \"{ARN}\"\n{lines}")
}

#[test]
fn a_full_entry_is_read_in_full() {
    let directory = parse(FULL).unwrap();
    let key = directory.key(&name("keys/orders")).unwrap();
    assert_eq!(key.name(), &name("tenants/acme/keys/orders"));
    assert_eq!(
        key.tenant().context().collect::<Vec<_>>(),
        [("env", "prod")]
    );
    assert_eq!(key.tenant().weight(), 20);
    assert_eq!(key.owner(), Owner::Tenant);
    assert_eq!(key.kms().primary().generator(), &NEWER.parse().unwrap());
    assert_eq!(key.kms().primary_version(), 2);
    assert_eq!(key.kms().version_of(&ARN.parse().unwrap()), Some(1));
    assert_eq!(key.kms().version_of(&"local:x".parse().unwrap()), None);
    let ceilings = Limits {
        max_age: std::time::Duration::from_secs(600),
        ..Limits::CEILING
    };
    assert_eq!(key.limits(), ceilings);
    assert!(key.shares("service") && !key.shares("Service"));

    let lines = |role| {
        let statements = key.policy().statements(role).iter();
        statements
            .map(|one| (one.principal().to_string(), one.condition().count()))
            .collect::<Vec<_>>()
    };
    let users = [
        ("spiffe://prod.example/tenant/acme/sa/*".to_owned(), 0),
        ("dns:batch.acme.example".to_owned(), 1),
    ];
    assert_eq!(lines(Role::User), users);
    assert_eq!(lines(Role::EncryptOnly), [("unix:uid=1000".to_owned(), 0)]);
    assert_eq!(lines(Role::DecryptOnly), [("unix:gid=1000".to_owned(), 0)]);
    assert_eq!(lines(Role::External).len(), 1);
    assert_eq!(lines(Role::Administrator).len(), 1);
}

#[test]
fn a_short_entry_gets_the_defaults() {
    let directory = parse(FULL).unwrap();
    let key = directory.key(&name("keys/invoices")).unwrap();
    let generator = key.kms().primary().generator();
    assert_eq!(generator, &"local:invoices".parse().unwrap());
    assert_eq!(key.owner(), Owner::Operator);
    assert_eq!(key.limits(), Limits::default());
    let plain = parse("[[tenant]]\nid = \"plain\"").unwrap();
    let id = "plain".parse().unwrap();
    assert_eq!(plain.tenant(&id).unwrap().weight(), 1);
    for role in Role::ALL {
        assert!(key.policy().statements(role).is_empty(), "{role:?}");
    }
}

#[test]
fn values_for_the_audit_are_named_within_bounds() {
    let read = |names: &[String]| {
        let names = toml::Value::from(names.to_vec());
        parse(&format!(
            "[[tenant]]\nid = \"acme\"\naudit_context = {names}"
        ))
    };
    let most: Vec<String> = (0..16).map(|n| format!("{n:a>128}")).collect();
    let directory = read(&most).unwrap();
    let tenant = directory.tenant(&"acme".parse().unwrap()).unwrap();
    assert!(tenant.audit_context().eq(most.iter().map(String::as_str)));
    for names in [[most, vec!["more".into()]].concat(), vec!["x".repeat(129)]] {
        let Err(Error::Tenant { fault, .. }) = read(&names) else {
            panic!("{names:?}");
        };
        assert_eq!(*fault, Fault::AuditContext);
    }
}

#[test]
fn weights_hold_at_the_edge_and_one_beyond() {
    let read = |weight: u32| parse(&format!("[[tenant]]\nid = \"acme\"\nweight = {weight}"));
    for good in [1, 1000] {
        assert!(read(good).is_ok(), "{good}");
    }
    for weight in [0, 1001] {
        let Err(Error::Tenant { fault, .. }) = read(weight) else {
            panic!("{weight} is no weight");
        };
        assert_eq!(*fault, Fault::Weight { weight });
    }
}

#[test]
fn keys_are_listed_in_the_order_of_their_ids() {
    let directory = parse(FULL).unwrap();
    let ids = |tenant: &str| {
        let keys = directory.keys(&tenant.parse().unwrap());
        keys.iter()
            .map(|key| key.name().key.to_string())
            .collect::<Vec<_>>()
    };
    assert_eq!(ids("acme"), ["invoices", "orders"]);
    assert!(ids("empty").is_empty() && ids("unknown").is_empty());
    assert!(directory.tenant(&"empty".parse().unwrap()).is_some());
    assert!(directory.tenant(&"unknown".parse().unwrap()).is_none());
    assert_eq!(directory.tenants().len(), 2);
    for unknown in [
        "keys/other",
        "tenants/empty/keys/orders",
        "tenants/unknown/keys/orders",
    ] {
        assert!(directory.key(&name(unknown)).is_none(), "{unknown}");
    }
    assert_eq!(parse("").unwrap().tenants().len(), 0);
}

#[test]
fn errors_name_their_place_and_the_nearest_known_key() {
    let error = parse(&file("", &kms("  usrs = []"))).unwrap_err();
    let text = error.to_string();
    assert!(
        text.starts_with("tenants.toml: line 7, column 3: unknown field `usrs`"),
        "{text}"
    );
    assert!(text.ends_with("; did you mean `users`?"), "{text}");

    let error = parse(&file("", &kms("users = [\"*\"]"))).unwrap_err();
    assert_eq!(
        error.to_string(),
        "tenants.toml:5:6: tenant acme, key orders: users names \"*\", which is neither \
         spiffe://<trust domain>/<segment or *>/… nor dns:<name> nor unix:uid=<uid>,gid=<gid>"
    );
    let error = parse(&file("context = { \"KeyBroker:x\" = \"1\" }", &kms(""))).unwrap_err();
    assert_eq!(
        error.to_string(),
        "tenants.toml:2:6: tenant acme: context name KeyBroker:x is reserved"
    );
}

#[test]
fn misspelt_keys_are_errors_in_every_table() {
    let statement = "users = [{ principal = \"unix:uid=1\", contxt = {} }]";
    for (text, nearest) in [
        ("[[tennant]]\nid = \"a\"".to_owned(), Some("tenant")),
        (file("contxt = {}", &kms("")), Some("context")),
        (file("", &kms("cache.max_ag = \"1m\"")), Some("max_age")),
        (file("", &kms(statement)), Some("context")),
        (file("", &kms("owner = \"tenent\"")), Some("tenant")),
        (file("", &kms("users = [1]")), None),
        (file("", "kms = 1"), None),
        (file("", "users = []"), None),
    ] {
        let Err(Error::Syntax { error, .. }) = parse(&text) else {
            panic!("{text}");
        };
        assert_eq!(error.suggestion.as_deref(), nearest, "{text}");
        assert!(
            error.line > 1 || nearest == Some("tenant"),
            "{text} {error}"
        );
    }
}

#[test]
fn ids_are_unique() {
    let twice = file("", &kms("")) + &file("", &kms(""));
    let error = parse(&twice).unwrap_err().to_string();
    assert_eq!(
        error,
        "tenants.toml:9:6: tenant acme: the id stands in the file twice"
    );
    let twice = kms(&format!(
        "[[tenant.key]]\nid = \"orders\"\nkms = \"{NEWER}\""
    ));
    assert_eq!(key_fault(&twice), Fault::RepeatedId);
    let text = file("", &kms("")).replace("orders", "Orders");
    assert!(
        parse(&text)
            .unwrap_err()
            .to_string()
            .contains("key Orders: the id is not")
    );
    let text = file("", &kms("")).replace("acme", "");
    assert!(
        parse(&text)
            .unwrap_err()
            .to_string()
            .contains("the id is not")
    );
}

#[test]
fn a_kms_key_may_have_replicas() {
    let replicated =
        |key: &str, regions: &str| format!("{{ key = \"{key}\", replica_regions = {regions} }}");
    let good = replicated(MULTI_REGION, "[\"us-east-1\"]");
    for list in [good.clone(), format!("[\"{ARN}\", {good}]")] {
        let directory = parse(&file("", &format!("kms = {list}"))).unwrap();
        let key = directory.key(&name("keys/orders")).unwrap();
        let replicas = key.kms().primary().generator().in_regions().iter();
        let regions: Vec<_> = replicas.map(KeyRef::region).collect();
        assert_eq!(regions, ["eu-central-1", "us-east-1"]);
    }
    for (key, regions, error) in [
        (MULTI_REGION, "[]", UnfitReplicas::None),
        (ARN, "[\"us-east-1\"]", UnfitReplicas::SingleRegion),
        ("local:a", "[\"us-east-1\"]", UnfitReplicas::SingleRegion),
    ] {
        let fault = key_fault(&format!("kms = {}", replicated(key, regions)));
        let key = key.to_owned();
        assert_eq!(fault, Fault::Replicas { key, error });
    }
    assert_eq!(
        key_fault(&format!("kms = [{good}, \"{MULTI_REGION}\"]")),
        Fault::RepeatedKms(MULTI_REGION.parse().unwrap())
    );
}

#[test]
fn a_kms_key_may_have_an_additional_one_that_shares_nothing_with_it() {
    let pair =
        |key: &str, more: &str| format!("{{ key = \"{key}\", additional_key = \"{more}\" }}");
    let replicated = format!(
        "{{ key = \"{MULTI_REGION}\", replica_regions = [\"us-east-1\"], additional_key = \"{ARN}\" }}"
    );
    for (kms, generator, additional, versions) in [
        (pair(ARN, NEWER), ARN, NEWER, 1),
        (pair("local:a", "local:b"), "local:a", "local:b", 1),
        (replicated, MULTI_REGION, ARN, 1),
        (
            format!("[\"local:a\", {}]", pair(NEWER, ARN)),
            NEWER,
            ARN,
            2,
        ),
    ] {
        let directory = parse(&file("", &format!("kms = {kms}"))).unwrap();
        let binding = directory.key(&name("keys/orders")).unwrap().kms();
        let keys = binding.primary();
        assert_eq!(keys.generator().to_string(), generator);
        let additional: KeyRef = additional.parse().unwrap();
        assert_eq!(keys.additional(), Some(&additional));
        assert_eq!(binding.version_of(&additional), Some(versions));
    }
    let replica = MULTI_REGION.replace("eu-central-1", "us-east-1");
    for (key, additional, error) in [
        (ARN, ARN, UnfitAdditional::Same),
        (MULTI_REGION, &replica, UnfitAdditional::Same),
        ("local:a", "local:a", UnfitAdditional::Same),
        (ARN, "local:a", UnfitAdditional::Elsewhere),
        ("local:a", ARN, UnfitAdditional::Elsewhere),
    ] {
        let fault = key_fault(&format!("kms = {}", pair(key, additional)));
        let (key, additional) = (key.to_owned(), additional.to_owned());
        let expected = Fault::Additional {
            key,
            additional,
            error,
        };
        assert_eq!(fault, expected);
    }
    let twice = format!("kms = [\"{NEWER}\", {}]", pair(ARN, NEWER));
    assert_eq!(
        key_fault(&twice),
        Fault::RepeatedKms(NEWER.parse().unwrap())
    );
    let none = format!("kms = {}", pair(ARN, "alias/a"));
    assert!(matches!(key_fault(&none), Fault::Kms { value, .. } if value == "alias/a"));
}

#[test]
fn an_additional_kms_key_is_another_generation() {
    let one = |kms: &str| parse(&file("", &format!("kms = {kms}"))).unwrap();
    let alone = one(&format!("\"{ARN}\""));
    let pair = format!("{{ key = \"{ARN}\", additional_key = \"{NEWER}\" }}");
    let other = pair.replace(NEWER, "arn:aws:kms:us-east-1:111122223333:key/other");
    let mut before = alone;
    let mut generations = vec![before.key(&name("keys/orders")).unwrap().generation()];
    for kms in [&pair, &pair, &other, &format!("\"{ARN}\"")] {
        before = one(kms).succeed(&before);
        generations.push(before.key(&name("keys/orders")).unwrap().generation());
    }
    assert_eq!(generations, [1, 2, 2, 4, 5]);
}

#[test]
fn a_key_has_kms_keys_each_once() {
    assert_eq!(key_fault("kms = []"), Fault::NoKms);
    let repeated = format!("kms = [\"{ARN}\", \"{NEWER}\", \"{ARN}\"]");
    assert_eq!(
        key_fault(&repeated),
        Fault::RepeatedKms(ARN.parse().unwrap())
    );
    for bad in [
        "",
        "alias/a",
        "local:",
        "arn:aws:kms:eu-central-1:111122223333:alias/a",
    ] {
        let fault = key_fault(&format!("kms = \"{bad}\""));
        assert!(
            matches!(fault, Fault::Kms { value, .. } if value == bad),
            "{bad}"
        );
    }
}

#[test]
fn limits_are_refused_and_never_clamped() {
    for (lines, limit, value) in [
        ("max_age = \"0s\"", "max_age", "0s"),
        ("max_age = \"999ms\"", "max_age", "999ms"),
        ("max_age = \"-1s\"", "max_age", "1s ago"),
        ("max_age = \"1h 1ns\"", "max_age", "1h 1ns"),
        ("max_messages = 0", "max_messages", "0"),
        ("max_messages = 4294967297", "max_messages", "4294967297"),
        ("max_bytes = 0", "max_bytes", "0"),
        (
            "max_bytes = 9223372036854775808",
            "max_bytes",
            "9223372036854775808",
        ),
    ] {
        let fault = key_fault(&kms(&format!("cache.{lines}")));
        let Fault::Limit {
            limit: named,
            value: shown,
            ..
        } = fault
        else {
            panic!("{fault:?}");
        };
        assert_eq!((named, shown.as_str()), (limit, value));
    }
    for (lines, kind) in [
        ("max_bytes = -1", "u64"),
        ("max_age = 5", "duration"),
        ("max_age = \"soon\"", ""),
    ] {
        let error = parse(&file("", &kms(&format!("cache.{lines}")))).unwrap_err();
        assert!(matches!(&error, Error::Syntax { .. }), "{lines}");
        assert!(error.to_string().contains(kind), "{lines}: {error}");
    }
    assert!(parse(&file("", &kms("cache.max_age = \"1h\""))).is_ok());
}

#[test]
fn fixed_pairs_leave_room_for_our_own() {
    let pairs = |count: usize| {
        let pairs: Vec<String> = (0..count).map(|n| format!("n{n} = \"v\"")).collect();
        format!("context = {{ {} }}", pairs.join(", "))
    };
    assert!(parse(&file(&pairs(context::MAX_PAIRS - 2), &kms(""))).is_ok());
    let many = parse(&file(&pairs(context::MAX_PAIRS - 1), &kms("")));
    assert!(matches!(many, Err(Error::Key { fault, .. })
        if *fault == Fault::Context { error: context::Error::Many(17) }));
    for (tenant, wrong) in [
        ("context = { a = \"\" }", "empty"),
        ("context = { a = \"1\", A = \"2\" }", "two names are alike"),
    ] {
        let error = parse(&file(tenant, &kms(""))).unwrap_err();
        assert!(error.to_string().contains(wrong), "{error}");
    }
}

#[test]
fn values_of_the_context_stay_out_of_errors() {
    let long = "hunter2".repeat(100);
    for tenant in [
        format!("context = {{ a = \"{long}\" }}"),
        format!("context = {{ a = \"{long}\", A = \"{long}\" }}"),
        format!("context = \"{long}\""),
    ] {
        let error = parse(&file(&tenant, &kms(""))).unwrap_err();
        assert!(!error.to_string().contains("hunter2"), "{error}");
        assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
    }
}

fn rules(context: &str) -> Rules {
    let text =
        format!("[[rule]]\nmatch = \"unix:uid=1\"\ntenant = \"t\"\ncontext = {{ {context} }}");
    Rules::new(&toml::from_str::<Config>(&text).unwrap()).unwrap()
}

#[test]
fn rules_and_tenants_must_not_set_the_same_pair() {
    let directory = parse(FULL).unwrap();
    assert_eq!(directory.check_rules(&rules("service = \"x\"")), Ok(()));
    for name in ["env", "ENV"] {
        assert_eq!(
            directory.check_rules(&rules(&format!("{name} = \"x\""))),
            Err(Clash::Fixed {
                name: "env".into(),
                tenant: "acme".parse().unwrap()
            })
        );
    }
    assert_eq!(
        directory.check_rules(&rules("\"Keybroker:tenant\" = \"x\"")),
        Err(Clash::Reserved {
            name: "Keybroker:tenant".into()
        })
    );
}

#[test]
fn a_generation_changes_with_binding_and_limits_alone() {
    let generation = |directory: &Directory| {
        let orders: KeyName = name("keys/orders");
        directory.key(&orders).unwrap().generation()
    };
    let first = parse(&file("", &kms(""))).unwrap();
    let policy = file(
        "context.a = \"b\"",
        &kms("owner = \"tenant\"\nusers = [\"unix:uid=1\"]"),
    );
    let second = parse(&policy).unwrap().succeed(&first);
    assert_eq!(generation(&first), generation(&second));

    let limited = parse(&file("", &kms("cache.max_messages = 5")))
        .unwrap()
        .succeed(&second);
    assert_ne!(generation(&limited), generation(&second));

    let rebound = parse(&file("", &format!("kms = [\"{ARN}\", \"{NEWER}\"]")));
    let rebound = rebound.unwrap().succeed(&limited);
    assert_ne!(generation(&rebound), generation(&limited));

    // Neither a way back nor a removal revives an old number.
    let back = parse(&file("", &kms(""))).unwrap().succeed(&rebound);
    let gone = parse("").unwrap().succeed(&back);
    let again = parse(&file("", &kms(""))).unwrap().succeed(&gone);
    let mut all: Vec<u64> = [&first, &limited, &rebound, &back, &again]
        .map(generation)
        .into();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), 5);
    assert_eq!(again.generation(), 7);
}

#[test]
fn a_tenants_header_within_a_text_is_text() {
    let text = file(
        "context.note = \"\"\"\n[[tenant]]\nid = \"umbrella\"\n\"\"\"",
        &kms(""),
    );
    let directory = parse(&text).unwrap();
    assert_eq!(directory.tenants().len(), 1);
    let acme = directory.tenant(&"acme".parse().unwrap()).unwrap();
    let note = "[[tenant]]\nid = \"umbrella\"\n";
    assert_eq!(acme.context().collect::<Vec<_>>(), [("note", note)]);
}

#[test]
fn what_is_no_toml_as_a_whole_is_refused_as_a_whole() {
    let tenant = "[[tenant]]\nid = \"b\"\n";
    for (before, line) in [
        ("tenant = [{ id = \"a\" }]\n", 2),
        ("tenant = []\n", 2),
        ("[[tenant]]\nid = \"a\"\nid = \"c\"\n", 3),
        ("# comment\n\n[[tenant.key]]\n", 4),
    ] {
        let Err(Error::Syntax { error, .. }) = parse(&format!("{before}{tenant}")) else {
            panic!("{before}");
        };
        assert_eq!(error.line, line, "{before}{error}");
    }
    let spaced = format!("# comment\n\n  {tenant}");
    assert_eq!(parse(&spaced).unwrap().tenants().len(), 1);
}

#[test]
fn a_missing_file_is_named() {
    let error = Directory::load(Path::new("/nonexistent/tenants.toml")).unwrap_err();
    assert!(
        error.to_string().starts_with("/nonexistent/tenants.toml: "),
        "{error}"
    );
}

proptest! {
    #[test]
    fn parsing_is_total(text in "\\PC{0,200}") {
        let _ = parse(&text);
    }

    #[test]
    fn damaged_files_do_not_panic(
        cuts in proptest::collection::vec((any::<prop::sample::Index>(), "[\\PC\n]{0,3}"), 1..5),
    ) {
        let mut text: Vec<char> = FULL.chars().collect();
        for (at, patch) in cuts {
            let at = at.index(text.len());
            text.splice(at..(at + 1), patch.chars());
        }
        let text: String = text.into_iter().collect();
        if let Err(error) = parse(&text) {
            prop_assert!(!error.to_string().is_empty());
        }
    }
}

#[test]
fn staleness_holds_at_the_edge_and_one_beyond() {
    let read = |span: &str| parse(&file(&format!("max_staleness = \"{span}\""), &kms("")));
    for good in ["5s", "24h", "1m"] {
        assert!(read(good).is_ok(), "{good}");
    }
    for bad in ["4999ms", "24h 1s", "-1m", "0s"] {
        let error = read(bad).unwrap_err().to_string();
        assert!(error.contains("max_staleness"), "{error}");
    }
}
