//! What kind of trouble something is, without its details.
//!
//! Every module has errors of its own, with all that a person wants to know. What decides (the errno a reader sees, whether another
//! process should try too, when to try again) is the class alone, and a class can be written down: it stands in progress files and
//! in the output of `status`, where the error itself cannot.

use std::error::Error;
use std::fmt::{self, Write as _};
use std::io;

use serde::{Deserialize, Serialize};

use crate::source::SourceError;

/// The class of an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorClass {
    /// Size or digest are not what the descriptor (or the config's `diffId`) says.
    Content,
    /// The content is what it should be, but nothing that may be shown: an archive that is malformed, hostile or too large.
    Refused,
    /// The source has no such thing.
    Missing,
    /// The source does not let us read it.
    Denied,
    /// Nothing came for too long.
    Stalled,
    /// The source could not be reached, broke off, or does not keep to its protocol.
    Network,
    /// This host could not store or read it; the number is an errno. Whoever shares the cache is concerned.
    Disk(i32),
}

impl ErrorClass {
    /// The name that does not change.
    pub fn code(self) -> &'static str {
        match self {
            Self::Content => "content",
            Self::Refused => "refused",
            Self::Missing => "missing",
            Self::Denied => "denied",
            Self::Stalled => "stalled",
            Self::Network => "network",
            Self::Disk(_) => "disk",
        }
    }

    /// The class of a local error.
    pub fn of_disk(error: &io::Error) -> Self {
        Self::Disk(error.raw_os_error().unwrap_or(libc::EIO))
    }

    /// The class of what a source said.
    pub fn of_source(error: &SourceError) -> Self {
        // Whom this host gives no more descriptors has not been refused by the source, and may try again soon.
        let causes = std::iter::successors(Some(error as &dyn Error), |&cause| cause.source());
        let errnos = causes.filter_map(|cause| cause.downcast_ref::<io::Error>()?.raw_os_error());
        if let Some(errno) = errnos.filter(|errno| matches!(*errno, libc::EMFILE | libc::ENFILE)).last() {
            return Self::Disk(errno);
        }
        match error {
            SourceError::NotFound { .. } => Self::Missing,
            SourceError::Denied { .. } => Self::Denied,
            SourceError::Stalled { .. } | SourceError::Unconnected { .. } | SourceError::Late { .. } => Self::Stalled,
            SourceError::Unavailable { .. } | SourceError::Protocol { .. } => Self::Network,
            SourceError::Local { source, .. } => match source.kind() {
                io::ErrorKind::NotFound => Self::Missing,
                io::ErrorKind::PermissionDenied => Self::Denied,
                _ => Self::Network,
            },
        }
    }
}

impl fmt::Display for ErrorClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Content => "content mismatch",
            Self::Refused => "content refused",
            Self::Missing => "not found",
            Self::Denied => "not allowed",
            Self::Stalled => "stalled",
            Self::Network => "network",
            Self::Disk(errno) => return write!(f, "disk: {}", io::Error::from_raw_os_error(*errno)),
        })
    }
}

/// An error and its causes, in one line.
pub fn chain(error: &dyn Error) -> String {
    let causes = std::iter::successors(error.source(), |&cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// `text` with everything visible that a terminal would act on: control characters, escape sequences, marks that turn the direction of
/// writing, and line breaks of all sorts. More than `limit` characters are cut off.
pub fn inert(text: &str, limit: usize) -> String {
    let mut shown = String::with_capacity(text.len());
    for (position, letter) in text.chars().enumerate() {
        if position == limit {
            shown.push('…');
            break;
        }
        if acts_on_a_terminal(letter) {
            shown.extend(letter.escape_default());
        } else {
            shown.push(letter);
        }
    }
    shown
}

/// JSON with everything that a terminal would act on escaped as JSON escapes it. Line feeds stay: those in strings were escaped by whoever wrote it.
pub fn inert_json(json: &str) -> String {
    let mut inert = String::with_capacity(json.len());
    for letter in json.chars() {
        if letter != '\n' && acts_on_a_terminal(letter) {
            for unit in letter.encode_utf16(&mut [0; 2]) {
                // Writing into a String cannot fail.
                _ = write!(inert, "\\u{unit:04x}");
            }
        } else {
            inert.push(letter);
        }
    }
    inert
}

/// Whether a terminal does something else with `letter` than showing it, or shows nothing. Every text from outside is escaped by this.
pub fn acts_on_a_terminal(letter: char) -> bool {
    letter.is_control()
        || matches!(
            letter,
            '\u{ad}'
                | '\u{61c}'
                | '\u{180e}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_survives_being_written_down() {
        for class in [ErrorClass::Content, ErrorClass::Refused, ErrorClass::Stalled, ErrorClass::Disk(libc::ENOSPC)] {
            let text = serde_json::to_string(&class).expect("plain data");
            assert_eq!(serde_json::from_str::<ErrorClass>(&text).expect("what was written"), class, "{text}");
        }
    }

    #[test]
    fn a_local_source_is_judged_by_its_errno() {
        for (kind, class) in [
            (io::ErrorKind::NotFound, ErrorClass::Missing),
            (io::ErrorKind::PermissionDenied, ErrorClass::Denied),
            (io::ErrorKind::Other, ErrorClass::Network),
        ] {
            assert_eq!(ErrorClass::of_source(&SourceError::Local { path: "x".into(), source: kind.into() }), class);
        }
    }

    #[test]
    fn a_connection_for_which_there_is_no_descriptor_is_this_hosts_trouble() {
        for (errno, class) in [
            (libc::EMFILE, ErrorClass::Disk(libc::EMFILE)),
            (libc::ENFILE, ErrorClass::Disk(libc::ENFILE)),
            (libc::ECONNREFUSED, ErrorClass::Network),
        ] {
            let cause = io::Error::from_raw_os_error(errno);
            let (place, what, reason) = ("reg.example/a".into(), "layer".into(), "no connection".into());
            let error = SourceError::Unavailable { place, what, reason, retry_at: None, source: Some(Box::new(cause)) };
            assert_eq!(ErrorClass::of_source(&error), class);
        }
    }
}
