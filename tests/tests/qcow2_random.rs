//! Random requests, snapshots and resizes against a model in memory, with qemu-img as the judge of the image.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use treaty_buffers::AlignedBlock;
use treaty_storage::qcow2::{Backing, CreateOptions, Preallocation, Qcow2Image, Qcow2Options};
use treaty_storage::{Blocking, Format, OpenOptions, RequestKind};
use treaty_testkit::scale;
use treaty_tests::qemu_img::QemuImg;
use treaty_worker::sim::{Random, run_seeds};

const SECTOR: u64 = 512;

/// What the disk and each of its snapshots should be.
struct Model {
    bytes: Vec<u8>,
    snapshots: Vec<(String, Vec<u8>)>,
    cluster: u64,
    stamp: u8,
}

struct Run<'a> {
    random: Random,
    model: Model,
    options: OpenOptions,
    qemu: &'a QemuImg,
    version: u32,
    resizable: bool,
    snapshots: bool,
}

/// The image as it is open.
struct Disk {
    image: Arc<Qcow2Image>,
    blocking: Blocking,
}

impl Disk {
    fn open(options: &OpenOptions) -> Result<Self> {
        let image = Arc::new(Qcow2Image::open(options)?);
        Ok(Self {
            blocking: Blocking::new(image.clone())?,
            image,
        })
    }
}

/// A request of a batch: what it does to which bytes.
enum Change {
    Fill(u8),
    Discard,
    Read(AlignedBlock),
}

impl Run<'_> {
    fn range(&mut self) -> (u64, u64) {
        let sectors = self.model.bytes.len() as u64 / SECTOR;
        let first = self.random.below(sectors);
        let longest = [2, 16, 300][self.random.below(3) as usize];
        let count = 1 + self.random.below(longest.min(sectors - first));
        (first * SECTOR, count * SECTOR)
    }

    /// Several requests at once that share clusters, but no sector.
    fn batch(&mut self, disk: &mut Disk) -> Result<()> {
        let mut taken: Vec<(u64, u64, Change)> = Vec::new();
        for tag in 0..1 + self.random.below(12) {
            let (offset, len) = self.range();
            if taken
                .iter()
                .any(|(at, count, _)| *at < offset + len && offset < at + count)
            {
                continue;
            }
            self.model.stamp = self.model.stamp % 250 + 1;
            let stamp = self.model.stamp;
            let block = AlignedBlock::new(len as usize, 4096);
            let mut buffers = block.buffers();
            let unmap = self.random.chance(500);
            let (kind, change) = match self.random.below(10) {
                0..5 => {
                    buffers.fill(stamp);
                    let durable = self.random.chance(50);
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
            disk.blocking.start(tag as u32, kind, buffers);
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
                let from = offset.next_multiple_of(self.model.cluster);
                let to = if end == size {
                    end
                } else {
                    end / self.model.cluster * self.model.cluster
                };
                if from < to {
                    self.model.bytes[from as usize..to as usize].fill(0);
                }
            }
        }
        Ok(())
    }

    fn manage(&mut self, disk: Disk) -> Result<Disk> {
        let Disk { image, blocking } = disk;
        drop(blocking);
        let choice = self.random.below(6);
        let count = self.model.snapshots.len() as u64;
        match choice {
            0 | 1 if self.snapshots && count < 4 => {
                let name = format!("s{}", self.random.below(1 << 40));
                image.snapshot_create(&name)?;
                self.model.snapshots.push((name, self.model.bytes.clone()));
            }
            2 if count > 0 => {
                let (name, bytes) = self.model.snapshots[self.random.below(count) as usize].clone();
                image.snapshot_apply(&name)?;
                self.model.bytes = bytes;
            }
            3 if count > 0 => {
                let (name, _) = self.model.snapshots.remove(self.random.below(count) as usize);
                image.snapshot_delete(&name)?;
            }
            4 if self.resizable && (count == 0 || self.version == 3) => {
                let size = (1 + self.random.below(6000)) * SECTOR;
                if count == 0 || size > self.model.bytes.len() as u64 {
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
        Disk::open(&self.options)
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

fn scenario(seed: u64, qemu: &QemuImg, rounds: u64) -> Result<()> {
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
        random: Random::new(seed),
        model: Model {
            bytes,
            snapshots: Vec::new(),
            cluster: create.cluster_size,
            stamp: 0,
        },
        options: OpenOptions {
            qcow2: Qcow2Options {
                backing: Backing::Tree,
                cache_bytes,
                ..Qcow2Options::default()
            },
            ..OpenOptions::qcow2(&create.path)
        },
        qemu,
        version: create.version,
        resizable: create.backing.is_none(),
        snapshots: create.refcount_bits >= 4,
    };
    // Version 2 cannot say that what a backing file has is gone.
    let discards = create.version == 3 || create.backing.is_none();
    if !discards {
        run.model.cluster = 1 << 40;
    }
    let mut disk = Disk::open(&run.options)?;
    for round in 0..rounds {
        run.batch(&mut disk)
            .with_context(|| format!("round {round} of {create:?}"))?;
        match run.random.below(12) {
            0 => disk.blocking.flush()?,
            1 => {
                drop(disk);
                disk = Disk::open(&run.options)?;
            }
            2 => {
                disk = run
                    .manage(disk)
                    .with_context(|| format!("round {round} of {create:?}"))?
            }
            _ => {}
        }
    }
    drop(disk);
    run.judge(&create.path).with_context(|| format!("{create:?}"))
}

/// About 6 requests a round.
#[test]
fn random_requests_agree_with_the_model_and_with_qemu() {
    for qemu in QemuImg::all() {
        run_seeds(scale(8, 100), |seed| {
            if let Err(error) = scenario(seed, &qemu, scale(40, 100)) {
                panic!("QEMU {}: {error:?}", qemu.version);
            }
        });
    }
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
