//! Images of every combination of options, made here and by qemu-img: each side reads what the other wrote.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use treaty_storage::qcow2::{Backing, Compression, CreateOptions, Preallocation, Qcow2Image, Qcow2Options};
use treaty_storage::{Blocking, OpenOptions, open};
use treaty_testkit::scale;
use treaty_tests::qemu_img::QemuImg;

const SIZE: u64 = 5 << 20;

fn options(path: &Path) -> OpenOptions {
    OpenOptions {
        qcow2: Qcow2Options {
            backing: Backing::Tree,
            ..Qcow2Options::default()
        },
        ..OpenOptions::qcow2(path)
    }
}

fn blocking(path: &Path) -> Result<Blocking> {
    Ok(Blocking::new(open(&options(path))?)?)
}

fn read_all(path: &Path) -> Result<Vec<u8>> {
    let options = OpenOptions {
        read_only: true,
        ..options(path)
    };
    let mut image = Blocking::new(open(&options)?)?;
    let mut bytes = vec![0; image.capabilities().len as usize];
    image.read_at(0, &mut bytes)?;
    Ok(bytes)
}

/// One combination.
#[derive(Clone, Debug)]
struct Case {
    cluster: u64,
    refcount_bits: u32,
    extended: bool,
    zstd: bool,
    data_file: Option<bool>,
    lazy: bool,
    preallocation: Preallocation,
    version: u32,
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let plain = Case {
        cluster: 65536,
        refcount_bits: 16,
        extended: false,
        zstd: false,
        data_file: None,
        lazy: false,
        preallocation: Preallocation::Off,
        version: 3,
    };
    for shift in 9..=21 {
        cases.push(Case {
            cluster: 1 << shift,
            ..plain.clone()
        });
    }
    for shift in 0..=6 {
        let refcount_bits = 1 << shift;
        for cluster in [512, 4096, 65536] {
            cases.push(Case {
                refcount_bits,
                cluster,
                ..plain.clone()
            });
        }
    }
    for cluster in [16384, 65536, 2 << 20] {
        for lazy in [false, true] {
            cases.push(Case {
                extended: true,
                cluster,
                lazy,
                zstd: lazy,
                ..plain.clone()
            });
        }
    }
    cases.extend(large_cases(&plain));
    cases
}

/// Those that write more than the others, and those with other files.
fn large_cases(plain: &Case) -> Vec<Case> {
    let mut cases = Vec::new();
    for preallocation in [
        Preallocation::Metadata,
        Preallocation::Falloc,
        Preallocation::Full,
    ] {
        for (cluster, extended) in [(512, false), (65536, false), (65536, true)] {
            cases.push(Case {
                preallocation,
                cluster,
                extended,
                ..plain.clone()
            });
        }
    }
    for raw in [false, true] {
        for preallocation in [Preallocation::Off, Preallocation::Metadata] {
            for extended in [false, true] {
                cases.push(Case {
                    data_file: Some(raw),
                    preallocation,
                    extended,
                    ..plain.clone()
                });
            }
        }
    }
    for cluster in [512, 65536, 2 << 20] {
        cases.push(Case {
            version: 2,
            cluster,
            ..plain.clone()
        });
    }
    cases
}

impl Case {
    fn ours(&self, path: &Path) -> CreateOptions {
        CreateOptions {
            version: self.version,
            cluster_size: self.cluster,
            refcount_bits: self.refcount_bits,
            extended_l2: self.extended,
            compression: if self.zstd {
                Compression::Zstd
            } else {
                Compression::Zlib
            },
            lazy_refcounts: self.lazy,
            data_file: self.data_file.map(|_| data_name(path)),
            data_file_raw: self.data_file == Some(true),
            preallocation: self.preallocation,
            ..CreateOptions::new(path, Some(SIZE))
        }
    }

    fn theirs(&self, path: &Path) -> String {
        let mut text = format!(
            "compat={},cluster_size={}",
            if self.version == 2 { "0.10" } else { "1.1" },
            self.cluster
        );
        if self.version == 3 {
            text += &format!(
                ",refcount_bits={},extended_l2={},compression_type={},lazy_refcounts={}",
                self.refcount_bits,
                on(self.extended),
                if self.zstd { "zstd" } else { "zlib" },
                on(self.lazy),
            );
        }
        text += match self.preallocation {
            Preallocation::Off => "",
            Preallocation::Metadata => ",preallocation=metadata",
            Preallocation::Falloc => ",preallocation=falloc",
            Preallocation::Full => ",preallocation=full",
        };
        if let Some(raw) = self.data_file {
            text += &format!(",data_file={},data_file_raw={}", data_name(path), on(raw));
        }
        text
    }
}

fn on(yes: bool) -> &'static str {
    if yes { "on" } else { "off" }
}

/// Whole, as QEMU looks for a data file from where it runs.
fn data_name(path: &Path) -> String {
    format!("{}.data", path.display())
}

/// Writes here what both sides must read, with every kind of request, to both the image and the expectation.
fn write_ours(path: &Path, expected: &mut [u8]) -> Result<()> {
    let mut image = blocking(path)?;
    for (offset, len, byte) in [
        (0, 512, 1u8),
        (65536, 65536, 2),
        (200 << 10, 300 << 10, 3),
        ((1 << 20) - 512, 1024, 4),
        (SIZE - 4096, 4096, 5),
        (3 << 20, 1 << 20, 6),
        (210 << 10, 512, 7),
    ] {
        let end = offset + len;
        image.write_at(offset, &vec![byte; len as usize])?;
        expected[offset as usize..end as usize].fill(byte);
    }
    image.flush()?;
    for (offset, len, unmap) in [(250u64 << 10, 70u64 << 10, true), (3 << 20, 512 << 10, false)] {
        image.write_zeroes(offset, len, unmap)?;
        expected[offset as usize..(offset + len) as usize].fill(0);
    }
    image.write_at(260 << 10, &[8; 1536])?;
    expected[260 << 10..(260 << 10) + 1536].fill(8);
    let mut bytes = vec![0; SIZE as usize];
    image.read_at(0, &mut bytes)?;
    compare(&bytes, expected).context("read back at once")
}

fn compare(found: &[u8], expected: &[u8]) -> Result<()> {
    ensure!(
        found.len() == expected.len(),
        "{} bytes, not {}",
        found.len(),
        expected.len()
    );
    match found.iter().zip(expected).position(|(a, b)| a != b) {
        None => Ok(()),
        Some(at) => anyhow::bail!("byte {at} is {}, not {}", found[at], expected[at]),
    }
}

fn one(case: &Case, folder: &Path, qemu: &QemuImg) -> Result<()> {
    let path = |name: &str| -> PathBuf { folder.join(format!("{name}.qcow2")) };
    let ours = path("ours");
    Qcow2Image::create(&case.ours(&ours)).context("create")?;
    qemu.check(&ours).context("our new image")?;
    let mut expected = vec![0; SIZE as usize];
    write_ours(&ours, &mut expected)?;
    qemu.check(&ours).context("our image after our writes")?;
    compare(&qemu.contents(&ours)?, &expected).context("our image read by theirs")?;
    qemu.io(
        &ours,
        &["write -P 9 1000k 200k", "write -z 2M 64k", "write -P 10 4M 4k"],
    )?;
    expected[1000 << 10..1200 << 10].fill(9);
    expected[2 << 20..(2 << 20) + 65536].fill(0);
    expected[4 << 20..(4 << 20) + 4096].fill(10);
    compare(&read_all(&ours)?, &expected).context("our image after their writes")?;

    let theirs = path("theirs");
    let (text, options, size) = (
        theirs.display().to_string(),
        case.theirs(&theirs),
        SIZE.to_string(),
    );
    qemu.img(&["create", "-q", "-f", "qcow2", "-o", &options, &text, &size])?;
    let mut expected = vec![0; SIZE as usize];
    compare(&read_all(&theirs)?, &expected).context("their new image")?;
    qemu.io(
        &theirs,
        &["write -P 11 0 100k", "write -P 12 2M 1M", "write -z 2100k 128k"],
    )?;
    expected[..100 << 10].fill(11);
    expected[2 << 20..3 << 20].fill(12);
    expected[2100 << 10..2228 << 10].fill(0);
    compare(&read_all(&theirs)?, &expected).context("their image read by ours")?;
    write_ours(&theirs, &mut expected)?;
    qemu.check(&theirs).context("their image after our writes")?;
    compare(&qemu.contents(&theirs)?, &expected).context("their image after our writes")?;
    if case.data_file == Some(true) {
        let raw = std::fs::read(data_name(&theirs))?;
        compare(&raw, &expected).context("the raw data file")?;
    }
    Ok(())
}

#[test]
fn images_of_every_kind_mean_the_same_to_both() {
    let tools = QemuImg::all();
    for (index, case) in cases().iter().enumerate() {
        for (number, qemu) in tools.iter().enumerate() {
            // A sample takes turns.
            if (index + number * 3) % scale(12, 1) as usize != 0 {
                continue;
            }
            let folder = tempfile::tempdir().unwrap();
            if let Err(error) = one(case, folder.path(), qemu) {
                panic!("QEMU {} {case:?}: {error:?}", qemu.version);
            }
        }
    }
}

#[test]
fn chains_of_backing_files_are_read_through() {
    for qemu in QemuImg::all() {
        let folder = tempfile::tempdir().unwrap();
        chains(&qemu, folder.path()).unwrap();
    }
}

fn chains(qemu: &QemuImg, folder: &Path) -> Result<()> {
    let text = |name: &str| folder.join(name).display().to_string();
    let raw: Vec<u8> = (0..3u32 << 20).map(|at| (at >> 12) as u8 | 1).collect();
    std::fs::write(folder.join("base.raw"), &raw)?;
    let mut expected = vec![0; SIZE as usize];
    expected[..raw.len()].copy_from_slice(&raw);
    let mut below = ("base.raw".to_owned(), "raw");
    for (depth, cluster) in [65536, 4096, 512, 2 << 20, 16384].into_iter().enumerate() {
        let name = format!("layer{depth}");
        let options = format!(
            "cluster_size={cluster},backing_file={},backing_fmt={}",
            below.0, below.1
        );
        qemu.img(&[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-o",
            &options,
            &text(&name),
            &SIZE.to_string(),
        ])?;
        let at = (depth as u64) * 700_000 / 512 * 512;
        let command = format!("write -P {} {at} 100k", 100 + depth);
        qemu.io(&folder.join(&name), &[&command, "write -z 1200k 5k"])?;
        expected[at as usize..at as usize + (100 << 10)].fill(100 + depth as u8);
        expected[1200 << 10..1205 << 10].fill(0);
        below = (name, "qcow2");
    }
    let top = folder.join(&below.0);
    compare(&read_all(&top)?, &expected).context("a chain of theirs")?;
    // Written to by us: what is below shows through everywhere else.
    let mut image = blocking(&top)?;
    for (offset, len, byte) in [
        (512u64, 512usize, 1u8),
        (1 << 20, 5000 / 512 * 512, 2),
        (SIZE - 512, 512, 3),
    ] {
        image.write_at(offset, &vec![byte; len])?;
        expected[offset as usize..offset as usize + len].fill(byte);
    }
    image.discard(2 << 20, 1 << 20)?;
    image.write_zeroes(100 << 10, 3 << 10, true)?;
    expected[100 << 10..103 << 10].fill(0);
    drop(image);
    qemu.check(&top)?;
    let theirs = qemu.contents(&top)?;
    compare(&read_all(&top)?, &theirs)?;
    compare(&theirs[..2 << 20], &expected[..2 << 20])?;
    compare(&theirs[3 << 20..], &expected[3 << 20..])?;
    // The file at the end of the chain is as it was.
    compare(&std::fs::read(folder.join("base.raw"))?, &raw)
}

#[test]
fn compressed_clusters_are_read() {
    for qemu in QemuImg::all() {
        for (kind, cluster) in [
            ("zlib", 65536),
            ("zstd", 65536),
            ("zlib", 512),
            ("zstd", 2 << 20),
            ("zlib", 4096),
        ] {
            let folder = tempfile::tempdir().unwrap();
            compressed(&qemu, folder.path(), kind, cluster)
                .with_context(|| format!("QEMU {} {kind} {cluster}", qemu.version))
                .unwrap();
        }
    }
}

fn compressed(qemu: &QemuImg, folder: &Path, kind: &str, cluster: u64) -> Result<()> {
    let raw: Vec<u8> = (0..SIZE as u32)
        .map(|at| ((at / 777) as u8) ^ (at >> 16) as u8)
        .collect();
    let (from, path) = (folder.join("raw"), folder.join("packed"));
    std::fs::write(&from, &raw)?;
    let options = format!("compression_type={kind},cluster_size={cluster}");
    let (a, b) = (from.display().to_string(), path.display().to_string());
    qemu.img(&[
        "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", &options, &a, &b,
    ])?;
    compare(&read_all(&path)?, &raw)?;
    let mut expected = raw;
    write_ours(&path, &mut expected)?;
    qemu.check(&path)?;
    compare(&qemu.contents(&path)?, &expected)
}

#[test]
fn an_open_image_is_locked_for_qemu_and_one_of_qemu_for_us() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    Qcow2Image::create(&CreateOptions::new(&path, Some(SIZE))).unwrap();
    let image: Arc<_> = open(&options(&path)).unwrap();
    for qemu in QemuImg::all() {
        let refused = qemu.io(&path, &["write 0 512"]).unwrap_err().to_string();
        assert!(refused.contains("lock"), "{refused}");
    }
    assert!(open(&options(&path)).is_err());
    drop(image);
    assert!(open(&options(&path)).is_ok());
}

#[test]
fn bitmaps_that_follow_writes_are_kept_and_marked() {
    for qemu in QemuImg::all() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        let text = path.display().to_string();
        qemu.img(&["create", "-q", "-f", "qcow2", &text, "5M"]).unwrap();
        qemu.img(&["bitmap", "--add", &text, "follows"]).unwrap();
        qemu.img(&["bitmap", "--add", "--disable", &text, "stands"])
            .unwrap();
        // Reading changes nothing.
        read_all(&path).unwrap();
        assert!(!qemu.img(&["info", &text]).unwrap().contains("in-use"));
        let mut image = blocking(&path).unwrap();
        image.write_at(0, &[1; 512]).unwrap();
        drop(image);
        qemu.check(&path).unwrap();
        let about = qemu.img(&["info", &text]).unwrap();
        assert_eq!(about.matches("in-use").count(), 1, "{about}");
        assert!(about.contains("follows") && about.contains("stands"), "{about}");
        let image = Qcow2Image::open(&options(&path)).unwrap();
        let report = image.check(None).unwrap();
        assert_eq!((report.corruptions, report.leaks), (0, 0), "{:?}", report.told);
        assert_eq!(image.info().unwrap().bitmaps, 2);
    }
}

#[test]
fn a_map_says_where_the_data_is() {
    let folder = tempfile::tempdir().unwrap();
    let (base, path) = (folder.path().join("base"), folder.path().join("disk"));
    Qcow2Image::create(&CreateOptions::new(&base, Some(SIZE))).unwrap();
    blocking(&base).unwrap().write_at(1 << 20, &[1; 65536]).unwrap();
    Qcow2Image::create(&CreateOptions {
        backing: Some(("base".to_owned(), treaty_storage::Format::Qcow2)),
        ..CreateOptions::new(&path, None)
    })
    .unwrap();
    let mut image = blocking(&path).unwrap();
    image.write_at(0, &[2; 65536]).unwrap();
    image.write_zeroes(2 << 20, 65536, true).unwrap();
    let map = image.image().map(0, SIZE).unwrap();
    let found: Vec<_> = map
        .iter()
        .map(|extent| {
            (
                extent.offset,
                extent.len,
                extent.data,
                extent.allocated,
                extent.depth,
            )
        })
        .collect();
    let expected = [
        (0, 65536, true, true, 0),
        (65536, (1 << 20) - 65536, false, false, 0),
        (1 << 20, 65536, true, true, 1),
        ((1 << 20) + 65536, (1 << 20) - 65536, false, false, 0),
        (2 << 20, 65536, false, true, 0),
        ((2 << 20) + 65536, SIZE - (2 << 20) - 65536, false, false, 0),
    ];
    assert_eq!(found, expected);
}

#[test]
fn what_we_compress_qemu_reads() {
    for qemu in QemuImg::all() {
        for (compression, cluster_size) in [
            (Compression::Zlib, 65536),
            (Compression::Zstd, 65536),
            (Compression::Zlib, 2 << 20),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("disk");
            let create = CreateOptions {
                compression,
                cluster_size,
                ..CreateOptions::new(&path, Some(SIZE))
            };
            Qcow2Image::create(&create).unwrap();
            let image = Qcow2Image::open(&options(&path)).unwrap();
            // It comes back only from far behind.
            let mut raw: Vec<u8> = (0..SIZE as u32)
                .map(|at| (at % 20011 / 3) as u8 ^ (at >> 15) as u8)
                .collect();
            raw[SIZE as usize / 2..].fill(0);
            for (index, cluster) in raw.chunks(cluster_size as usize).enumerate() {
                let mut whole = cluster.to_vec();
                whole.resize(cluster_size as usize, 0);
                if let Some(packed) = image.pack(&whole) {
                    image.write_packed(index as u64 * cluster_size, packed).unwrap();
                } else {
                    let mut blocking = Blocking::new(Arc::new(image.clone())).unwrap();
                    blocking.write_at(index as u64 * cluster_size, cluster).unwrap();
                }
            }
            drop(image);
            qemu.check(&path).unwrap();
            compare(&qemu.contents(&path).unwrap(), &raw).unwrap();
            compare(&read_all(&path).unwrap(), &raw).unwrap();
            let len = std::fs::metadata(&path).unwrap().len();
            assert!(len < SIZE || cluster_size > 65536, "{len} bytes");
        }
    }
}
