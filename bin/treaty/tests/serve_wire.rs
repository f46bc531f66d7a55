//! `treaty serve` as a process of its own, with a front-end of single messages.

use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use treaty_testkit::WAIT_LIMIT;
use treaty_testkit::wire::{WIRE_BUFFERS, WireFrontEnd, WireRing};
use treaty_virtio_ring::Segment;
use treaty_virtio_spec::feature;

/// A daemon, and what it says.
struct Daemon {
    child: Child,
    socket: PathBuf,
    lines: mpsc::Receiver<String>,
}

impl Daemon {
    /// An entropy source.
    fn start(name: &str) -> Self {
        let socket = std::env::temp_dir().join(format!("treaty-serve-{name}-{}", std::process::id()));
        let mut child = Command::new(env!("CARGO_BIN_EXE_treaty"))
            .args(["serve", "rng", "--socket"])
            .arg(&socket)
            .env_remove("TREATY_LOG")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let errors = BufReader::new(child.stderr.take().unwrap());
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in errors.lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        Self { child, socket, lines }
    }

    fn connect(&self) -> WireFrontEnd {
        let mut front = WireFrontEnd::start(connect(&self.socket), feature::VERSION_1, 0);
        front.share_memory();
        front
    }

    fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args([name, &id]).status().unwrap().success());
    }

    /// Waits for a line that contains `text`; the lines before it.
    fn wait_for(&self, text: &str) -> Vec<String> {
        let mut before = Vec::new();
        loop {
            let line = self.lines.recv_timeout(WAIT_LIMIT);
            let line = line.unwrap_or_else(|_| panic!("no line has {text:?}: {before:?}"));
            if line.contains(text) {
                return before;
            }
            before.push(line);
        }
    }

    fn end(mut self) {
        self.signal("-TERM");
        assert_eq!(self.child.wait().unwrap().code(), Some(0));
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Fails if it has ended, which is what most tests want.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.socket);
    }
}

fn connect(path: &Path) -> UnixStream {
    let deadline = Instant::now() + WAIT_LIMIT;
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => return stream,
            Err(error) => assert!(Instant::now() < deadline, "{}: {error}", path.display()),
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn ask(ring: &mut WireRing, token: u64) {
    let segment = Segment {
        addr: WIRE_BUFFERS,
        len: 32,
    };
    ring.offer(&[], &[segment], token);
    assert_eq!(ring.reap(WAIT_LIMIT), Some((token, 32)));
}

/// Hardening row 11: a truncated memory file takes the connection down, not the process.
#[test]
fn hardening_11_a_daemon_survives_truncated_memory() {
    let mut daemon = Daemon::start("truncated");
    for round in 0..5 {
        let mut front = daemon.connect();
        let mut ring = front.start_ring(0);
        ask(&mut ring, round);
        front.file.set_len(0).unwrap();
        ring.kick.ring();
        assert!(front.is_closed());
        daemon.wait_for("truncated memory");
        assert!(daemon.child.try_wait().unwrap().is_none(), "the daemon lives");
    }
    let mut front = daemon.connect();
    let mut ring = front.start_ring(0);
    ask(&mut ring, 1);
    daemon.end();
}

#[test]
fn signals_change_the_log_level() {
    let daemon = Daemon::start("level");
    let quiet = |daemon: &Daemon| drop(daemon.connect());
    quiet(&daemon);
    // Once this one is served, the end of the one before has been passed over in silence.
    let open = daemon.connect();
    daemon.signal("-USR1");
    assert_eq!(
        daemon.wait_for("log level info"),
        [""; 0],
        "nothing was said so far"
    );
    drop(open);
    daemon.wait_for("front-end gone");
    daemon.signal("-USR1");
    daemon.wait_for("log level debug");
    quiet(&daemon);
    daemon.wait_for("GET_FEATURES");
    daemon.wait_for("front-end gone");
    daemon.signal("-USR2");
    daemon.wait_for("log level info");
    daemon.signal("-USR2");
    daemon.wait_for("log level warn");
    daemon.signal("-USR2");
    daemon.wait_for("log level warn");
    quiet(&daemon);
    daemon.end();
}
