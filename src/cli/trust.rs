//! `kitfs trust`: whom trusted roots trust.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::path::Path;

use jiff::Timestamp;

use super::args::{Trust, TrustCommand, TrustShow};
use super::error::CliError;
use super::report::{self, Exit, escaped};
use super::{document, print};
use crate::limits;
use crate::signature::{Authority, BUILT_IN, Role, TrustedRoot};

pub(super) fn run(arguments: &Trust) -> Result<Exit, CliError> {
    match &arguments.command {
        TrustCommand::Show(arguments) => show(arguments),
    }
}

fn show(arguments: &TrustShow) -> Result<Exit, CliError> {
    let texts: Vec<&str> = match arguments.trusted_root.as_slice() {
        [] => BUILT_IN.to_vec(),
        given => given.iter().map(String::as_str).collect(),
    };
    let mut names = HashSet::new();
    let mut shown = String::new();
    let now = Timestamp::now();
    for text in texts {
        let (name, place) = named(text);
        if !names.insert(name) {
            return Err(CliError::TwoRoots(name.to_owned()));
        }
        let root = read(place)?;
        // Writing into a String cannot fail.
        _ = writeln!(shown, "{} {}", escaped(name), root.digest());
        let authorities = root.authorities();
        authorities.iter().for_each(|authority| line(&mut shown, authority, now));
        for role in [Role::CertificateAuthority, Role::CertificateLog, Role::Log, Role::TimestampAuthority] {
            let mut of_role = authorities.iter().filter(|authority| authority.role == role).peekable();
            if of_role.peek().is_some() && !of_role.any(|authority| authority.is_open(now)) {
                report::warning(&format!("{name}: no {} is open: what is signed now cannot be verified with it", role.name()));
            }
        }
    }
    print(shown.as_bytes())
}

fn line(shown: &mut String, authority: &Authority, now: Timestamp) {
    let time = |time: Option<Timestamp>| time.map_or_else(|| "…".to_owned(), |time| time.to_string());
    let state = if authority.is_open(now) { "open" } else { "closed" };
    let (start, end) = (time(authority.start), time(authority.end));
    // Writing into a String cannot fail.
    _ = writeln!(shown, "  {:<21} {state:<6} {start} to {end}  {}", authority.role.name(), escaped(&authority.address));
}

/// Name and place of `[NAME=]FILE`. What is built in has its own name, unless it is given another.
fn named(text: &str) -> (&str, &str) {
    let is_name = |name: &str| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    match text.split_once('=') {
        Some((name, place)) if is_name(name) => (name, place),
        _ if BUILT_IN.contains(&text) => (text, text),
        _ => ("trusted-root", text),
    }
}

/// The trusted root in a file, or the one that is built in under that name.
pub(super) fn read(place: &str) -> Result<TrustedRoot, CliError> {
    if let Some(root) = TrustedRoot::built_in(place) {
        return Ok(root);
    }
    let bytes = document(Path::new(place), limits::TRUSTED_ROOT_BYTES)?;
    TrustedRoot::read(&bytes).map_err(|source| CliError::TrustedRoot { name: place.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stands_before_the_first_equals_sign() {
        for (text, name, place) in [
            ("f.json", "trusted-root", "f.json"),
            ("ours=f.json", "ours", "f.json"),
            ("ours=a=b", "ours", "a=b"),
            ("./a=b", "trusted-root", "./a=b"),
            ("github", "github", "github"),
            ("ours=github", "ours", "github"),
        ] {
            assert_eq!(named(text), (name, place), "{text}");
        }
    }
}
