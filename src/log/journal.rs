//! The journal of systemd, spoken to as it speaks itself: an entry an event, with its priority and its fields.
//!
//! `MESSAGE` has what a line of text has, the values of the fields included, because it is all that `journalctl` shows of an entry; the fields stand beside
//! it under names of their own, for whoever looks for them. (`tracing-journald` gives `MESSAGE` the bare words, so that a unit's log would say that a layer
//! failed and not why.) An entry that the journal does not take is lost: there is nobody else to tell, and a mount must not wait for a journal.

use std::fmt::{self, Write as _};
use std::io;
use std::os::unix::net::UnixDatagram;

use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use super::{Format, priority, without_controls};
use crate::limits::JOURNAL_ENTRY_BYTES;

/// Where the journal listens.
const SOCKET: &str = "/run/systemd/journal/socket";

/// Says everything to the journal.
#[derive(Debug)]
pub(super) struct Journal(UnixDatagram);

impl Journal {
    /// Finds out whether the journal listens. It is not connected to, so that it can be started anew.
    pub(super) fn open() -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        // What has nothing in it is no entry.
        socket.send_to(&[], SOCKET)?;
        Ok(Self(socket))
    }
}

impl<S: Subscriber> Layer<S> for Journal {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut said = Said::default();
        event.record(&mut said);
        let about = event.metadata();
        let place = [("KITFS_TARGET", about.target().to_owned()), ("PRIORITY", priority(*about.level()).to_string())];
        let _there_is_nobody_else_to_tell = self.0.send_to(&said.entry(&place), SOCKET);
    }
}

/// What an event says.
#[derive(Debug, Default)]
struct Said {
    message: String,
    fields: Vec<(&'static str, String)>,
}

impl Said {
    /// The entry; without its fields if they are too much for one.
    fn entry(&self, place: &[(&str, String)]) -> Vec<u8> {
        let mut line = self.message.clone();
        for (name, value) in &self.fields {
            // Writing into a String cannot fail.
            _ = if value.contains([' ', '"', '=']) { write!(line, " {name}={value:?}") } else { write!(line, " {name}={value}") };
        }
        let line = without_controls(line.as_bytes(), Format::Text).into_owned();
        let mut entry = Vec::new();
        put(&mut entry, "MESSAGE", &line);
        put(&mut entry, "SYSLOG_IDENTIFIER", "kitfs");
        place.iter().for_each(|(name, value)| put(&mut entry, name, value));
        let head = entry.len();
        for (name, value) in &self.fields {
            put(&mut entry, &field_name(name), value);
        }
        if entry.len() > JOURNAL_ENTRY_BYTES {
            entry.truncate(head);
        }
        if entry.len() > JOURNAL_ENTRY_BYTES {
            let cut = line.floor_char_boundary(JOURNAL_ENTRY_BYTES / 2);
            return Self { message: line[..cut].to_owned() + "…", fields: Vec::new() }.entry(place);
        }
        entry
    }
}

impl Visit for Said {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.record(field, value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record(field, format!("{value:?}"));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.record(field, crate::failure::chain(value));
    }
}

impl Said {
    fn record(&mut self, field: &Field, value: String) {
        match field.name() {
            "message" => self.message = value,
            name => self.fields.push((name, value)),
        }
    }
}

/// A field of an entry, in the form that takes any value.
fn put(entry: &mut Vec<u8>, name: &str, value: &str) {
    entry.extend(name.as_bytes());
    if value.contains('\n') {
        entry.push(b'\n');
        entry.extend((value.len() as u64).to_le_bytes());
    } else {
        entry.push(b'=');
    }
    entry.extend(value.as_bytes());
    entry.push(b'\n');
}

/// A name as the journal takes it.
fn field_name(name: &str) -> String {
    let letter = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
    format!("KITFS_{}", name.chars().map(letter).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(entry: &[u8]) -> String {
        String::from_utf8_lossy(entry).into_owned()
    }

    #[test]
    fn an_entry_has_the_line_and_its_fields() {
        let said = Said {
            message: "layer failed".into(),
            fields: vec![("error", "it\nbroke\u{1b}".into()), ("path", "a b".into()), ("bytes_per.second", "7".into())],
        };
        let entry = text(&said.entry(&[("PRIORITY", "4".into())]));
        let (head, rest) = entry.split_once("KITFS_ERROR\n").expect("a field with a line break");
        assert_eq!(
            head,
            "MESSAGE=layer failed error=it\\nbroke\\u{1b} path=\"a b\" bytes_per.second=7\nSYSLOG_IDENTIFIER=kitfs\nPRIORITY=4\n"
        );
        assert_eq!(rest, "\u{9}\0\0\0\0\0\0\0it\nbroke\u{1b}\nKITFS_PATH=a b\nKITFS_BYTES_PER_SECOND=7\n");
    }

    #[test]
    fn an_entry_keeps_to_its_limit() {
        for length in [JOURNAL_ENTRY_BYTES / 3, JOURNAL_ENTRY_BYTES, 3 * JOURNAL_ENTRY_BYTES] {
            let said = Said { message: "ä".repeat(length), fields: vec![("error", "x".repeat(length))] };
            let entry = said.entry(&[("PRIORITY", "4".into())]);
            assert!(entry.len() <= JOURNAL_ENTRY_BYTES && text(&entry).contains("\nPRIORITY=4\n"), "{length}: {}", entry.len());
        }
    }
}
