//! What a power cut leaves of a qcow2 image: at any moment, with any part of what was not flushed, torn at sectors. There
//! are leaks at worst, and what the guest has flushed is there.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use treaty_buffers::AlignedBlock;
use treaty_storage::qcow2::{CreateOptions, Qcow2Image, Qcow2Options};
use treaty_storage::{Blocking, RequestKind};
use treaty_testkit::scale;
use treaty_tests::qemu_img::QemuImg;
use treaty_tests::recorder::{Event, Recorder, SECTOR, Written, put};
use treaty_worker::sim::{Random, run_seeds};

/// Sectors of the guest's disk.
const SECTORS: u64 = 1500;

/// What happened to the guest's disk, by the mark that stands on the tape.
#[derive(Default)]
struct Story {
    acts: Vec<Act>,
}

enum Act {
    /// Sectors are about to get this stamp (0 is zeroes), perhaps not all of them (a discard).
    Fill {
        first: u64,
        count: u64,
        stamp: u32,
        partly: bool,
    },
    /// The requests up to this act have ended.
    Ended,
    /// All requests before that end have ended, and a flush that began afterwards has.
    Flushed,
}

/// What each sector may hold.
#[derive(Clone, Default)]
struct Allowed(HashMap<u64, Vec<u32>>);

impl Allowed {
    fn fill(&mut self, act: &Act) {
        if let Act::Fill {
            first, count, stamp, ..
        } = act
        {
            for sector in *first..first + count {
                self.0.entry(sector).or_insert_with(|| vec![0]).push(*stamp);
            }
        }
    }

    fn flushed(&mut self, partly: &HashSet<u64>) {
        for (sector, stamps) in &mut self.0 {
            if !partly.contains(sector) {
                stamps.drain(..stamps.len() - 1);
            }
        }
    }
}

fn stamped(stamp: u32, count: u64) -> Vec<u8> {
    stamp.to_le_bytes().repeat(SECTOR / 4 * count as usize)
}

struct Guest<'a> {
    random: Random,
    store: &'a Recorder,
    story: Story,
    stamp: u32,
}

impl Guest<'_> {
    fn note(&mut self, act: Act) {
        self.store.mark(self.story.acts.len() as u64);
        self.story.acts.push(act);
    }

    fn batch(&mut self, image: &mut Blocking) -> Result<()> {
        let mut taken: Vec<(u64, u64)> = Vec::new();
        for tag in 0..1 + self.random.below(6) {
            let first = self.random.below(SECTORS);
            let longest = [1, 8, 100][self.random.below(3) as usize];
            let count = 1 + self.random.below(longest.min(SECTORS - first));
            if taken
                .iter()
                .any(|(at, len)| *at < first + count && first < at + len)
            {
                continue;
            }
            taken.push((first, count));
            let (offset, len) = (first * SECTOR as u64, count * SECTOR as u64);
            let unmap = self.random.chance(500);
            let (kind, stamp, partly) = match self.random.below(8) {
                0 => (RequestKind::WriteZeroes { offset, len, unmap }, 0, false),
                1 => (RequestKind::Discard { offset, len }, 0, true),
                _ => {
                    self.stamp += 1;
                    let durable = false;
                    (RequestKind::Write { offset, durable }, self.stamp, false)
                }
            };
            let mut buffers = Default::default();
            if matches!(kind, RequestKind::Write { .. }) {
                let block = AlignedBlock::new(len as usize, 4096);
                buffers = block.buffers();
                buffers.copy_from(&stamped(stamp, count));
            }
            self.note(Act::Fill {
                first,
                count,
                stamp,
                partly,
            });
            image.start(tag as u32, kind, buffers);
        }
        for _ in 0..taken.len() {
            image.next_end()?.result.map_err(|error| *error)?;
        }
        self.note(Act::Ended);
        Ok(())
    }
}

/// A guest's work on an image, recorded.
fn record(seed: u64, store: &Recorder, options: &Qcow2Options) -> Result<Story> {
    let mut guest = Guest {
        random: Random::new(seed),
        store,
        story: Story::default(),
        stamp: 0,
    };
    for _ in 0..3 {
        let image = Arc::new(Qcow2Image::over(Arc::new(store.clone()), options, false)?);
        if guest.random.chance(300) {
            let count = image.snapshots()?.len() as u64;
            match guest.random.below(2) {
                0 if count > 0 => image.snapshot_delete(&image.snapshots()?[0].id)?,
                _ => image.snapshot_create("kept")?,
            }
        }
        let mut blocking = Blocking::new(image)?;
        for _ in 0..12 {
            guest.batch(&mut blocking)?;
            if guest.random.chance(300) {
                blocking.flush()?;
                guest.note(Act::Flushed);
            }
        }
    }
    Ok(guest.story)
}

/// The state of the disk while the tape plays.
#[derive(Default)]
struct Platter {
    durable: Vec<u8>,
    /// Handed over and not certainly on the disk, oldest first, and whether it was said to be done.
    volatile: Vec<(usize, u64, Vec<u8>, bool)>,
    /// What a flush under way will make durable.
    flushes: HashMap<usize, Vec<usize>>,
}

impl Platter {
    fn play(&mut self, event: &Event) {
        match event {
            Event::Write(id, Written { offset, bytes }) => {
                self.volatile.push((*id, *offset, bytes.clone(), false))
            }
            Event::Done(id) => {
                for write in self.volatile.iter_mut().filter(|write| write.0 == *id) {
                    write.3 = true;
                }
            }
            Event::Flush(id) => {
                let done = self
                    .volatile
                    .iter()
                    .filter(|write| write.3)
                    .map(|write| write.0)
                    .collect();
                self.flushes.insert(*id, done);
            }
            Event::Flushed(id) => {
                let done: HashSet<usize> = self.flushes.remove(id).unwrap_or_default().into_iter().collect();
                for (id, offset, bytes, _) in &self.volatile {
                    if done.contains(id) {
                        put(&mut self.durable, *offset, bytes);
                    }
                }
                self.volatile.retain(|write| !done.contains(&write.0));
            }
            Event::Mark(_) => {}
        }
    }

    /// What might be there after a cut now. Of every sector that was handed over any version may be there, or none.
    fn cut(&self, random: &mut Random) -> Vec<u8> {
        let mut image = self.durable.clone();
        let style = random.below(5);
        let only = random.below(self.volatile.len().max(1) as u64) as usize;
        for (index, (_, offset, bytes, _)) in self.volatile.iter().enumerate() {
            let whole = match style {
                0 => true,
                1 => index == only,
                2 => index != only,
                3 => random.chance(500),
                _ => {
                    for (number, sector) in bytes.chunks(SECTOR).enumerate() {
                        if random.chance(500) {
                            put(&mut image, offset + (number * SECTOR) as u64, sector);
                        }
                    }
                    continue;
                }
            };
            if whole {
                put(&mut image, *offset, bytes);
            }
        }
        image
    }
}

/// Looks at an image after a cut.
fn inspect(bytes: Vec<u8>, allowed: &Allowed, options: &Qcow2Options) -> Result<()> {
    let store = Arc::new(Recorder::silent(bytes.clone()));
    let image = Arc::new(Qcow2Image::over(store, options, true)?);
    let dirty = image.info()?.dirty;
    let report = image.check(None)?;
    ensure!(dirty || report.corruptions == 0, "{:?}", report.told);
    ensure!(
        report.told.iter().all(|text| text.contains("refcount")),
        "{:?}",
        report.told
    );
    let mut blocking = Blocking::new(image)?;
    let mut disk = vec![0; (SECTORS as usize) * SECTOR];
    blocking.read_at(0, &mut disk)?;
    for (sector, bytes) in disk.chunks(SECTOR).enumerate() {
        let stamp = u32::from_le_bytes(bytes[..4].try_into()?);
        ensure!(bytes == stamped(stamp, 1), "sector {sector} is torn");
        let known = allowed.0.get(&(sector as u64));
        let fine = known.map_or(stamp == 0, |stamps| stamps.contains(&stamp));
        ensure!(fine, "sector {sector} has stamp {stamp}, not one of {known:?}");
    }
    drop(blocking);
    if dirty {
        reopened(bytes, options, &disk)
    } else {
        Ok(())
    }
}

/// Late refcounts are counted anew when somebody wants to write.
fn reopened(bytes: Vec<u8>, options: &Qcow2Options, disk: &[u8]) -> Result<()> {
    let image = Arc::new(Qcow2Image::over(
        Arc::new(Recorder::silent(bytes)),
        options,
        false,
    )?);
    let mut blocking = Blocking::new(image.clone())?;
    let mut found = vec![0; disk.len()];
    blocking.write_at(0, disk)?;
    blocking.read_at(0, &mut found)?;
    ensure!(found == disk, "a repair changed the disk");
    drop(blocking);
    let report = image.check(None)?;
    ensure!(
        report.corruptions == 0 && report.leaks == 0,
        "after a repair: {report:?}"
    );
    Ok(())
}

fn kind(seed: u64) -> CreateOptions {
    let random = &mut Random::new(seed ^ 0xc07);
    let mut options = CreateOptions::new("", Some(SECTORS * SECTOR as u64));
    options.cluster_size = [512, 1024, 4096, 4096, 16384, 65536][random.below(6) as usize];
    options.refcount_bits = 1 << (1 + random.below(6));
    match random.below(5) {
        0 => (options.version, options.refcount_bits) = (2, 16),
        1 => options.lazy_refcounts = true,
        2 => {
            options.cluster_size = options.cluster_size.max(16384);
            options.extended_l2 = true;
        }
        _ => {}
    }
    options
}

/// Plays a tape and cuts it at so many places. Answers how many there were.
fn scenario(seed: u64, cuts: u64, qemu: Option<&QemuImg>) -> Result<u64> {
    let folder = tempfile::tempdir()?;
    let create = CreateOptions {
        path: folder.path().join("new"),
        ..kind(seed)
    };
    Qcow2Image::create(&create)?;
    let start = std::fs::read(&create.path)?;
    let options = Qcow2Options {
        cache_bytes: 1 << 15,
        ..Qcow2Options::default()
    };
    let store = Recorder::new(start.clone(), seed);
    let story = record(seed, &store, &options).with_context(|| format!("{create:?}"))?;
    let events = store.tape().events.clone();
    let mut random = Random::new(seed ^ 0xcafe);
    let mut platter = Platter {
        durable: start,
        ..Platter::default()
    };
    let (mut allowed, mut settled, mut partly) = (Allowed::default(), Allowed::default(), HashSet::new());
    let mut done = 0;
    for (number, event) in events.iter().enumerate() {
        platter.play(event);
        if let Event::Mark(index) = event {
            let act = &story.acts[*index as usize];
            match act {
                Act::Fill {
                    first,
                    count,
                    partly: some,
                    ..
                } => {
                    allowed.fill(act);
                    for sector in *first..first + count {
                        if *some {
                            partly.insert(sector);
                        } else {
                            partly.remove(&sector);
                        }
                    }
                }
                Act::Ended => settled = allowed.clone(),
                Act::Flushed => {
                    allowed = settled.clone();
                    allowed.flushed(&partly);
                }
            }
        }
        if random.below(events.len() as u64) >= cuts {
            continue;
        }
        let bytes = platter.cut(&mut random);
        if let Err(error) = inspect(bytes.clone(), &allowed, &options) {
            bail!(
                "cut after event {number} of {}, {create:?}: {error:?}",
                events.len()
            );
        }
        done += 1;
        if let Some(qemu) = qemu.filter(|_| done % 16 == 1) {
            judged(qemu, folder.path(), &bytes)?;
        }
    }
    Ok(done)
}

/// QEMU finds leaks, or nothing. Marks that are missing or wrong for clusters that have leaked cost nothing.
fn judged(qemu: &QemuImg, folder: &std::path::Path, bytes: &[u8]) -> Result<()> {
    let path = folder.join("cut");
    std::fs::write(&path, bytes)?;
    let output = qemu.output("qemu-img", &["check", "-f", "qcow2", &path.display().to_string()])?;
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    let bad = text
        .lines()
        .find(|line| line.starts_with("ERROR") && !line.contains("OFLAG_COPIED"));
    let lazy = text.contains("dirty")
        || Qcow2Image::over(
            Arc::new(Recorder::silent(bytes.to_vec())),
            &Qcow2Options::default(),
            true,
        )?
        .info()?
        .dirty;
    ensure!(bad.is_none() || lazy, "QEMU {}: {text}", qemu.version);
    Ok(())
}

#[test]
fn a_cut_at_any_moment_leaks_at_worst_and_loses_nothing_that_was_flushed() {
    let qemu = QemuImg::all();
    let total = std::cell::Cell::new(0);
    run_seeds(scale(8, 250), |seed| {
        let judge = qemu.get(seed as usize % qemu.len().max(1));
        match scenario(seed, scale(40, 100), judge) {
            Ok(cuts) => total.set(total.get() + cuts),
            Err(error) => panic!("{error:?}"),
        }
    });
    println!("{} cuts", total.get());
}
