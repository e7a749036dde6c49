//! What is shown of the decisions that a mount rests on: in the attributes of its root, and in what records call the policies that matched.
//!
//! It words what [`crate::admission`] decided and decides nothing. The attributes of the root, all text:
//!
//! | attribute | value |
//! |---|---|
//! | `user.kitfs.decision` | `admitted`: policies that enforce admitted every kit that is shown; `no-policy`: there was none for at least one of them |
//! | `user.kitfs.claim` | what the caller claimed that the kit is, if anything |
//! | `user.kitfs.signer` | who signed the kit, each once: a line for each, without an end of line after the last |
//! | `user.kitfs.policy` | the policies that matched the kit, as `NAME@DIGEST`, a line for each |
//!
//! The last three are of the kit itself and missing where there is nothing to say; those of kits that it refers to are in `kitfs status --json`.
//! Names and signers come from outside: whatever could end a line or act on a terminal is escaped. A value longer than [`ATTRIBUTE_BYTES`] ends, after
//! its last whole line, with a line `…`.

use crate::admission::Admission;
use crate::digest::{Algorithm, Digest};
use crate::failure::acts_on_a_terminal;
use crate::limits::ATTRIBUTE_BYTES;

/// In one word: `admitted` if policies that enforce admitted all of these kits, else `no-policy`; nothing if there is no kit.
pub fn decision(admissions: &[Admission]) -> Option<&'static str> {
    if admissions.is_empty() { None } else { Some(if admissions.iter().all(is_by_policy) { "admitted" } else { "no-policy" }) }
}

/// Whether a policy that could have refused it admitted this kit. Warnings admit nothing.
pub fn is_by_policy(admission: &Admission) -> bool {
    admission.policies.iter().any(|policy| policy.mode == ENFORCE)
}

/// The attributes of a mount's root; see the module's text.
pub fn attributes(admissions: &[Admission]) -> Vec<(&'static str, String)> {
    let (Some(kit), Some(decision)) = (admissions.first(), decision(admissions)) else { return Vec::new() };
    let policies = kit.policies.iter().map(|policy| format!("{}@{}", policy.name, policy.digest));
    let listed = [
        ("user.kitfs.claim", lines(kit.claim.iter().cloned())),
        ("user.kitfs.signer", lines(kit.signers().into_iter().map(str::to_owned))),
        ("user.kitfs.policy", lines(policies)),
    ];
    let listed = listed.into_iter().filter(|(_, value)| !value.is_empty());
    std::iter::once(("user.kitfs.decision", decision.to_owned())).chain(listed).collect()
}

/// The one digest of several policies: the SHA-256 of their digests as text (`sha256:…`), each once, sorted, each with a line feed behind it. So it
/// is that of `printf '%s\n' DIGEST… | sort -u`, and that of nothing where there is no policy.
pub fn digest_of_policies<'a>(digests: impl IntoIterator<Item = &'a str>) -> Digest {
    let mut digests: Vec<&str> = digests.into_iter().collect();
    digests.sort_unstable();
    digests.dedup();
    let text: String = digests.into_iter().flat_map(|digest| [digest, "\n"]).collect();
    Digest::of(Algorithm::Sha256, text.as_bytes())
}

/// How a policy's mode is called that refuses.
pub const ENFORCE: &str = "enforce";

fn lines(values: impl Iterator<Item = String>) -> String {
    let mut text = String::new();
    for value in values {
        let line: String = value.chars().flat_map(shown).collect();
        if text.len() + line.len() + MORE.len() + 2 > ATTRIBUTE_BYTES {
            return text + MORE;
        }
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(&line);
    }
    text
}

/// The last line of a value that is cut.
const MORE: &str = "\n…";

fn shown(letter: char) -> impl Iterator<Item = char> {
    let escaped = acts_on_a_terminal(letter).then(|| letter.escape_default());
    let plain = escaped.is_none().then_some(letter);
    escaped.into_iter().flatten().chain(plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::admission;

    #[test]
    fn the_attributes_of_a_root() {
        let mut kit = admission("reg.example/acme/m:v1", &["alice@example.com", "key sha256:00", "alice@example.com"]);
        let policy = kit.policies[0].clone();
        let expected = [
            ("user.kitfs.decision", "admitted".to_owned()),
            ("user.kitfs.signer", "alice@example.com\nkey sha256:00".to_owned()),
            ("user.kitfs.policy", format!("signed@{}", policy.digest)),
        ];
        assert_eq!(attributes(std::slice::from_ref(&kit)), expected);
        kit.claim = Some("reg.example/acme/other:v1".into());
        assert!(attributes(&[kit.clone()]).contains(&("user.kitfs.claim", "reg.example/acme/other:v1".into())));
        kit.policies.push(policy);
        assert_eq!(attributes(&[kit]).last().map(|(_, value)| value.lines().count()), Some(2));
        assert_eq!(attributes(&[]), []);
    }

    #[test]
    fn it_is_admitted_only_if_policies_admitted_every_kit() {
        let by_policy = admission("reg.example/acme/m:v1", &["alice"]);
        let mut without = admission("reg.example/acme/base:v1", &[]);
        without.policies.clear();
        let mut warned = admission("reg.example/acme/base:v1", &["alice"]);
        warned.policies[0].mode = "warn".into();
        for (kits, expected) in [
            (vec![], None),
            (vec![by_policy.clone()], Some("admitted")),
            (vec![without.clone()], Some("no-policy")),
            (vec![warned.clone()], Some("no-policy")),
            (vec![by_policy.clone(), by_policy.clone()], Some("admitted")),
            (vec![by_policy.clone(), without.clone()], Some("no-policy")),
            (vec![by_policy, warned], Some("no-policy")),
        ] {
            assert_eq!(decision(&kits), expected);
        }
        assert_eq!(attributes(&[without]), [("user.kitfs.decision", "no-policy".to_owned())]);
    }

    #[test]
    fn no_signer_can_pretend_to_be_two_or_speak_to_a_terminal() {
        let kit = admission("reg.example/acme/m:v1", &["eve\nalice@example.com", "mallory\u{1b}[2J\u{202e}"]);
        let all = attributes(&[kit]);
        let signers = all.iter().find(|(name, _)| *name == "user.kitfs.signer").map(|(_, value)| value.as_str());
        assert_eq!(signers, Some("eve\\nalice@example.com\nmallory\\u{1b}[2J\\u{202e}"));
    }

    #[test]
    fn a_long_value_is_cut_after_a_whole_line() {
        let line = "x".repeat(ATTRIBUTE_BYTES - MORE.len() - 2);
        assert_eq!(lines([line.clone()].into_iter()), line);
        assert_eq!(lines([line.clone() + "y"].into_iter()), MORE);
        let many = lines((0..ATTRIBUTE_BYTES).map(|number| format!("signer {number}")));
        assert!(many.len() <= ATTRIBUTE_BYTES && many.starts_with("signer 0\nsigner 1\n") && many.ends_with("\n…"), "{many}");
    }

    #[test]
    fn the_digest_of_policies_is_what_a_shell_makes_of_theirs() {
        // printf '%s\n' b a b | sort -u | sha256sum
        let expected = "sha256:911169ddaaf146aff539f58c26c489af3b892dff0fe283c1c264c65ae5aa59a2";
        assert_eq!(digest_of_policies(["b", "a", "b"]).to_string(), expected);
        assert_eq!(digest_of_policies([]), Digest::of(Algorithm::Sha256, b""));
    }
}
