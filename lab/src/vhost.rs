//! Guests of QEMU on this host, whose devices are `treaty serve` processes. They are emulated: no KVM is needed.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::batch::Verdict;
use crate::cache::Cache;
use crate::guest::{Guest, Kernel};
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
}

/// A device on both sides of its socket. `$W` is the test's directory.
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

/// A guest takes up to 15 s on an idle machine.
const LIMIT: Duration = Duration::from_secs(180);
/// Pause before the daemon is stopped again.
const RESTART_PAUSE: Duration = Duration::from_millis(700);
/// Fewer restarts in the middle of the work would show nothing.
const FEWEST_RESTARTS: u32 = 2;
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
        let start = |device: &Served| Daemon::start(treaty, dir, device);
        let mut daemons = self.devices.iter().map(start).collect::<Result<Vec<_>>>()?;
        let mut machine = Running(self.command(cache, dir)?.spawn().context("cannot start QEMU")?);
        let lines = lines_of(&mut machine.0, dir)?;
        let restarts = self.watch(&lines, daemons.first_mut())?;
        ensure!(
            !self.restarts || restarts >= FEWEST_RESTARTS,
            "only {restarts} restarts while the guest was at work"
        );
        machine.0.wait()?;
        daemons.into_iter().try_for_each(Daemon::stop)
    }

    fn command(&self, cache: &Cache, dir: &Path) -> Result<Command> {
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
        command.arg("-append").arg(Guest::COMMAND_LINE);
        for device in &self.devices {
            let (name, socket) = (device.name, socket(dir, device).display().to_string());
            let again = if device.reconnects {
                ",reconnect-ms=100"
            } else {
                ""
            };
            let chardev = format!("socket,id={name},path={}{again}", socket.replace(',', ",,"));
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

fn socket(dir: &Path, device: &Served) -> PathBuf {
    dir.join(format!("{}.sock", device.name))
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
    fn start(treaty: &Path, dir: &Path, device: &Served) -> Result<Self> {
        let mut serve = Command::new(treaty);
        serve.args(["-v", "serve"]);
        let arguments = device.serve.replace("$W", &dir.display().to_string());
        serve.args(arguments.split_whitespace());
        let socket = socket(dir, device);
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
fn lines_of(machine: &mut Child, dir: &Path) -> Result<Receiver<String>> {
    use std::io::Write;
    let console = machine.stdout.take().context("QEMU has no standard output")?;
    let mut errors = machine.stderr.take().context("QEMU has no standard error")?;
    let mut said = File::create(dir.join("l1.log"))?;
    std::thread::spawn(move || std::io::copy(&mut errors, &mut said));
    let mut log = File::create(dir.join("console.log"))?;
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
