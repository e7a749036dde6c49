//! What stands where in a tar that is a container and not a layer: names, kinds and sizes, without the contents.
//!
//! A [`Members`] is shown the headers of an archive one by one by somebody who knows where they are (and who may seek over what lies
//! between them), and says what each begins. It reads them as a [`super::Splitter`] does; but what is no file is not refused here: whether
//! a link or a device does harm depends on its name, and that is for the caller.

use super::ExtensionKind;
use super::header::{self, BLOCK, RawHeader};
use super::pax::Extensions;
use crate::limits::{ARCHIVE_EXTENSION_BYTES, ARCHIVE_HEADERS, TAR_EXTENSION_BYTES};

/// Bytes of a header, of which contents fill a whole number.
pub const BLOCK_BYTES: usize = BLOCK;

/// Reads the headers of an archive. After an error it is of no more use.
#[derive(Debug, Default)]
pub struct Members {
    extensions: Extensions,
    /// Bytes of the extensions of the member to come.
    extension_bytes: u64,
    /// Bytes of all extensions.
    all_extension_bytes: u64,
    headers: u32,
    /// What the extension is whose content was asked for.
    pending: Option<ExtensionKind>,
    /// The last block was one of zeros.
    zero: bool,
}

/// What a header begins.
#[derive(Debug, PartialEq, Eq)]
pub enum Begins {
    /// Nothing: the first half of the end. The next block should be the other.
    Nothing,
    /// An extension of this many bytes, which [`Members::extension`] wants to see, and then its padding.
    Extension(u64),
    /// A member; its content follows, and then the padding.
    Member(Member),
    /// The end of the archive.
    End,
}

/// A member of an archive.
#[derive(Debug, PartialEq, Eq)]
pub struct Member {
    /// Its name, as it stands there.
    pub name: Vec<u8>,
    /// What it is.
    pub kind: MemberKind,
    /// Bytes of its content.
    pub size: u64,
}

/// What a member is.
#[derive(Debug, PartialEq, Eq)]
pub enum MemberKind {
    /// A regular file.
    File,
    /// A folder.
    Folder,
    /// Something else, in words.
    Other(String),
}

/// Why an archive cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum MemberError {
    /// A header is not one that can be read.
    #[error("tar header at byte {offset}: {reason}")]
    Header {
        /// Where the header begins.
        offset: u64,
        /// What is wrong.
        reason: String,
    },
    /// There are too many headers.
    #[error("the archive has more than {ARCHIVE_HEADERS} headers")]
    Headers,
    /// There is too much in extensions.
    #[error("the archive has more than {ARCHIVE_EXTENSION_BYTES} bytes of extended headers")]
    Extensions,
}

impl Members {
    /// Reads the header that stands at `offset`.
    pub fn header(&mut self, offset: u64, block: &[u8; BLOCK]) -> Result<Begins, MemberError> {
        let bad = |reason: String| MemberError::Header { offset, reason };
        if block.iter().all(|byte| *byte == 0) {
            if !self.extensions.is_empty() {
                return Err(bad("the archive ends after an extended header without its entry".into()));
            }
            return Ok(if std::mem::replace(&mut self.zero, true) { Begins::End } else { Begins::Nothing });
        }
        if self.zero {
            return Err(bad("one block of zeros stands between two entries".into()));
        }
        self.headers += 1;
        if self.headers > ARCHIVE_HEADERS {
            return Err(MemberError::Headers);
        }
        let header = RawHeader::read(block).map_err(|reason| bad(reason.into()))?;
        let kind = match header.type_flag {
            b'x' => ExtensionKind::Pax,
            b'L' => ExtensionKind::LongName,
            b'K' => ExtensionKind::LongLink,
            _ => return self.member(header).map(Begins::Member).map_err(bad),
        };
        self.extension_bytes = self.extension_bytes.saturating_add(header.size);
        self.all_extension_bytes = self.all_extension_bytes.saturating_add(header.size);
        if self.extension_bytes > TAR_EXTENSION_BYTES {
            let reason =
                format!("extended headers of one entry with {} bytes, at most {TAR_EXTENSION_BYTES} are allowed", self.extension_bytes);
            return Err(bad(reason));
        }
        if self.all_extension_bytes > ARCHIVE_EXTENSION_BYTES {
            return Err(MemberError::Extensions);
        }
        self.pending = Some(kind);
        Ok(Begins::Extension(header.size))
    }

    /// Reads the content of the extension whose header stood at `offset`.
    pub fn extension(&mut self, offset: u64, content: &[u8]) -> Result<(), MemberError> {
        let read = match self.pending.take() {
            Some(ExtensionKind::Pax) => self.extensions.read_pax(content),
            Some(ExtensionKind::LongName) => self.extensions.read_long_name(content),
            Some(ExtensionKind::LongLink) => {
                self.extensions.note();
                Ok(())
            }
            None => Ok(()),
        };
        read.map_err(|reason| MemberError::Header { offset, reason })
    }

    fn member(&mut self, header: RawHeader) -> Result<Member, String> {
        let extensions = std::mem::take(&mut self.extensions);
        self.extension_bytes = 0;
        let sparse = extensions.is_sparse();
        let size = extensions.size()?.unwrap_or(header.size);
        let name = extensions.into_name()?.unwrap_or(header.name);
        let kind = match header.type_flag {
            // Headers may follow such a one that look like content; nobody writes it any more.
            b'S' => return Err("a sparse file (type `S`)".into()),
            b'0' if !sparse => MemberKind::File,
            0 if !sparse && name.ends_with(b"/") => MemberKind::Folder,
            0 if !sparse => MemberKind::File,
            b'5' => MemberKind::Folder,
            b'0' | 0 => MemberKind::Other("a sparse file (PAX records `GNU.sparse.`)".into()),
            other => MemberKind::Other(header::describe(other)),
        };
        // These have no content, whatever their size says.
        let size = if (b'1'..=b'6').contains(&header.type_flag) { 0 } else { size };
        Ok(Member { name, kind, size })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(kind: u8, name: &str, size: u64) -> [u8; BLOCK] {
        let mut header = tar::Header::new_ustar();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_size(size);
        header.set_mode(0o644);
        // As it is: the crate's types take NUL for `0`.
        header.as_old_mut().linkflag = [kind];
        header.set_cksum();
        *header.as_bytes()
    }

    fn begins(kind: u8, name: &str, size: u64) -> Result<Begins, MemberError> {
        Members::default().header(0, &header(kind, name, size))
    }

    #[test]
    fn a_member_is_told_with_its_kind_and_the_size_of_what_follows() {
        let member = |name: &str, kind, size| Begins::Member(Member { name: name.into(), kind, size });
        assert_eq!(begins(b'0', "a", 7).expect("good"), member("a", MemberKind::File, 7));
        assert_eq!(begins(0, "a", 7).expect("good"), member("a", MemberKind::File, 7));
        assert_eq!(begins(0, "a/", 0).expect("good"), member("a/", MemberKind::Folder, 0));
        assert_eq!(begins(b'5', "a", 7).expect("good"), member("a", MemberKind::Folder, 0));
        for (kind, size) in [(b'1', 0), (b'2', 0), (b'3', 0), (b'6', 0), (b'7', 7), (b'g', 7), (b'V', 7)] {
            let Begins::Member(Member { kind: MemberKind::Other(_), size: got, .. }) = begins(kind, "a", 7).expect("good") else {
                panic!("{}", kind.escape_ascii())
            };
            assert_eq!(got, size, "{}", kind.escape_ascii());
        }
        assert!(begins(b'S', "a", 7).is_err());
    }

    #[test]
    fn an_extension_overrides_the_header_that_follows_and_no_other() {
        let mut members = Members::default();
        assert_eq!(members.header(0, &header(b'x', "pax", 25)).expect("good"), Begins::Extension(25));
        members.extension(0, b"14 path=a/b/c\n11 size=12\n").expect("good");
        let member = |name: &str, size| Begins::Member(Member { name: name.into(), kind: MemberKind::File, size });
        assert_eq!(members.header(1024, &header(b'0', "short", 3)).expect("good"), member("a/b/c", 12));
        assert_eq!(members.header(2048, &header(b'0', "short", 3)).expect("good"), member("short", 3));
    }

    #[test]
    fn what_is_no_archive_is_refused() {
        let zero = [0; BLOCK];
        let mut members = Members::default();
        assert_eq!(members.header(0, &zero).expect("half of the end"), Begins::Nothing);
        assert!(members.header(512, &header(b'0', "a", 0)).is_err(), "something between");
        let mut members = Members::default();
        assert_eq!(members.header(0, &zero).expect("half of the end"), Begins::Nothing);
        assert_eq!(members.header(512, &zero).expect("the end"), Begins::End);
        assert!(Members::default().header(0, &[b'x'; BLOCK]).is_err());
        let mut members = Members::default();
        assert!(members.header(0, &header(b'L', "long", TAR_EXTENSION_BYTES + 1)).is_err());
        let mut members = Members::default();
        members.header(0, &header(b'L', "long", 2)).expect("good");
        members.extension(0, b"a\0").expect("good");
        assert!(members.header(1024, &zero).is_err(), "an extension of nothing");
    }

    #[test]
    fn headers_and_extensions_are_counted() {
        let mut members = Members::default();
        for _ in 0..ARCHIVE_HEADERS {
            members.header(0, &header(b'5', "a", 0)).expect("as many as are allowed");
        }
        assert!(matches!(members.header(0, &header(b'5', "a", 0)), Err(MemberError::Headers)));
        let mut members = Members::default();
        let mut most = || {
            members.header(0, &header(b'L', "long", TAR_EXTENSION_BYTES))?;
            members.extension(0, b"name\0")?;
            members.header(0, &header(b'5', "a", 0))
        };
        for _ in 0..ARCHIVE_EXTENSION_BYTES / TAR_EXTENSION_BYTES {
            most().expect("as many as are allowed");
        }
        assert!(matches!(most(), Err(MemberError::Extensions)));
    }
}
