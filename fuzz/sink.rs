//! Where an archive goes that is cut: into memory, so that it can be looked at.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;

use kitfs::archive::{NewEntry, Output, Place, SplitError, Splitter};
use kitfs::digest::{Algorithm, Digest};
use kitfs::index::{FileFacts, IndexBuilder, IndexError, Stored};

/// The entries of an archive with pack and data files.
#[derive(Default, PartialEq)]
pub struct Sink {
    pub entries: Vec<NewEntry>,
    pub pack: Vec<u8>,
    pub data: BTreeMap<u32, Vec<u8>>,
    open: u32,
}

impl Sink {
    /// Cuts `stream`, which comes in pieces of so many bytes.
    pub fn cut(stream: &[u8], threshold: u64, piece: usize) -> Result<Self, SplitError> {
        let (mut sink, mut splitter) = (Self::default(), Splitter::new(threshold));
        for bytes in stream.chunks(piece) {
            splitter.write(bytes, &mut sink)?;
        }
        let split = splitter.finish(&mut sink)?;
        assert_eq!((split.stream_size, split.pack_size), (stream.len() as u64, sink.pack.len() as u64));
        Ok(sink)
    }

    /// What is in an entry.
    pub fn content(&self, entry: &NewEntry) -> &[u8] {
        match entry.place {
            Place::None => &[],
            Place::Packed { offset } => &self.pack[offset as usize..][..entry.size as usize],
            Place::Data { ordinal } => &self.data[&ordinal],
        }
    }

    /// The index of `stream`, which was cut into this, unless its entries make no tree.
    pub fn index(&self, stream: &[u8]) -> Result<(File, Digest), IndexError> {
        let mut builder = IndexBuilder::new(tempfile::tempfile().expect("a file"));
        for entry in &self.entries {
            builder.add(entry)?;
        }
        let facts = |size: usize| FileFacts { size: size as u64, mode: 0o444, ctime_sec: 0, ctime_nsec: 0 };
        let (layer, size) = (Digest::of(Algorithm::Sha256, stream), stream.len() as u64);
        let stored = Stored { layer, blob_size: size, uncompressed: Some(layer), uncompressed_size: size, pack: facts(self.pack.len()) };
        let out = tempfile::tempfile().expect("a file");
        match builder.finish(&out, &stored, &mut |ordinal| Ok(facts(self.data[&ordinal].len()))) {
            Ok(()) => Ok((out, layer)),
            Err(error) => {
                assert!(error.is_refusal(), "{error}");
                Err(error)
            }
        }
    }
}

impl Output for Sink {
    fn pack(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.pack.extend_from_slice(bytes);
        Ok(())
    }

    fn open_data(&mut self, ordinal: u32, _: u64) -> io::Result<()> {
        self.open = ordinal;
        assert!(self.data.insert(ordinal, Vec::new()).is_none());
        Ok(())
    }

    fn data(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.data.get_mut(&self.open).expect("it was opened").extend_from_slice(bytes);
        Ok(())
    }

    fn close_data(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn entry(&mut self, entry: &NewEntry) -> Result<(), SplitError> {
        self.entries.push(entry.clone());
        Ok(())
    }
}
