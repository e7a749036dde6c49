//! The one place that speaks to people of errors: what happened, why, and what to do next.
//!
//! Whatever comes from a registry, an archive or a file's name is escaped here, and in the same way by those commands that print such
//! text on purpose ([`escaped`]).

use std::error::Error;
use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

use super::CliError;
use crate::failure::{inert, inert_json};

/// How a command ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Exit {
    /// Done.
    Done = 0,
    /// Network, disk, permission, already mounted.
    Failed = 1,
    /// The command line is wrong.
    Usage = 2,
    /// A policy refuses it.
    Refused = 3,
    /// The content is not what its digest says, or not a kit that may be shown.
    Content = 4,
    /// No such reference, or not allowed to read it.
    Missing = 5,
    /// A worker makes room for another one; see [`crate::worker::GAVE_WAY`].
    GaveWay = crate::worker::GAVE_WAY as isize,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Characters of one message that are shown. What a registry says is bounded elsewhere too; this keeps a screen readable.
const SHOWN: usize = 2_000;

/// Tells of an error with its causes and hints, and says how the command ends for it.
pub(crate) fn error(error: &CliError) -> Exit {
    let style = Style::of_stderr();
    let mut text = style.paint("31", "error: ") + &escaped(&error.to_string());
    let mut cause = error.source();
    while let Some(source) = cause {
        // Writing into a String cannot fail.
        _ = write!(text, "\n  {}{}", style.paint("31", "because: "), escaped(&source.to_string()));
        cause = source.source();
    }
    for detail in error.details() {
        _ = write!(text, "\n  {}", escaped(&detail));
    }
    for hint in error.hints() {
        _ = write!(text, "\n{}{}", style.paint("36", "hint: "), escaped(&hint));
    }
    say(&text);
    error.exit()
}

/// Tells of something that is no error, but that the user has to know.
pub(crate) fn warning(text: &str) {
    say(&(Style::of_stderr().paint("33", "warning: ") + &escaped(text)));
}

/// Tells something by the way.
pub(crate) fn note(text: &str) {
    say(&escaped(text));
}

/// Passes on what another process of kitfs has said, which has escaped it.
pub(crate) fn line(text: &str) {
    say(text);
}

/// So many layers.
pub(super) fn counted(layers: u64) -> String {
    format!("{layers} {}", if layers == 1 { "layer" } else { "layers" })
}

/// Whether stderr is a terminal on which lines can be written over.
pub(crate) fn is_screen() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Writes a line to stderr. If nobody listens there is nobody to tell.
fn say(text: &str) {
    _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// `text` as a terminal may see it.
pub(crate) fn escaped(text: &str) -> String {
    inert(text, SHOWN)
}

/// `value` as JSON for other programs, with the same characters escaped as JSON escapes them.
pub(crate) fn json<T: serde::Serialize>(value: &T) -> Result<String, serde_json::Error> {
    let mut shown = inert_json(&serde_json::to_string_pretty(value)?);
    shown.push('\n');
    Ok(shown)
}

/// Whether and how colours are used.
#[derive(Debug, Clone, Copy)]
struct Style(bool);

impl Style {
    fn of_stderr() -> Self {
        let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        Self(is_screen() && !set("NO_COLOR"))
    }

    fn paint(self, colour: &str, text: &str) -> String {
        if self.0 { format!("\u{1b}[1;{colour}m{text}\u{1b}[0m") } else { text.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_terminal_acts_on_gets_through() {
        for (text, shown) in [
            ("plain é 山 \\ 'x'", "plain é 山 \\ 'x'"),
            ("a\u{1b}[31mb", "a\\u{1b}[31mb"),
            ("a\nb\r\tc\0", "a\\nb\\r\\tc\\u{0}"),
            ("\u{9b}31m\u{7f}", "\\u{9b}31m\\u{7f}"),
            ("\u{202e}txt.exe\u{2066}\u{200f}", "\\u{202e}txt.exe\\u{2066}\\u{200f}"),
            ("\u{2028}\u{feff}\u{e0041}", "\\u{2028}\\u{feff}\\u{e0041}"),
        ] {
            assert_eq!(escaped(text), shown);
        }
        assert_eq!(escaped(&"x".repeat(SHOWN + 7)).chars().count(), SHOWN + 1);
    }

    #[test]
    fn json_stays_json_and_shows_nothing_active() {
        let text = "a\u{1b}[31m\n\u{202e}\u{9b}\u{e0041}é";
        let json = json(&[text]).expect("plain data");
        assert_eq!(json, "[\n  \"a\\u001b[31m\\n\\u202e\\u009b\\udb40\\udc41é\"\n]\n");
        assert_eq!(serde_json::from_str::<[String; 1]>(&json).expect("JSON"), [text]);
    }
}
