use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use treaty_testkit::WAIT_LIMIT;
use treaty_tests::{CrashStep, signal};

/// The daemon that is killed: one process after the other.
pub struct Daemon {
    socket: PathBuf,
    disk: PathBuf,
    queues: u16,
    running: Child,
}

/// How a process is to end.
#[derive(Clone, Copy, Debug)]
pub enum End {
    /// Not of its own accord.
    Never,
    /// When it reaches the step for the n-th time.
    At(CrashStep, u64),
}

impl Daemon {
    /// Starts it and waits until it listens.
    pub fn start(dir: &Path, queues: u16) -> Self {
        let (socket, disk) = (dir.join("socket"), dir.join("disk"));
        let running = spawn(&socket, &disk, queues, End::Never);
        let daemon = Self {
            socket,
            disk,
            queues,
            running,
        };
        let deadline = Instant::now() + WAIT_LIMIT;
        while std::os::unix::net::UnixStream::connect(&daemon.socket).is_err() {
            assert!(Instant::now() < deadline, "the daemon does not listen");
            std::thread::sleep(Duration::from_millis(2));
        }
        daemon
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    pub fn pid(&self) -> u32 {
        self.running.id()
    }

    /// SIGKILL from outside.
    pub fn kill(&mut self) {
        self.running.kill().expect("our child");
        self.running.wait().expect("our child");
    }

    /// Starts it again after it died.
    pub fn again(&mut self, end: End) {
        self.running = spawn(&self.socket, &self.disk, self.queues, end);
    }

    /// Waits until it has killed itself; false if it did not reach its step in time.
    pub fn has_died(&mut self) -> bool {
        let deadline = Instant::now() + WAIT_LIMIT;
        while Instant::now() < deadline {
            if let Some(status) = self.running.try_wait().expect("our child") {
                assert_eq!(status.signal(), Some(libc::SIGKILL), "{status}");
                return true;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        false
    }

    /// Stops it in its tracks, or lets it go on.
    pub fn freeze(&self, frozen: bool) {
        signal(self.pid(), if frozen { libc::SIGSTOP } else { libc::SIGCONT });
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have died already.
        let _ = self.running.kill();
        let _ = self.running.wait();
    }
}

fn spawn(socket: &Path, disk: &Path, queues: u16, end: End) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_crash-daemon"));
    command.arg(socket).arg(disk).arg(queues.to_string());
    if let End::At(step, count) = end {
        command.arg(format!("{step:?}")).arg(count.to_string());
    }
    command.spawn().expect("the daemon starts")
}
