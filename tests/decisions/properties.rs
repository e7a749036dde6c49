//! What no registry can do: whatever else it attaches to a kit, in whatever order, the decision stays what the trusted signers make it.

use std::sync::OnceLock;

use bytes::Bytes;
use jiff::Timestamp;
use kitfs::admission::{Decision, Docket, Question, Rulebook};
use kitfs::digest::{Algorithm, Digest};
use kitfs::failure::ErrorClass;
use kitfs::policy::authority::Format;
use kitfs::policy::{Name, Policy};
use kitfs::referrers::{Candidate, Content, Ended};
use kitfs::signature::{Denial, Reason};
use proptest::prelude::*;
use serde_json::json;

use crate::signing::{Key, SIGNATURE, candidate};
use crate::tables::{CLEAN, any_of, by, capped, gap, host, policy, question, rule, rules, said, scan};

/// A rule that a second signature that counts would break.
const ONE: &str = "allow if count(input.signatures) == 1";

/// What is met by a signature and a clean scan of ours, and by nothing else.
fn wanted(ours: &Key) -> Vec<Policy> {
    static POLICIES: OnceLock<Vec<Policy>> = OnceLock::new();
    let policies = || {
        vec![
            policy("**", &any_of(&[by(ours, "")])),
            policy("**", &any_of(&[scan(ours, CLEAN)])),
            policy("**", &format!("{}, {}", any_of(&[by(ours, "")]), rule(ONE))),
            policy("**", &any_of(&[by(&Key::new(9), ""), by(ours, ", signatureFormat: bundle")])),
        ]
    };
    POLICIES.get_or_init(policies).clone()
}

fn good(kit: Digest, ours: &Key) -> Vec<Candidate> {
    vec![ours.bundle(kit), ours.scan(kit, json!({ "bad": 0 }))]
}

/// Something that must not count: foreign, copied, broken or mislabelled.
fn hostile(kit: Digest, ours: &Key, theirs: &Key, kind: u8, seed: u16) -> Candidate {
    let other = Digest::of(Algorithm::Sha256, &seed.to_le_bytes());
    let bytes_of = |candidate: &Candidate| match &candidate.content {
        Ok(Content::Bundle(bytes)) => bytes.to_vec(),
        _ => Vec::new(),
    };
    let broken = |bytes: Vec<u8>| {
        let digest = Digest::of(Algorithm::Sha256, &bytes);
        candidate(kit, digest, Format::Bundle, Content::Bundle(bytes.into()))
    };
    let seed_text = json!({ "n": seed.to_string() });
    let strangers = Key::new(100 + (seed % 50) as u8);
    match kind {
        0 => theirs.stating(kit, SIGNATURE, json!({}), seed_text),
        1 => strangers.scan(kit, json!({ "bad": 0, "n": seed })),
        2 => Candidate { subject: kit, ..ours.bundle(other) },
        3 => Candidate { subject: kit, ..ours.scan(other, json!({ "bad": 0 })) },
        4 => {
            let bytes = bytes_of(&ours.bundle(kit));
            broken(bytes[..usize::from(seed) % bytes.len()].to_vec())
        }
        5 => broken(seed.to_string().into_bytes()),
        6 => Candidate { content: Err(Denial::new(Reason::BlobDigest, seed.to_string())), ..ours.bundle(kit) },
        7 => Candidate { repository: Some(Name::of_repository("h.test/elsewhere").expect("a repository")), ..ours.bundle(kit) },
        8 => ours.layer(kit, &format!("h.test/other{seed}"), json!({})),
        9 => strangers.layer(kit, "h.test/acme/kit", json!({})),
        10 => Candidate { format: Format::Legacy, ..ours.bundle(kit) },
        11 => {
            // A byte of the signed payload is another one.
            let text = String::from_utf8(bytes_of(&ours.bundle(kit))).expect("JSON");
            broken(text.replacen("eyJ", "eyK", 1).into_bytes())
        }
        12 => ours.bundle(other),
        _ => ours.stating(kit, &format!("https://acme.example/other{seed}/v1"), json!({}), json!({})),
    }
}

fn noise() -> impl Strategy<Value = Vec<(u8, u16)>> {
    proptest::collection::vec((0u8..14, any::<u16>()), 0..12)
}

/// Puts `candidates` in an order that `keys` says.
fn shuffled(candidates: Vec<Candidate>, keys: &[u32]) -> Vec<Candidate> {
    let mut keyed: Vec<_> = candidates.into_iter().enumerate().map(|(at, one)| (keys.get(at % keys.len().max(1)), at, one)).collect();
    keyed.sort_by_key(|(key, at, _)| key.map(|key| key.rotate_left(*at as u32)));
    keyed.into_iter().map(|(_, _, candidate)| candidate).collect()
}

fn decided(question: &Question, rulebook: &Rulebook, candidates: &[Candidate], ended: &Ended) -> Decision {
    let now: Timestamp = "2026-11-01T00:00:00Z".parse().expect("a time");
    let mut docket = Docket::new(question, rulebook, now);
    candidates.iter().for_each(|candidate| docket.add(candidate.clone()));
    docket.close(ended)
}

fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases) }
}

proptest! {
    #![proptest_config(cases(32))]

    #[test]
    fn what_is_added_changes_nothing(
        which in 0usize..4, signed in any::<bool>(), noise in noise(), keys in proptest::collection::vec(any::<u32>(), 1..20),
    ) {
        let (question, ours, theirs) = (question(), Key::new(1), Key::new(2));
        let kit = question.digest;
        let rulebook = host(vec![wanted(&ours).remove(which)]);
        let bad = noise.iter().map(|(kind, seed)| hostile(kit, &ours, &theirs, *kind, *seed));
        let all: Vec<Candidate> = if signed { good(kit, &ours).into_iter().chain(bad).collect() } else { bad.collect() };
        let before = decided(&question, &rulebook, &all, &Ended::default());
        let after = decided(&question, &rulebook, &shuffled(all, &keys), &Ended::default());
        // Without anything of the trusted signer's, whatever else is there, it is refused.
        prop_assert_eq!(said(&before) == "admit", signed, "{}", before.report.text());
        prop_assert_eq!(serde_json::to_value(&before.report).expect("JSON"), serde_json::to_value(&after.report).expect("JSON"));
    }

    #[test]
    fn another_policy_never_admits(
        policies in proptest::collection::vec(0usize..10, 1..4), added in 0usize..10, to_host in any::<bool>(),
        there in proptest::collection::vec(any::<bool>(), 4), end in 0u8..3,
    ) {
        let (question, ours, theirs) = (question(), Key::new(1), Key::new(2));
        let kit = question.digest;
        static POOL: OnceLock<Vec<Policy>> = OnceLock::new();
        let pool = POOL.get_or_init(|| {
            let mut pool = wanted(&ours);
            pool.extend([
                policy("h.test/**", &any_of(&[by(&theirs, "")])),
                policy("h.test/**", &format!("mode: warn, {}", any_of(&[by(&theirs, "")]))),
                policy("x.test/**", &any_of(&[by(&theirs, "")])),
                policy("h.test/**", "authorities: [{static: {action: pass}}]"),
                policy("h.test/**", "authorities: [{static: {action: fail}}]"),
                policy("h.test/**", &any_of(&[by(&ours, ", source: [{oci: h.test/elsewhere}]")])),
            ]);
            pool
        });
        let chosen = || policies.iter().map(|number| pool[*number].clone()).collect::<Vec<_>>();
        let mut all = good(kit, &ours);
        all.extend([theirs.bundle(kit), ours.scan(kit, json!({ "bad": 1 }))]);
        let candidates: Vec<Candidate> = all.into_iter().zip(there).filter(|(_, there)| *there).map(|(candidate, _)| candidate).collect();
        let ended = match end {
            0 => Ended::default(),
            1 => capped(),
            _ => gap(ErrorClass::Network, None),
        };
        let before = decided(&question, &host(chosen()), &candidates, &ended);
        let more = pool[added].clone();
        let rulebook = if to_host {
            host(chosen().into_iter().chain([more]).collect())
        } else {
            Rulebook { caller: Some(rules(vec![more])), ..host(chosen()) }
        };
        let after = decided(&question, &rulebook, &candidates, &ended);
        // A set that did not exist, since it only warned, does now.
        let uncovered = before.report.reasons.iter().any(|reason| reason.code == "no-policy");
        prop_assert!(said(&before) == "admit" || uncovered || said(&after) != "admit", "{}\n{}", before.report.text(), after.report.text());
    }

    /// Whatever the bytes are: nobody signed them.
    #[test]
    fn bytes_that_nobody_signed_never_admit(bytes in proptest::collection::vec(any::<u8>(), 0..200), format in any::<bool>()) {
        let (question, ours) = (question(), Key::new(1));
        let digest = Digest::of(Algorithm::Sha256, &bytes);
        let bytes = Bytes::from(bytes);
        let content = if format {
            Content::Bundle(bytes)
        } else {
            let annotations = vec![("dev.cosignproject.cosign/signature".to_owned(), String::from_utf8_lossy(&bytes).into_owned())];
            Content::Layer { kind: kitfs::signature::LayerKind::Signature, blob: bytes, annotations }
        };
        let format = if format { Format::Bundle } else { Format::Legacy };
        let decision = decided(&question, &host(wanted(&ours)), &[candidate(question.digest, digest, format, content)], &Ended::default());
        prop_assert!(said(&decision).starts_with("deny"), "{}", decision.report.text());
    }
}
