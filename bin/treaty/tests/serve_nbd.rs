//! `treaty serve nbd`, as a user runs it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use treaty_nbd::{NbdImage, NbdUri, list};
use treaty_storage::BlockImage;

const SOON: Duration = Duration::from_secs(20);

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("treaty-nbd-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

struct Daemon(Child);

impl Daemon {
    fn start(arguments: &[&str]) -> Self {
        let program = env!("CARGO_BIN_EXE_treaty");
        Self(
            Command::new(program)
                .arg("serve")
                .args(arguments)
                .spawn()
                .unwrap(),
        )
    }

    /// Asks it to end; its exit code.
    fn terminate(mut self) -> Option<i32> {
        let pid = self.0.id().to_string();
        Command::new("kill").arg(&pid).status().unwrap();
        self.0.wait().unwrap().code()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn open(uri: &str, read_only: bool) -> NbdImage {
    let parsed: NbdUri = uri.parse().unwrap();
    let deadline = Instant::now() + SOON;
    loop {
        match NbdImage::open(&parsed, uri, read_only) {
            Ok(image) => return image,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn disk(folder: &Folder) -> PathBuf {
    let path = folder.0.join("disk");
    std::fs::write(&path, vec![7; 1 << 20]).unwrap();
    path
}

fn uri(socket: &Path, export: &str) -> String {
    format!("nbd+unix:///{export}?socket={}", socket.display())
}

#[test]
fn an_export_can_be_exported_again() {
    let folder = Folder::new("chain");
    let (first, second) = (folder.0.join("first.sock"), folder.0.join("second.sock"));
    let image = format!("path={},format=raw,cache=none,bps=100M", disk(&folder).display());
    let one = Daemon::start(&[
        "nbd",
        "--socket",
        first.to_str().unwrap(),
        "--disk",
        &image,
        "--export",
        "x",
    ]);
    assert_eq!(open(&uri(&first, "x"), false).capabilities().len, 1 << 20);
    let through = format!("path={},format=raw", uri(&first, "x"));
    let two = Daemon::start(&["nbd", "--socket", second.to_str().unwrap(), "--disk", &through]);
    let again = open(&uri(&second, ""), false);
    assert_eq!(again.capabilities().len, 1 << 20);
    assert_eq!(
        again
            .map(0, 1 << 20)
            .unwrap()
            .iter()
            .map(|extent| extent.len)
            .sum::<u64>(),
        1 << 20
    );
    drop(again);
    assert_eq!(two.terminate(), Some(0));
    assert_eq!(one.terminate(), Some(0));
    assert!(!first.exists() && !second.exists());
}

#[test]
fn a_file_describes_servers_with_several_exports() {
    let folder = Folder::new("config");
    let socket = folder.0.join("nbd.sock");
    let image = disk(&folder);
    let config = folder.0.join("daemon.toml");
    let text = format!(
        "[[nbd]]\nsocket = {socket:?}\n[[nbd.export]]\nname = 'a'\ndisk = {{ path = {image:?}, format = 'raw', readonly = true }}\n\
         [[nbd.export]]\nname = 'b'\ndisk = {{ format = 'null', size = '4M' }}\n"
    );
    std::fs::write(&config, text).unwrap();
    let daemon = Daemon::start(&["--config", config.to_str().unwrap()]);
    assert_eq!(open(&uri(&socket, "b"), false).capabilities().len, 4 << 20);
    assert!(open(&uri(&socket, "a"), true).capabilities().read_only);
    assert_eq!(list(&uri(&socket, "").parse().unwrap()).unwrap(), ["a", "b"]);
    assert_eq!(daemon.terminate(), Some(0));
}

#[test]
fn refusals_are_one_line_and_code_1() {
    let folder = Folder::new("refusals");
    let image = format!("path={},format=raw", disk(&folder).display());
    let socket = folder.0.join("s");
    let cases = [
        (format!("{image},cache=fast"), "unknown variant `fast`"),
        (format!("{image},on-error=stop"), "no API"),
        (format!("{image},iops=5,iops_max=2"), "burst"),
        (format!("{image},group=g"), "group=g"),
        (
            "path=nbd+unix:///x?socket=/nowhere,format=raw".to_owned(),
            "cannot reach /nowhere",
        ),
        ("path=gopher://x/y,format=raw".to_owned(), "gopher is no scheme"),
    ];
    for (disk, reason) in cases {
        let output = Command::new(env!("CARGO_BIN_EXE_treaty"))
            .args(["serve", "nbd", "--disk", &disk, "--socket"])
            .arg(&socket)
            .stdout(Stdio::null())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(
            text.contains(reason) && text.lines().count() == 1,
            "{disk}: {text}"
        );
    }
}
