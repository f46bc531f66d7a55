//! Guests of QEMU on this host, whose devices are `treaty serve` processes. They are emulated: no KVM is needed.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use crate::batch::Verdict;
use crate::cache::Cache;
use crate::guest::{Guest, Kernel};
use crate::qmp::Qmp;
use crate::{initramfs, qemu};

/// A guest with a daemon for each of its devices.
#[derive(Debug, Clone)]
pub struct VhostTest {
    /// A unique name.
    pub name: &'static str,
    /// The guest's kernel.
    pub kernel: Kernel,
    /// vCPUs.
    pub cpus: u8,
    /// Its devices.
    pub devices: Vec<Served>,
    /// A script for the guest; `data/guest-init.sh` has the functions it may use.
    pub script: &'static str,
    /// Stop (SIGTERM) and start the first device's daemon again, from the guest's line `GUEST: begin` to `GUEST: end`.
    pub restarts: bool,
    /// Move the running guest this often, each time to a new QEMU with new daemons, after some lines `GUEST: round` of
    /// the guest. Then it gets a line on its console.
    pub migrations: u32,
}

/// A device on both sides of its socket. `$W` is the test's directory, `$G` the number of migrations before.
#[derive(Debug, Clone)]
pub struct Served {
    /// Names the socket.
    pub name: &'static str,
    /// Arguments of `treaty serve` without the socket.
    pub serve: String,
    /// Arguments of QEMU; its character device is called like this device.
    pub qemu: String,
    /// QEMU looks for the daemon again when it has gone. Its generic devices cannot: they do not wait for the connection.
    pub reconnects: bool,
}

/// A kernel that zeroes the pages which it hands out marks them for a migration, and a missing dirty log is not seen.
const COMMAND_LINE: &str = "init_on_alloc=0";
/// A guest takes up to 15 s on an idle machine.
const LIMIT: Duration = Duration::from_secs(180);
/// Pause before the daemon is stopped again.
const RESTART_PAUSE: Duration = Duration::from_millis(700);
/// Fewer restarts in the middle of the work would show nothing.
const FEWEST_RESTARTS: u32 = 2;
/// Lines of the guest before it is moved.
const ROUNDS_BETWEEN_MIGRATIONS: u32 = 5;
/// Bytes of each disk.
const DISK: u64 = 96 << 20;

impl VhostTest {
    /// Runs it with the program `treaty`.
    pub fn run(&self, cache: &Cache, treaty: &Path) -> Result<Verdict> {
        let dir = cache.dir().join("runs").join(self.name);
        if dir.exists() {
            fs::remove_dir_all(&dir)?;
        }
        fs::create_dir_all(&dir)?;
        let begin = Instant::now();
        let problem = self.try_run(cache, treaty, &dir).err();
        for disk in ["disk0", "disk1"] {
            // Not every test has them.
            let _ = fs::remove_file(dir.join(disk));
        }
        Ok(Verdict {
            name: self.name.to_owned(),
            problem: problem.map(|error| format!("{error:#}")),
            wall: begin.elapsed(),
            dir,
        })
    }

    fn try_run(&self, cache: &Cache, treaty: &Path, dir: &Path) -> Result<()> {
        for disk in ["disk0", "disk1"] {
            File::create(dir.join(disk))?.set_len(DISK)?;
        }
        let mut machine = self.machine(cache, treaty, dir, 0)?;
        for number in 1..=self.migrations {
            // The guest is in the middle of its work, wherever it is.
            for _ in 0..ROUNDS_BETWEEN_MIGRATIONS {
                machine.wait_for("GUEST: round")?;
            }
            let next = self.machine(cache, treaty, dir, number)?;
            machine = machine.migrate(dir, next)?;
        }
        if self.migrations > 0 {
            let mut input = machine
                .qemu
                .0
                .stdin
                .take()
                .context("QEMU has no standard input")?;
            input.write_all(b"\n")?;
        }
        let restarts = self.watch(&machine.lines, machine.daemons.first_mut())?;
        ensure!(
            !self.restarts || restarts >= FEWEST_RESTARTS,
            "only {restarts} restarts while the guest was at work"
        );
        machine.qemu.0.wait()?;
        machine.daemons.into_iter().try_for_each(Daemon::stop)
    }

    /// A QEMU with its daemons. All but the first one wait for a migration.
    fn machine(&self, cache: &Cache, treaty: &Path, dir: &Path, number: u32) -> Result<Machine> {
        let start = |device: &Served| Daemon::start(treaty, dir, device, number);
        let daemons = self.devices.iter().map(start).collect::<Result<Vec<_>>>()?;
        let mut command = self.command(cache, dir, number)?;
        if self.migrations > 0 {
            command.stdin(Stdio::piped());
            let monitor = comma_safe(&dir.join(format!("monitor{number}")));
            command
                .arg("-qmp")
                .arg(format!("unix:{monitor},server=on,wait=off"));
            if number > 0 {
                command.arg("-incoming").arg(incoming(dir, number));
            }
        }
        let mut qemu = Running(command.spawn().context("cannot start QEMU")?);
        Ok(Machine {
            number,
            lines: lines_of(&mut qemu.0, dir, number)?,
            qemu,
            daemons,
        })
    }

    fn command(&self, cache: &Cache, dir: &Path, number: u32) -> Result<Command> {
        let files = cache.kernel(self.kernel)?;
        let mut archive = fs::read(&files.guest_initramfs)?;
        archive.extend(initramfs::guest_script(self.script));
        let initrd = dir.join("initrd");
        fs::write(&initrd, archive)?;
        let mut command = qemu::machine(&cache.tree());
        command.args(["-accel", "tcg,thread=multi", "-m", "256"]);
        command.args(["-object", "memory-backend-memfd,id=m,size=256M,share=on"]);
        command.args(["-machine", "q35,memory-backend=m"]);
        command.arg("-smp").arg(self.cpus.to_string());
        command
            .arg("-kernel")
            .arg(&files.vmlinux)
            .arg("-initrd")
            .arg(&initrd);
        command
            .arg("-append")
            .arg(format!("{} {COMMAND_LINE}", Guest::COMMAND_LINE));
        for device in &self.devices {
            let (name, socket) = (device.name, comma_safe(&socket(dir, device, number)));
            let again = if device.reconnects {
                ",reconnect-ms=100"
            } else {
                ""
            };
            let chardev = format!("socket,id={name},path={socket}{again}");
            command
                .arg("-chardev")
                .arg(chardev)
                .args(device.qemu.split_whitespace());
        }
        Ok(qemu::dying_with_parent(&command))
    }

    /// Until the guest has said how it ended; how often the daemon was restarted meanwhile.
    fn watch(&self, lines: &Receiver<String>, mut daemon: Option<&mut Daemon>) -> Result<u32> {
        let deadline = Instant::now() + LIMIT;
        let (mut at_work, mut restarts) = (false, 0);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match lines.recv_timeout(if at_work { left.min(RESTART_PAUSE) } else { left }) {
                Ok(line) if line.starts_with("GUEST: failed") => bail!("{line}"),
                Ok(line) if line.starts_with("GUEST: exit 0") => return Ok(restarts),
                Ok(line) if line == "GUEST: begin" => at_work = self.restarts,
                Ok(line) if line == "GUEST: end" => at_work = false,
                Ok(_) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => bail!("QEMU ended before the guest did"),
                Err(mpsc::RecvTimeoutError::Timeout) if left.is_zero() => {
                    bail!("the guest did not end in {} s", LIMIT.as_secs())
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    if let Some(daemon) = &mut daemon {
                        daemon.restart()?;
                        restarts += 1;
                    }
                }
            }
        }
    }
}

/// A QEMU and what serves its devices.
struct Machine {
    number: u32,
    qemu: Running,
    lines: Receiver<String>,
    daemons: Vec<Daemon>,
}

impl Machine {
    /// Until the guest says `wanted`.
    fn wait_for(&self, wanted: &str) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) if line.starts_with("GUEST: failed") => bail!("{line}"),
                Ok(line) if line == wanted => return Ok(()),
                Ok(_) => {}
                Err(_) => bail!("the guest did not say {wanted:?}"),
            }
        }
    }

    /// Moves the guest to `next`. Every daemon of this machine must end well.
    fn migrate(mut self, dir: &Path, next: Self) -> Result<Self> {
        let mut monitor = Qmp::connect(&dir.join(format!("monitor{}", self.number)))?;
        // It listens for the migration before it serves its monitor.
        Qmp::connect(&dir.join(format!("monitor{}", next.number)))?;
        let counted = monitor.migrate(&incoming(dir, next.number))?;
        fs::write(dir.join(format!("migration{}", next.number)), counted.to_string())?;
        monitor.run("quit", json!({}))?;
        let ended = self.qemu.0.wait()?;
        ensure!(ended.success(), "the source ended with {ended}");
        // What the guest said last, it said here.
        for line in self.lines.iter() {
            ensure!(!line.starts_with("GUEST: failed"), "{line}");
        }
        self.daemons.into_iter().try_for_each(Daemon::stop)?;
        Ok(next)
    }
}

fn incoming(dir: &Path, number: u32) -> String {
    format!("unix:{}", dir.join(format!("incoming{number}")).display())
}

fn socket(dir: &Path, device: &Served, number: u32) -> PathBuf {
    dir.join(format!("{}-{number}.sock", device.name))
}

/// A path as a value among QEMU's options.
fn comma_safe(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

/// A process that is ended when this is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `treaty serve` for one device.
struct Daemon {
    command: Command,
    socket: PathBuf,
    running: Running,
}

impl Daemon {
    fn start(treaty: &Path, dir: &Path, device: &Served, number: u32) -> Result<Self> {
        let mut serve = Command::new(treaty);
        serve.args(["-v", "serve"]);
        let arguments = device.serve.replace("$W", &dir.display().to_string());
        let arguments = arguments.replace("$G", &number.to_string());
        serve.args(arguments.split_whitespace());
        let socket = socket(dir, device, number);
        serve.arg("--socket").arg(&socket);
        let mut command = qemu::dying_with_parent(&serve);
        let log = File::options()
            .create(true)
            .append(true)
            .open(dir.join("treaty.log"))?;
        command.stdout(Stdio::null()).stderr(log);
        let running = spawn(&mut command, &socket)?;
        Ok(Self {
            command,
            socket,
            running,
        })
    }

    /// SIGTERM, and again from the start.
    fn restart(&mut self) -> Result<()> {
        self.end()?;
        self.running = spawn(&mut self.command, &self.socket)?;
        Ok(())
    }

    fn stop(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        let pid = self.running.0.id().to_string();
        crate::exec::run(Command::new("/bin/sh").args(["-c", "kill -TERM $0", &pid]))?;
        let status = self.running.0.wait()?;
        ensure!(
            status.code() == Some(0),
            "treaty serve ended with {status} after SIGTERM"
        );
        Ok(())
    }
}

/// Starts the daemon and waits until it listens.
fn spawn(command: &mut Command, socket: &Path) -> Result<Running> {
    // What an ended one has left, so that its being there means that the new one listens.
    let _ = fs::remove_file(socket);
    let mut running = Running(command.spawn().context("cannot start treaty serve")?);
    let deadline = Instant::now() + LIMIT;
    while !socket.exists() {
        let ended = running.0.try_wait()?;
        ensure!(ended.is_none(), "treaty serve ended at once");
        ensure!(Instant::now() < deadline, "treaty serve does not listen");
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(running)
}

/// The guest's console, line by line; it also goes to `console.log`, and what QEMU says to `l1.log`.
fn lines_of(machine: &mut Child, dir: &Path, number: u32) -> Result<Receiver<String>> {
    let console = machine.stdout.take().context("QEMU has no standard output")?;
    let mut errors = machine.stderr.take().context("QEMU has no standard error")?;
    let append = |name: &str| File::options().create(true).append(true).open(dir.join(name));
    let mut said = append("l1.log")?;
    std::thread::spawn(move || std::io::copy(&mut errors, &mut said));
    let mut log = append("console.log")?;
    if number > 0 {
        writeln!(log, "-- machine {number}")?;
    }
    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(console).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            if writeln!(log, "{line}").is_err() || sender.send(line).is_err() {
                return;
            }
        }
    });
    Ok(lines)
}
