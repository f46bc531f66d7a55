//! The probe boots unmodified in QEMU's three kinds of machine, emulated and under KVM, and finds and drives every
//! device over both rings, polled and by interrupt.

use std::fs;
use std::io::Read;
use std::net::UdpSocket;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use treaty_lab::{Cache, PROBE_PASSED, ProbeMachine, ProbeReport, build_probe};

/// Every kind of workload, polled and by interrupt, each once and briefly.
const COMMAND_LINE: &str =
    "blk=4096,1 blk=4096,32,8 blkw=8192,4 net=256,16 rng=48 console=20 runs=1 ms=20 mode=both";
const DISK_BYTES: usize = 4 << 20;
/// Runs of a few seconds; hosts may be busy.
const LIMIT: Duration = Duration::from_secs(120);

/// One run that has ended.
struct Run {
    report: ProbeReport,
    code: Option<i32>,
    console: String,
}

/// Waits for the end, or kills after [`LIMIT`].
fn finish(mut child: Child) -> Result<Run> {
    let mut stdout = child.stdout.take().context("no standard output")?;
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = stdout.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    });
    let begin = Instant::now();
    let code = loop {
        if let Some(status) = child.try_wait()? {
            break status.code();
        }
        if begin.elapsed() > LIMIT {
            child.kill()?;
            break child.wait()?.code();
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let console = reader
        .join()
        .map_err(|_| anyhow::anyhow!("the console reader panicked"))?;
    let report = ProbeReport::parse(&console)?;
    Ok(Run {
        report,
        code,
        console,
    })
}

/// A UDP port of the loopback interface that was free a moment ago.
fn free_port() -> Result<u16> {
    Ok(UdpSocket::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// Adds a disk, an entropy source, a network card whose frames come back, and a console that writes to a file.
fn add_devices(qemu: &mut Command, machine: &ProbeMachine<'_>, dir: &Path) -> Result<()> {
    let kind = machine.device_suffix();
    let packed = if kind == "pci" { ",packed=on" } else { "" };
    let port = free_port()?;
    let disk = dir.join("disk").display().to_string();
    let lines = dir.join("lines").display().to_string();
    for (flag, value) in [
        (
            "-blockdev",
            format!("driver=raw,node-name=d,file.driver=file,file.filename={disk}"),
        ),
        ("-device", format!("virtio-blk-{kind},drive=d{packed}")),
        ("-device", format!("virtio-rng-{kind}{packed}")),
        (
            "-netdev",
            format!("socket,id=n,udp=127.0.0.1:{port},localaddr=127.0.0.1:{port}"),
        ),
        ("-device", format!("virtio-net-{kind},netdev=n{packed}")),
        ("-chardev", format!("file,id=c,path={lines}")),
        (
            "-device",
            format!(
                "{},max_ports=1{packed}",
                if kind == "pci" {
                    "virtio-serial-pci"
                } else {
                    "virtio-serial-device"
                }
            ),
        ),
        ("-device", "virtconsole,chardev=c".to_owned()),
    ] {
        qemu.arg(flag).arg(value);
    }
    qemu.stdout(Stdio::piped());
    Ok(())
}

/// Boots the probe and checks everything it says, the disk's content, and the console's lines.
fn drives_every_device(machine: &str, kvm: bool) -> Result<()> {
    let cache = match Cache::open() {
        Ok(cache) => cache,
        Err(error) => {
            println!("SKIPPED: no QEMU: {error:#}");
            return Ok(());
        }
    };
    if kvm && !Path::new("/dev/kvm").exists() {
        println!("SKIPPED: this host has no /dev/kvm");
        return Ok(());
    }
    let elf = build_probe()?;
    let dir = tempfile::tempdir()?;
    let content: Vec<u8> = (0..DISK_BYTES).map(|i| (i / 512) as u8 ^ i as u8).collect();
    fs::write(dir.path().join("disk"), &content)?;
    // Without ACPI, microvm says on the command line which interrupt each device has.
    let machine = ProbeMachine {
        machine: if machine == "microvm" {
            "microvm,acpi=off"
        } else {
            machine
        },
        kvm,
        command_line: COMMAND_LINE,
    };
    let mut qemu = machine.command(&cache, &elf);
    add_devices(&mut qemu, &machine, dir.path())?;
    let run = finish(qemu.spawn().context("cannot start QEMU")?)?;
    // QEMU offers the packed layout on PCI only.
    let expected = Expected {
        rings: if machine.device_suffix() == "pci" {
            &["split", "packed"]
        } else {
            &["split"]
        },
        code: PROBE_PASSED,
    };
    check(&run, &expected, dir.path()).with_context(|| run.console.clone())?;
    ensure!(
        fs::read(dir.path().join("disk"))? == content,
        "the probe did not put the disk back"
    );
    Ok(())
}

/// What a run must have done besides working.
struct Expected<'a> {
    rings: &'a [&'a str],
    /// Exit code of the monitor.
    code: i32,
}

fn check(run: &Run, expected: &Expected<'_>, dir: &Path) -> Result<()> {
    let report = &run.report;
    ensure!(report.errors.is_empty(), "errors: {:?}", report.errors);
    ensure!(run.code == Some(expected.code), "exit code {:?}", run.code);
    let mut kinds: Vec<_> = report.devices.iter().map(|(_, kind)| kind.as_str()).collect();
    kinds.sort_unstable();
    ensure!(kinds == ["blk", "console", "net", "rng"], "devices: {kinds:?}");
    ensure!(report.skipped.is_empty(), "skipped: {:?}", report.skipped);
    let rings = expected.rings;
    let workloads = [
        ("blk-read", 2),
        ("blk-write", 1),
        ("net-tx", 1),
        ("rng", 1),
        ("console", 1),
    ];
    let mut total = 0;
    for ring in rings {
        for mode in ["polled", "interrupt"] {
            for (workload, count) in workloads {
                let mut found = report.figures.iter().filter(|f| {
                    (f.workload.as_str(), f.ring.as_str(), f.mode.as_str()) == (workload, *ring, mode)
                });
                ensure!(
                    found.clone().count() == count,
                    "{workload} {ring} {mode}: not run {count} times"
                );
                ensure!(
                    found.all(|f| f.operations > 0),
                    "{workload} {ring} {mode}: no operation"
                );
                total += count as u32;
            }
        }
    }
    ensure!(report.done == Some((total, 0)), "done: {:?}", report.done);
    ensure!(report.echoes > 0, "no frame came back");
    let lines = fs::read_to_string(dir.join("lines"))?;
    let runs = 2 * rings.len();
    ensure!(
        lines.lines().count() == 20 * runs,
        "{} console lines",
        lines.lines().count()
    );
    for (index, line) in lines.lines().enumerate() {
        ensure!(
            line == format!("treaty probe {:010}", index % 20),
            "console line {index}: {line}"
        );
    }
    Ok(())
}

#[test]
fn probe_drives_every_device_on_microvm_emulated() -> Result<()> {
    drives_every_device("microvm", false)
}

#[test]
fn probe_drives_every_device_on_pc_emulated() -> Result<()> {
    drives_every_device("pc", false)
}

#[test]
fn probe_drives_every_device_on_q35_emulated() -> Result<()> {
    drives_every_device("q35", false)
}

#[test]
fn probe_drives_every_device_on_microvm_under_kvm() -> Result<()> {
    drives_every_device("microvm", true)
}

#[test]
fn probe_drives_every_device_on_pc_under_kvm() -> Result<()> {
    drives_every_device("pc", true)
}

#[test]
fn probe_drives_every_device_on_q35_under_kvm() -> Result<()> {
    drives_every_device("q35", true)
}

/// This workspace's monitor.
fn build_treaty() -> Result<PathBuf> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(treaty_lab::workspace_root())
        .args(["build", "--quiet", "--package", "treaty"]);
    ensure!(cargo.status()?.success(), "treaty does not build");
    Ok(treaty_lab::target_dir().join("debug/treaty"))
}

/// A network of one more station, which sends back what it gets. Ends when `stop` is set.
fn mirror(socket: UnixDatagram, wire: PathBuf, stop: Arc<AtomicBool>) -> Result<()> {
    socket.set_read_timeout(Some(Duration::from_millis(50)))?;
    let mut frame = [0; 2048];
    while !stop.load(Ordering::Relaxed) {
        if let Ok(len) = socket.recv(&mut frame) {
            // A full socket drops, like any network.
            let _ = socket.send_to(&frame[..len], &wire);
        }
    }
    Ok(())
}

/// The same in our own monitor: every device on one transport, with one ring layout on offer or both.
fn drives_every_device_in_our_monitor(transport: &str, ring: &str) -> Result<()> {
    if !Path::new("/dev/kvm").exists() {
        println!("SKIPPED: this host has no /dev/kvm");
        return Ok(());
    }
    let (elf, treaty) = (build_probe()?, build_treaty()?);
    let dir = tempfile::tempdir()?;
    let at = |name: &str| dir.path().join(name).display().to_string();
    let content: Vec<u8> = (0..DISK_BYTES).map(|i| (i / 512) as u8 ^ i as u8).collect();
    fs::write(at("disk"), &content)?;
    let far = UnixDatagram::bind(at("wire.peer"))?;
    far.set_nonblocking(false)?;
    let stop = Arc::new(AtomicBool::new(false));
    let station = {
        let (wire, stop) = (dir.path().join("wire"), stop.clone());
        std::thread::spawn(move || mirror(far, wire, stop))
    };
    // Where this monitor's virtio-mmio devices and their interrupts are; with PCI, nothing needs to be said.
    let place = if transport == "mmio" {
        "mmio=0xfd000000,0x1000,4,16"
    } else {
        ""
    };
    let more = format!("transport={transport},ring={ring}");
    let mut command = Command::new(treaty);
    command.args(["run", "--memory", "128M", "--kernel"]).arg(elf);
    command
        .arg("--disk")
        .arg(format!("path={},format=raw,{more}", at("disk")));
    command.arg(format!("--rng={more}"));
    command.arg("--net").arg(format!("socket={},{more}", at("wire")));
    command
        .arg("--console")
        .arg(format!("file={},{more}", at("lines")));
    command.arg("--cmdline").arg(format!("{COMMAND_LINE} {place}"));
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let run = finish(command.spawn().context("cannot start treaty")?)?;
    stop.store(true, Ordering::Relaxed);
    station
        .join()
        .map_err(|_| anyhow::anyhow!("the mirror panicked"))??;
    let rings: &[&str] = if ring == "packed" {
        &["split", "packed"]
    } else {
        &["split"]
    };
    let expected = Expected { rings, code: 0 };
    check(&run, &expected, dir.path()).with_context(|| run.console.clone())?;
    let places: Vec<_> = run
        .report
        .devices
        .iter()
        .map(|(place, _)| place.split(' ').next())
        .collect();
    ensure!(places == [Some(transport); 4], "devices: {places:?}");
    ensure!(
        fs::read(at("disk"))? == content,
        "the probe did not put the disk back"
    );
    Ok(())
}

#[test]
fn probe_drives_every_device_in_our_monitor_over_pci_split() -> Result<()> {
    drives_every_device_in_our_monitor("pci", "split")
}

#[test]
fn probe_drives_every_device_in_our_monitor_over_pci_packed() -> Result<()> {
    drives_every_device_in_our_monitor("pci", "packed")
}

#[test]
fn probe_drives_every_device_in_our_monitor_over_mmio_split() -> Result<()> {
    drives_every_device_in_our_monitor("mmio", "split")
}

#[test]
fn probe_drives_every_device_in_our_monitor_over_mmio_packed() -> Result<()> {
    drives_every_device_in_our_monitor("mmio", "packed")
}

/// A probe that cannot fail would prove nothing.
#[test]
fn probe_reports_a_disk_that_fails_and_ends_with_a_failure() -> Result<()> {
    let Ok(cache) = Cache::open() else {
        println!("SKIPPED: no QEMU");
        return Ok(());
    };
    let elf = build_probe()?;
    let dir = tempfile::tempdir()?;
    let disk = dir.path().join("disk");
    fs::write(&disk, vec![0; DISK_BYTES])?;
    let machine = ProbeMachine {
        machine: "microvm",
        kvm: false,
        command_line: "blk=4096,4 runs=1 ms=20",
    };
    let mut qemu = machine.command(&cache, &elf);
    qemu.arg("-blockdev").arg(format!(
        "driver=blkdebug,node-name=d,image.driver=file,image.filename={},inject-error.0.event=none,\
         inject-error.0.iotype=read,inject-error.0.errno=5",
        disk.display()
    ));
    qemu.args(["-device", "virtio-blk-device,drive=d"])
        .stdout(Stdio::piped());
    let run = finish(qemu.spawn()?)?;
    ensure!(run.report.errors == [expected_error()], "{}", run.console);
    ensure!(run.report.done == Some((0, 1)), "{}", run.console);
    ensure!(run.code == Some(PROBE_PASSED | 2), "exit code {:?}", run.code);
    Ok(())
}

/// QEMU puts the only device into the last place.
fn expected_error() -> String {
    "blk-read on mmio 0xfeb02e00: a request failed".to_owned()
}
