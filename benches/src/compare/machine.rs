//! One boot of the probe, in Treaty or in QEMU.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Deserialize;
use treaty_lab::Qmp;

use super::counters::{Count, Counters};
use super::peers::Qemu;

/// Who runs the guest.
pub enum Side {
    Treaty,
    Qemu(Qemu),
}

impl Side {
    pub fn name(&self) -> &'static str {
        match self {
            Self::Treaty => "treaty",
            Self::Qemu(_) => "qemu",
        }
    }
}

/// Where the virtio devices are. What is emulated is on PCI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Pci,
    Mmio,
}

impl Transport {
    pub fn name(self) -> &'static str {
        match self {
            Self::Pci => "pci",
            Self::Mmio => "mmio",
        }
    }
}

pub struct Machine<'a> {
    pub side: &'a Side,
    pub transport: Transport,
    pub probe: &'a Path,
    /// For virtio-blk and for IDE.
    pub disks: &'a [PathBuf; 2],
    pub dir: &'a Path,
    pub ms: u32,
}

/// What the probe says of one workload.
#[derive(Clone, Debug, Deserialize)]
pub struct Line {
    pub workload: String,
    pub ring: String,
    pub mode: String,
    pub bytes: u32,
    pub depth: u32,
    pub all_operations: u64,
    pub ops_per_s: f64,
    pub p50_ns: u64,
    pub p99_ns: u64,
    pub notifications_per_op: f64,
    pub interrupts_per_op: f64,
}

/// One workload's figures.
#[derive(Clone, Debug)]
pub struct Sample {
    pub line: Line,
    /// Per operation; `None` if the counters could not be read.
    pub exits: Option<f64>,
    pub cpu_ns: Option<f64>,
}

/// What one boot gave.
#[derive(Debug, Default)]
pub struct Run {
    pub samples: Vec<Sample>,
    /// What went wrong, in the probe's or the monitor's words.
    pub errors: Vec<String>,
}

/// The longest that a boot takes.
const LIMIT: Duration = Duration::from_secs(60);

impl Machine<'_> {
    /// Boots it and waits for its end.
    pub fn run(&self) -> Result<Run> {
        let socket = self.dir.join("control");
        let _of_the_last_run = std::fs::remove_file(&socket);
        let mut command = match self.side {
            Side::Treaty => self.treaty(&socket)?,
            Side::Qemu(qemu) => self.qemu(qemu, &socket),
        };
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {}", self.side.name()))?;
        let mut child = Ended(child);
        let counters = match self.side {
            Side::Treaty => Some(Counters::Api(socket)),
            Side::Qemu(_) => Qmp::connect(&socket).ok().map(|qmp| Counters::Qmp(Box::new(qmp))),
        };
        let mut run = listen(&mut child.0, counters)?;
        if !run.errors.is_empty() {
            child.end();
            let mut text = String::new();
            if let Some(mut errors) = child.0.stderr.take() {
                let _as_much_as_there_is = errors.read_to_string(&mut text);
            }
            run.errors.extend(text.lines().take(5).map(str::to_owned));
        }
        let (side, transport) = (self.side.name(), self.transport.name());
        for error in &mut run.errors {
            *error = format!("{side} over {transport}: {error}");
        }
        Ok(run)
    }

    fn work(&self) -> String {
        let virtio = "blk=4096,1 blk=4096,32 net=1400,1 net=1400,32";
        let emulated = match self.transport {
            Transport::Pci => "e1000=1400,1 e1000=1400,32 ide=4096",
            Transport::Mmio => "pci=off",
        };
        format!(
            "json latency marks ms={} runs=1 mode=both ring=both {virtio} {emulated}",
            self.ms
        )
    }

    fn treaty(&self, socket: &Path) -> Result<Command> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("run").arg("--kernel").arg(self.probe);
        command.args(["--memory", "128M"]).arg("--api").arg(socket);
        // As QEMU's iothread does of itself: look on for a while before sleeping.
        command.args(["--poll", "adaptive"]);
        let (disk, ide) = (self.disks[0].display(), self.disks[1].display());
        let mut work = self.work();
        let transport = self.transport.name();
        command
            .arg("--disk")
            .arg(format!(
                "path={disk},format=raw,ring=packed,transport={transport}"
            ))
            .arg("--net")
            .arg(format!("null,ring=packed,transport={transport}"));
        match self.transport {
            Transport::Pci => {
                command.arg("--disk").arg(format!("path={ide},format=raw,if=ide"));
                command.args(["--net", "null,model=e1000"]);
            }
            // The monitor tells Linux where they are by ACPI, which the probe does not read.
            Transport::Mmio => {
                work += " virtio_mmio.device=4K@0xfd000000:16 virtio_mmio.device=4K@0xfd001000:17";
            }
        }
        command.args(["--cmdline", &work]);
        Ok(command)
    }

    fn qemu(&self, qemu: &Qemu, socket: &Path) -> Command {
        let mut command = qemu.command();
        let (name, suffix) = match self.transport {
            Transport::Pci => ("pc", "pci"),
            // Without ACPI it says on the command line where its devices are.
            Transport::Mmio => ("microvm,acpi=off", "device"),
        };
        // Where KVM is itself virtual, arch-capabilities cannot be set.
        command.args(["-accel", "kvm", "-cpu", "host,-arch-capabilities"]);
        command.args(["-no-reboot", "-serial", "stdio", "-m", "128", "-M", name]);
        command.args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4"]);
        command.args(["-global", "virtio-mmio.force-legacy=false"]);
        command
            .arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", socket.display()));
        command
            .arg("-kernel")
            .arg(self.probe)
            .args(["-append", &self.work()]);
        command.args(["-object", "iothread,id=t"]);
        command.arg("-drive").arg(format!(
            "if=none,id=d,format=raw,aio=io_uring,file={}",
            self.disks[0].display()
        ));
        command.arg("-device").arg(format!(
            "virtio-blk-{suffix},drive=d,iothread=t,packed=on,num-queues=1"
        ));
        // To a port that nobody listens on: QEMU has nothing that swallows frames at once.
        let nowhere = "udp=127.0.0.1:9,localaddr=127.0.0.1:0";
        command.arg("-netdev").arg(format!("socket,id=n,{nowhere}"));
        command
            .arg("-device")
            .arg(format!("virtio-net-{suffix},netdev=n,packed=on"));
        if self.transport == Transport::Pci {
            command.arg("-drive").arg(format!(
                "if=ide,format=raw,aio=io_uring,file={}",
                self.disks[1].display()
            ));
            command.arg("-netdev").arg(format!("socket,id=e,{nowhere}"));
            command.args(["-device", "e1000,netdev=e"]);
        }
        command
    }
}

/// A child that is not left behind.
struct Ended(Child);

impl Ended {
    fn end(&mut self) {
        // Both fail if it has ended, which is what is wanted.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        self.end();
    }
}

/// Reads what the probe says, and the counters at its marks.
fn listen(child: &mut Child, mut counters: Option<Counters>) -> Result<Run> {
    let (sender, lines) = mpsc::channel();
    let mut go_on = child.stdin.take().context("no standard input")?;
    let output = child.stdout.take().context("no standard output")?;
    std::thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).into_owned();
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    let (mut run, mut marks) = (Run::default(), Marks::default());
    let deadline = Instant::now() + LIMIT;
    let mut done = false;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let line = match lines.recv_timeout(left) {
            Ok(line) => line,
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                run.errors.push(format!("no end after {} s", LIMIT.as_secs()));
                return Ok(run);
            }
        };
        if line.contains("\"mark\":") {
            let count = counters.as_mut().and_then(|counters| counters.read(child.id()));
            marks.add(count);
            // The guest sleeps until this.
            go_on.write_all(b"\n").context("the guest does not listen")?;
            continue;
        }
        done |= line.contains("\"done\":true");
        take(&line, &mut run, &mut marks);
    }
    if !done {
        run.errors.push("the probe did not come to its end".into());
    }
    Ok(run)
}

fn take(line: &str, run: &mut Run, marks: &mut Marks) {
    let Some((_, json)) = line.split_once("PROBE ") else {
        if line.contains("PROBE-") {
            run.errors.push(line.to_owned());
        }
        return;
    };
    if let Ok(line) = serde_json::from_str::<Line>(json) {
        let (exits, cpu_ns) = marks.between(line.all_operations).unzip();
        let exits = exits.filter(|_| marks.count_ports() || line.workload != "ide-read");
        run.samples.push(Sample { line, exits, cpu_ns });
    } else if json.contains("\"error\":") || json.contains("\"skipped\":") {
        run.errors.push(json.to_owned());
    }
}

/// Counters at the last marks, and what a pair of marks costs by itself.
#[derive(Default)]
struct Marks {
    last: [Option<Count>; 2],
    own: Option<Count>,
    seen: usize,
}

impl Marks {
    fn add(&mut self, count: Option<Count>) {
        self.last = [self.last[1], count];
        self.seen += 1;
        if self.seen == 2 {
            self.own = self.difference();
        }
    }

    /// Some KVMs (kvm_pvm) do not count exits for ports. A mark's text is dozens of them.
    fn count_ports(&self) -> bool {
        self.own.is_some_and(|own| own.exits > 20)
    }

    fn difference(&self) -> Option<Count> {
        let [begin, end] = self.last;
        let (begin, end) = begin.zip(end)?;
        Some(Count {
            exits: end.exits.checked_sub(begin.exits)?,
            cpu_ns: end.cpu_ns.checked_sub(begin.cpu_ns)?,
        })
    }

    /// Exits and nanoseconds for each of so many operations between the last two marks.
    fn between(&self, operations: u64) -> Option<(f64, f64)> {
        let (all, own) = self.difference().zip(self.own)?;
        let each = |all: u64, own: u64| all.saturating_sub(own) as f64 / operations.max(1) as f64;
        Some((each(all.exits, own.exits), each(all.cpu_ns, own.cpu_ns)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_marks_cost_is_not_counted() {
        let count = |exits, cpu_ns| Some(Count { exits, cpu_ns });
        let mut marks = Marks::default();
        for mark in [count(100, 1000), count(160, 1500)] {
            marks.add(mark);
        }
        assert_eq!(marks.between(1), Some((0.0, 0.0)));
        marks.add(count(200, 2000));
        marks.add(count(1260, 12500));
        assert_eq!(marks.between(100), Some((10.0, 100.0)));
        marks.add(None);
        assert_eq!(marks.between(100), None, "no reading is not 0");
    }
}
