use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use treaty_buffers::AlignedBlock;
use treaty_storage::BlockImage;
use treaty_storage::qcow2::Qcow2Image;

use crate::layout::{Action, Cuts, Piece, Pieces};
use crate::zero::{Run, runs};
use crate::{Access, Progress, ToolError};

/// A piece is read, looked at and written while it is in a core's cache.
const PIECE_BYTES: u64 = 256 << 10;

/// Longest range that is zeroed at once, in bytes, so that progress is seen.
const ZERO_BYTES: u64 = 1 << 30;

/// Sectors are what an unreadable piece is read in, in bytes.
const SECTOR: usize = 512;

/// Unreadable places that are reported one by one.
const MAX_REPORTS: usize = 1000;

/// A copy of whole images.
#[derive(Clone)]
pub struct Conversion {
    /// Threads that copy; at least 1.
    pub threads: usize,
    /// So many zero bytes in a row (a multiple of 512) are left out; 0: everything is written.
    pub sparse_bytes: usize,
    /// The target reads as zeroes where nothing is written.
    pub target_is_zero: bool,
    /// The target has a backing file of that length, with the same contents as that of the source: what the source does
    /// not have of its own is left to it.
    pub backing_len: Option<u64>,
    /// The target, if its clusters are to be compressed. It has nothing of its own yet.
    pub compress: Option<Qcow2Image>,
    /// What cannot be read is taken for zeroes.
    pub salvage: bool,
    /// Bytes that a second may take at most; 0: as many as there are.
    pub bytes_per_second: u64,
    /// Make everything durable at the end.
    pub flush: bool,
}

/// What a copy came to.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Copied {
    /// Bytes written as data.
    pub data_bytes: u64,
    /// Bytes that are zeroes, or were left to a backing file.
    pub other_bytes: u64,
    /// What could not be read: where, and why. Not all of them, if there are very many.
    pub unreadable: Vec<(u64, String)>,
}

/// What has become of a piece.
enum Said {
    /// It is copied.
    Done,
    /// It is to be written like this, by one thread at a time.
    Packed(Vec<u8>),
}

/// What is left to do: each thread takes the next piece when it has done one, so that none waits for another.
struct Rest<'a> {
    pieces: Pieces<'a>,
    /// Some thread has failed, or there is nothing more.
    over: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Copies `sources`, one behind the other, to `target`, which is at least as long as all of them.
pub fn convert(
    sources: &[Arc<dyn BlockImage>],
    target: &Arc<dyn BlockImage>,
    job: &Conversion,
    progress: &Progress,
) -> Result<Copied, ToolError> {
    let total: u64 = sources.iter().map(|source| source.capabilities().len).sum();
    if target.capabilities().len < total {
        return Err(ToolError::Asked(
            "the target is smaller than what is to be copied".into(),
        ));
    }
    progress.expect(total);
    let piece_len = job
        .compress
        .as_ref()
        .map_or(PIECE_BYTES, Qcow2Image::cluster_size);
    let pieces = Pieces::new(
        sources,
        Cuts {
            piece_len,
            whole: job.compress.is_some(),
            backing_len: job.backing_len,
        },
    )?;
    let work = Work {
        job,
        progress,
        piece_len,
        started: Instant::now(),
        rest: Mutex::new(Rest { pieces, over: false }),
        packing: Mutex::new(()),
    };
    let parts: Vec<Result<Copied, ToolError>> = std::thread::scope(|scope| {
        let others: Vec<_> = (1..job.threads)
            .map(|_| scope.spawn(|| work.run(sources, target)))
            .collect();
        let mine = work.run(sources, target);
        let theirs = others.into_iter().map(|other| {
            other
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        std::iter::once(mine).chain(theirs).collect()
    });
    let mut all = Copied::default();
    for part in parts {
        let part = part?;
        all.data_bytes += part.data_bytes;
        all.other_bytes += part.other_bytes;
        all.unreadable.extend(part.unreadable);
    }
    all.unreadable.sort();
    if job.flush {
        Access::new(target)?.flush()?;
    }
    Ok(all)
}

/// What the threads of a copy share.
struct Work<'a> {
    job: &'a Conversion,
    progress: &'a Progress,
    piece_len: u64,
    started: Instant,
    rest: Mutex<Rest<'a>>,
    /// Compressed clusters are put behind each other: one at a time.
    packing: Mutex<()>,
}

impl Work<'_> {
    /// One thread's part. If it fails, the others end as well.
    fn run(
        &self,
        sources: &[Arc<dyn BlockImage>],
        target: &Arc<dyn BlockImage>,
    ) -> Result<Copied, ToolError> {
        let end = self.pieces(sources, target);
        if end.is_err() {
            lock(&self.rest).over = true;
        }
        end
    }

    fn pieces(
        &self,
        sources: &[Arc<dyn BlockImage>],
        target: &Arc<dyn BlockImage>,
    ) -> Result<Copied, ToolError> {
        let mut copier = Copier::new(self.job, sources, target, self.piece_len, self.progress)?;
        while let Some(piece) = self.next()? {
            match copier.piece(&piece)? {
                Said::Done => {}
                Said::Packed(packed) => self.write_packed(&piece, packed)?,
            }
        }
        Ok(copier.copied)
    }

    /// The next piece, as soon as the rate allows.
    fn next(&self) -> Result<Option<Piece>, ToolError> {
        let mut rest = lock(&self.rest);
        hold_back(self.job.bytes_per_second, self.progress, self.started);
        if rest.over {
            return Ok(None);
        }
        let piece = rest.pieces.next()?;
        rest.over = piece.is_none();
        Ok(piece)
    }

    fn write_packed(&self, piece: &Piece, packed: Vec<u8>) -> Result<(), ToolError> {
        let Some(image) = &self.job.compress else {
            return Ok(());
        };
        let _one = lock(&self.packing);
        image
            .write_packed(piece.offset, packed)
            .map_err(|source| ToolError::Write {
                offset: piece.offset,
                source: Box::new(source),
            })
    }
}

/// Sleeps as long as more was done than the rate allows.
fn hold_back(bytes_per_second: u64, progress: &Progress, started: Instant) {
    if bytes_per_second == 0 {
        return;
    }
    let due = progress.get().0 as f64 / bytes_per_second as f64;
    let ahead = due - started.elapsed().as_secs_f64();
    if ahead > 0.0 {
        std::thread::sleep(std::time::Duration::from_secs_f64(ahead));
    }
}

/// Ways into the sources, each with where it begins.
fn opened(sources: &[Arc<dyn BlockImage>]) -> Result<Vec<(u64, Access)>, ToolError> {
    let mut base = 0;
    let mut found = Vec::new();
    for source in sources {
        found.push((base, Access::new(source)?));
        base += source.capabilities().len;
    }
    Ok(found)
}

/// One thread's part.
struct Copier<'a> {
    job: &'a Conversion,
    progress: &'a Progress,
    sources: Vec<(u64, Access)>,
    target: Access,
    block: AlignedBlock,
    runs: Vec<Run>,
    copied: Copied,
}

impl<'a> Copier<'a> {
    fn new(
        job: &'a Conversion,
        sources: &[Arc<dyn BlockImage>],
        target: &Arc<dyn BlockImage>,
        piece_len: u64,
        progress: &'a Progress,
    ) -> Result<Self, ToolError> {
        Ok(Self {
            job,
            progress,
            sources: opened(sources)?,
            target: Access::new(target)?,
            block: AlignedBlock::new(piece_len.max(PIECE_BYTES) as usize, 4096),
            runs: Vec::new(),
            copied: Copied::default(),
        })
    }

    fn piece(&mut self, piece: &Piece) -> Result<Said, ToolError> {
        let said = match piece.action {
            Action::Leave => {
                self.copied.other_bytes += piece.len;
                Said::Done
            }
            Action::Zero if self.job.sparse_bytes == 0 => return self.fill(piece),
            Action::Zero => return self.zero(piece),
            Action::Copy => self.copy(piece)?,
        };
        self.progress.advance(piece.len);
        Ok(said)
    }

    /// Zeroes a range of the target.
    fn zero(&mut self, piece: &Piece) -> Result<Said, ToolError> {
        let mut done = 0;
        while done < piece.len {
            let part = (piece.len - done).min(ZERO_BYTES);
            if self.must_zero() {
                self.target.write_zeroes(piece.offset + done, part)?;
            }
            self.progress.advance(part);
            done += part;
        }
        self.copied.other_bytes += piece.len;
        Ok(Said::Done)
    }

    /// True unless zeroes are what the target has where nothing is written.
    fn must_zero(&self) -> bool {
        !self.job.target_is_zero || self.job.backing_len.is_some()
    }

    /// Writes zeroes as data.
    fn fill(&mut self, piece: &Piece) -> Result<Said, ToolError> {
        self.block.buffers().fill(0);
        let mut done = 0;
        while done < piece.len {
            let len = (piece.len - done).min(PIECE_BYTES);
            self.target
                .write(piece.offset + done, &self.block, 0, len as usize)?;
            self.progress.advance(len);
            done += len;
        }
        self.copied.data_bytes += piece.len;
        Ok(Said::Done)
    }

    fn copy(&mut self, piece: &Piece) -> Result<Said, ToolError> {
        let len = piece.len as usize;
        self.read(piece, len)?;
        let unit = self.job.sparse_bytes;
        let mut found = std::mem::take(&mut self.runs);
        match self.block.bytes() {
            Some(bytes) => runs(&bytes[..len], piece.offset, unit, &mut found),
            None => return Err(ToolError::Asked("a buffer is still in use".into())),
        }
        let only_zeroes = found.iter().all(|run| run.zero);
        if let Some(image) = self.job.compress.as_ref().filter(|_| !only_zeroes)
            && let Some(packed) = self.pack(image, piece)
        {
            self.copied.data_bytes += piece.len;
            self.runs = found;
            return Ok(Said::Packed(packed));
        }
        for run in &found {
            let to = piece.offset + run.start as u64;
            if !run.zero {
                self.target.write(to, &self.block, run.start, run.len)?;
                self.copied.data_bytes += run.len as u64;
                continue;
            }
            if self.must_zero() {
                self.target.write_zeroes(to, run.len as u64)?;
            }
            self.copied.other_bytes += run.len as u64;
        }
        self.runs = found;
        Ok(Said::Done)
    }

    /// Compresses a piece, which is a cluster; `None` if that makes it no smaller.
    fn pack(&mut self, image: &Qcow2Image, piece: &Piece) -> Option<Vec<u8>> {
        let (len, cluster) = (piece.len as usize, image.cluster_size() as usize);
        let bytes = self.block.bytes()?;
        // The disk may end inside its last cluster.
        bytes[len..cluster].fill(0);
        image.pack(&bytes[..cluster])
    }

    /// Reads a piece from the source or the sources that have it.
    fn read(&mut self, piece: &Piece, len: usize) -> Result<(), ToolError> {
        let mut done = 0;
        for (base, source) in &mut self.sources {
            let end = *base + source.capabilities().len;
            let at = piece.offset + done as u64;
            if at < *base || at >= end || done == len {
                continue;
            }
            let part = (len - done).min((end - at) as usize);
            let result = source.read_part(at - *base, &self.block, done, part);
            match result {
                Err(ToolError::Read { .. }) if self.job.salvage => {
                    salvage(source, at - *base, &self.block, done, part, &mut self.copied);
                }
                result => result?,
            }
            done += part;
        }
        Ok(())
    }
}

/// Reads a range a sector at a time: what cannot be read is zeroes.
fn salvage(
    source: &mut Access,
    from: u64,
    block: &AlignedBlock,
    start: usize,
    len: usize,
    copied: &mut Copied,
) {
    let small = AlignedBlock::new(SECTOR, 4096);
    for at in (0..len).step_by(SECTOR) {
        let offset = from + at as u64;
        let sector = SECTOR.min(len - at);
        if let Err(error) = source.read_part(offset, &small, 0, sector) {
            small.buffers().fill(0);
            if copied.unreadable.len() < MAX_REPORTS {
                copied.unreadable.push((offset, error.to_string()));
            }
        }
        if let Some(mut place) = block.buffers().slice(start + at, sector) {
            small.buffers().copy_to_buffers(&mut place);
        }
    }
}
