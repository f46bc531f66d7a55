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
use crate::clone::Clone;
use crate::guest::{Guest, Kernel};
use crate::qmp::Qmp;
use crate::{fio, initramfs, peers, qemu, web};

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
    /// What happens to daemons from the guest's line `GUEST: begin` to `GUEST: end`.
    pub restarts: Restarts,
    /// The QEMU that the guest starts on. After some lines `GUEST: round` it moves to the next one with new daemons, and
    /// so on; after the last move it gets a line on its console.
    pub hosts: Vec<Qemu>,
    /// Commands for QEMU's monitor: each list after further lines `GUEST: round`. A command's arguments follow it as JSON.
    /// The guest may reset itself.
    pub commands: &'static [&'static [&'static str]],
    /// `disk0` is a qcow2 linked clone of an image with a root file system, which is looked at afterwards.
    pub clone: bool,
    /// The guest finds fio on a disk with this serial number.
    pub fio: bool,
}

/// A release of QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Qemu {
    /// Debian 12's.
    V7_2,
    /// Debian 13's.
    V10,
}

/// How daemons come to be started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restarts {
    /// They run on.
    Never,
    /// The first one is stopped in order (SIGTERM).
    Stopped,
    /// One after the other is killed (SIGKILL).
    Killed,
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
    /// QEMU listens and the daemon connects.
    pub client: bool,
    /// The daemon has a network namespace of its own, where its `tap0` gets this address and a web server listens: it has
    /// `data` (random) and `data.sum`, and `cgi-bin/sum` answers with the checksum of what is posted to it.
    pub address: Option<&'static str>,
}

/// A kernel that zeroes the pages which it hands out marks them for a migration, and a missing dirty log is not seen.
const COMMAND_LINE: &str = "init_on_alloc=0";
/// A guest takes up to 15 s on an idle machine.
const LIMIT: Duration = Duration::from_secs(180);
/// Pause before the daemon is stopped again.
const RESTART_PAUSE: Duration = Duration::from_millis(700);
/// Pause before a daemon is killed again, less than that much more from kill to kill.
const KILL_PAUSE: Duration = Duration::from_millis(150);
/// Fewer restarts in the middle of the work would show nothing.
const FEWEST_RESTARTS: u32 = 2;
/// Lines of the guest before it is moved or disturbed again.
const ROUNDS: u32 = 5;
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
        let clone = self.clone.then(|| Clone::make(cache, treaty, dir)).transpose()?;
        let mut machine = self.machine(cache, treaty, dir, 0)?;
        for commands in self.commands {
            machine.wait_for_rounds()?;
            let mut monitor = Qmp::connect(&machine.monitor(dir))?;
            for command in *commands {
                let (name, arguments) = command.split_once(' ').unwrap_or((command, "{}"));
                monitor.run(name, serde_json::from_str(arguments)?)?;
            }
        }
        if self.hosts.len() > 1 {
            // A migration that leads nowhere: the guest goes on where it was.
            machine.wait_for_rounds()?;
            let mut monitor = Qmp::connect(&machine.monitor(dir))?;
            monitor.migrate("exec:cat >/dev/null")?;
            monitor.run("cont", json!({}))?;
        }
        for number in 1..self.hosts.len() {
            machine.wait_for_rounds()?;
            let next = self.machine(cache, treaty, dir, number)?;
            machine = machine.migrate(dir, next)?;
        }
        if self.hosts.len() > 1 {
            let mut input = machine
                .qemu
                .0
                .stdin
                .take()
                .context("QEMU has no standard input")?;
            input.write_all(b"\n")?;
        }
        let restarts = self.watch(&machine.lines, &mut machine.daemons)?;
        ensure!(
            self.restarts == Restarts::Never || restarts >= FEWEST_RESTARTS,
            "only {restarts} restarts while the guest was at work"
        );
        machine.qemu.0.wait()?;
        machine.daemons.into_iter().try_for_each(Daemon::stop)?;
        clone.map_or(Ok(()), |clone| clone.judge(cache))
    }

    /// A QEMU with its daemons. All but the first one wait for a migration.
    fn machine(&self, cache: &Cache, treaty: &Path, dir: &Path, number: usize) -> Result<Machine> {
        let start = |device: &Served| Daemon::start(cache, treaty, dir, device, number);
        let daemons = self.devices.iter().map(start).collect::<Result<Vec<_>>>()?;
        let mut command = self.command(cache, dir, number)?;
        if number > 0 {
            command.arg("-incoming").arg(incoming(dir, number));
        }
        let mut qemu = Running(command.spawn().context("cannot start QEMU")?);
        Ok(Machine {
            number,
            lines: lines_of(&mut qemu.0, dir, number)?,
            qemu,
            daemons,
        })
    }

    fn command(&self, cache: &Cache, dir: &Path, number: usize) -> Result<Command> {
        let files = cache.kernel(self.kernel)?;
        let mut archive = fs::read(&files.guest_initramfs)?;
        archive.extend(initramfs::guest_script(self.script));
        let initrd = dir.join("initrd");
        fs::write(&initrd, archive)?;
        let version = *self.hosts.get(number).context("no such host")?;
        let mut command = match version {
            Qemu::V7_2 => qemu::machine(&peers::bookworm()?),
            Qemu::V10 => qemu::machine(&cache.tree()),
        };
        let monitor = comma_safe(&dir.join(format!("monitor{number}")));
        command
            .arg("-qmp")
            .arg(format!("unix:{monitor},server=on,wait=off"));
        if !self.commands.is_empty() {
            command.args(["-action", "reboot=reset"]);
        }
        command.args(["-accel", "tcg,thread=multi", "-m", "256,slots=1,maxmem=1G"]);
        command.args(["-object", "memory-backend-memfd,id=m,size=256M,share=on"]);
        // A machine that may move has the same parts everywhere.
        let old = self.hosts.contains(&Qemu::V7_2);
        let machine = if old { "pc-q35-7.2" } else { "q35" };
        command.arg("-machine").arg(format!("{machine},memory-backend=m"));
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
            let again = match version {
                _ if device.client => ",server=on",
                _ if !device.reconnects => "",
                Qemu::V7_2 => ",reconnect=1",
                Qemu::V10 => ",reconnect-ms=100",
            };
            let chardev = format!("socket,id={name},path={socket}{again}");
            command
                .arg("-chardev")
                .arg(chardev)
                .args(device.qemu.split_whitespace());
        }
        if self.fio {
            let file = comma_safe(&fio::disk(cache)?);
            command.args(["-device", "virtio-blk-pci,drive=fio,serial=fio", "-drive"]);
            command.arg(format!("if=none,id=fio,format=raw,readonly=on,file={file}"));
        }
        let mut command = qemu::dying_with_parent(&command);
        command.stdin(Stdio::piped());
        Ok(command)
    }

    /// Until the guest has said how it ended; how often a daemon was restarted meanwhile.
    fn watch(&self, lines: &Receiver<String>, daemons: &mut [Daemon]) -> Result<u32> {
        let deadline = Instant::now() + LIMIT;
        let (mut at_work, mut restarts) = (false, 0);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match lines.recv_timeout(if at_work {
                left.min(self.pause(restarts))
            } else {
                left
            }) {
                Ok(line) if line.starts_with("GUEST: failed") => bail!("{line}"),
                Ok(line) if line.starts_with("GUEST: exit 0") => return Ok(restarts),
                Ok(line) if line == "GUEST: begin" => at_work = self.restarts != Restarts::Never,
                Ok(line) if line == "GUEST: end" => at_work = false,
                Ok(_) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => bail!("QEMU ended before the guest did"),
                Err(mpsc::RecvTimeoutError::Timeout) if left.is_zero() => {
                    bail!("the guest did not end in {} s", LIMIT.as_secs())
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    self.restart(daemons, restarts)?;
                    restarts += 1;
                }
            }
        }
    }

    fn pause(&self, restarts: u32) -> Duration {
        match self.restarts {
            Restarts::Never | Restarts::Stopped => RESTART_PAUSE,
            // Not always at the same place of what the guest does.
            Restarts::Killed => KILL_PAUSE + KILL_PAUSE * (restarts * 37 % 100) / 100,
        }
    }

    fn restart(&self, daemons: &mut [Daemon], restarts: u32) -> Result<()> {
        let count = daemons.len().max(1);
        match self.restarts {
            Restarts::Never => Ok(()),
            Restarts::Stopped => daemons.first_mut().map_or(Ok(()), Daemon::restart),
            Restarts::Killed => {
                let victim = daemons.get_mut(restarts as usize % count);
                victim.map_or(Ok(()), Daemon::kill_and_restart)
            }
        }
    }
}

/// A QEMU and what serves its devices.
struct Machine {
    number: usize,
    qemu: Running,
    lines: Receiver<String>,
    daemons: Vec<Daemon>,
}

impl Machine {
    fn monitor(&self, dir: &Path) -> PathBuf {
        dir.join(format!("monitor{}", self.number))
    }

    /// Until the guest is in the middle of its work, wherever that is.
    fn wait_for_rounds(&self) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        let mut rounds = 0;
        while rounds < ROUNDS {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) if line.starts_with("GUEST: failed") => bail!("{line}"),
                Ok(line) if line == "GUEST: round" => rounds += 1,
                Ok(_) => {}
                Err(_) => bail!("the guest does not work"),
            }
        }
        Ok(())
    }

    /// Moves the guest to `next`. Every daemon of this machine must end well.
    fn migrate(mut self, dir: &Path, next: Self) -> Result<Self> {
        let mut monitor = Qmp::connect(&self.monitor(dir))?;
        // It listens for the migration before it serves its monitor.
        Qmp::connect(&next.monitor(dir))?;
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

fn incoming(dir: &Path, number: usize) -> String {
    format!("unix:{}", dir.join(format!("incoming{number}")).display())
}

fn socket(dir: &Path, device: &Served, number: usize) -> PathBuf {
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
    _web_server: Option<Running>,
}

impl Daemon {
    fn start(cache: &Cache, treaty: &Path, dir: &Path, device: &Served, number: usize) -> Result<Self> {
        let mut serve = match device.address {
            None => Command::new(treaty),
            Some(_) => web::in_own_network(treaty),
        };
        serve.args(["-v", "serve"]);
        let arguments = device.serve.replace("$W", &dir.display().to_string());
        let arguments = arguments.replace("$G", &number.to_string());
        serve.args(arguments.split_whitespace());
        let socket = socket(dir, device, number);
        serve.arg("--socket").arg(&socket);
        if device.client {
            serve.arg("--client");
        }
        let mut command = qemu::dying_with_parent(&serve);
        let log = File::options()
            .create(true)
            .append(true)
            .open(dir.join("treaty.log"))?;
        command.stdout(Stdio::null()).stderr(log);
        let running = if device.client {
            Running(command.spawn().context("cannot start treaty serve")?)
        } else {
            spawn(&mut command, &socket)?
        };
        let pid = running.0.id();
        let serve = |address| web::server(cache, dir, pid, address);
        let web_server = device.address.map(serve).transpose()?;
        Ok(Self {
            command,
            socket,
            running,
            _web_server: web_server.map(Running),
        })
    }

    /// SIGTERM, and again from the start.
    fn restart(&mut self) -> Result<()> {
        self.end()?;
        self.running = spawn(&mut self.command, &self.socket)?;
        Ok(())
    }

    /// SIGKILL, and again from the start.
    fn kill_and_restart(&mut self) -> Result<()> {
        self.running.0.kill()?;
        self.running.0.wait()?;
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
fn lines_of(machine: &mut Child, dir: &Path, number: usize) -> Result<Receiver<String>> {
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
