//! A power cut while an image is committed or gets another backing file: whatever is there afterwards, the disk reads as
//! before.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use treaty_image_tool::Progress;
use treaty_storage::qcow2::{CreateOptions, Qcow2Image, Qcow2Options};
use treaty_storage::{BlockImage, Blocking, Format};
use treaty_testkit::scale;
use treaty_tests::platter::Platter;
use treaty_tests::recorder::{Event, Recorder, SECTOR};
use treaty_worker::sim::{Random, run_seeds};

/// Bytes of the disk.
const LEN: u64 = 300 * SECTOR as u64;

/// An image in a store, with what is below it.
fn opened(store: Recorder, below: Option<Arc<dyn BlockImage>>, read_only: bool) -> Result<Qcow2Image> {
    let options = Qcow2Options {
        alone: true,
        cache_bytes: 1 << 15,
        ..Qcow2Options::default()
    };
    let store = Arc::new(store);
    Ok(match below {
        Some(below) => Qcow2Image::over_backing(store, &options, below, read_only)?,
        None => Qcow2Image::over(store, &options, read_only)?,
    })
}

fn contents(image: Arc<dyn BlockImage>) -> Result<Vec<u8>> {
    let mut bytes = vec![0; LEN as usize];
    Blocking::new(image)?.read_at(0, &mut bytes)?;
    Ok(bytes)
}

/// Writes and zeroes here and there.
fn scribble(image: &Qcow2Image, random: &mut Random) -> Result<()> {
    let mut blocking = Blocking::new(Arc::new(image.clone()))?;
    for _ in 0..12 {
        let first = random.below(LEN / SECTOR as u64);
        let count = 1 + random.below(20.min(LEN / SECTOR as u64 - first));
        let (offset, len) = (first * SECTOR as u64, count * SECTOR as u64);
        match random.below(4) {
            0 => blocking.write_zeroes(offset, len, true)?,
            _ => blocking.write_at(offset, &vec![random.below(255) as u8 + 1; len as usize])?,
        }
    }
    blocking.flush()?;
    Ok(())
}

fn raw(random: &mut Random) -> Vec<u8> {
    let sectors = LEN as usize / SECTOR;
    (0..sectors)
        .flat_map(|_| vec![random.below(3) as u8 * 7; SECTOR])
        .collect()
}

/// A new image's bytes.
fn made(random: &mut Random, backing: Option<(String, Format)>) -> Result<Vec<u8>> {
    let folder = tempfile::tempdir()?;
    let mut create = CreateOptions::new(folder.path().join("new"), Some(LEN));
    create.cluster_size = [1024, 4096, 16384, 65536][random.below(4) as usize];
    match random.below(4) {
        0 => create.version = 2,
        1 => create.lazy_refcounts = true,
        _ => {}
    }
    create.backing = backing;
    Qcow2Image::create(&create)?;
    Ok(std::fs::read(&create.path)?)
}

/// Cuts a tape at every place, several times; answers how often.
fn cut_everywhere(
    start: Vec<u8>,
    events: &[Event],
    random: &mut Random,
    judge: impl Fn(Vec<u8>) -> Result<()>,
) -> Result<u64> {
    let mut platter = Platter::new(start);
    let mut cuts = 0;
    for (number, event) in events.iter().enumerate() {
        platter.play(event);
        // Changes of the header are the last things.
        let times = if number + 16 > events.len() { 6 } else { 1 };
        for _ in 0..times {
            judge(platter.cut(random)).with_context(|| format!("event {number} of {}", events.len()))?;
            cuts += 1;
        }
    }
    Ok(cuts)
}

fn sound(image: &Qcow2Image) -> Result<()> {
    if image.info()?.dirty {
        return Ok(());
    }
    let report = image.check(None)?;
    ensure!(report.corruptions == 0, "{:?}", report.told);
    Ok(())
}

/// To another backing file, or none; by a name that has room in the header's first sector, or has not.
fn rebase(seed: u64) -> Result<u64> {
    let random = &mut Random::new(seed ^ 0x7eba);
    let below = |bytes: &[u8]| -> Arc<dyn BlockImage> { Arc::new(Recorder::silent(bytes.to_vec())) };
    let (old, mut new) = (raw(random), raw(random));
    new[..old.len() / 2].copy_from_slice(&old[..old.len() / 2]);
    let name = ["new".to_owned(), "x".repeat(500), "x".repeat(450)][random.below(3) as usize].clone();
    let to_none = random.chance(250);
    let old_name = ["old".to_owned(), "y".repeat(480)][random.below(2) as usize].clone();
    let mut start = made(random, Some((old_name.clone(), Format::Raw)))?;
    let plain = Recorder::silent(start);
    scribble(&opened(plain.clone(), Some(below(&old)), false)?, random)?;
    start = plain.tape().bytes.clone();
    let disk = contents(Arc::new(opened(plain, Some(below(&old)), true)?))?;

    let store = Recorder::new(start.clone(), seed);
    let image = opened(store.clone(), Some(below(&old)), false)?;
    let handle: Arc<dyn BlockImage> = Arc::new(image.clone());
    let target = (!to_none).then(|| below(&new));
    treaty_image_tool::rebase(&handle, target.as_ref(), &Progress::default())?;
    let to = (!to_none).then_some((name.as_str(), Format::Qcow2));
    let renamed = image.set_backing(to);
    // There is not room for every name in every cluster; then nothing has changed.
    let refused = renamed.is_err();
    ensure!(!refused || name.len() > 400, "{renamed:?}");
    drop((image, handle));
    let events = store.tape().events.clone();
    let judge = |bytes: Vec<u8>| {
        let info = opened(Recorder::silent(bytes.clone()), Some(below(&old)), true)?.info()?;
        let says = (info.backing.as_deref(), info.backing_format.as_deref());
        let base = match says {
            (Some(found), Some("raw")) if found == old_name => Some(below(&old)),
            (Some(found), Some("qcow2")) if found == name && !to_none => Some(below(&new)),
            (None, _) if to_none => None,
            other => anyhow::bail!("its backing file is {other:?}"),
        };
        let image = opened(Recorder::silent(bytes), base, true)?;
        sound(&image)?;
        ensure!(
            contents(Arc::new(image))? == disk,
            "the disk has changed, its backing file being {says:?}"
        );
        Ok(())
    };
    let last = store.tape().bytes.clone();
    let info = opened(Recorder::silent(last), Some(below(&old)), true)?.info()?;
    ensure!(
        refused || info.backing.as_deref() == to.map(|(name, _)| name),
        "it says {info:?}"
    );
    cut_everywhere(start, &events, random, judge)
}

fn commit(seed: u64) -> Result<u64> {
    let random = &mut Random::new(seed ^ 0xc0331);
    let base = Recorder::silent(made(random, None)?);
    scribble(&opened(base.clone(), None, false)?, random)?;
    let start = base.tape().bytes.clone();
    let below = |bytes: &[u8]| -> Result<Arc<dyn BlockImage>> {
        Ok(Arc::new(opened(Recorder::silent(bytes.to_vec()), None, true)?))
    };
    let overlay = Recorder::silent(made(random, Some(("base".to_owned(), Format::Qcow2)))?);
    scribble(&opened(overlay.clone(), Some(below(&start)?), false)?, random)?;
    let overlay = overlay.tape().bytes.clone();
    let over = |base| opened(Recorder::silent(overlay.clone()), Some(base), true);
    let disk = contents(Arc::new(over(below(&start)?)?))?;

    let store = Recorder::new(start.clone(), seed);
    let top: Arc<dyn BlockImage> = Arc::new(opened(Recorder::silent(overlay.clone()), None, true)?);
    let target: Arc<dyn BlockImage> = Arc::new(opened(store.clone(), None, false)?);
    treaty_image_tool::commit(&[top], &target, &Progress::default())?;
    // What has ended is durable.
    let ended = store.tape().events.len();
    drop(target);
    let events = store.tape().events.clone();
    let cuts = cut_everywhere(start.clone(), &events, random, |bytes| {
        sound(&opened(Recorder::silent(bytes.clone()), None, true)?)?;
        let found = contents(Arc::new(over(below(&bytes)?)?))?;
        ensure!(found == disk, "the disk has changed");
        Ok(())
    })?;
    let mut platter = Platter::new(start);
    events[..ended].iter().for_each(|event| platter.play(event));
    ensure!(
        contents(below(&platter.cut(random))?)? == disk,
        "what was committed is not in the base"
    );
    Ok(cuts)
}

#[test]
fn a_cut_while_an_image_is_rebased_changes_nothing() {
    let total = std::cell::Cell::new(0);
    run_seeds(scale(6, 100), |seed| {
        total.set(total.get() + rebase(seed).unwrap())
    });
    println!("{} cuts", total.get());
}

#[test]
fn a_cut_while_an_image_is_committed_changes_nothing() {
    let total = std::cell::Cell::new(0);
    run_seeds(scale(8, 100), |seed| {
        total.set(total.get() + commit(seed).unwrap())
    });
    println!("{} cuts", total.get());
}
