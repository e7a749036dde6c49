//! Where another reader differs from kitfs although kitfs is right: kit reads with Go's `archive/tar`, and a mount shows what kit unpacks.
//!
//! An exception does not excuse an archive. It says what the other reader must see instead, from what stands in the headers, and any other
//! difference is still one. Where Python and GNU tar agree with each other against Go, there is none but the two about the end of the
//! archive: kitfs refuses those archives.

use crate::generate::BLOCK;
use crate::readers::{Answer, Seen, Subject, Written};

/// What GNU tar says besides, and what is no error to it.
const WARNINGS: [&str; 3] =
    ["A lone zero block at", "Substituting `.' for empty member name", "Exiting with failure status due to previous errors"];

/// Everything that an answer may differ by.
pub const ALL: &[Exception] = &[
    Exception {
        name: "nothing-at-all",
        reason: "A stream without a byte is no archive for the others. For Go it is one without entries, and there is nothing to be shown.",
        reader: None,
        complaint: Some(|subject, complaint| {
            subject.bytes.is_empty()
                && (complaint == "ReadError: empty file" || complaint.contains("This does not look like a tar archive"))
        }),
        sees: None,
    },
    Exception {
        name: "last-padding-missing",
        reason: "The content of the last file is whole, only what fills its block is missing. Go takes it; what is missing would not be shown.",
        reader: None,
        complaint: Some(|subject, complaint| {
            let last = subject.ours.last().map_or(0, |last| last.size as usize);
            let missing = subject.end - subject.bytes.len().min(subject.end);
            let only_padding = missing > 0 && missing < BLOCK && subject.end - missing >= subject.end - last.next_multiple_of(BLOCK) + last;
            only_padding && (complaint.contains("unexpected end of data") || complaint.contains("Unexpected EOF in archive"))
        }),
        sees: None,
    },
    Exception {
        name: "gnu-number-complaint",
        reason: "GNU tar ends with an error after an owner, a time or a mode that is blank or does not fit its types, but reads the rest.",
        reader: Some("gnu"),
        complaint: Some(|_, complaint| {
            complaint.split("; ").all(|line| {
                let blank = line.contains("Blanks in header where numeric ");
                let large = line.contains(" is out of ") && line.contains(" range ");
                let number = ["uid_t", "gid_t", "mode_t", "time_t", "header uid=", "header gid="].iter().any(|kind| line.contains(kind));
                let empty = |key| line == format!("tar: Malformed extended header: invalid {key}=");
                number && (blank || large)
                    || ["uid", "gid", "mtime", "atime", "ctime"].into_iter().any(empty)
                    || WARNINGS.iter().any(|warning| line.contains(warning))
            })
        }),
        sees: None,
    },
    Exception {
        name: "gnu-slash-makes-folder",
        reason: "A file (type `0` or NUL) whose name ends in a slash is a folder for GNU tar. For Go it is one only if the type is NUL.",
        reader: Some("gnu"),
        complaint: None,
        sees: Some(|written, ours| {
            let only_prefix = written.path().is_none() && written.magic().starts_with(b"ustar\0") && written.field(0, 100).is_empty();
            if ours.kind == "file" && (written.name().ends_with(b"/") || only_prefix) {
                ours.kind = "folder".into();
                ours.size = 0;
                ours.content = Seen::nothing();
            }
        }),
    },
    Exception {
        name: "gnu-no-prefix",
        reason: "Where GNU has times, versions of Go before 1.8 wrote a prefix, and Go and Python still read it if it cannot be times.",
        reader: Some("gnu"),
        complaint: None,
        sees: Some(|written, ours| {
            if written.magic() == b"ustar  \0" && written.path().is_none() {
                ours.name = Seen::cleaned(written.field(0, 100));
            }
        }),
    },
    Exception {
        name: "python-prefix-everywhere",
        reason: "Python puts the prefix before the name in every format; only POSIX and old versions of Go have one there, and Go knows that.",
        reader: Some("python"),
        complaint: None,
        sees: Some(|written, ours| {
            if written.path().is_none() && !written.field(345, 155).is_empty() {
                ours.name = Seen::cleaned(&[written.field(345, 155), b"/", written.field(0, 100)].concat());
            }
        }),
    },
    Exception {
        name: "python-slash-in-the-header",
        reason: "Of type NUL, what ends in a slash is a folder. Python looks for the slash in the header although an extension has the name.",
        reader: Some("python"),
        complaint: None,
        sees: Some(|written, ours| {
            if written.header[156] == 0 && written.path().is_some() {
                let folder = written.field(0, 100).ends_with(b"/");
                ours.kind = if folder { "folder" } else { "file" }.into();
                if folder {
                    ours.size = 0;
                    ours.content = Seen::nothing();
                }
            }
        }),
    },
    Exception {
        name: "python-device-numbers",
        reason: "Python wants device numbers to be numbers in every format; before POSIX there were none, and Go and GNU tar know that.",
        reader: Some("python"),
        complaint: Some(|subject, _| subject.written.iter().any(odd_devices)),
        sees: None,
    },
];

/// A difference with its reason.
pub struct Exception {
    pub name: &'static str,
    #[expect(dead_code, reason = "it is for those who read it here")]
    pub reason: &'static str,
    /// Whose difference it is; both have it if there is none.
    pub reader: Option<&'static str>,
    /// Whether it explains that the reader refuses the archive, or ends with an error.
    pub complaint: Option<fn(&Subject, &str) -> bool>,
    /// Makes of what we see what the reader must see.
    pub sees: Option<fn(&Written, &mut Seen)>,
}

fn odd_devices(written: &Written) -> bool {
    let odd = |header: &[u8]| {
        let odd = |at: usize| {
            header[at..at + 8]
                .split(|byte| *byte == 0)
                .next()
                .is_some_and(|text| text.iter().any(|byte| !matches!(byte, b' ' | b'0'..=b'7')))
        };
        !header[257..].starts_with(b"ustar\0") && !header[257..].starts_with(b"ustar  \0") && (odd(329) || odd(337))
    };
    odd(&written.header) || written.extensions.iter().any(|(header, _)| odd(header))
}

/// The exceptions that explain why `reader` gives this answer; `None` if they do not.
pub fn explain(reader: &str, subject: &Subject, answer: &Answer) -> Option<Vec<&'static str>> {
    let mut used = Vec::new();
    let mine = || ALL.iter().filter(|exception| exception.reader.is_none_or(|of| of == reader)).filter(|_| reader != "go");
    if let Some(complaint) = &answer.complaint {
        let exception = mine().find(|exception| exception.complaint.is_some_and(|explains| explains(subject, complaint)))?;
        used.push(exception.name);
        // It stopped, and what it saw until then must be right.
        if answer.entries.is_empty() {
            return Some(used);
        }
    } else if reader == "python" && answer.entries.len() < subject.ours.len() && subject.written.iter().any(odd_devices) {
        // Python takes a header that it cannot read for the end of the archive.
        used.push("python-device-numbers");
    }
    let mut expected = subject.ours.clone();
    for exception in mine() {
        let Some(sees) = exception.sees else { continue };
        let before = expected.clone();
        for (written, entry) in subject.written.iter().zip(&mut expected) {
            sees(written, entry);
        }
        if before != expected {
            used.push(exception.name);
        }
    }
    let stopped = answer.complaint.is_some() || used.contains(&"python-device-numbers");
    let whole = expected.len() == answer.entries.len();
    let alike = |(expected, theirs): (&Seen, &Seen)| {
        // The last that it saw before it stopped may be without its content.
        expected == theirs || stopped && expected.name == theirs.name && expected.kind == theirs.kind
    };
    let alike = expected.iter().zip(&answer.entries).all(alike);
    (alike && (whole || stopped) && !used.is_empty()).then_some(used)
}
