//! What follows from what, in tables: one row for each thing that a policy, a name or a search can be.

use std::sync::OnceLock;

use jiff::Timestamp;
use kitfs::admission::roots::Roots;
use kitfs::admission::{Decision, Docket, Provenance, Question, RuleSet, Rulebook, Verdict};
use kitfs::digest::{Algorithm, Digest};
use kitfs::failure::ErrorClass;
use kitfs::policy::{Name, Names, Policy, Set, document};
use kitfs::referrers::{Candidate, Ended, Gap};
use kitfs::signature::{Denial, Reason};
use serde_json::json;

use crate::case;
use crate::signing::{Key, SCAN, SIGNATURE};

pub const NAME: &str = "h.test/acme/kit:v1";

/// A question about a kit of a registry.
pub fn question() -> Question {
    static KIT: OnceLock<Question> = OnceLock::new();
    let question = KIT.get_or_init(|| case("key-p256-bundle").question().expect("a kit")).clone();
    let real = Name::of_kit(NAME).expect("a name").at(question.digest);
    Question {
        reference: NAME.to_owned(),
        names: Names { real: Some(real), claim: None },
        provenance: Provenance { from_registry: true, tag_resolved: true },
        ..question
    }
}

/// One policy: its glob, and the rest of its `spec` in YAML's flow form.
pub fn policy(glob: &str, spec: &str) -> Policy {
    let text = format!(
        "apiVersion: policy.sigstore.dev/v1beta1\nkind: ClusterImagePolicy\nmetadata: {{name: p}}\nspec: {{images: [{{glob: '{glob}'}}], {spec}}}\n"
    );
    document::policies(text.as_bytes(), "test").unwrap_or_else(|error| panic!("{text}: {error:?}")).remove(0)
}

/// An authority of a key.
pub fn by(key: &Key, more: &str) -> String {
    format!("{{name: a{}, key: {{data: {:?}}}{more}}}", key.pem.len() + key.pem.bytes().map(usize::from).sum::<usize>(), key.pem)
}

/// `authorities:` of these.
pub fn any_of(authorities: &[String]) -> String {
    format!("authorities: [{}]", authorities.join(", "))
}

pub fn rules(policies: Vec<Policy>) -> RuleSet {
    RuleSet::load(Set::new(policies), &Roots::of_caller(&[]).expect("no roots")).expect("rules")
}

pub fn host(policies: Vec<Policy>) -> Rulebook {
    Rulebook { host: Some(rules(policies)), ..Rulebook::default() }
}

pub fn decide(question: &Question, rulebook: &Rulebook, candidates: &[Candidate], ended: &Ended) -> Decision {
    let mut docket = Docket::new(question, rulebook, Timestamp::now());
    candidates.iter().for_each(|candidate| docket.add(candidate.clone()));
    docket.close(ended)
}

/// `admit`, `deny CODE` or `error CLASS`.
pub fn said(decision: &Decision) -> String {
    let code = || decision.report.reasons.first().map_or("-", |reason| reason.code.as_str());
    match &decision.verdict {
        Verdict::Admitted(_) => "admit".to_owned(),
        Verdict::Denied => format!("deny {}", code()),
        Verdict::Undecided(class) => {
            assert_eq!(code(), "unread");
            format!("error {class}")
        }
    }
}

pub fn gap(class: ErrorClass, repository: Option<&str>) -> Ended {
    let repository = repository.map(|text| Name::of_repository(text).expect("a repository"));
    let gap = Gap { what: "referrers of h.test/acme/kit".into(), why: "it answers 503".into(), class, repository };
    Ended { gaps: vec![gap], ..Ended::default() }
}

pub fn capped() -> Ended {
    Ended { capped: vec!["2000 referrers are listed, 1000 are looked at".into()], ..Ended::default() }
}

/// A rule of kitfs's own.
pub fn rule(body: &str) -> String {
    format!("policy: {{type: rego, data: {:?}}}", format!("package modelkit.mount\n\ndefault allow := false\n\n{body}\n"))
}

/// A rule over one statement.
pub fn scan(authority_by: &Key, more: &str) -> String {
    by(authority_by, &format!(", attestations: [{{name: scan, predicateType: '{SCAN}'{more}}}]"))
}

pub const CLEAN: &str =
    ", policy: {type: rego, data: \"package signature\\n\\ndefault allow = false\\n\\nallow { input.predicate.bad == 0 }\\n\"}";

#[test]
fn host_and_caller_are_decided_separately() {
    let question = question();
    let (ours, theirs) = (Key::new(1), Key::new(2));
    let kit = question.digest;
    let (good, other) = (ours.bundle(kit), theirs.bundle(kit));
    let want = |key: &Key| policy("h.test/acme/*", &any_of(&[by(key, "")]));
    let elsewhere = || policy("h.test/other/**", &any_of(&[by(&ours, "")]));
    let warn = |key: &Key| policy("h.test/acme/*", &format!("mode: warn, {}", any_of(&[by(key, "")])));
    let either = || policy("**", &any_of(&[by(&ours, ""), by(&theirs, "")]));
    type Sets = (Option<Vec<Policy>>, Option<Vec<Policy>>);
    let rows: Vec<(Sets, bool, Vec<&Candidate>, &str, usize)> = vec![
        ((None, None), false, vec![], "admit", 0),
        ((None, None), true, vec![&good], "deny no-policy", 0),
        ((Some(vec![]), None), false, vec![&good], "deny no-policy", 0),
        ((Some(vec![elsewhere()]), None), false, vec![&good], "deny no-policy", 0),
        ((Some(vec![want(&ours)]), None), true, vec![&good], "admit", 0),
        ((Some(vec![want(&ours)]), None), false, vec![], "deny unsigned", 0),
        ((Some(vec![want(&ours)]), None), false, vec![&other], "deny wrong-key", 0),
        ((Some(vec![want(&ours)]), Some(vec![elsewhere()])), false, vec![&good], "deny no-policy", 0),
        ((Some(vec![elsewhere()]), Some(vec![want(&ours)])), false, vec![&good], "deny no-policy", 0),
        ((Some(vec![want(&ours)]), Some(vec![want(&theirs)])), false, vec![&good, &other], "admit", 0),
        ((Some(vec![want(&ours)]), Some(vec![want(&theirs)])), false, vec![&good], "deny wrong-key", 0),
        ((Some(vec![want(&ours), want(&theirs)]), None), false, vec![&good], "deny wrong-key", 0),
        ((Some(vec![either()]), None), false, vec![&other], "admit", 0),
        // One that only warns does not refuse, does not cover, and is no policy.
        ((Some(vec![warn(&ours)]), None), false, vec![], "admit", 1),
        ((Some(vec![warn(&ours)]), None), false, vec![&good], "admit", 0),
        ((Some(vec![warn(&ours)]), None), true, vec![&good], "deny no-policy", 0),
        ((Some(vec![warn(&ours), elsewhere()]), None), false, vec![&good], "deny no-policy", 0),
        ((Some(vec![warn(&theirs), want(&ours)]), None), false, vec![&good], "admit", 1),
        ((Some(vec![warn(&theirs)]), Some(vec![want(&ours)])), false, vec![&other], "deny wrong-key", 0),
    ];
    for (row, ((host, caller), require_policy, candidates, expected, warned)) in rows.into_iter().enumerate() {
        let rulebook = Rulebook { host: host.map(rules), caller: caller.map(rules), require_policy };
        let candidates: Vec<Candidate> = candidates.into_iter().cloned().collect();
        let decision = decide(&question, &rulebook, &candidates, &Ended::default());
        assert_eq!((said(&decision).as_str(), decision.report.warnings.len()), (expected, warned), "row {row}\n{}", decision.report.text());
        if let Verdict::Admitted(admitted) = &decision.verdict {
            let enforces = rulebook.host.iter().chain(&rulebook.caller).any(|rules| rules.set().enforces());
            assert_eq!(admitted.admission().without_policy(), !enforces, "row {row}");
            assert_eq!(admitted.digest(), kit);
        }
    }
}

#[test]
fn a_claim_brings_a_kit_under_a_policy_and_never_out_of_one() {
    let (ours, theirs) = (Key::new(1), Key::new(2));
    let name = |text: &str| Some(Name::of_kit(text).expect("a name"));
    let want = |glob: &str, key: &Key| policy(glob, &any_of(&[by(key, "")]));
    let pass = |glob: &str| policy(glob, "authorities: [{static: {action: pass}}]");
    let kit = question().digest;
    for (real, claim, policies, candidates, expected) in [
        (None, None, vec![want("h.test/**", &ours)], vec![ours.bundle(kit)], "deny no-policy"),
        (None, name("h.test/a"), vec![want("h.test/**", &ours)], vec![ours.bundle(kit)], "admit"),
        (name("x.test/a"), name("h.test/a"), vec![want("h.test/**", &ours)], vec![theirs.bundle(kit)], "deny wrong-key"),
        (
            name("x.test/a"),
            name("h.test/a"),
            vec![want("h.test/**", &ours), want("x.test/**", &theirs)],
            vec![ours.bundle(kit)],
            "deny wrong-key",
        ),
        (name("x.test/a"), name("h.test/a"), vec![pass("h.test/**")], vec![], "deny static"),
        (name("h.test/a"), name("x.test/a"), vec![pass("h.test/**")], vec![], "admit"),
        // The older format is compared with the claim, if there is one.
        (name("x.test/a"), name("h.test/a"), vec![want("**", &ours)], vec![ours.layer(kit, "h.test/a", json!({}))], "admit"),
        (
            name("x.test/a"),
            name("h.test/a"),
            vec![want("**", &ours)],
            vec![ours.layer(kit, "x.test/a", json!({}))],
            "deny docker-reference",
        ),
        (name("h.test/a"), None, vec![want("**", &ours)], vec![ours.layer(kit, "h.test/a:latest", json!(null))], "admit"),
        (name("h.test/a"), None, vec![want("**", &ours)], vec![ours.layer(kit, "h.test/a:v2", json!({}))], "deny docker-reference"),
        (name("h.test/a"), None, vec![want("**", &ours)], vec![ours.layer(kit, "no name", json!({}))], "deny docker-reference"),
        (None, None, vec![want("**", &ours)], vec![ours.layer(kit, "h.test/a", json!({}))], "deny docker-reference"),
        (None, None, vec![want("**", &ours)], vec![ours.bundle(kit)], "admit"),
    ] {
        let question = Question { names: Names { real: real.clone(), claim: claim.clone() }, ..question() };
        let decision = decide(&question, &host(policies), &candidates, &Ended::default());
        assert_eq!(said(&decision), expected, "{real:?} {claim:?}\n{}", decision.report.text());
    }
}

#[test]
fn static_pass_counts_for_what_the_registry_of_that_name_said_and_fail_always() {
    let ours = Key::new(1);
    let good = ours.bundle(question().digest);
    let pass = "{name: free, static: {action: pass}}".to_owned();
    let fail = "{name: never, static: {action: fail}}".to_owned();
    for (glob, from_registry, tag_resolved, authorities, candidates, expected) in [
        ("h.test/acme/kit", true, false, vec![pass.clone()], vec![], "admit"),
        ("h.test/acme/kit", false, false, vec![pass.clone()], vec![], "deny static"),
        ("h.test/acme/kit", false, true, vec![pass.clone()], vec![], "deny static"),
        ("h.test/acme/kit:v1", true, true, vec![pass.clone()], vec![], "admit"),
        ("h.test/acme/kit:v1", true, false, vec![pass.clone()], vec![], "deny static"),
        ("h.test/acme/kit:v*", true, false, vec![pass.clone()], vec![], "deny static"),
        ("h.test/acme/kit@**", true, false, vec![pass.clone()], vec![], "admit"),
        ("h.test/acme/kit", false, false, vec![pass.clone(), by(&ours, "")], vec![good.clone()], "admit"),
        ("**", true, true, vec![fail.clone(), by(&ours, "")], vec![good.clone()], "deny static"),
        ("h.test/acme/*", true, true, vec![pass.clone(), fail.clone()], vec![], "deny static"),
    ] {
        let question = Question { provenance: Provenance { from_registry, tag_resolved }, ..question() };
        let rulebook = host(vec![policy(glob, &any_of(&authorities))]);
        for ended in [Ended::default(), capped(), gap(ErrorClass::Network, None)] {
            let decision = decide(&question, &rulebook, &candidates, &ended);
            assert_eq!(said(&decision), expected, "{glob} {from_registry} {tag_resolved} {ended:?}\n{}", decision.report.text());
        }
    }
}

#[test]
fn what_counts_is_of_the_wanted_format_sort_and_place() {
    let question = question();
    let (kit, ours, theirs) = (question.digest, Key::new(1), Key::new(2));
    let failed = |denial: Denial| Candidate { content: Err(denial), ..ours.bundle(kit) };
    let elsewhere = || Some(Name::of_repository("h.test/signatures").expect("a repository"));
    let moved = |candidate: Candidate| Candidate { repository: elsewhere(), ..candidate };
    let stating = |types: &[&str]| {
        let types: Vec<String> = types.iter().map(|uri| format!("{{name: n{}, predicateType: '{uri}'}}", uri.len())).collect();
        format!(", attestations: [{}]", types.join(", "))
    };
    let licence = "https://acme.example/licence-list/v1";
    let licences = || ours.stating(kit, licence, json!({}), json!({}));
    for (more, candidates, expected) in [
        (String::new(), vec![ours.layer(kit, "h.test/acme/kit", json!({}))], "admit"),
        (", signatureFormat: bundle".to_owned(), vec![ours.layer(kit, "h.test/acme/kit", json!({}))], "deny format"),
        (", signatureFormat: legacy".to_owned(), vec![ours.bundle(kit)], "deny format"),
        (", signatureFormat: bundle".to_owned(), vec![ours.layer(kit, "h.test/acme/kit", json!({})), theirs.bundle(kit)], "deny wrong-key"),
        (", signatureFormat: legacy".to_owned(), vec![ours.bundle(kit), ours.layer(kit, "h.test/acme/kit", json!({}))], "admit"),
        (String::new(), vec![ours.scan(kit, json!({}))], "deny not-a-signature"),
        (stating(&[SCAN]), vec![ours.scan(kit, json!({}))], "admit"),
        (stating(&[SCAN]), vec![ours.attestation_layer(kit, &json!({}))], "admit"),
        (stating(&[SCAN]), vec![ours.bundle(kit)], "deny predicate-type"),
        (stating(&[SCAN]), vec![ours.layer(kit, "h.test/acme/kit", json!({}))], "deny predicate-type"),
        (stating(&[SCAN]), vec![theirs.scan(kit, json!({}))], "deny wrong-key"),
        // Each of several is wanted.
        (stating(&[SCAN, licence]), vec![ours.scan(kit, json!({})), licences()], "admit"),
        (stating(&[SCAN, licence]), vec![ours.scan(kit, json!({}))], "deny predicate-type"),
        (stating(&[SCAN, licence]), vec![licences(), ours.bundle(kit)], "deny predicate-type"),
        (stating(&[SCAN, licence]), vec![licences(), theirs.scan(kit, json!({}))], "deny wrong-key"),
        // What failed before it could be judged keeps its reason.
        (String::new(), vec![failed(Denial::new(Reason::TooBig, "17 MiB"))], "deny too-big"),
        (String::new(), vec![failed(Denial::new(Reason::BlobDigest, "x")), ours.bundle(kit)], "admit"),
        // What is looked for elsewhere does not count here, and the reverse.
        (String::new(), vec![moved(ours.bundle(kit))], "deny unsigned"),
        (", source: [{oci: h.test/signatures}]".to_owned(), vec![ours.bundle(kit)], "deny unsigned"),
        (", source: [{oci: h.test/signatures}]".to_owned(), vec![moved(ours.bundle(kit))], "admit"),
    ] {
        let rulebook = host(vec![policy("h.test/**", &any_of(&[by(&ours, &more)]))]);
        let decision = decide(&question, &rulebook, &candidates, &Ended::default());
        assert_eq!(said(&decision), expected, "{more} {candidates:?}\n{}", decision.report.text());
    }
}

#[test]
fn of_an_index_signatures_count_and_attestations_do_not() {
    let index = Digest::of(Algorithm::Sha256, b"an index");
    let question = Question { index: Some(index), ..question() };
    let ours = Key::new(1);
    let alone = Question { index: None, ..question.clone() };
    let other = Digest::of(Algorithm::Sha256, b"another index");
    let relabelled = Candidate { subject: index, ..ours.bundle(question.digest) };
    for (question, authority, candidate, expected) in [
        (&question, by(&ours, ""), ours.bundle(index), "admit"),
        (&question, by(&ours, ""), ours.layer(index, NAME, json!({})), "admit"),
        (&question, scan(&ours, ""), ours.scan(index, json!({})), "deny wrong-digest"),
        (&question, scan(&ours, ""), ours.scan(question.digest, json!({})), "admit"),
        (&question, by(&ours, ""), ours.bundle(other), "deny referrer-subject"),
        (&question, by(&ours, ""), relabelled, "deny wrong-digest"),
        (&alone, by(&ours, ""), ours.bundle(index), "deny referrer-subject"),
    ] {
        let decision = decide(question, &host(vec![policy("**", &any_of(&[authority]))]), &[candidate], &Ended::default());
        assert_eq!(said(&decision), expected, "{}", decision.report.text());
    }
}

#[test]
fn annotations_are_wanted_of_the_signature_that_counts() {
    let question = question();
    let (kit, ours) = (question.digest, Key::new(1));
    let mut wanted = policy("**", &any_of(&[by(&ours, "")]));
    wanted.authorities[0].annotations.insert("stage".to_owned(), "prod".to_owned());
    let signed = |stage: &str| ours.stating(kit, SIGNATURE, json!({}), json!({ "stage": stage }));
    let layer = |stage: &str| ours.layer(kit, NAME, json!({ "stage": stage }));
    for (candidates, expected) in [
        (vec![signed("prod")], "admit"),
        (vec![layer("prod")], "admit"),
        (vec![signed("dev"), signed("prod")], "admit"),
        (vec![signed("dev")], "deny annotations"),
        (vec![layer("dev")], "deny annotations"),
        (vec![ours.bundle(kit)], "deny annotations"),
    ] {
        let decision = decide(&question, &host(vec![wanted.clone()]), &candidates, &Ended::default());
        assert_eq!(said(&decision), expected, "{}", decision.report.text());
    }
}

#[test]
fn what_could_not_be_read_never_admits_and_never_looks_like_a_refusal() {
    let question = question();
    let (kit, ours, theirs) = (question.digest, Key::new(1), Key::new(2));
    let plain = || vec![policy("**", &any_of(&[by(&ours, "")]))];
    let ruled = |body: &str| vec![policy("**", &format!("{}, {}", any_of(&[by(&ours, "")]), rule(body)))];
    let always = "allow if true";
    let stated = || vec![policy("**", &any_of(&[scan(&ours, CLEAN)]))];
    let clean = ours.scan(kit, json!({ "bad": 0 }));
    let bad = ours.scan(kit, json!({ "bad": 1 }));
    let network = || gap(ErrorClass::Network, None);
    let other = || gap(ErrorClass::Network, Some("h.test/signatures"));
    let stopped = || Ended { stopped: true, ..Ended::default() };
    let both = || Ended { capped: capped().capped, ..network() };
    let two = || {
        let mut two = gap(ErrorClass::Content, None);
        two.gaps.extend(network().gaps);
        two
    };
    for (row, (policies, candidates, ended, expected)) in [
        // What was verified decides first.
        (plain(), vec![ours.bundle(kit)], network(), "admit"),
        (plain(), vec![ours.bundle(kit)], capped(), "admit"),
        (plain(), vec![ours.bundle(kit)], stopped(), "admit"),
        (plain(), vec![theirs.bundle(kit)], network(), "error network"),
        (plain(), vec![], gap(ErrorClass::Content, None), "error content mismatch"),
        (plain(), vec![], two(), "error network"),
        (plain(), vec![], capped(), "deny too-many"),
        (plain(), vec![], both(), "error network"),
        (plain(), vec![], other(), "deny unsigned"),
        (plain(), vec![], stopped(), "error network"),
        // A rule has to see all of it.
        (ruled(always), vec![ours.bundle(kit)], Ended::default(), "admit"),
        (ruled(always), vec![ours.bundle(kit)], network(), "error network"),
        (ruled(always), vec![ours.bundle(kit)], capped(), "deny too-many"),
        (ruled(always), vec![ours.bundle(kit)], both(), "deny too-many"),
        (ruled(always), vec![ours.bundle(kit)], other(), "admit"),
        (ruled(always), vec![ours.bundle(kit)], stopped(), "error network"),
        (ruled("allow if false"), vec![ours.bundle(kit)], network(), "error network"),
        (ruled("allow if false"), vec![ours.bundle(kit)], Ended::default(), "deny rego"),
        (ruled(always), vec![], network(), "error network"),
        (stated(), vec![clean.clone()], Ended::default(), "admit"),
        (stated(), vec![clean.clone(), bad.clone()], Ended::default(), "deny rego"),
        (stated(), vec![clean.clone()], network(), "error network"),
        (stated(), vec![clean.clone()], capped(), "deny too-many"),
        // A statement that its rule does not allow is not made up for by any other.
        (stated(), vec![bad.clone()], network(), "deny rego"),
        // Of several policies one that refuses for good is enough.
        ([plain(), stated()].concat(), vec![bad.clone(), ours.bundle(kit)], network(), "deny rego"),
        ([plain(), stated()].concat(), vec![clean.clone()], network(), "error network"),
        ([plain(), ruled(always)].concat(), vec![ours.bundle(kit)], network(), "error network"),
    ]
    .into_iter()
    .enumerate()
    {
        let decision = decide(&question, &host(policies), &candidates, &ended);
        assert_eq!(said(&decision), expected, "row {row}\n{}", decision.report.text());
        assert_eq!(decision.report.unread.len(), ended.gaps.len());
    }
}

#[test]
fn a_search_ends_when_nothing_more_can_matter() {
    let question = question();
    let (kit, ours, theirs) = (question.digest, Key::new(1), Key::new(2));
    let repository = |text: &str| Some(Name::of_repository(text).expect("a repository"));
    let moved = |key: &Key| by(key, ", source: [{oci: h.test/signatures}]");
    for (row, (policies, candidates, settled, repositories)) in [
        (vec![policy("**", &any_of(&[by(&ours, "")]))], vec![], false, vec![None]),
        (vec![policy("**", &any_of(&[by(&ours, "")]))], vec![ours.bundle(kit)], true, vec![]),
        (vec![policy("**", &any_of(&[by(&ours, ""), moved(&theirs)]))], vec![], false, vec![None, repository("h.test/signatures")]),
        (vec![policy("**", &any_of(&[moved(&ours)]))], vec![], false, vec![repository("h.test/signatures")]),
        // Nothing admits.
        (vec![policy("x.test/**", &any_of(&[by(&ours, "")]))], vec![ours.bundle(kit)], false, vec![]),
        (vec![policy("**", "authorities: [{static: {action: fail}}]")], vec![], false, vec![]),
        // Nothing is needed.
        (vec![policy("h.test/**", "authorities: [{static: {action: pass}}]")], vec![], true, vec![]),
        // A rule has to see all.
        (
            vec![policy("**", &format!("{}, {}", any_of(&[by(&ours, "")]), rule("allow if true")))],
            vec![ours.bundle(kit)],
            false,
            vec![None],
        ),
        (vec![policy("**", &any_of(&[scan(&ours, CLEAN)]))], vec![ours.scan(kit, json!({ "bad": 0 }))], false, vec![None]),
        // What only warns is told rightly, too.
        (vec![policy("**", &format!("mode: warn, {}", any_of(&[by(&ours, "")])))], vec![theirs.bundle(kit)], false, vec![None]),
    ]
    .into_iter()
    .enumerate()
    {
        let rulebook = host(policies);
        let mut docket = Docket::new(&question, &rulebook, Timestamp::now());
        candidates.into_iter().for_each(|candidate| docket.add(candidate));
        assert_eq!((docket.is_settled(), docket.repositories()), (settled, repositories), "row {row}");
    }
    let none = Rulebook::default();
    assert!(Docket::new(&question, &none, Timestamp::now()).is_settled());
    assert!(!Docket::new(&question, &Rulebook { require_policy: true, ..none }, Timestamp::now()).is_settled());
}

/// A rule of a policy sees what met an authority of this policy, whole, and nothing else.
#[test]
fn a_rule_sees_only_what_counts() {
    let (kit, ours, theirs, strangers) = (question().digest, Key::new(1), Key::new(2), Key::new(3));
    let claim = Some(Name::of_kit("claimed.test/x:v9").expect("a name"));
    let question = Question { names: Names { claim, ..question().names }, ..question() };
    let authorities = any_of(&[by(&ours, ""), scan(&theirs, CLEAN)]);
    let checks = [
        r#"count(input.signatures) == 2"#,
        r#"count(input.attestations) == 1"#,
        r#"every s in input.signatures { s.key != "" }"#,
        r#"{s.format | some s in input.signatures} == {"bundle", "legacy"}"#,
        r#"input.signatures[_].annotations.stage == "prod""#,
        r#"not input.signatures[0].time"#,
        r#"input.attestations[0].predicateType == "https://acme.example/scan/v1""#,
        r#"input.attestations[0].predicate.bad == 0"#,
        r#"input.reference == "h.test/acme/kit:v1""#,
        r#"input.repository == "h.test/acme/kit""#,
        r#"input.tag == "v1""#,
        r#"input.claim == "claimed.test/x:v9""#,
        r#"startswith(input.digest, "sha256:98d5")"#,
        r#"input.manifest.schemaVersion == 2"#,
        r#"input.kitfile.package.name != """#,
        r#"count(input.layers) == count(input.manifest.layers)"#,
        r#"every l in input.layers { l.archive; l.size > 0; l.kind != ""; l.path != ""; is_object(l.annotations) }"#,
        r#"input.mount.path == "/mnt""#,
        r#"input.mount.uid == 1000"#,
        r#"time.parse_rfc3339_ns(input.now) > 0"#,
    ];
    let body = format!("allow if {{\n\t{}\n}}", checks.join("\n\t"));
    let signed = || ours.stating(kit, SIGNATURE, json!({}), json!({ "stage": "prod" }));
    let candidates = vec![
        signed(),
        // The same twice is one.
        Candidate { found_at: "another place".into(), ..signed() },
        ours.layer(kit, "claimed.test/x", json!({})),
        theirs.scan(kit, json!({ "bad": 0 })),
        // None of these is by whom it should be.
        ours.scan(kit, json!({ "bad": 0 })),
        strangers.bundle(kit),
        strangers.scan(kit, json!({ "bad": 0 })),
    ];
    for number in 0..=checks.len() {
        let body = match number {
            0 => body.clone(),
            // Each alone, so that one that holds for any input is seen: it must not hold where nothing is signed.
            number => format!("allow if {{\n\t{}\n}}", checks[number - 1]),
        };
        let rulebook = host(vec![policy("**", &format!("{authorities}, {}", rule(&body)))]);
        let decision = decide(&question, &rulebook, &candidates, &Ended::default());
        let given = decision.report.rego_input.as_ref().map(ToString::to_string);
        assert_eq!(said(&decision), "admit", "{body}\n{given:?}\n{}", decision.report.text());
    }
    let ours_only = |body: &str| host(vec![policy("**", &format!("{authorities}, {}", rule(body)))]);
    // What an authority that is not met would have brought is not there.
    let bad = [signed(), theirs.scan(kit, json!({ "bad": 1 }))];
    let decision = decide(&question, &ours_only("allow if count(input.attestations) == 0"), &bad, &Ended::default());
    assert_eq!(said(&decision), "admit", "{}", decision.report.text());
    // Names that are not known are absent.
    let nameless = Question { names: Names::default(), mountpoint: None, ..question.clone() };
    let absent = "allow if { not input.reference; not input.repository; not input.tag; not input.claim; input.mount.path == null }";
    let decision = decide(&nameless, &ours_only(absent), &[signed()], &Ended::default());
    assert_eq!((said(&decision).as_str(), decision.report.warnings.len()), ("admit", 1), "{}", decision.report.text());
    let unresolved = Question { provenance: Provenance::default(), ..question.clone() };
    let decision = decide(
        &unresolved,
        &ours_only("allow if { not input.tag; contains(input.reference, \"@sha256:\") }"),
        &[signed()],
        &Ended::default(),
    );
    assert_eq!(said(&decision), "admit", "{}", decision.report.text());
}

#[test]
fn the_rule_of_policy_controller_sees_what_met_each_authority() {
    let question = question();
    let (kit, ours, theirs) = (question.digest, Key::new(1), Key::new(2));
    let authorities = format!(
        "authorities: [{}, {}]",
        by(&ours, "").replacen("name: a", "name: s", 1),
        scan(&theirs, "").replacen("name: a", "name: t", 1)
    );
    let rule = |body: &str| {
        format!("{authorities}, policy: {{type: rego, data: {:?}}}", format!("package sigstore\n\nisCompliant {{\n{body}\n}}\n"))
    };
    let signature = "some n\n count(input.authorityMatches[n].signatures) == 1";
    let attestation = format!("some n\n input.authorityMatches[n].attestations.scan[0].predicateType == \"{SCAN}\"");
    for (body, candidates, expected) in [
        (signature, vec![ours.bundle(kit)], "admit"),
        (&attestation, vec![ours.bundle(kit), theirs.scan(kit, json!({}))], "admit"),
        (&attestation, vec![ours.bundle(kit)], "deny rego"),
        ("count(input.authorityMatches) == 1", vec![ours.bundle(kit)], "admit"),
        ("count(input.authorityMatches) == 2", vec![ours.bundle(kit)], "deny rego"),
    ] {
        let decision = decide(&question, &host(vec![policy("**", &rule(body))]), &candidates, &Ended::default());
        assert_eq!(said(&decision), expected, "{body}\n{}", decision.report.text());
    }
}

#[test]
fn a_key_of_a_refused_kind_leaves_its_authority_unmet_by_name() {
    let question = question();
    let (kit, ours) = (question.digest, Key::new(1));
    // A key on a curve that is not taken, as far as its algorithm goes.
    let mut der = hex::decode("30819b301006072a8648ce3d020106052b81040023038186000400").expect("hexadecimal");
    der.resize(158, 0x11);
    let pem = pem(&der);
    let refused = format!("{{name: odd, key: {{data: {pem:?}}}}}");
    for (authorities, candidates, ended, expected) in [
        (vec![refused.clone()], vec![ours.bundle(kit)], Ended::default(), "deny key-type"),
        (vec![refused.clone()], vec![], gap(ErrorClass::Network, None), "deny key-type"),
        (vec![refused.clone()], vec![], capped(), "deny key-type"),
        (vec![refused.clone(), by(&ours, "")], vec![ours.bundle(kit)], Ended::default(), "admit"),
        (vec![refused.clone(), by(&ours, "")], vec![], gap(ErrorClass::Network, None), "error network"),
    ] {
        let decision = decide(&question, &host(vec![policy("**", &any_of(&authorities))]), &candidates, &ended);
        assert_eq!(said(&decision), expected, "{}", decision.report.text());
        assert!(decision.report.text().contains("`odd`"), "{}", decision.report.text());
    }
}

fn pem(der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN PUBLIC KEY-----\n{text}\n-----END PUBLIC KEY-----\n")
}

/// For a person at three in the morning, and with nothing in it that a terminal would act on.
#[test]
fn a_decision_is_explained() {
    let question = question();
    let (kit, ours, theirs) = (question.digest, Key::new(1), Key::new(2));
    let hostile = Candidate { found_at: "evil \u{1b}[2J place\nadmitted: x".into(), ..theirs.bundle(kit) };
    let rulebook = host(vec![policy("**", &any_of(&[by(&ours, "")]))]);
    let text = decide(&question, &rulebook, &[hostile, ours.scan(kit, json!({}))], &Ended::default()).report.text();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], format!("refused: {NAME}"));
    assert!(lines[1].starts_with("  it is not signed by the wanted key, sha256:") && lines[1].ends_with("[wrong-key]"), "{text}");
    assert!(lines[1].contains("policy `p` of the host wants a signature by the key sha256:"), "{text}");
    assert!(!text.contains('\u{1b}') && !lines.iter().any(|line| line.starts_with("admitted")), "{text}");
    for wanted in ["policies of the host: not met", "policy `p` (enforce): not met", "does not count: ", "[not-a-signature]"] {
        assert!(text.contains(wanted), "{wanted}: {text}");
    }
    let admitted = decide(&question, &rulebook, &[ours.bundle(kit)], &Ended::default());
    assert!(admitted.report.text().starts_with(&format!("admitted: {NAME}\n  signed by key sha256:")), "{}", admitted.report.text());
    let Verdict::Admitted(admission) = admitted.verdict else { panic!("admitted") };
    let counted = &admission.admission().counted;
    assert_eq!((counted.len(), counted[0].format.as_str(), counted[0].digest), (1, "bundle", ours.bundle(kit).digest));
    let open = decide(&question, &rulebook, &[], &gap(ErrorClass::Network, None)).report;
    assert_eq!((open.decision, open.unread[0].code.as_str()), ("error", "network"));
    assert!(open.text().starts_with(&format!("not decided: {NAME}\n  it could not be decided")), "{}", open.text());
}
