//! What is taken, and what is not.

use clap::{Args as _, CommandFactory as _};

use super::*;

#[test]
fn the_definition_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn every_long_option_has_its_variable() {
    for command in Cli::command().get_subcommands().filter(|command| !command.is_hide_set()) {
        for argument in command.get_arguments() {
            let Some(long) = argument.get_long().filter(|long| !["help", "version"].contains(long)) else { continue };
            let trusting = Trusting::augment_args(clap::Command::new("")).get_arguments().any(|other| other.get_long() == Some(long));
            if command.get_name() == "verify-bundle" || long == "allow-no-policy" || trusting && long != "require-policy" {
                assert_eq!(argument.get_env(), None, "--{long}: what is trusted is not inherited");
                continue;
            }
            let expected = format!("KITFS_{}", long.to_uppercase().replace('-', "_"));
            assert_eq!(argument.get_env().and_then(|name| name.to_str()), Some(expected.as_str()), "{}: --{long}", command.get_name());
        }
    }
}

#[test]
fn the_fixed_forms_are_taken_and_others_are_not() {
    for good in [
        "mount r d",
        "mount --cache-dir c --prefetch none --plain-http --ca-cert f --offline --allow-other r d",
        "mount --log-format json --metrics 9464 --trust-user-cache --uid 1 --gid 2 --no-passthrough --foreground --prefetch all r d",
        "mount r d --prefetch=small",
        "mount --jobs 1 --connections 16 --prefetch all --wait r d",
        "pull --jobs 16 --connections 1 r",
        "mount -f model -f datasets:a,./b --filter kitfile --include *.bin --include /m --exclude x/ r d",
        "pull -f docs r s",
        "inspect --exclude x r",
        "verify -f code r",
        "mount --include-remote r d",
        "mount --policy f --policy g --require-policy --as h.test/a:v1 --trusted-root f --trusted-root n=g r d",
        "mount --key k -a a=b --annotations c=d --insecure-ignore-tlog --use-signed-timestamps r d",
        "mount --certificate-identity i --certificate-oidc-issuer u --type vuln --rego f r d",
        "mount --vsa f --vsa-verifier-id https://h.test/kitfs --audit-log f --audit-best-effort r d",
        "pull --certificate-identity-regexp i --certificate-oidc-issuer-regexp u --audit-log f r",
        "explain r",
        "explain --json --allow-no-policy --policy f --vsa f --audit-log f --offline --include-remote d",
        "umount d e",
        "umount --lazy d",
        "umount --all",
        "umount --all --lazy",
        "status",
        "status --json d",
        "doctor",
        "doctor --json --plain-http --cache-dir c --run-dir d localhost:5000",
        "pull r s",
        "pull --cache-dir c --plain-http --ca-cert f --offline r",
        "inspect --json r",
        "inspect --include-remote r",
        "pull --include-remote r",
        "verify --include-remote r",
        "verify r",
        "verify --repair r",
        "verify --all",
        "verify-bundle --bundle b --key k a",
        "verify-bundle --bundle b --key k --insecure-ignore-tlog --trusted-root github sha256:00",
        "verify-bundle --bundle b --certificate-identity i --certificate-oidc-issuer u --trusted-root f a",
        "trust show",
        "trust show --trusted-root f --trusted-root n=g",
        "trust update github",
        "trust update n -o f --tuf-url u --tuf-root r",
        "policy check f g --trusted-root n=h --json",
        "completions zsh",
        "man",
    ] {
        assert!(Cli::try_parse_from(["kitfs"].into_iter().chain(good.split(' '))).is_ok(), "{good}");
    }
    for bad in [
        "",
        "mount",
        "mount r",
        "mount r d e",
        "mount --prefetch some r d",
        "mount -f models r d",
        "mount -f model -f a:b:c r d",
        "mount --include !x r d",
        "mount --exclude a//b r d",
        "mount --uid x r d",
        "mount --jobs 0 r d",
        "mount --jobs 17 r d",
        "mount --connections 0 r d",
        "pull --connections 17 r",
        "mount --wait --foreground r d",
        "mount --vsa f --vsa-verifier-id u r d",
        "mount --log-format xml r d",
        "mount --metrics host:1 r d",
        "mount --uid -1 r d",
        "umount",
        "umount --all d",
        "status d e",
        "doctor r s",
        "pull",
        "inspect",
        "inspect r s",
        "verify",
        "verify --all r",
        "verify --all --repair",
        "verify-bundle --bundle b a",
        "verify-bundle --key k a",
        "verify-bundle --bundle b --key k",
        "verify-bundle --bundle b --certificate-identity i a",
        "verify-bundle --bundle b --certificate-oidc-issuer u a",
        "verify-bundle --bundle b --certificate-identity i --certificate-oidc-issuer u --key k a",
        "verify-bundle --bundle b --certificate-identity i --certificate-oidc-issuer u --insecure-ignore-tlog a",
        "trust",
        "trust show x",
        "trust update",
        "trust update n m",
        "trust update n --tuf-url u",
        "trust update n --tuf-root r",
        "policy check --trusted-root f",
        "completions klingon",
        "unmount d",
    ] {
        let error = Cli::try_parse_from(["kitfs"].into_iter().chain(bad.split(' ').filter(|word| !word.is_empty()))).expect_err(bad);
        assert!(error.use_stderr() && error.exit_code() == 2, "{bad}");
    }
}
