//! What a power cut leaves of a qcow2 image: at any moment, with any part of what was not flushed, torn at sectors. There
//! are leaks at worst, and what the guest has flushed is there.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use treaty_buffers::AlignedBlock;
use treaty_storage::qcow2::{CreateOptions, Preallocation, Qcow2Image, Qcow2Options};
use treaty_storage::{Blocking, RequestKind};
use treaty_testkit::scale;
use treaty_tests::platter::Platter;
use treaty_tests::qemu_img::QemuImg;
use treaty_tests::recorder::{Event, Recorder, SECTOR};
use treaty_tests::script::{Ask, Step, run_shrinking, script};
use treaty_worker::sim::{Random, run_seeds};

/// Sectors of the guest's disk at first, and at most.
const SECTORS: u64 = 1500;
const MAX_SECTORS: u64 = 2000;

/// What happened to the guest's disk, by the mark that stands on the tape.
#[derive(Default)]
struct Story {
    acts: Vec<Act>,
}

#[derive(Clone)]
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
    /// The disk is about to have so many sectors.
    Length(u64),
    /// The disk is about to be what it may have been at another time.
    Back(Allowed),
    /// It is that now, durably.
    IsBack(Allowed),
}

/// What each sector may hold, and how many there may be. Of the last length is what a flush has made certain.
#[derive(Clone)]
struct Allowed {
    stamps: HashMap<u64, Vec<u32>>,
    lengths: Vec<u64>,
    /// Sectors of which nothing is certain.
    partly: HashSet<u64>,
}

impl Allowed {
    fn new(sectors: u64) -> Self {
        Self {
            stamps: HashMap::new(),
            lengths: vec![sectors],
            partly: HashSet::new(),
        }
    }

    fn add(&mut self, act: &Act) {
        match act {
            Act::Fill {
                first,
                count,
                stamp,
                partly,
            } => {
                for sector in *first..first + count {
                    self.stamps.entry(sector).or_insert_with(|| vec![0]).push(*stamp);
                    if *partly {
                        self.partly.insert(sector);
                    } else {
                        self.partly.remove(&sector);
                    }
                }
            }
            Act::Length(sectors) => self.lengths.push(*sectors),
            Act::Back(then) => {
                self.lengths.extend(&then.lengths);
                for sector in 0..MAX_SECTORS {
                    let others = then.stamps.get(&sector).map_or(&[0][..], |stamps| stamps);
                    self.stamps
                        .entry(sector)
                        .or_insert_with(|| vec![0])
                        .extend(others);
                }
            }
            Act::IsBack(then) => *self = then.clone(),
            Act::Ended | Act::Flushed => {}
        }
    }

    fn flushed(&mut self) {
        for (sector, stamps) in &mut self.stamps {
            if !self.partly.contains(sector) {
                stamps.drain(..stamps.len() - 1);
            }
        }
        self.lengths.drain(..self.lengths.len() - 1);
    }
}

/// What is certain, and what else may be, while the acts come in.
#[derive(Clone)]
struct Known {
    allowed: Allowed,
    settled: Allowed,
}

impl Known {
    fn new(sectors: u64) -> Self {
        Self {
            allowed: Allowed::new(sectors),
            settled: Allowed::new(sectors),
        }
    }

    fn hear(&mut self, act: &Act) {
        match act {
            Act::Ended => self.settled = self.allowed.clone(),
            Act::Flushed => {
                self.allowed = self.settled.clone();
                self.allowed.flushed();
            }
            Act::IsBack(_) => {
                self.allowed.add(act);
                self.settled = self.allowed.clone();
            }
            _ => self.allowed.add(act),
        }
    }
}

fn stamped(stamp: u32, count: u64) -> Vec<u8> {
    stamp.to_le_bytes().repeat(SECTOR / 4 * count as usize)
}

struct Guest<'a> {
    store: &'a Recorder,
    options: &'a Qcow2Options,
    story: Story,
    known: Known,
    stamp: u32,
    snapshots: Vec<(String, Allowed)>,
    most_snapshots: usize,
    version: u32,
    sectors: u64,
}

impl Guest<'_> {
    fn note(&mut self, act: Act) {
        self.store.mark(self.story.acts.len() as u64);
        self.known.hear(&act);
        self.story.acts.push(act);
    }

    fn batch(&mut self, image: &mut Blocking, asks: &[Ask]) -> Result<()> {
        let mut taken: Vec<(u64, u64)> = Vec::new();
        for (tag, ask) in (0..).zip(asks) {
            let (first, count) = ask.range(self.sectors, [1, 8, 100]);
            if taken
                .iter()
                .any(|(at, len)| *at < first + count && first < at + len)
            {
                continue;
            }
            taken.push((first, count));
            let (offset, len) = (first * SECTOR as u64, count * SECTOR as u64);
            let unmap = ask.unmap;
            let (kind, stamp, partly) = match ask.what % 8 {
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
            image.start(tag, kind, buffers);
        }
        for _ in 0..taken.len() {
            image.next_end()?.result.map_err(|error| *error)?;
        }
        self.note(Act::Ended);
        Ok(())
    }

    /// What is done to a whole image; durable when it has ended.
    fn manage(&mut self, image: &Qcow2Image, step: &Step) -> Result<()> {
        let count = self.snapshots.len();
        match step {
            Step::Create if count < self.most_snapshots => {
                let name = format!("s{}", self.story.acts.len());
                image.snapshot_create(&name)?;
                self.note(Act::Flushed);
                self.snapshots.push((name, self.known.allowed.clone()));
            }
            Step::Apply(number) if count > 0 => {
                let (name, then) = self.snapshots[*number as usize % count].clone();
                self.note(Act::Back(then.clone()));
                image.snapshot_apply(&name)?;
                self.sectors = then.lengths[0];
                self.note(Act::IsBack(then));
            }
            Step::Delete(number) if count > 0 => {
                let (name, _) = self.snapshots.remove(*number as usize % count);
                image.snapshot_delete(&name)?;
                self.note(Act::Flushed);
            }
            Step::Resize(number) => {
                let sectors = 1 + number % MAX_SECTORS;
                let allowed = count == 0 || self.version == 3 && sectors >= self.sectors;
                if !allowed {
                    return Ok(());
                }
                self.note(Act::Length(sectors));
                if sectors < self.sectors {
                    self.note(Act::Fill {
                        first: sectors,
                        count: self.sectors - sectors,
                        stamp: 0,
                        partly: false,
                    });
                }
                image.resize(sectors * SECTOR as u64, Preallocation::Off)?;
                self.sectors = sectors;
                self.note(Act::Ended);
                self.note(Act::Flushed);
            }
            _ => {}
        }
        Ok(())
    }

    fn open(&self) -> Result<Arc<Qcow2Image>> {
        let store = Arc::new(self.store.clone());
        Ok(Arc::new(Qcow2Image::over(store, self.options, false)?))
    }
}

/// A guest's work on an image, recorded.
fn record(create: &CreateOptions, store: &Recorder, options: &Qcow2Options, steps: &[Step]) -> Result<Story> {
    let sectors = create.size.unwrap_or(0) / SECTOR as u64;
    let mut guest = Guest {
        store,
        options,
        story: Story::default(),
        known: Known::new(sectors),
        stamp: 0,
        snapshots: Vec::new(),
        // While one is applied, a cluster has a reference more than there are snapshots and disks.
        most_snapshots: if create.refcount_bits == 2 { 1 } else { 3 },
        version: create.version,
        sectors,
    };
    let mut blocking = Blocking::new(guest.open()?)?;
    for step in steps {
        match step {
            Step::Batch(asks) => guest.batch(&mut blocking, asks)?,
            Step::Flush => {
                blocking.flush()?;
                guest.note(Act::Flushed);
            }
            _ => {
                drop(blocking);
                guest.manage(&*guest.open()?, step)?;
                blocking = Blocking::new(guest.open()?)?;
            }
        }
    }
    Ok(guest.story)
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
    let mut disk = vec![0; blocking.capabilities().len as usize];
    let sectors = (disk.len() / SECTOR) as u64;
    ensure!(
        allowed.lengths.contains(&sectors),
        "{sectors} sectors, not one of {:?}",
        allowed.lengths
    );
    blocking.read_at(0, &mut disk)?;
    for (sector, bytes) in disk.chunks(SECTOR).enumerate() {
        let stamp = u32::from_le_bytes(bytes[..4].try_into()?);
        ensure!(bytes == stamped(stamp, 1), "sector {sector} is torn");
        let known = allowed.stamps.get(&(sector as u64));
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

/// Plays a script and cuts the tape at so many places. Answers how many there were.
fn scenario(seed: u64, steps: &[Step], cuts: u64, qemu: Option<&QemuImg>) -> Result<u64> {
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
    let story = record(&create, &store, &options, steps).with_context(|| format!("{create:?}"))?;
    let events = store.tape().events.clone();
    let mut random = Random::new(seed ^ 0xcafe);
    let mut platter = Platter::new(start);
    let mut known = Known::new(SECTORS);
    let mut done = 0;
    for (number, event) in events.iter().enumerate() {
        platter.play(event);
        if let Event::Mark(index) = event {
            known.hear(&story.acts[*index as usize]);
        }
        if random.below(events.len() as u64) >= cuts {
            continue;
        }
        let bytes = platter.cut(&mut random);
        if let Err(error) = inspect(bytes.clone(), &known.allowed, &options) {
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
    run_seeds(scale(8, 300), |seed| {
        let judge = qemu.get(seed as usize % qemu.len().max(1));
        let steps = script(&mut Random::new(seed), 36, 6);
        match run_shrinking(&steps, |steps| scenario(seed, steps, scale(40, 100), judge)) {
            Ok(cuts) => total.set(total.get() + cuts),
            Err(error) => panic!("{error:?}"),
        }
    });
    println!("{} cuts", total.get());
}
