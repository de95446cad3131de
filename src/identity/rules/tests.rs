use super::*;

const RULES: &str = r#"
    [[rule]]
    match = "spiffe://prod.example/tenant/acme/sa/legacy"
    tenant = "acme-legacy"

    [[rule]]
    match = "spiffe://prod.example/tenant/{tenant}/sa/{service}"
    tenant = "{tenant}"
    context = { service = "{service}" }

    [[rule]]
    match = "spiffe://prod.example/{a}/{b}/{c}/{d}"
    tenant = "late"
    context = { origin = "{a}/{b}:{c}", env = "prod" }

    [[rule]]
    match = "dns:batch.acme.example"
    tenant = "acme"
    bundle = "/etc/acme.pem"

    [[rule]]
    match = "unix:uid=1000"
    tenant = "local"

    [[bundle]]
    trust_domain = "prod.example"
    file = "/etc/prod.pem"
"#;

fn config(text: &str) -> Config {
    toml::from_str(text).unwrap()
}

fn rules() -> Rules {
    Rules::new(&config(RULES)).unwrap()
}

fn spiffe(text: &str) -> Peer {
    Peer {
        id: Id::Spiffe(text.parse().unwrap()),
        certificate: None,
    }
}

/// What is wrong with a single rule for prod.example.
fn fault(rule: &str) -> Fault {
    let text = format!(
        "[[rule]]\n{rule}\n[[bundle]]\ntrust_domain = \"prod.example\"\nfile = \"/etc/prod.pem\""
    );
    match Rules::new(&config(&text)) {
        Err(Error::Rule { number: 1, fault }) => fault,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_first_rule_that_matches_maps() {
    let rules = rules();
    let caller = rules
        .map(&spiffe("spiffe://prod.example/tenant/acme/sa/web"))
        .unwrap();
    assert_eq!(caller.tenant().as_str(), "acme");
    assert_eq!(caller.captures(), [("service".into(), "web".into())]);
    assert_eq!(
        caller.principal().as_str(),
        "spiffe://prod.example/tenant/acme/sa/web"
    );

    let legacy = rules
        .map(&spiffe("spiffe://prod.example/tenant/acme/sa/legacy"))
        .unwrap();
    assert_eq!(legacy.tenant().as_str(), "acme-legacy");
    assert_eq!(legacy.captures(), []);

    let late = rules.map(&spiffe("spiffe://prod.example/w/x/y/z")).unwrap();
    assert_eq!(
        late.captures(),
        [
            ("env".into(), "prod".into()),
            ("origin".into(), "w/x:y".into())
        ]
    );
}

#[test]
fn identities_without_a_rule_are_nobody() {
    let rules = rules();
    for id in [
        "spiffe://other.example/tenant/acme/sa/web",
        "spiffe://prod.example/tenant/acme/sa",
        "spiffe://prod.example/tenant/acme/sa/web/x",
    ] {
        assert_eq!(rules.map(&spiffe(id)), None, "{id}");
    }
    assert_eq!(rules.map(&Peer::unix(1001, 1000)), None);
}

#[test]
fn a_captured_tenant_that_is_no_id_falls_through_to_no_other_rule() {
    let rules = rules();
    for tenant in ["Acme", "a.b", "a_b", "-a"] {
        let id = format!("spiffe://prod.example/tenant/{tenant}/sa/web");
        assert_eq!(rules.map(&spiffe(&id)), None, "{tenant}");
    }
}

#[test]
fn dns_names_and_unix_users_map_too() {
    let rules = rules();
    let dns = Peer {
        id: Id::Dns("batch.acme.example".parse().unwrap()),
        certificate: None,
    };
    let caller = rules.map(&dns).unwrap();
    assert_eq!(caller.principal().as_str(), "dns:batch.acme.example");
    assert_eq!(caller.tenant().as_str(), "acme");

    let caller = rules.map(&Peer::unix(1000, 7)).unwrap();
    assert_eq!(caller.principal().as_str(), "unix:uid=1000,gid=7");
    assert_eq!(caller.tenant().as_str(), "local");
}

#[test]
fn names_and_bundles_are_listed() {
    let rules = rules();
    let mut names: Vec<&str> = rules.captured_names().collect();
    names.sort_unstable();
    assert_eq!(names, ["env", "origin", "service"]);
    let bundles: Vec<String> = rules
        .dns_bundles()
        .map(|(name, file)| format!("{name} {}", file.display()))
        .collect();
    assert_eq!(bundles, ["batch.acme.example /etc/acme.pem"]);
    assert_eq!(rules.bundles().count(), 1);
}

#[test]
fn an_unknown_capture_is_named_with_the_known_ones() {
    let wrong = fault(
        r#"match = "spiffe://prod.example/{tenant}/{service}"
           tenant = "{tennant}""#,
    );
    assert_eq!(
        wrong.to_string(),
        "unknown capture {tennant}; the pattern has: tenant, service"
    );
    let none = fault(
        r#"match = "unix:uid=1"
           tenant = "{uid}""#,
    );
    assert_eq!(
        none.to_string(),
        "unknown capture {uid}; the pattern has: none"
    );
}

#[test]
fn captures_must_not_run_into_each_other() {
    for template in ["{a}{b}", "{a}-{b}", "x{a}.{b}", "{a}/{b}_{a}"] {
        let rule = format!(
            "match = \"spiffe://prod.example/{{a}}/{{b}}\"\ntenant = \"t\"\ncontext.c = \"{template}\""
        );
        assert!(
            matches!(fault(&rule), Fault::Ambiguous { .. }),
            "{template}"
        );
    }
}

#[test]
fn malformed_rules_are_refused() {
    for pattern in [
        "",
        "*",
        "spiffe://prod.example",
        "spiffe://prod.example/",
        "spiffe://{domain}/a",
        "spiffe://prod.example/a{b}",
        "spiffe://prod.example/{}",
        "spiffe://prod.example/{A}",
        "spiffe://prod.example/{a}/{a}",
        "spiffe://prod.example/*",
        "unix:pid=1",
        "https://prod.example/a",
    ] {
        let rule = format!("match = \"{pattern}\"\ntenant = \"t\"");
        assert_eq!(fault(&rule), Fault::Pattern(pattern.into()));
    }
    for template in ["", "{", "}", "{a", "a}", "{a}}", "{{a}}", "{ a }"] {
        let rule = format!("match = \"spiffe://prod.example/{{a}}\"\ntenant = \"{template}\"");
        assert_eq!(fault(&rule), Fault::Template(template.into()));
    }
    let rule = "match = \"unix:uid=1\"\ntenant = \"T\"";
    assert_eq!(fault(rule), Fault::Tenant("T".into()));
}

#[test]
fn every_certificate_has_exactly_one_bundle_to_vouch_for_it() {
    let rule = "match = \"spiffe://test.example/a\"\ntenant = \"t\"";
    assert_eq!(fault(rule), Fault::TrustDomain("test.example".into()));
    let rule = "match = \"dns:a.example\"\ntenant = \"t\"";
    assert_eq!(fault(rule), Fault::NoBundle);
    let rule = "match = \"spiffe://prod.example/a\"\ntenant = \"t\"\nbundle = \"/b\"";
    assert_eq!(fault(rule), Fault::UnwantedBundle);

    let mut config = config(RULES);
    config.bundle.extend(config.bundle.clone());
    let domain: TrustDomain = "prod.example".parse().unwrap();
    assert_eq!(
        Rules::new(&config).unwrap_err(),
        Error::RepeatedBundle(domain)
    );
}

#[test]
fn a_rule_that_could_never_match_is_refused() {
    let mut config = config(RULES);
    let first = config.rule[0].clone();
    config.rule.push(first.clone());
    assert_eq!(
        Rules::new(&config).unwrap_err(),
        Error::Rule {
            number: 6,
            fault: Fault::Repeated(first.pattern)
        }
    );
}

#[test]
fn names_that_differ_in_case_alone_are_refused() {
    let mut config = config(RULES);
    config.rule[3]
        .context
        .insert("Service".into(), "batch".into());
    let wrong = Rules::new(&config).unwrap_err().to_string();
    assert_eq!(
        wrong,
        "identity.rule 4: context name Service differs from service in case alone"
    );
}

#[test]
fn unknown_fields_are_refused() {
    for text in ["x = 1", "[[rule]]\nmatch = \"\"\ntenant = \"\"\nx = 1"] {
        assert!(toml::from_str::<Config>(text).is_err(), "{text}");
    }
}
