//! `kitfs trust`: whom trusted roots trust, and where newer ones come from.

use std::fmt::Write as _;

use jiff::Timestamp;

use super::args::{Trust, TrustCommand, TrustShow, TrustUpdate};
use super::error::CliError;
use super::report::{self, Exit, escaped};
use super::{document, print};
use crate::admission::roots::{Origin, Root, Roots, is_name};
use crate::admission::{Host, RuleError};
use crate::limits;
use crate::signature::{Authority, BUILT_IN, Role};
use crate::tuf::{self, Repository};

pub(super) fn run(arguments: &Trust) -> Result<Exit, CliError> {
    match &arguments.command {
        TrustCommand::Show(arguments) => show(arguments),
        TrustCommand::Update(arguments) => update(arguments),
    }
}

fn update(arguments: &TrustUpdate) -> Result<Exit, CliError> {
    let TrustUpdate { name, output, tuf_url, tuf_root } = arguments;
    if !is_name(name) {
        return Err(CliError::RootName(name.clone()));
    }
    let repository = match (tuf_url, tuf_root) {
        (Some(address), Some(root)) => Some(Repository::new(address, document(root, limits::TUF_ROOT_BYTES)?)),
        _ => Repository::built_in(name),
    };
    let repository = repository.ok_or_else(|| CliError::NoRepository(name.clone()))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(CliError::Runtime)?;
    let now = Timestamp::now();
    let fetched = runtime.block_on(repository.fetch(now))?;
    let path = match output {
        Some(path) => path.clone(),
        None => {
            let folder = Host::this().roots_folder();
            tuf::make_folder(&folder)?;
            folder.join(format!("{name}.json"))
        }
    };
    fetched.write(&path)?;
    warn_of_closed(name, &fetched.root().authorities(), now);
    print(format!("{} {}\n  {}\n", escaped(name), fetched.root().digest(), escaped(&path.to_string_lossy())).as_bytes())
}

fn show(arguments: &TrustShow) -> Result<Exit, CliError> {
    let roots: Vec<Root> = if arguments.trusted_root.is_empty() {
        let host = Host::this().roots().map_err(RuleError::from)?;
        // A file of the host's takes the place of what is built in under its name.
        let built_in = BUILT_IN.into_iter().filter_map(|name| host.get(name)).filter(|root| matches!(root.origin, Origin::BuiltIn(_)));
        host.given().cloned().chain(built_in).collect()
    } else {
        Roots::of_caller(&arguments.trusted_root).map_err(RuleError::from)?.given().cloned().collect()
    };
    let mut shown = String::new();
    let now = Timestamp::now();
    for Root { name, origin, root } in roots {
        // Writing into a String cannot fail.
        _ = writeln!(shown, "{} {}\n  {}", escaped(&name), root.digest(), escaped(&origin.to_string()));
        let authorities = root.authorities();
        authorities.iter().for_each(|authority| line(&mut shown, authority, now));
        warn_of_closed(&name, &authorities, now);
    }
    print(shown.as_bytes())
}

/// Says what of a root is of no use any more.
fn warn_of_closed(name: &str, authorities: &[Authority], now: Timestamp) {
    for role in [Role::CertificateAuthority, Role::CertificateLog, Role::Log, Role::TimestampAuthority] {
        let mut of_role = authorities.iter().filter(|authority| authority.role == role).peekable();
        if of_role.peek().is_some() && !of_role.any(|authority| authority.is_open(now)) {
            report::warning(&format!("{name}: no {} is open: what is signed now cannot be verified with it", role.name()));
        }
    }
}

fn line(shown: &mut String, authority: &Authority, now: Timestamp) {
    let time = |time: Option<Timestamp>| time.map_or_else(|| "…".to_owned(), |time| time.to_string());
    let state = if authority.is_open(now) { "open" } else { "closed" };
    let (start, end) = (time(authority.start), time(authority.end));
    // Writing into a String cannot fail.
    _ = writeln!(shown, "  {:<21} {state:<6} {start} to {end}  {}", authority.role.name(), escaped(&authority.address));
}
