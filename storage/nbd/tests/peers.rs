//! The programs of others on the other end: QEMU's tools, libnbd's tools, nbdkit. Data is compared in both directions.

mod common;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::Instant;

use common::{Disk, Folder, SOON, Served, serve, serve_with, workers};
use treaty_buffers::{AlignedBlock, IoBuffers};
use treaty_lab::peers;
use treaty_nbd::{Export, NbdImage, ServerOptions, ServerTls};
use treaty_storage::{BlockImage, Format, OpenOptions, RequestKind, StorageError, open};
use treaty_worker::sim::Random;

const MIB: u64 = 1 << 20;

/// A program of the peers' tree; says so and is `None` if there is no such tree.
fn peer(program: &str) -> Option<Command> {
    match peers::trixie() {
        Ok(tree) => {
            let mut command = tree.command(program);
            command.stdin(Stdio::null());
            Some(command)
        }
        Err(error) => {
            println!("SKIPPED: no peers: {error:#}");
            None
        }
    }
}

fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// Runs a program that must succeed; what it printed.
fn run(program: &str, arguments: &[&str]) -> Option<String> {
    let output = peer(program)?.args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        text(&output)
    );
    Some(text(&output))
}

/// A file with data here and there, and its bytes.
fn sparse_file(folder: &Folder, name: &str, seed: u64) -> (PathBuf, Vec<u8>) {
    use std::os::unix::fs::FileExt;
    let path = folder.file(name, 32 * MIB);
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    let mut random = Random::new(seed);
    let mut bytes = vec![0; 32 << 20];
    for _ in 0..40 {
        let at = random.below(500) as usize * 65536;
        let len = 4096 * (1 + random.below(20)) as usize;
        for byte in &mut bytes[at..at + len] {
            *byte = random.next_u64() as u8;
        }
        file.write_all_at(&bytes[at..at + len], at as u64).unwrap();
    }
    (path, bytes)
}

fn raw(path: &Path) -> Arc<dyn BlockImage> {
    open(&OpenOptions::raw(path)).unwrap()
}

#[test]
fn libnbds_tools_read_describe_and_copy_our_exports() {
    let folder = Folder::new("libnbd");
    let (path, bytes) = sparse_file(&folder, "disk", 1);
    let server = serve(&folder, raw(&path));
    let uri = server.uri("");
    let Some(info) = run("nbdinfo", &[&uri]) else {
        return;
    };
    for line in [
        "protocol: newstyle-fixed without TLS, using structured packets",
        "export-size: 33554432 (32M)",
        "base:allocation",
        "can_multi_conn: true",
        "can_zero: true",
        "can_fua: true",
        "is_read_only: false",
        "block_size_minimum: 512",
    ] {
        assert!(info.contains(line), "{line}\n{info}");
    }
    // Its map names the same data as the file system does.
    let map = run("nbdinfo", &["--map", &uri]).unwrap();
    let total: u64 = map
        .lines()
        .map(|line| line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap())
        .sum();
    assert_eq!(total, 32 * MIB);
    assert!(map.contains("hole,zero") && map.contains("data"), "{map}");
    assert!(run("nbdinfo", &["--list", &uri]).unwrap().contains("export=\"\""));
    // Out over four connections, and in again elsewhere.
    let copy = folder.path().join("copy");
    run("nbdcopy", &["--connections=4", &uri, copy.to_str().unwrap()]).unwrap();
    assert!(std::fs::read(&copy).unwrap() == bytes);
    drop(server);
    let other = folder.file("other", 32 * MIB);
    let server = serve(&folder, raw(&other));
    run("nbdcopy", &["--flush", copy.to_str().unwrap(), &server.uri("")]).unwrap();
    assert!(std::fs::read(&other).unwrap() == bytes);
}

#[test]
fn qemus_tools_read_write_and_compare_our_exports() {
    let folder = Folder::new("qemu");
    let (path, bytes) = sparse_file(&folder, "disk", 2);
    let server = serve(&folder, raw(&path));
    let uri = server.uri("");
    let copy = folder.path().join("copy.qcow2");
    let copy = copy.to_str().unwrap();
    if run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &uri, copy]).is_none() {
        return;
    }
    run("qemu-img", &["compare", "-f", "qcow2", "-F", "raw", copy, &uri]).unwrap();
    let map = run("qemu-img", &["map", "-f", "raw", "--output=json", &uri]).unwrap();
    assert!(map.contains("\"zero\": true, \"data\": false"), "{map}");
    let script = [
        "-f",
        "raw",
        "-c",
        "write -P 0x5a 64k 128k",
        "-c",
        "write -f -P 0x33 1M 512",
        "-c",
        "write -z 3M 1M",
        "-c",
        "write -zu 5M 64k",
        "-c",
        "discard 7M 1M",
        "-c",
        "flush",
        "-c",
        "read -P 0x5a 64k 128k",
        "-c",
        "read -P 0 3M 1M",
        &uri,
    ];
    let output = run("qemu-io", &script).unwrap();
    assert!(
        !output.contains("failed") && !output.contains("error"),
        "{output}"
    );
    // `peers` may fail a command and still exit well: the file says what was done.
    let mut expected = bytes;
    expected[64 << 10..192 << 10].fill(0x5a);
    expected[1 << 20..(1 << 20) + 512].fill(0x33);
    expected[3 << 20..4 << 20].fill(0);
    expected[5 << 20..(5 << 20) + (64 << 10)].fill(0);
    expected[7 << 20..8 << 20].fill(0);
    drop(server);
    assert!(std::fs::read(&path).unwrap() == expected);
}

/// A server of somebody else on a Unix socket, ended with the test.
struct Theirs {
    child: Child,
    socket: PathBuf,
}

impl Theirs {
    fn wait(child: Child, socket: PathBuf) -> Self {
        let mut server = Self { child, socket };
        let deadline = Instant::now() + SOON;
        while std::os::unix::net::UnixStream::connect(&server.socket).is_err() {
            let ended = server.child.try_wait().unwrap();
            assert!(ended.is_none(), "the peer ended: {ended:?}");
            assert!(Instant::now() < deadline, "the peer does not listen");
            std::thread::yield_now();
        }
        server
    }

    /// nbdkit with a plugin, filters before it, and parameters.
    fn nbdkit(folder: &Folder, options: &[&str], plugin: &str, parameters: &[&str]) -> Option<Self> {
        let tree = peers::trixie()
            .map_err(|error| println!("SKIPPED: no peers: {error:#}"))
            .ok()?;
        let parts = tree.libraries().join("nbdkit");
        let socket = folder.path().join("nbdkit.sock");
        let _ = std::fs::remove_file(&socket);
        let mut command = peer("nbdkit")?;
        command.args(["--foreground", "--unix"]).arg(&socket);
        for option in options {
            match option.strip_prefix("filter:") {
                Some(filter) => {
                    let file = format!("filters/nbdkit-{filter}-filter.so");
                    command.arg("--filter").arg(parts.join(file));
                }
                None => {
                    command.arg(option);
                }
            }
        }
        command.arg(parts.join(format!("plugins/nbdkit-{plugin}-plugin.so")));
        let child = command.args(parameters).stderr(Stdio::null()).spawn().unwrap();
        Some(Self::wait(child, socket))
    }

    fn uri(&self) -> String {
        format!("nbd+unix:///?socket={}", self.socket.display())
    }

    fn open(&self, read_only: bool) -> NbdImage {
        NbdImage::open(&self.uri().parse().unwrap(), "nbdkit", read_only).unwrap()
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Theirs {
    fn drop(&mut self) {
        self.kill();
    }
}

#[test]
fn our_client_reads_and_writes_nbdkits_exports() {
    let folder = Folder::new("nbdkit");
    // Slow answers in any order: each request must still get its own.
    let filters = ["filter:delay"];
    let delays = ["16M", "rdelay=2ms", "wdelay=1ms"];
    let Some(server) = Theirs::nbdkit(&folder, &filters, "memory", &delays) else {
        return;
    };
    let image = server.open(false);
    assert_eq!(image.capabilities().len, 16 * MIB);
    let worker = workers().remove(0);
    let disk = Disk::new(&worker.handle(), &image);
    let mut random = Random::new(3);
    let mut model = vec![0u8; 16 << 20];
    let mut tag = 0;
    for slot in 0..128usize {
        let byte = random.below(256) as u8;
        let len = 512 * (1 + random.below(255)) as usize;
        let block = AlignedBlock::new(len, 4096);
        block.buffers().fill(byte);
        let at = slot << 17;
        model[at..at + len].fill(byte);
        let durable = random.chance(300);
        let offset = at as u64;
        disk.start(tag, RequestKind::Write { offset, durable }, block.buffers());
        tag += 1;
    }
    (0..tag).for_each(|_| disk.end().result.unwrap());
    let (offset, len) = (MIB, 2 * MIB);
    disk.run(
        RequestKind::WriteZeroes {
            offset,
            len,
            unmap: true,
        },
        IoBuffers::new(),
    )
    .unwrap();
    model[1 << 20..3 << 20].fill(0);
    disk.run(RequestKind::Flush, IoBuffers::new()).unwrap();
    for at in (0..16 * MIB).step_by(1 << 20) {
        assert!(
            disk.read(at, 1 << 20).unwrap() == model[at as usize..][..1 << 20],
            "{at}"
        );
    }
    let extents = image.map(0, 16 * MIB).unwrap();
    assert!(
        extents.iter().any(|extent| extent.zero && !extent.data),
        "{extents:?}"
    );
    assert_eq!(extents.iter().map(|extent| extent.len).sum::<u64>(), 16 * MIB);
}

#[test]
fn errors_of_nbdkit_reach_their_requests_and_no_others() {
    let folder = Folder::new("errors");
    let parameters = ["8M", "error-pread=ENOSPC", "error-pread-rate=30%"];
    let Some(server) = Theirs::nbdkit(&folder, &["filter:error"], "memory", &parameters) else {
        return;
    };
    let image = server.open(false);
    let worker = workers().remove(0);
    let disk = Disk::new(&worker.handle(), &image);
    disk.write(0, &[7; 4096], false).unwrap();
    let mut counts = [0; 2];
    for _ in 0..200 {
        match disk.read(0, 4096) {
            Ok(bytes) => {
                assert_eq!(bytes, [7; 4096]);
                counts[0] += 1;
            }
            Err(StorageError::Host { source, .. }) => {
                assert_eq!(source.raw_os_error(), Some(libc::ENOSPC));
                counts[1] += 1;
            }
            Err(other) => panic!("{other}"),
        }
    }
    assert!(counts[0] > 50 && counts[1] > 10, "{counts:?}");
}

#[test]
fn a_server_that_comes_back_gets_what_was_in_flight_again() {
    let folder = Folder::new("return");
    let path = folder.file("disk", 16 * MIB);
    let file = format!("file={}", path.display());
    let slow = [file.as_str(), "wdelay=20ms"];
    let Some(mut server) = Theirs::nbdkit(&folder, &["filter:delay"], "file", &slow) else {
        return;
    };
    for worker in workers() {
        let image = server.open(false);
        let disk = Disk::new(&worker.handle(), &image);
        let mut sent = 0u32;
        for round in 0..3u8 {
            for slot in 0..64u64 {
                let block = AlignedBlock::new(4096, 4096);
                block.buffers().fill(round + 1);
                let offset = slot * 131_072;
                disk.start(
                    sent,
                    RequestKind::Write {
                        offset,
                        durable: false,
                    },
                    block.buffers(),
                );
                sent += 1;
            }
            // Some are done, some are not.
            for _ in 0..16 {
                disk.end().result.unwrap();
            }
            server.kill();
            std::thread::sleep(std::time::Duration::from_millis(30));
            server = Theirs::nbdkit(&folder, &["filter:delay"], "file", &slow).unwrap();
            for _ in 0..48 {
                disk.end().result.unwrap();
            }
            for slot in 0..64u64 {
                assert_eq!(
                    disk.read(slot * 131_072, 4096).unwrap(),
                    [round + 1; 4096],
                    "{slot}"
                );
            }
        }
    }
}

#[test]
fn a_server_that_stays_away_is_an_error_after_the_time_that_the_uri_says() {
    let folder = Folder::new("away");
    let Some(mut server) = Theirs::nbdkit(&folder, &[], "memory", &["1M"]) else {
        return;
    };
    let uri = format!("{}&reconnect=1", server.uri());
    let image = NbdImage::open(&uri.parse().unwrap(), "nbdkit", false).unwrap();
    let worker = workers().remove(0);
    let disk = Disk::new(&worker.handle(), &image);
    disk.write(0, &[1; 512], false).unwrap();
    server.kill();
    let error = disk.read(0, 512).unwrap_err();
    assert!(error.to_string().contains("the server is gone"), "{error}");
    // And it is found again when it is back.
    let _server = Theirs::nbdkit(&folder, &[], "memory", &["1M"]).unwrap();
    assert_eq!(disk.read(0, 512).unwrap(), [0; 512]);
}

#[test]
fn qemu_nbd_serves_us_its_qcow2_and_takes_one_client_at_a_time() {
    let folder = Folder::new("qemu-nbd");
    let (path, bytes) = sparse_file(&folder, "disk", 4);
    let image = folder.path().join("image.qcow2");
    let (from, to) = (path.to_str().unwrap(), image.to_str().unwrap());
    if run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", from, to]).is_none() {
        return;
    }
    let socket = folder.path().join("qemu.sock");
    let mut command = peer("qemu-nbd").unwrap();
    command
        .args(["--persistent", "-f", "qcow2", "--socket"])
        .arg(&socket)
        .arg(&image);
    let server = Theirs::wait(command.spawn().unwrap(), socket);
    let image = server.open(false);
    let extents = image.map(0, 32 * MIB).unwrap();
    assert!(extents.iter().any(|extent| !extent.data) && extents.iter().any(|extent| extent.data));
    let worker = workers().remove(0);
    let disk = Disk::new(&worker.handle(), &image);
    // It allows several connections only read-only.
    assert!(image.queue().is_err());
    for at in (0..32 * MIB).step_by(4 << 20) {
        assert!(disk.read(at, 4 << 20).unwrap() == bytes[at as usize..][..4 << 20]);
    }
    disk.write(MIB, &[0x77; 65536], true).unwrap();
    assert_eq!(disk.read(MIB, 65536).unwrap(), [0x77; 65536]);
}

fn certificates() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tls")
}

fn serve_tls(folder: &Folder, image: Arc<dyn BlockImage>) -> Served {
    let export = Export {
        name: String::new(),
        image,
        read_only: false,
        writes_through: false,
    };
    serve_with(
        folder,
        ServerOptions {
            exports: vec![export],
            tls: Some(ServerTls::new(&certificates()).unwrap()),
            max_connections: 16,
        },
    )
}

#[test]
fn tls_protects_both_of_our_ends_and_nobody_gets_past_it() {
    let folder = Folder::new("tls");
    let (path, bytes) = sparse_file(&folder, "disk", 5);
    let server = serve_tls(&folder, raw(&path));
    let plain = NbdImage::open(&server.uri("").parse().unwrap(), "there", false)
        .err()
        .unwrap();
    assert!(plain.to_string().contains("use nbds://"), "{plain}");
    let uri = |folder: &Path, name: &str| {
        let (socket, folder) = (server.socket.display(), folder.display());
        format!("nbds+unix:///?socket={socket}&tls-certificates={folder}&tls-hostname={name}")
    };
    let image = NbdImage::open(
        &uri(&certificates(), "localhost").parse().unwrap(),
        "there",
        false,
    )
    .unwrap();
    for worker in workers() {
        let disk = Disk::new(&worker.handle(), &image);
        for at in (0..32 * MIB).step_by(4 << 20) {
            assert!(disk.read(at, 4 << 20).unwrap() == bytes[at as usize..][..4 << 20]);
        }
        disk.write(0, &bytes[..4 << 20], true).unwrap();
    }
    let wrong = NbdImage::open(
        &uri(&certificates(), "elsewhere").parse().unwrap(),
        "there",
        false,
    );
    assert!(wrong.err().unwrap().to_string().contains("certificate"));
    // No certificate of its own: the server wants one.
    let stranger = Folder::new("tls-stranger");
    std::fs::copy(
        certificates().join("ca-cert.pem"),
        stranger.path().join("ca-cert.pem"),
    )
    .unwrap();
    let image = NbdImage::open(
        &uri(stranger.path(), "localhost").parse().unwrap(),
        "there",
        false,
    );
    assert!(image.is_err());
    let Some(mut info) = peer("nbdinfo") else { return };
    let output = info.arg(uri(&certificates(), "localhost")).output().unwrap();
    assert!(
        output.status.success() && text(&output).contains("with TLS"),
        "{}",
        text(&output)
    );
    let out = folder.path().join("copy");
    run(
        "nbdcopy",
        &[&uri(&certificates(), "localhost"), out.to_str().unwrap()],
    )
    .unwrap();
    assert!(std::fs::read(&out).unwrap() == bytes);
}

#[test]
fn our_client_speaks_tls_with_nbdkit() {
    let folder = Folder::new("tls-nbdkit");
    let folder_option = format!("--tls-certificates={}", certificates().display());
    let options = ["--tls=require", "--tls-verify-peer", &folder_option];
    let Some(server) = Theirs::nbdkit(&folder, &options, "memory", &["8M"]) else {
        return;
    };
    let uri = format!(
        "nbds+unix:///?socket={}&tls-certificates={}",
        server.socket.display(),
        certificates().display()
    );
    let image = NbdImage::open(&uri.parse().unwrap(), "nbdkit", false).unwrap();
    let worker = workers().remove(0);
    let disk = Disk::new(&worker.handle(), &image);
    let data: Vec<u8> = (0..1u32 << 20).map(|index| (index % 249) as u8).collect();
    disk.write(4096, &data, true).unwrap();
    assert!(disk.read(4096, data.len()).unwrap() == data);
}

#[test]
fn a_qcow2_image_is_exported_as_the_disk_that_it_is() {
    let folder = Folder::new("qcow2");
    let (path, mut bytes) = sparse_file(&folder, "disk", 6);
    let image = folder.path().join("image.qcow2");
    let (from, to) = (path.to_str().unwrap(), image.to_str().unwrap());
    if run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", from, to]).is_none() {
        return;
    }
    let options = OpenOptions {
        format: Format::Qcow2,
        ..OpenOptions::raw(&image)
    };
    let server = serve(&folder, open(&options).unwrap());
    let uri = server.uri("");
    let copy = folder.path().join("copy");
    run("nbdcopy", &[&uri, copy.to_str().unwrap()]).unwrap();
    assert!(std::fs::read(&copy).unwrap() == bytes);
    let map = run("nbdinfo", &["--map", &uri]).unwrap();
    assert!(map.contains("hole,zero") && map.contains("data"), "{map}");
    let script = [
        "-f",
        "raw",
        "-c",
        "write -P 0x41 12M 192k",
        "-c",
        "write -zu 1M 2M",
        "-c",
        "flush",
        &uri,
    ];
    run("qemu-io", &script).unwrap();
    drop(server);
    bytes[12 << 20..(12 << 20) + (192 << 10)].fill(0x41);
    bytes[1 << 20..3 << 20].fill(0);
    std::fs::write(&path, &bytes).unwrap();
    run("qemu-img", &["check", to]).unwrap();
    run("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", from, to]).unwrap();
}
