//! External snapshots of images in use, and what becomes of them when something is wrong.

mod common;

use std::path::Path;
use std::sync::Arc;

use common::Folder;
use treaty_storage::qcow2::{Backing, CreateOptions, Qcow2Image, Qcow2Options};
use treaty_storage::{BlockImage, Blocking, Format, LiveImage, LockTime, OpenOptions, StorageError, open};

const SIZE: u64 = 4 << 20;

fn options(path: &Path, format: Format) -> OpenOptions {
    OpenOptions {
        format,
        qcow2: Qcow2Options {
            backing: Backing::Tree,
            ..Qcow2Options::default()
        },
        ..OpenOptions::raw(path)
    }
}

fn write(image: &Arc<LiveImage>, offset: u64, byte: u8, len: usize) -> Result<(), StorageError> {
    let image: Arc<dyn BlockImage> = image.clone();
    Blocking::new(image)?.write_at(offset, &vec![byte; len])
}

/// The first byte of each 64 KiB.
fn sample(image: Arc<dyn BlockImage>) -> Result<Vec<u8>, StorageError> {
    let mut blocking = Blocking::new(image)?;
    let mut bytes = vec![0; SIZE as usize];
    blocking.read_at(0, &mut bytes)?;
    Ok(bytes.iter().step_by(65536).copied().collect())
}

fn read_only(path: &Path, format: Format) -> Result<Vec<u8>, StorageError> {
    sample(open(&OpenOptions {
        read_only: true,
        ..options(path, format)
    })?)
}

#[test]
fn what_is_written_after_a_snapshot_is_not_in_the_image_below() -> anyhow::Result<()> {
    for format in [Format::Raw, Format::Qcow2] {
        let folder = Folder::new(&format!("live-{format:?}"));
        let base = folder.path().join("base");
        match format {
            Format::Raw => drop(folder.file("base", SIZE)),
            Format::Qcow2 => Qcow2Image::create(&CreateOptions {
                lazy_refcounts: true,
                ..CreateOptions::new(&base, Some(SIZE))
            })?,
        }
        let image = Arc::new(LiveImage::open(options(&base, format))?);
        write(&image, 0, 1, 3 * 65536)?;
        assert!(read_only(&base, format).is_err(), "it is locked");
        let names = ["one", "two"].map(|name| folder.path().join(name));
        let mut wanted = vec![sample(image.clone())?];
        for (place, name) in (1u64..).zip(&names) {
            image.handle().new_layer(name)?.take_over()?;
            assert_eq!(image.handle().path(), *name);
            assert_eq!(
                &sample(image.clone())?,
                wanted.last().unwrap(),
                "a snapshot changes nothing"
            );
            write(&image, place * 65536, 10 + place as u8, 4096)?;
            wanted.push(sample(image.clone())?);
            let again = image.handle().new_layer(name).err().unwrap().to_string();
            assert!(again.contains("there is such a file"), "{again}");
        }
        // Others may read what is below, while the disk runs; the first of them was closed as one closes an image.
        assert_eq!(read_only(&base, format)?, wanted[0]);
        assert_eq!(read_only(&names[0], Format::Qcow2)?, wanted[1]);
        let taken = open(&options(&base, format)).err().unwrap().to_string();
        assert!(taken.contains("another program has it open"), "{taken}");
        if format == Format::Qcow2 {
            let image = Qcow2Image::open(&OpenOptions {
                read_only: true,
                ..options(&base, format)
            })?;
            assert!(!image.info()?.dirty, "its refcounts are written");
        }
        drop(image);
        assert_eq!(
            read_only(&names[1], Format::Qcow2)?,
            wanted[2],
            "by its own names"
        );
    }
    Ok(())
}

/// Refused before anything is touched, or given up on the way: the old image stays in use, and no file is left.
#[test]
fn a_snapshot_that_fails_changes_nothing() -> anyhow::Result<()> {
    let folder = Folder::new("live-fails");
    let base = folder.file("base", SIZE);
    let image = Arc::new(LiveImage::open(options(&base, Format::Raw))?);
    write(&image, 0, 5, 4096)?;
    let missing = folder.path().join("no-such-folder/new");
    let error = image.handle().new_layer(&missing).err().unwrap().to_string();
    assert!(error.contains("cannot be made"), "{error}");

    // Two at once: the second sees that the image is another one by now.
    let (first, second) = (folder.path().join("first"), folder.path().join("second"));
    let (one, two) = (
        image.handle().new_layer(&first)?,
        image.handle().new_layer(&second)?,
    );
    one.take_over()?;
    let error = two.take_over().err().unwrap().to_string();
    assert!(error.contains("meanwhile"), "{error}");
    assert!(first.exists() && !second.exists());

    // The file is damaged between its making and its use.
    let third = folder.path().join("third");
    let layer = image.handle().new_layer(&third)?;
    std::fs::write(&third, [0; 1024])?;
    assert!(layer.take_over().is_err());
    assert!(!third.exists());
    assert_eq!(image.handle().path(), first);
    write(&image, 65536, 6, 4096)?;
    assert_eq!(sample(image.clone())?[..2], [5, 6]);

    for (options, reason) in [
        (
            OpenOptions {
                read_only: true,
                ..options(&folder.file("a", SIZE), Format::Raw)
            },
            "read-only",
        ),
        (
            OpenOptions {
                lock: LockTime::Running,
                ..options(&folder.file("b", SIZE), Format::Raw)
            },
            "lock=running",
        ),
    ] {
        let error = LiveImage::open(options)?
            .handle()
            .new_layer(&third)
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains(reason) && !third.exists(), "{error}");
    }
    Ok(())
}
