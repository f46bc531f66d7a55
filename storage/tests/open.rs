//! What is refused at opening, and who excludes whom.

mod common;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use common::{Disk, Folder, workers};
use treaty_buffers::IoBuffers;
use treaty_lab::{Tree, peers};
use treaty_storage::{CacheMode, LockTime, OpenOptions, RequestKind, open};
use treaty_worker::Worker;

const MIB: u64 = 1 << 20;

fn read_only(path: &Path) -> OpenOptions {
    OpenOptions {
        read_only: true,
        ..OpenOptions::raw(path)
    }
}

fn refusal(options: &OpenOptions) -> String {
    let Err(error) = open(options) else {
        panic!("{} was opened", options.path.display());
    };
    let text = error.to_string();
    assert!(text.starts_with(&options.path.display().to_string()), "{text}");
    assert_eq!(text.lines().count(), 1);
    text
}

#[test]
fn what_is_no_disk_image_is_refused_with_a_reason() {
    let folder = Folder::new("refused");
    let missing = folder.path().join("missing");
    assert!(refusal(&OpenOptions::raw(&missing)).contains("no such file"));
    for options in [OpenOptions::raw(folder.path()), read_only(folder.path())] {
        assert!(refusal(&options).contains("directory"));
    }
    assert!(refusal(&OpenOptions::raw("/dev/zero")).contains("neither a file nor a block device"));
    let odd = folder.file("odd", 1000);
    let text = refusal(&OpenOptions::raw(&odd));
    assert!(
        text.contains("1000 bytes") && text.contains("truncate -s 1024"),
        "{text}"
    );
    assert!(refusal(&OpenOptions::raw(folder.file("empty", 0))).contains("empty"));
    let fifo = folder.path().join("fifo");
    let made = Command::new("mkfifo")
        .arg(&fifo)
        .status()
        .is_ok_and(|status| status.success());
    if made {
        // It neither waits for the other end nor takes it for a disk.
        assert!(refusal(&read_only(&fifo)).contains("neither a file nor a block device"));
        assert!(refusal(&OpenOptions::raw(&fifo)).contains("neither a file nor a block device"));
    } else {
        println!("SKIPPED: no mkfifo");
    }
    let locked = folder.file("unreadable", MIB);
    std::fs::set_permissions(&locked, std::fs::Permissions::from_mode(0o0)).unwrap();
    if std::fs::File::open(&locked).is_ok() {
        println!("SKIPPED: this user may open any file");
    } else {
        assert!(refusal(&OpenOptions::raw(&locked)).contains("permissions"));
    }
}

#[test]
fn hardening_05_a_raw_image_stays_raw_whatever_its_header_says() {
    let folder = Folder::new("header");
    let path = folder.file("disk", MIB);
    let worker = workers().remove(0);
    let image = open(&OpenOptions::raw(&path)).unwrap();
    let disk = Disk::new(&worker.handle(), &*image);
    let mut header = [0; 512];
    header[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
    disk.write(0, &header, true).unwrap();
    drop((disk, image, worker));
    let worker = workers().remove(0);
    let image = open(&OpenOptions::raw(&path)).unwrap();
    assert_eq!(image.capabilities().len, MIB);
    assert_eq!(Disk::new(&worker.handle(), &*image).read(0, 512).unwrap(), header);
}

#[test]
fn a_writer_excludes_everybody_and_readers_exclude_writers() {
    let folder = Folder::new("locks");
    let path = folder.file("disk", MIB);
    let writer = open(&OpenOptions::raw(&path)).unwrap();
    assert!(refusal(&OpenOptions::raw(&path)).contains("another program has it open"));
    assert!(refusal(&read_only(&path)).contains("open for writing"));
    let queue = writer.queue().unwrap();
    drop(writer);
    assert!(open(&OpenOptions::raw(&path)).is_err(), "a queue still uses it");
    drop(queue);
    let first = open(&read_only(&path)).unwrap();
    let second = open(&read_only(&path)).unwrap();
    assert!(refusal(&OpenOptions::raw(&path)).contains("another program has it open"));
    drop((first, second));
    open(&OpenOptions::raw(&path)).unwrap();
}

#[test]
fn an_image_locked_while_it_runs_is_handed_on() {
    let folder = Folder::new("handover");
    let path = folder.file("disk", MIB);
    let running = OpenOptions {
        lock: LockTime::Running,
        ..OpenOptions::raw(&path)
    };
    let (source, destination) = (open(&running).unwrap(), open(&running).unwrap());
    let queues = [source.queue().unwrap(), source.queue().unwrap()];
    let error = destination.queue().err().unwrap().to_string();
    assert!(error.contains("another program has it open"), "{error}");
    assert!(refusal(&OpenOptions::raw(&path)).contains("another program has it open"));
    let [first, second] = queues;
    drop(first);
    assert!(destination.queue().is_err(), "the source still has a queue");
    drop(second);
    let _queue = destination.queue().unwrap();
    assert!(source.queue().is_err(), "nor can the source have it back");
    assert!(open(&OpenOptions::raw(&path)).is_err());
}

/// QEMU 10 and 7.2; says so if they cannot be had.
fn qemus() -> Vec<Tree> {
    let trees = [peers::trixie(), peers::bookworm()].into_iter();
    let had = |tree: anyhow::Result<Tree>| tree.map_err(|error| println!("SKIPPED: no QEMU: {error:#}")).ok();
    trees.filter_map(had).collect()
}

fn qemu(tree: &Tree, program: &str, arguments: &[&str], path: &Path) -> (bool, String) {
    let output = tree.command(program).args(arguments).arg(path).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8_lossy(&text).into_owned(),
    )
}

fn qemu_io(tree: &Tree, arguments: &[&str], path: &Path) -> (bool, String) {
    qemu(tree, "qemu-io", arguments, path)
}

#[test]
fn qemu_reads_what_was_written_and_we_read_what_it_wrote() {
    let folder = Folder::new("qemu-read");
    for tree in qemus() {
        for worker in workers() {
            let path = folder.file("disk", MIB);
            let disk = Disk::new(&worker.handle(), &*open(&OpenOptions::raw(&path)).unwrap());
            disk.write(0, &[0xab; 4096], false).unwrap();
            disk.write(65536, &[0xcd; 1024], false).unwrap();
            let (offset, len, unmap) = (512, 512, true);
            disk.run(RequestKind::WriteZeroes { offset, len, unmap }, IoBuffers::new())
                .unwrap();
            disk.run(RequestKind::Flush, IoBuffers::new()).unwrap();
            let reactor = worker.reactor();
            drop((disk, worker));
            let reads = [
                "read -P 0xab 0 512",
                "read -P 0 512 512",
                "read -P 0xab 1k 3k",
                "read -P 0xcd 64k 1k",
                "read -P 0 65k 959k",
            ];
            for pattern in reads {
                let (ok, text) = qemu_io(&tree, &["-r", "-f", "raw", "-c", pattern], &path);
                assert!(ok && !text.contains("failed"), "{pattern}: {text}");
            }
            let script = [
                "-f",
                "raw",
                "-c",
                "write -P 0x11 128k 64k",
                "-c",
                "write -z 4k 4k",
                "-c",
                "discard 64k 4k",
                "-c",
                "flush",
            ];
            let (ok, text) = qemu_io(&tree, &script, &path);
            assert!(ok, "{text}");
            let worker = Worker::start("again", reactor).unwrap();
            let disk = Disk::new(&worker.handle(), &*open(&read_only(&path)).unwrap());
            assert_eq!(disk.read(128 << 10, 64 << 10).unwrap(), [0x11; 64 << 10]);
            assert_eq!(disk.read(0, 512).unwrap(), [0xab; 512]);
            assert_eq!(disk.read(4096, 4096).unwrap(), [0; 4096]);
            assert_eq!(disk.read(64 << 10, 4096).unwrap(), [0; 4096]);
            let (ok, text) = qemu(&tree, "qemu-img", &["map", "-f", "raw", "--output=json"], &path);
            assert!(ok, "{text}");
            let image = open(&read_only(&path)).unwrap();
            let data = |extent: &&treaty_storage::Extent| extent.data;
            let ours = image.map(0, MIB).unwrap().iter().filter(data).count();
            assert_eq!(text.matches("\"data\": true").count(), ours, "{text}");
        }
    }
}

/// A qemu-io that has the image open until it is dropped.
struct Holder(Child);

impl Holder {
    fn new(tree: &Tree, arguments: &[&str], path: &Path) -> Self {
        let mut child = tree
            .command("qemu-io")
            .args(arguments)
            .arg(path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // Its answer to a command shows that the image is open.
        child.stdin.as_mut().unwrap().write_all(b"length\n").unwrap();
        let mut answer = Vec::new();
        let output = child.stdout.as_mut().unwrap();
        let _ = BufReader::new(output).read_until(b'B', &mut answer);
        Self(child)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn qemu_and_we_keep_off_each_others_images() {
    let folder = Folder::new("qemu-locks");
    let write = ["-f", "raw", "-c", "write 0 512"];
    let read = ["-r", "-f", "raw", "-c", "read 0 512"];
    for tree in qemus() {
        let path = folder.file("disk", MIB);
        let ours = open(&OpenOptions::raw(&path)).unwrap();
        let (ok, text) = qemu_io(&tree, &write, &path);
        assert!(!ok && text.contains("lock"), "{text}");
        drop(ours);
        let (ok, text) = qemu_io(&tree, &write, &path);
        assert!(ok, "{text}");
        // Readers get along with each other, and exclude writers.
        let ours = open(&read_only(&path)).unwrap();
        assert!(qemu_io(&tree, &read, &path).0);
        assert!(!qemu_io(&tree, &write, &path).0);
        drop(ours);
        let theirs = Holder::new(&tree, &["-f", "raw"], &path);
        assert!(refusal(&OpenOptions::raw(&path)).contains("another program has it open"));
        assert!(refusal(&read_only(&path)).contains("open for writing"));
        drop(theirs);
        // qemu-io reads beside anybody; a guest's disk in QEMU does not.
        let theirs = Holder::new(&tree, &["-r", "-f", "raw"], &path);
        open(&read_only(&path)).unwrap();
        drop(theirs);
        open(&OpenOptions::raw(&path)).unwrap();
    }
}

/// A block device over a file, gone with the test; `None` where none can be made.
struct LoopDevice(std::path::PathBuf);

impl LoopDevice {
    fn new(path: &Path, options: &[&str]) -> Option<Self> {
        let output = Command::new("losetup")
            .args(["--find", "--show"])
            .args(options)
            .arg(path)
            .output();
        let output = output.ok().filter(|output| output.status.success());
        if output.is_none() {
            println!("SKIPPED: no loop device can be made here");
        }
        Some(Self(String::from_utf8(output?.stdout).ok()?.trim().into()))
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}

#[test]
fn block_devices_have_their_own_size_and_blocks_and_can_forget() {
    let folder = Folder::new("loop");
    let path = folder.file("disk", 8 * MIB);
    for worker in workers() {
        let Some(device) = LoopDevice::new(&path, &["--sector-size", "4096"]) else {
            return;
        };
        let options = OpenOptions {
            cache: CacheMode::None,
            ..OpenOptions::raw(&device.0)
        };
        let image = open(&options).unwrap();
        let capabilities = image.capabilities();
        assert_eq!((capabilities.len, capabilities.block_size), (8 * MIB, 4096));
        let disk = Disk::new(&worker.handle(), &*image);
        disk.write(0, &[7; 1 << 20], true).unwrap();
        assert!(disk.read(0, 512).is_err(), "half a block");
        let (offset, len, unmap) = (65536, 65536, true);
        disk.run(RequestKind::Discard { offset, len }, IoBuffers::new())
            .unwrap();
        let offset = 4 * 65536;
        disk.run(RequestKind::WriteZeroes { offset, len, unmap }, IoBuffers::new())
            .unwrap();
        disk.run(RequestKind::Flush, IoBuffers::new()).unwrap();
        assert_eq!(disk.read(0, 65536).unwrap(), [7; 65536]);
        assert_eq!(disk.read(offset, 65536).unwrap(), [0; 65536]);
        let bytes = std::fs::read(&path).unwrap();
        assert!(bytes[65536..131_072].iter().all(|&byte| byte == 0 || byte == 7));
        drop((disk, worker, image));
    }
    let Some(device) = LoopDevice::new(&path, &["--read-only"]) else {
        return;
    };
    assert!(refusal(&OpenOptions::raw(&device.0)).contains("read-only"));
    assert!(open(&read_only(&device.0)).unwrap().capabilities().read_only);
}
