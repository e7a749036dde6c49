//! Writing the pieces of a layer: `pack`, one file for each big member, and the entries of the index.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, IoSlice};
use std::sync::Arc;

use bytes::Bytes;
use rustix::fs::{FallocateFlags, Mode};
use rustix::io::Errno;

use super::dir::Dir;
use super::error::{StoreError, disk};
use crate::archive::{NewEntry, Output, SplitError};
use crate::failure::chain;
use crate::index::{FileFacts, IndexBuilder};
use crate::limits;
use crate::rehearsal::{self, step_on};

/// The name of the file that holds all but the big members.
pub(super) const PACK: &str = "pack";

/// The name of the file of a big member.
pub(super) fn data_name(ordinal: u32) -> String {
    format!("{ordinal}.data")
}

/// The inverse of [`data_name`].
pub(super) fn data_ordinal(name: &str) -> Option<u32> {
    name.strip_suffix(".data")?.parse().ok().filter(|ordinal| data_name(*ordinal) == name)
}

/// The mode of every file that is in its place.
pub(super) const COMMITTED: Mode = Mode::RUSR.union(Mode::RGRP).union(Mode::ROTH);

/// What `fstat` says of a file now.
pub(super) fn facts(file: &File) -> io::Result<FileFacts> {
    Ok(facts_of(&rustix::fs::fstat(file)?))
}

/// What `fstat` says of the file `name`, which gets the mode that it must have in its place, if it has another one.
pub(super) fn committed(dir: &Dir, name: &str) -> io::Result<FileFacts> {
    let open = || dir.open(name).map_err(|error| io::Error::other(chain(&error)))?.ok_or_else(|| io::Error::from(Errno::NOENT));
    let file = open()?;
    let found = facts(&file)?;
    if found.mode == COMMITTED.bits() {
        return Ok(found);
    }
    dir.step("chmod", name)?;
    rustix::fs::fchmod(&file, COMMITTED)?;
    facts(&file)
}

/// The part of a stat that must stay as it is.
pub(super) fn facts_of(stat: &rustix::fs::Stat) -> FileFacts {
    let (ctime_sec, ctime_nsec) = if rehearsal::is_timeless() { (0, 0) } else { (stat.st_ctime, stat.st_ctime_nsec) };
    FileFacts {
        size: u64::try_from(stat.st_size).unwrap_or(0),
        mode: stat.st_mode & 0o7777,
        ctime_sec,
        ctime_nsec: u32::try_from(ctime_nsec).unwrap_or(0),
    }
}

/// How space is reserved for data files before they are written.
#[derive(Debug, Clone, Copy)]
pub(super) enum Reserve {
    /// Not at all.
    Never,
    /// The whole file at once, but at most this many bytes of all files: what the descriptor leaves.
    Whole(u64),
    /// In steps, as the content comes.
    Steps,
}

/// Takes a layer's pieces from the splitter and writes them below one directory.
pub(super) struct Cut {
    dir: Arc<Dir>,
    builder: IndexBuilder,
    pack: Sink,
    data: Option<(u32, Sink)>,
    /// What is being split right now; its parts are shared, not copied.
    piece: Bytes,
    reserve: Reserve,
    /// A descriptor of each file that is whole, opened before its writer was closed; `None` if there are too many, or some were written
    /// by somebody else.
    kept: Option<Vec<File>>,
    failure: Option<StoreError>,
}

/// What is on disk when all was written.
pub(super) struct Written {
    /// Has all entries.
    pub(super) builder: IndexBuilder,
    /// The pack, read-only, with its size.
    pub(super) pack: File,
    /// See [`Cut::kept`]; the pack is among them.
    pub(super) kept: Option<Vec<File>>,
}

/// Where writing goes on: the state that was found on disk.
#[derive(Debug, Default)]
pub(super) struct Resumed {
    /// Bytes of `pack`.
    pub(super) pack: u64,
    /// The data file that is not whole, with the bytes it has and the bytes it will have.
    pub(super) data: Option<(u32, u64, u64)>,
}

impl Cut {
    /// Begins with an empty directory.
    pub(super) fn begin(dir: &Arc<Dir>, builder: IndexBuilder, reserve: Reserve) -> Result<Self, StoreError> {
        let pack = Sink::new(dir.create(PACK)?, PACK.into(), 0, 0);
        Ok(Self { dir: Arc::clone(dir), builder, pack, data: None, piece: Bytes::new(), reserve, kept: Some(Vec::new()), failure: None })
    }

    /// Goes on with what is there. Everything beyond it is cut off.
    pub(super) fn resume(dir: &Arc<Dir>, builder: IndexBuilder, reserve: Reserve, from: &Resumed) -> Result<Self, StoreError> {
        let open = |name: &str, length: u64| {
            let file = match dir.open_writable(name)? {
                Some(file) => file,
                None => dir.create(name)?,
            };
            let what = || format!("cutting {}", dir.path_of(name).display());
            dir.step("truncate", name).map_err(disk(what()))?;
            rustix::fs::ftruncate(&file, length).map_err(disk(what()))?;
            Ok(file)
        };
        let pack = Sink::new(open(PACK, from.pack)?, PACK.into(), from.pack, 0);
        let data = match from.data {
            Some((ordinal, length, size)) => {
                let name = data_name(ordinal);
                Some((ordinal, Sink::new(open(&name, length)?, name, length, size)))
            }
            None => None,
        };
        Ok(Self { dir: Arc::clone(dir), builder, pack, data, piece: Bytes::new(), reserve, kept: None, failure: None })
    }

    /// Says what the next bytes that the splitter hands over are part of.
    pub(super) fn piece(&mut self, piece: &Bytes) {
        self.piece = piece.clone();
    }

    /// Takes what made the splitter fail, if it was not the archive.
    pub(super) fn take_failure(&mut self) -> Option<StoreError> {
        self.failure.take()
    }

    /// Writes what was not written yet, so that somebody can go on from there.
    pub(super) fn flush(&mut self) -> Result<(), StoreError> {
        let what = format!("writing {}", self.dir.path().display());
        self.pack.flush().map_err(disk(what.clone()))?;
        match &mut self.data {
            Some((_, sink)) => sink.flush().map_err(disk(what)),
            None => Ok(()),
        }
    }

    /// Writes what was not written yet and closes the pack.
    pub(super) fn finish(mut self) -> Result<Written, StoreError> {
        self.piece = Bytes::new();
        self.flush()?;
        let pack = self.pack.close(&self.dir)?;
        let kept = match self.kept {
            Some(mut kept) => {
                kept.push(pack.try_clone().map_err(disk("keeping the pack open"))?);
                Some(kept)
            }
            None => None,
        };
        Ok(Written { builder: self.builder, pack, kept })
    }

    fn share(&self, bytes: &[u8]) -> Bytes {
        let inside = self.piece.as_ptr_range();
        let asked = bytes.as_ptr_range();
        if inside.start <= asked.start && asked.end <= inside.end { self.piece.slice_ref(bytes) } else { Bytes::copy_from_slice(bytes) }
    }

    /// Runs a step of writing `name` and remembers its error, which is more than the splitter can carry.
    fn note<T>(&mut self, name: &str, outcome: io::Result<T>) -> io::Result<T> {
        outcome.map_err(|error| {
            let kind = error.kind();
            self.failure = Some(disk(format!("writing {}", self.dir.path_of(name).display()))(error));
            kind.into()
        })
    }

    fn open(&mut self, ordinal: u32, size: u64) -> Result<(), StoreError> {
        let name = data_name(ordinal);
        let mut sink = Sink::new(self.dir.create(&name)?, name.clone(), 0, size);
        match &mut self.reserve {
            Reserve::Never => {}
            Reserve::Whole(left) => {
                let bytes = size.min(*left);
                *left -= bytes;
                sink.reserve(bytes).map_err(disk(format!("reserving {bytes} bytes for {}", self.dir.path_of(&name).display())))?;
            }
            Reserve::Steps => sink.steps = true,
        }
        self.data = Some((ordinal, sink));
        Ok(())
    }
}

impl Output for Cut {
    fn pack(&mut self, bytes: &[u8]) -> io::Result<()> {
        let shared = self.share(bytes);
        let outcome = self.pack.push(shared);
        self.note(PACK, outcome)
    }

    fn open_data(&mut self, ordinal: u32, size: u64) -> io::Result<()> {
        // The header before the data: what is on disk is always a beginning of the stream, so that it can be gone on from.
        let outcome = self.pack.flush();
        self.note(PACK, outcome)?;
        self.open(ordinal, size).map_err(|error| {
            self.failure = Some(error);
            io::ErrorKind::Other.into()
        })
    }

    fn data(&mut self, bytes: &[u8]) -> io::Result<()> {
        let shared = self.share(bytes);
        let Some((ordinal, sink)) = &mut self.data else { return Err(io::ErrorKind::InvalidInput.into()) };
        let name = data_name(*ordinal);
        let outcome = sink.push(shared);
        self.note(&name, outcome)
    }

    fn close_data(&mut self) -> io::Result<()> {
        let Some((_, mut sink)) = self.data.take() else { return Err(io::ErrorKind::InvalidInput.into()) };
        let outcome = sink.flush();
        self.note(&sink.name, outcome)?;
        let file = sink.close(&self.dir).map_err(|error| {
            self.failure = Some(error);
            io::Error::from(io::ErrorKind::Other)
        })?;
        match &mut self.kept {
            Some(kept) if kept.len() < limits::SYNC_DESCRIPTORS => kept.push(file),
            _ => self.kept = None,
        }
        Ok(())
    }

    fn entry(&mut self, entry: &NewEntry) -> Result<(), SplitError> {
        Ok(self.builder.add(entry)?)
    }
}

/// A file that is written from its beginning to its end, in large pieces that start at multiples of their size.
///
/// Nothing asks for write-back before the layer is whole: on two cores it took a third of the time that a reader waited, and `pull`, which waits for
/// the disk too, gained nothing by it.
#[derive(Debug)]
struct Sink {
    file: File,
    name: String,
    queue: VecDeque<Bytes>,
    queued: usize,
    written: u64,
    /// Bytes that it will have, as far as is known; 0 for the pack.
    expected: u64,
    /// Space is reserved in steps; up to here it is.
    steps: bool,
    reserved: u64,
}

/// Pieces that one call writes; Linux takes no more (`IOV_MAX`).
const VECTOR: usize = 1024;

impl Sink {
    fn new(file: File, name: String, written: u64, expected: u64) -> Self {
        Self { file, name, queue: VecDeque::new(), queued: 0, written, expected, steps: false, reserved: written }
    }

    fn push(&mut self, bytes: Bytes) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.queued += bytes.len();
        self.queue.push_back(bytes);
        loop {
            let batch = limits::WRITE_BYTES - (self.written % limits::WRITE_BYTES as u64) as usize;
            if self.queued >= batch {
                self.write(batch)?;
            } else if self.queue.len() >= VECTOR {
                self.write(self.queued)?;
            } else {
                return Ok(());
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.write(self.queued)
    }

    /// Writes the first `count` bytes of the queue.
    fn write(&mut self, mut count: usize) -> io::Result<()> {
        while count > 0 {
            if self.steps && self.written + count as u64 > self.reserved {
                let step = limits::RESERVE_STEP_BYTES.min(self.expected.saturating_sub(self.reserved));
                self.reserve(step)?;
            }
            let mut slices = [IoSlice::new(&[]); VECTOR];
            let (mut filled, mut gathered) = (0, 0);
            for (slice, bytes) in slices.iter_mut().zip(&self.queue) {
                let part = bytes.get(..bytes.len().min(count - gathered)).unwrap_or_default();
                *slice = IoSlice::new(part);
                gathered += part.len();
                filled += 1;
                if gathered == count {
                    break;
                }
            }
            self.step("write")?;
            let wrote = match rustix::io::pwritev(&self.file, slices.get(..filled).unwrap_or_default(), self.written) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(wrote) => wrote,
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            self.forget(wrote);
            self.written += wrote as u64;
            count -= wrote;
        }
        Ok(())
    }

    /// Drops the first `count` bytes of the queue.
    fn forget(&mut self, mut count: usize) {
        self.queued -= count;
        while count > 0
            && let Some(first) = self.queue.front_mut()
        {
            let part = count.min(first.len());
            let _ = first.split_to(part);
            count -= part;
            if first.is_empty() {
                self.queue.pop_front();
            }
        }
    }

    /// Reserves the next `count` bytes. The file does not get longer by it: its length says how many bytes were written.
    fn reserve(&mut self, count: u64) -> io::Result<()> {
        if count == 0 {
            return Ok(());
        }
        self.step("reserve")?;
        match rustix::fs::fallocate(&self.file, FallocateFlags::KEEP_SIZE, self.reserved, count) {
            Ok(()) => {}
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => self.steps = false,
            Err(error) => return Err(error.into()),
        }
        self.reserved += count;
        Ok(())
    }

    fn step(&self, call: &'static str) -> io::Result<()> {
        step_on(call, || if self.name == PACK { "pack" } else { "data" })
    }

    /// Makes the file what it is for ever, and opens it for reading before its last writer is gone, so that the reader hears of every
    /// write-back error.
    fn close(&mut self, dir: &Dir) -> Result<File, StoreError> {
        let what = || format!("closing {}", dir.path_of(&self.name).display());
        self.step("chmod").map_err(disk(what()))?;
        rustix::fs::fchmod(&self.file, COMMITTED).map_err(disk(what()))?;
        dir.open(&self.name)?.ok_or_else(|| disk(what())(Errno::NOENT))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn a_sink_writes_what_was_pushed() {
        let mut random = fastrand::Rng::with_seed(1);
        for (steps, most) in [(false, 3 << 20), (true, 3 << 20), (false, 700), (true, 60_000)] {
            let file = tempfile::tempfile().expect("a file");
            let mut pushed: Vec<u8> = Vec::new();
            let total = (2 << 20) + 12_345;
            let mut sink = Sink::new(file.try_clone().expect("a descriptor"), "x".into(), 0, total as u64);
            sink.steps = steps;
            while pushed.len() < total {
                let piece: Vec<u8> = (0..random.usize(0..most).min(total - pushed.len())).map(|_| random.u8(..)).collect();
                pushed.extend_from_slice(&piece);
                sink.push(Bytes::from(piece)).expect("room");
                assert!(sink.queued < limits::WRITE_BYTES && sink.queue.len() < VECTOR, "not more is held back than one write");
            }
            sink.flush().expect("room");
            assert_eq!(sink.queued, 0);
            let mut found = Vec::new();
            let mut file = file;
            io::Seek::rewind(&mut file).and_then(|()| file.read_to_end(&mut found)).expect("readable");
            assert!(found == pushed, "steps {steps}, at most {most}");
        }
    }

    #[test]
    fn data_files_are_found_by_their_names() {
        for ordinal in [0, 7, u32::MAX] {
            assert_eq!(data_ordinal(&data_name(ordinal)), Some(ordinal));
        }
        for name in ["pack", ".data", "x.data", "01.data", "+1.data", "4294967296.data", "1.data.x"] {
            assert_eq!(data_ordinal(name), None, "{name}");
        }
    }
}
