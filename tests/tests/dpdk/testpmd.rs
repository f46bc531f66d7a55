//! A running testpmd.

use std::fs::File;
use std::io::Write;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use treaty_chardev::Chardev;
use treaty_lab::peers;

/// It starts in a second on an idle machine.
const LIMIT: Duration = Duration::from_secs(60);

/// Between two looks at something.
const PAUSE: Duration = Duration::from_millis(2);

pub struct Testpmd {
    process: Child,
    commands: ChildStdin,
    /// All its output, which is looked at from `seen` on.
    said: Arc<Mutex<String>>,
    seen: usize,
}

impl Testpmd {
    /// Starts it with these virtual devices (`--vdev`) and further arguments, and waits until it takes commands.
    pub fn start(vdevs: &[String], arguments: &[&str]) -> Self {
        let mut command = command();
        for vdev in vdevs {
            command.arg("--vdev").arg(vdev);
        }
        command.args(["--", "-i", "--total-num-mbufs=8192", "--no-flush-rx"]);
        command.args(arguments);
        let terminal = Chardev::pty().unwrap();
        let output = File::options()
            .write(true)
            .open(terminal.pty_path().unwrap())
            .unwrap();
        command
            .stdin(Stdio::piped())
            .stdout(output.try_clone().unwrap())
            .stderr(output);
        let mut process = command.spawn().expect("testpmd is in the tree");
        let commands = process.stdin.take().unwrap();
        let mut testpmd = Self {
            process,
            commands,
            said: listen(terminal),
            seen: 0,
        };
        testpmd.command("show port summary all");
        testpmd.wait_for(|line| line.contains("Number of available ports"));
        testpmd
    }

    pub fn command(&mut self, text: &str) {
        writeln!(self.commands, "{text}").unwrap();
    }

    /// The next line that has what is looked for.
    pub fn wait_for(&mut self, found: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + LIMIT;
        loop {
            let said = self.said();
            while let Some(len) = said[self.seen..].find('\n') {
                let line = said[self.seen..self.seen + len].to_owned();
                self.seen += len + 1;
                if found(&line) {
                    return line;
                }
            }
            std::thread::sleep(PAUSE);
            let ended = self.process.try_wait().unwrap();
            assert!(
                ended.is_none() && Instant::now() < deadline,
                "testpmd did not say what was waited for:\n{said}"
            );
        }
    }

    fn said(&self) -> String {
        self.said.lock().unwrap().clone()
    }

    /// Forwards, without giving up on a full queue.
    pub fn forward(&mut self) {
        self.command("set fwd io retry");
        self.command("set burst tx delay 100 retry 10000");
        self.command("start");
    }

    /// Waits until `port` has sent that many packets.
    pub fn wait_sent(&mut self, port: u16, count: usize) {
        let deadline = Instant::now() + LIMIT;
        let mut sent = 0;
        while sent < count {
            assert!(
                Instant::now() < deadline,
                "port {port} has sent {sent} of {count} packets:\n{}",
                self.said()
            );
            std::thread::sleep(Duration::from_millis(20));
            self.command(&format!("show port stats {port}"));
            let line = self.wait_for(|line| line.trim_start().starts_with("TX-packets:"));
            let number = line.split_whitespace().nth(1).and_then(|word| word.parse().ok());
            sent = number.expect("a number of packets");
        }
    }

    /// Stops forwarding and ends it; its files are complete then. Returns all that it has said.
    pub fn quit(mut self) -> String {
        self.command("stop");
        self.command("quit");
        let deadline = Instant::now() + LIMIT;
        let status = loop {
            if let Some(status) = self.process.try_wait().unwrap() {
                break status;
            }
            assert!(
                Instant::now() < deadline,
                "testpmd does not end:\n{}",
                self.said()
            );
            std::thread::sleep(PAUSE);
        };
        assert!(status.success(), "testpmd ended with {status}:\n{}", self.said());
        self.said()
    }
}

impl Drop for Testpmd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("testpmd said:\n{}", self.said());
        }
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Reads the terminal until the last one who wants to know is gone. testpmd writes to a terminal line by line, to a pipe when it
/// likes; it stands still when nobody reads.
fn listen(terminal: Chardev) -> Arc<Mutex<String>> {
    let said: Arc<Mutex<String>> = Arc::default();
    let weak = Arc::downgrade(&said);
    std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Some(said) = weak.upgrade() {
            match terminal.read(&mut bytes) {
                0 => std::thread::sleep(PAUSE),
                len => *said.lock().unwrap() += &String::from_utf8_lossy(&bytes[..len]),
            }
        }
    });
    said
}

/// DPDK's vectorised packed ring needs it.
pub fn has_avx512() -> bool {
    ["avx512f", "avx512bw", "avx512vl"]
        .iter()
        .all(|name| std::fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| text.contains(name)))
}

/// Two threads of its own on whatever processors there are, memory without huge pages, no files.
fn command() -> Command {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let tree = peers::trixie().expect("the peers' packages");
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let mut command = tree.command("dpdk-testpmd");
    command
        .arg("--lcores")
        .arg(format!("(0,1)@(0-{})", processors - 1))
        .args(["--no-huge", "-m", "128", "--no-pci", "--no-telemetry"])
        .arg(format!("--file-prefix=treaty-{}-{count}", std::process::id()))
        .args([
            "--force-max-simd-bitwidth=512",
            "--log-level=pmd.net.virtio.init:debug",
        ])
        .args(tree.dpdk_drivers());
    command
}
