//! Random requests, snapshots and resizes against a model in memory, with qemu-img as the judge of the image.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use treaty_buffers::AlignedBlock;
use treaty_image_tool::Progress;
use treaty_storage::qcow2::{Backing, CreateOptions, Preallocation, Qcow2Image, Qcow2Options};
use treaty_storage::{BlockImage, Blocking, Format, OpenOptions, RequestKind, open};
use treaty_testkit::scale;
use treaty_tests::qemu_img::QemuImg;
use treaty_tests::script::{Ask, Step, run_shrinking, script};
use treaty_worker::sim::{Random, run_seeds};

const SECTOR: u64 = 512;

/// One file of the chain, apart from what it holds.
struct Layer {
    path: PathBuf,
    cluster: u64,
    version: u32,
    snapshots: Vec<(String, Vec<u8>)>,
    /// Refcounts are wide enough for snapshots.
    countable: bool,
}

/// What the disk should be, and each snapshot of each file of its chain.
struct Model {
    bytes: Vec<u8>,
    /// The last is the disk.
    layers: Vec<Layer>,
    /// The first of them has a raw backing file.
    based: bool,
    stamp: u8,
    asked: u64,
}

struct Run<'a> {
    model: Model,
    cache_bytes: u64,
    folder: &'a Path,
    qemu: &'a QemuImg,
}

/// The image as it is open.
struct Disk {
    image: Arc<Qcow2Image>,
    blocking: Blocking,
}

/// A request of a batch: what it does to which bytes.
enum Change {
    Fill(u8),
    Discard,
    Read(AlignedBlock),
}

/// The longest chain, without the raw file.
const MAX_LAYERS: usize = 3;

impl Run<'_> {
    fn top(&mut self) -> Result<&mut Layer> {
        self.model.layers.last_mut().context("no image")
    }

    fn has_backing(&self) -> bool {
        self.model.based || self.model.layers.len() > 1
    }

    fn options(&self, depth: usize, alone: bool) -> Result<OpenOptions> {
        let layer = self
            .model
            .layers
            .iter()
            .rev()
            .nth(depth)
            .context("no such image")?;
        Ok(OpenOptions {
            qcow2: Qcow2Options {
                backing: Backing::Tree,
                cache_bytes: self.cache_bytes,
                alone,
                ..Qcow2Options::default()
            },
            ..OpenOptions::qcow2(&layer.path)
        })
    }

    fn open(&self) -> Result<Disk> {
        let image = Arc::new(Qcow2Image::open(&self.options(0, false)?)?);
        Ok(Disk {
            blocking: Blocking::new(image.clone())?,
            image,
        })
    }

    /// Several requests at once that share clusters, but no sector.
    fn batch(&mut self, disk: &mut Disk, asks: &[Ask]) -> Result<()> {
        let mut taken: Vec<(u64, u64, Change)> = Vec::new();
        for (tag, ask) in (0..).zip(asks) {
            let (first, count) = ask.range(self.model.bytes.len() as u64 / SECTOR, [2, 16, 300]);
            let (offset, len) = (first * SECTOR, count * SECTOR);
            if taken
                .iter()
                .any(|(at, count, _)| *at < offset + len && offset < at + count)
            {
                continue;
            }
            self.model.asked += 1;
            self.model.stamp = self.model.stamp % 250 + 1;
            let stamp = self.model.stamp;
            let block = AlignedBlock::new(len as usize, 4096);
            let mut buffers = block.buffers();
            let (unmap, durable) = (ask.unmap, ask.durable);
            let (kind, change) = match ask.what % 10 {
                0..5 => {
                    buffers.fill(stamp);
                    (RequestKind::Write { offset, durable }, Change::Fill(stamp))
                }
                5 => {
                    buffers.clear();
                    (RequestKind::WriteZeroes { offset, len, unmap }, Change::Fill(0))
                }
                6 => {
                    buffers.clear();
                    (RequestKind::Discard { offset, len }, Change::Discard)
                }
                _ => (RequestKind::Read { offset }, Change::Read(block)),
            };
            taken.push((offset, len, change));
            disk.blocking.start(tag, kind, buffers);
        }
        for _ in 0..taken.len() {
            disk.blocking.next_end()?.result.map_err(|error| *error)?;
        }
        for (offset, len, change) in taken {
            self.apply(offset, len, change)?;
        }
        Ok(())
    }

    fn apply(&mut self, offset: u64, len: u64, change: Change) -> Result<()> {
        let end = offset + len;
        let size = self.model.bytes.len() as u64;
        let has_backing = self.has_backing();
        let layer = self.top()?;
        // Version 2 cannot say that what a backing file has is gone.
        let cluster = if layer.version == 2 && has_backing {
            1 << 40
        } else {
            layer.cluster
        };
        let bytes = &mut self.model.bytes[offset as usize..end as usize];
        match change {
            Change::Fill(byte) => bytes.fill(byte),
            Change::Read(block) => {
                let mut found = vec![0; len as usize];
                block.buffers().copy_to(&mut found);
                ensure!(found == bytes, "a read of {len} bytes at {offset}");
            }
            Change::Discard => {
                // Whole clusters read as zeroes, the rest stays.
                let from = offset.next_multiple_of(cluster);
                let to = if end == size { end } else { end / cluster * cluster };
                if from < to {
                    self.model.bytes[from as usize..to as usize].fill(0);
                }
            }
        }
        Ok(())
    }

    /// What is done to a whole image that nobody else uses.
    fn manage(&mut self, disk: Disk, step: &Step) -> Result<Disk> {
        let Disk { image, blocking } = disk;
        drop(blocking);
        let (bytes, has_backing) = (self.model.bytes.clone(), self.has_backing());
        let layer = self.top()?;
        let count = layer.snapshots.len();
        match step {
            Step::Create if layer.countable && count < 4 => {
                let name = format!("s{}", self.model.asked);
                image.snapshot_create(&name)?;
                self.top()?.snapshots.push((name, bytes));
            }
            Step::Apply(number) if count > 0 => {
                let (name, bytes) = layer.snapshots[*number as usize % count].clone();
                image.snapshot_apply(&name)?;
                self.model.bytes = bytes;
            }
            Step::Delete(number) if count > 0 => {
                let (name, _) = layer.snapshots.remove(*number as usize % count);
                image.snapshot_delete(&name)?;
            }
            Step::Resize(number) if !has_backing && (count == 0 || layer.version == 3) => {
                let size = (1 + number % 6000) * SECTOR;
                if count == 0 || size > bytes.len() as u64 {
                    image.resize(size, Preallocation::Off)?;
                    self.model.bytes.resize(size as usize, 0);
                }
            }
            _ => {}
        }
        let report = image.check(None)?;
        ensure!(
            report.corruptions == 0 && report.leaks == 0,
            "our check: {report:?}"
        );
        drop(image);
        match step {
            Step::Overlay(number) => self.overlay(*number)?,
            Step::Commit if self.model.layers.len() > 1 => self.commit()?,
            // Snapshots are not looked after: what they lack comes from whatever is below.
            Step::Rebase if has_backing && count == 0 => self.rebase()?,
            _ => {}
        }
        self.open()
    }

    fn overlay(&mut self, number: u64) -> Result<()> {
        if self.model.layers.len() == MAX_LAYERS {
            return Ok(());
        }
        let below = self.top()?.path.file_name().context("a name")?;
        let backing = Some((below.to_string_lossy().into_owned(), Format::Qcow2));
        let path = self.folder.join(format!("layer{}", self.model.asked));
        if path.exists() {
            return Ok(());
        }
        let create = CreateOptions {
            cluster_size: 512 << [0, 3, 5, 7][number as usize % 4],
            backing,
            ..CreateOptions::new(&path, None)
        };
        Qcow2Image::create(&create)?;
        self.model.layers.push(Layer {
            path,
            cluster: create.cluster_size,
            version: 3,
            snapshots: Vec::new(),
            countable: true,
        });
        Ok(())
    }

    /// The disk is what it was; the file that it was in is gone.
    fn commit(&mut self) -> Result<()> {
        let top: Arc<dyn BlockImage> = Arc::new(Qcow2Image::open(&self.options(0, true)?)?);
        let base: Arc<dyn BlockImage> = Arc::new(Qcow2Image::open(&self.options(1, false)?)?);
        treaty_image_tool::commit(&[top], &base, &Progress::default())?;
        let gone = self.model.layers.pop().context("no image")?;
        std::fs::remove_file(gone.path)?;
        Ok(())
    }

    /// The file below the disk's is not needed any more.
    fn rebase(&mut self) -> Result<()> {
        let image = Qcow2Image::open(&self.options(0, false)?)?;
        let disk: Arc<dyn BlockImage> = Arc::new(image.clone());
        let layers = &mut self.model.layers;
        let new = match layers.len() {
            0 | 1 => None,
            2 if self.model.based => Some(("base".to_owned(), Format::Raw)),
            2 => None,
            more => {
                let name = layers[more - 3].path.file_name().context("a name")?;
                Some((name.to_string_lossy().into_owned(), Format::Qcow2))
            }
        };
        let opened = match &new {
            None => None,
            Some((name, format)) => Some(open(&OpenOptions {
                path: self.folder.join(name),
                format: *format,
                read_only: true,
                ..self.options(0, false)?
            })?),
        };
        treaty_image_tool::rebase(&disk, opened.as_ref(), &Progress::default())?;
        image.set_backing(new.as_ref().map(|(name, format)| (name.as_str(), *format)))?;
        let layers = &mut self.model.layers;
        if layers.len() > 1 {
            let gone = layers.remove(layers.len() - 2);
            drop((image, disk));
            std::fs::remove_file(gone.path)?;
        } else {
            self.model.based = false;
        }
        Ok(())
    }

    fn judge(&self, path: &Path) -> Result<()> {
        self.qemu.check(path)?;
        let found = self.qemu.contents(path)?;
        let differs = found.iter().zip(&self.model.bytes).position(|(a, b)| a != b);
        ensure!(differs.is_none(), "QEMU reads another byte at {differs:?}");
        ensure!(
            found.len() == self.model.bytes.len(),
            "QEMU reads {} bytes",
            found.len()
        );
        Ok(())
    }
}

fn options(seed: u64, folder: &Path) -> (CreateOptions, u64) {
    let random = &mut Random::new(seed ^ 0x0c02);
    let mut options = CreateOptions::new(folder.join("disk"), Some((1 + random.below(6000)) * SECTOR));
    options.cluster_size = 512 << [0, 1, 3, 5, 7, 7, 9][random.below(7) as usize];
    options.refcount_bits = 1 << random.below(7);
    match random.below(6) {
        0 => (options.version, options.refcount_bits) = (2, 16),
        1 => options.lazy_refcounts = true,
        2 | 3 => {
            options.cluster_size = options.cluster_size.max(16384);
            options.extended_l2 = true;
        }
        _ => {}
    }
    if random.chance(300) {
        let bytes: Vec<u8> = (0..1 << 20).map(|at: u32| (at >> 9) as u8 | 1).collect();
        std::fs::write(folder.join("base"), bytes).expect("a backing file");
        options.backing = Some(("base".to_owned(), Format::Raw));
    }
    let cache = 1 << (15 + random.below(6));
    (options, cache)
}

/// Plays a script. Answers how many requests there were.
fn scenario(seed: u64, qemu: &QemuImg, steps: &[Step]) -> Result<u64> {
    let folder = tempfile::tempdir()?;
    let (create, cache_bytes) = options(seed, folder.path());
    Qcow2Image::create(&create)?;
    let size = create.size.unwrap_or(0) as usize;
    let mut bytes = vec![0; size];
    if create.backing.is_some() {
        let base = std::fs::read(folder.path().join("base"))?;
        let shared = base.len().min(size);
        bytes[..shared].copy_from_slice(&base[..shared]);
    }
    let mut run = Run {
        model: Model {
            bytes,
            layers: vec![Layer {
                path: create.path.clone(),
                cluster: create.cluster_size,
                version: create.version,
                snapshots: Vec::new(),
                countable: create.refcount_bits >= 4,
            }],
            based: create.backing.is_some(),
            stamp: 0,
            asked: 0,
        },
        cache_bytes,
        folder: folder.path(),
        qemu,
    };
    let mut disk = run.open()?;
    for (number, step) in steps.iter().enumerate() {
        let at = || format!("step {number} of {create:?}");
        match step {
            Step::Batch(asks) => run.batch(&mut disk, asks).with_context(at)?,
            Step::Flush => disk.blocking.flush().with_context(at)?,
            _ => disk = run.manage(disk, step).with_context(at)?,
        }
    }
    drop(disk);
    let path = run.top()?.path.clone();
    run.judge(&path).with_context(|| format!("{create:?}"))?;
    Ok(run.model.asked)
}

/// About 6 requests a batch.
#[test]
fn random_requests_agree_with_the_model_and_with_qemu() {
    let total = std::cell::Cell::new(0);
    for qemu in QemuImg::all() {
        run_seeds(scale(8, 120), |seed| {
            let steps = script(&mut Random::new(seed), scale(40, 100), 12);
            match run_shrinking(&steps, |steps| scenario(seed, &qemu, steps)) {
                Ok(asked) => total.set(total.get() + asked),
                Err(error) => panic!("QEMU {}: {error:?}", qemu.version),
            }
        });
    }
    println!("{} requests", total.get());
}

/// Sectors of one thread: all of them share clusters with those of the others.
fn own_sectors(thread: u64, threads: u64, random: &mut Random, sectors: u64) -> u64 {
    random.below(sectors / threads) * threads + thread
}

/// One of several users of an image, with a queue of its own. Answers what its sectors should hold.
fn user(image: Arc<Qcow2Image>, seed: u64, thread: u64, threads: u64) -> Result<Vec<(u64, u8)>> {
    let mut random = Random::new(seed * 31 + thread);
    let mut blocking = Blocking::new(image)?;
    let sectors = blocking.capabilities().len / SECTOR;
    let mut known = std::collections::HashMap::new();
    for round in 0..150 {
        let mut taken = Vec::new();
        for tag in 0..8 {
            let sector = own_sectors(thread, threads, &mut random, sectors);
            if taken.contains(&sector) {
                continue;
            }
            taken.push(sector);
            let stamp = (round % 250 + 1) as u8;
            let mut buffers = AlignedBlock::new(SECTOR as usize, 4096).buffers();
            buffers.fill(stamp);
            let offset = sector * SECTOR;
            let (kind, stamp) = match random.below(6) {
                0 => {
                    buffers.clear();
                    let (len, unmap) = (SECTOR, true);
                    (RequestKind::WriteZeroes { offset, len, unmap }, 0)
                }
                _ => (
                    RequestKind::Write {
                        offset,
                        durable: random.chance(20),
                    },
                    stamp,
                ),
            };
            known.insert(sector, stamp);
            blocking.start(tag, kind, buffers);
        }
        for _ in &taken {
            blocking.next_end()?.result.map_err(|error| *error)?;
        }
        if random.chance(50) {
            blocking.flush()?;
        }
    }
    Ok(known.into_iter().collect())
}

#[test]
fn several_queues_on_one_image_agree() {
    const THREADS: u64 = 4;
    let tools = QemuImg::all();
    run_seeds(scale(3, 60), |seed| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        let options = CreateOptions {
            cluster_size: [4096, 65536, 512][seed as usize % 3],
            lazy_refcounts: seed % 2 == 1,
            ..CreateOptions::new(&path, Some(4 << 20))
        };
        Qcow2Image::create(&options).unwrap();
        let image = Arc::new(
            Qcow2Image::open(&OpenOptions {
                qcow2: Qcow2Options {
                    cache_bytes: 1 << 15,
                    ..Qcow2Options::default()
                },
                ..OpenOptions::qcow2(&path)
            })
            .unwrap(),
        );
        let users: Vec<_> = (0..THREADS)
            .map(|thread| {
                let image = image.clone();
                std::thread::spawn(move || user(image, seed, thread, THREADS).unwrap())
            })
            .collect();
        let known: Vec<(u64, u8)> = users.into_iter().flat_map(|user| user.join().unwrap()).collect();
        let report = image.check(None).unwrap();
        assert_eq!((report.corruptions, report.leaks), (0, 0), "{:?}", report.told);
        drop(image);
        for qemu in &tools {
            qemu.check(&path).unwrap();
            let bytes = qemu.contents(&path).unwrap();
            for (sector, stamp) in &known {
                let at = (sector * SECTOR) as usize;
                assert!(
                    bytes[at..at + SECTOR as usize].iter().all(|byte| byte == stamp),
                    "sector {sector}"
                );
            }
        }
    });
}
