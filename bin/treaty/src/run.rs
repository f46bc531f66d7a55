//! `treaty run`

use std::path::PathBuf;
use std::sync::Arc;

use crate::config;
use anyhow::{Context, Result, anyhow, bail};
use serde::de::DeserializeOwned;
use treaty_vmm::api::ApiServer;
use treaty_vmm::doctor::{KernelSpeed, kernel_speed};
use treaty_vmm::plan::{DiskPlan, MachinePlan, from_flag};
use treaty_vmm::{End, Runner};

/// Build a machine and run it until its guest switches it off.
///
/// The guest's serial port is this terminal; Ctrl-A x ends the machine. Exit code 0 when the guest powered off or
/// somebody quit, 1 when something failed or the guest crashed. A reboot starts the guest again.
///
/// Example: treaty run --kernel vmlinuz --initrd initrd.img --cmdline "console=ttyS0 root=/dev/vda"
/// --disk path=root.img,format=raw --net user --rng
///
/// A disk by its own boot loader: treaty run --machine pc --disk path=vm.qcow2,format=qcow2,if=ide
#[derive(clap::Args)]
pub struct Args {
    /// Take the machine from a TOML file. Its keys are the names of these flags: kernel = "vmlinuz", cpus = 2, [[disk]]
    /// with path = "root.img" and so on. Flags given beside it win; disks, cards and consoles are added to its own.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The machine's board: virt boots the kernel that --kernel names; pc (i440FX, PIIX3) starts a firmware that boots a
    /// disk, a CD-ROM or a network card, and shows its console on the serial port [default: virt].
    #[arg(long, value_name = "virt|pc")]
    machine: Option<String>,
    /// What starts a pc: a PC BIOS image [default: /usr/share/seabios/bios-256k.bin, of Debian's package seabios].
    #[arg(long, value_name = "FILE")]
    firmware: Option<PathBuf>,
    /// What a pc's firmware boots from, first choice first [default: disk,cdrom,net].
    #[arg(long, value_name = "disk|cdrom|net,...")]
    boot: Option<String>,
    /// Linux kernel: bzImage (vmlinuz), or ELF (vmlinux).
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Initial RAM disk.
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// Kernel command line [default: console=ttyS0].
    #[arg(long, value_name = "TEXT")]
    cmdline: Option<String>,
    /// vCPUs, 1 to 32 [default: 1].
    #[arg(long, value_name = "N")]
    cpus: Option<u8>,
    /// Guest memory, such as 512M or 4G [default: 512M].
    #[arg(long, value_name = "SIZE")]
    memory: Option<String>,
    /// Back guest memory with reserved pages of 2 MiB (/proc/sys/vm/nr_hugepages).
    #[arg(long)]
    hugepages: bool,
    /// Where COM1 goes: stdio, file=PATH, pty, socket=PATH or none [default: stdio].
    #[arg(long, value_name = "TARGET")]
    serial: Option<String>,
    /// A disk (repeatable): path=FILE|URI,format=raw[,if=virtio|ide|scsi][,media=disk|cdrom][,readonly][,cache=MODE]
    /// [,on-error=report|stop][,iops=N][,bps=N][,serial=TEXT][,block-size=512|4096]
    /// [,queues=N][,transport=pci|mmio][,ring=split|packed][,workers=N][,cpus=C:..][,worker-map=W:..][,poll=off|adaptive|always]
    /// [,poll-us=N]; or vhost-user=SOCKET[,queues=N] for one that another process runs (see --vhost-user)
    #[arg(long = "disk", value_name = "KEY=VALUE,...")]
    disks: Vec<String>,
    /// A CD-ROM on IDE (repeatable): the path of an ISO file. Short for --disk path=FILE,format=raw,readonly,if=ide,media=cdrom
    #[arg(long = "cdrom", value_name = "FILE")]
    cdroms: Vec<std::path::PathBuf>,
    /// A network card (repeatable): tap=NAME, user, or socket=PATH; then [,mac=xx:xx:xx:xx:xx:xx][,queues=N]
    /// [,model=virtio|e1000|e1000-82545em][,rom=FILE]
    /// [,mtu=N][,transport=pci|mmio][,ring=split|packed][,workers=N][,cpus=C:..][,worker-map=W:..][,poll=off|adaptive|always]
    /// [,poll-us=N]; or vhost-user=SOCKET[,mac=..][,mtu=N] (see --vhost-user)
    #[arg(long = "net", value_name = "BACKEND,...")]
    nets: Vec<String>,
    /// A virtio entropy source; may be followed by =transport=pci|mmio,ring=split|packed
    #[arg(long, value_name = "KEY=VALUE,...", num_args = 0..=1, default_missing_value = "", require_equals = true)]
    rng: Option<String>,
    /// A virtio console port (repeatable): stdio, file=PATH, pty, socket=PATH or none; then [,name=TEXT]
    /// [,transport=pci|mmio][,ring=split|packed]. Ports with the same transport and ring share a device.
    #[arg(long = "console", value_name = "TARGET,...")]
    consoles: Vec<String>,
    /// What worker threads do when there is nothing to do: off (sleep), adaptive (look on for at most so many microseconds, as
    /// long as that pays) or always (never sleep) [default: off]
    #[arg(long, value_name = "off|adaptive[,us=N]|always")]
    poll: Option<String>,
    /// A device that a vhost-user back-end runs in another process (repeatable): SOCKET,type=blk|net|rng|console|fs
    /// [,queues=N][,mac=..][,mtu=N][,tag=NAME][,server][,transport=pci|mmio][,ring=split|packed]. `treaty serve blk
    /// --socket SOCKET ..`, qemu-storage-daemon, passt --vhost-user, virtiofsd (type=fs,tag=NAME) and others run such
    /// devices. `server`: the machine listens and the back-end connects. A back-end may die and come back: meanwhile the
    /// device's requests wait and `treaty ctl status` calls it degraded.
    #[arg(long = "vhost-user", value_name = "SOCKET,...")]
    vhost_users: Vec<String>,
    /// End the program when the guest reboots.
    #[arg(long)]
    no_reboot: bool,
    /// Time a sample of the requests (on), none (off), or one of every burst (dense); counters count always [default: on].
    #[arg(long, value_name = "on|off|dense")]
    telemetry: Option<String>,
    /// Answer the control API (`treaty ctl`) on this Unix socket.
    #[arg(long, value_name = "PATH")]
    api: Option<PathBuf>,
}

impl Args {
    pub(crate) fn into_plan(self) -> Result<MachinePlan> {
        let mut plan = match &self.config {
            Some(path) => config::read(path)?,
            None => MachinePlan::default(),
        };
        replace(
            &mut plan.machine,
            parse("--machine", self.machine, |text| text.parse())?,
        );
        replace_some(&mut plan.firmware, self.firmware);
        replace_some(&mut plan.boot, parse("--boot", self.boot, |text| text.parse())?);
        replace_some(&mut plan.kernel, self.kernel);
        replace_some(&mut plan.initrd, self.initrd);
        replace_some(&mut plan.api, self.api);
        replace(&mut plan.cmdline, self.cmdline);
        replace(&mut plan.cpus, self.cpus);
        replace(
            &mut plan.memory,
            parse("--memory", self.memory, |text| text.parse())?,
        );
        replace(
            &mut plan.serial,
            parse("--serial", self.serial, |text| text.parse())?,
        );
        replace(
            &mut plan.telemetry,
            parse("--telemetry", self.telemetry, |text| text.parse())?,
        );
        plan.hugepages |= self.hugepages;
        plan.no_reboot |= self.no_reboot;
        if let Some(text) = &self.poll {
            let flag: config::PollFlag = config::device("--poll", text, Some("mode"))?;
            (plan.poll, plan.poll_us) = (Some(flag.mode), flag.us);
        }
        let disks = remote_apart("--disk", self.disks, "blk", &mut plan)?;
        let nets = remote_apart("--net", self.nets, "net", &mut plan)?;
        plan.vhost_users
            .extend(devices("--vhost-user", &self.vhost_users, Some("socket"))?);
        plan.disks.extend(devices("--disk", &disks, None)?);
        for path in self.cdroms {
            plan.disks.push(DiskPlan::cdrom(path)?);
        }
        plan.nets.extend(devices("--net", &nets, None)?);
        plan.consoles
            .extend(devices("--console", &self.consoles, Some("to"))?);
        replace_some(
            &mut plan.rng,
            parse("--rng", self.rng, |text| from_flag(text, None))?,
        );
        Ok(plan)
    }
}

fn replace<T>(field: &mut T, given: Option<T>) {
    if let Some(given) = given {
        *field = given;
    }
}

fn replace_some<T>(field: &mut Option<T>, given: Option<T>) {
    if given.is_some() {
        *field = given;
    }
}

fn parse<T, E: std::fmt::Display>(
    flag: &str,
    text: Option<String>,
    parse: impl Fn(&str) -> Result<T, E>,
) -> Result<Option<T>> {
    let parsed = text.map(|text| parse(&text).map_err(|error| anyhow!("{flag}: {error}")));
    parsed.transpose()
}

fn devices<T: DeserializeOwned>(flag: &str, texts: &[String], first: Option<&str>) -> Result<Vec<T>> {
    texts
        .iter()
        .map(|text| config::device(flag, text, first))
        .collect()
}

/// `--disk vhost-user=SOCKET,...` is short for `--vhost-user SOCKET,type=blk,...`: takes these out of `texts`.
fn remote_apart(flag: &str, texts: Vec<String>, kind: &str, plan: &mut MachinePlan) -> Result<Vec<String>> {
    let mut rest = Vec::new();
    for text in texts {
        let Some(remote) = text.strip_prefix("vhost-user=") else {
            rest.push(text);
            continue;
        };
        let long = format!("{remote},type={kind}");
        let device = from_flag(&long, Some("socket"));
        plan.vhost_users
            .push(device.map_err(|error| anyhow!("{flag} {text}: {error}"))?);
    }
    Ok(rest)
}

pub fn main(args: Args) -> Result<u8> {
    run(args.into_plan()?)
}

/// Runs a machine until it ends.
pub fn run(plan: MachinePlan) -> Result<u8> {
    let api = plan.api.clone();
    let runner = Runner::new(plan)?;
    warn_if_slow();
    let _api = match api {
        Some(path) => {
            let server = ApiServer::start(&path, Arc::new(runner.vm()));
            Some(server.with_context(|| format!("--api {}", path.display()))?)
        }
        None => None,
    };
    match runner.run()? {
        End::PowerOff | End::Quit | End::Reset => Ok(0),
        End::TripleFault(why) | End::Crash(why) => bail!("the guest crashed: {why}"),
    }
}

/// Says so where a stock kernel would seem to hang.
fn warn_if_slow() {
    if let Ok(KernelSpeed::Interpreted(turn_ns)) = kernel_speed() {
        eprintln!(
            "treaty: this host's KVM takes {:.1} us for a turn of a small loop in a guest's kernel: a stock Linux cannot boot \
             here (see `treaty doctor`)",
            turn_ns / 1000.0
        );
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use treaty_vmm::plan::{CharTarget, MachineKind, MemorySize, RingChoice};

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn plan(line: &str) -> Result<MachinePlan> {
        let words = std::iter::once("run").chain(line.split_whitespace());
        Line::try_parse_from(words)?.args.into_plan()
    }

    fn refused(line: &str) -> String {
        plan(line).unwrap_err().to_string()
    }

    #[test]
    fn flags_make_a_plan() {
        let made = plan(
            "--kernel k --cpus 4 --memory 2G --serial file=log --disk path=d,format=raw --disk path=e,format=raw,readonly \
             --net user --rng=ring=packed --console pty,name=x --api s",
        )
        .unwrap();
        assert_eq!((made.cpus, made.memory), (4, MemorySize::mib(2048)));
        assert_eq!(made.serial, CharTarget::File("log".into()));
        assert_eq!(
            (made.disks.len(), made.nets.len(), made.consoles.len()),
            (2, 1, 1)
        );
        assert_eq!(made.rng.unwrap().ring, RingChoice::Packed);
        assert_eq!(
            plan("--kernel k --rng").unwrap().rng.unwrap().ring,
            RingChoice::Split
        );
        assert_eq!(plan("--kernel k").unwrap().cmdline, "console=ttyS0");
    }

    #[test]
    fn a_pc_has_its_own_flags() {
        let made = plan("--machine pc --firmware f --boot cdrom,disk --cdrom d.iso").unwrap();
        assert_eq!(made.machine, MachineKind::Pc);
        assert_eq!(made.boot.unwrap().to_string(), "cdrom,disk");
        assert!(refused("--machine q35").starts_with("--machine: \"q35\" is not virt or pc"));
        assert!(refused("--boot usb").starts_with("--boot: \"usb\" is not disk"));
    }

    #[test]
    fn devices_of_other_processes_have_two_spellings() {
        let short = plan("--kernel k --disk vhost-user=/d,queues=2 --net vhost-user=/n,server").unwrap();
        let long =
            plan("--kernel k --vhost-user /d,type=blk,queues=2 --vhost-user /n,type=net,server").unwrap();
        assert_eq!((short.disks.len(), short.nets.len()), (0, 0));
        assert_eq!(short, long);
        let error = refused("--disk vhost-user=/d,format=raw");
        assert!(
            error.starts_with("--disk vhost-user=/d,format=raw: unknown field `format`"),
            "{error}"
        );
    }

    #[test]
    fn refusals_name_the_flag() {
        assert!(refused("--memory 511").starts_with("--memory: \"511\" is not an amount"));
        assert!(refused("--serial tty").starts_with("--serial: \"tty\" is not"));
        assert!(refused("--disk path=x").starts_with("--disk path=x: missing field `format`"));
        assert!(refused("--disk path=x,format=raw,colour=red").contains("unknown field `colour`"));
    }

    #[test]
    fn a_file_and_flags_go_together() {
        let path = std::env::temp_dir().join(format!("treaty-run-{}.toml", std::process::id()));
        let with_file = |text: &str, flags: &str| {
            std::fs::write(&path, text).unwrap();
            plan(&format!("--config {} {flags}", path.display()))
        };
        let file = "kernel = 'k'\ncpus = 2\nmemory = '1G'\nrng = {}\n[[disk]]\npath = 'a'\nformat = 'raw'\n";
        let made = with_file(file, "--cpus 3 --disk path=b,format=raw").unwrap();
        assert_eq!((made.cpus, made.memory), (3, MemorySize::mib(1024)));
        let paths: Vec<_> = made
            .disks
            .iter()
            .map(|disk| disk.path.to_str().unwrap())
            .collect();
        assert_eq!(paths, ["a", "b"]);
        assert!(made.rng.is_some());
        let error = with_file("kernel = 'k'\ncpu = 2\n", "").unwrap_err().to_string();
        assert!(
            error.contains("line 2: unknown field `cpu`, expected one of"),
            "{error}"
        );
        std::fs::remove_file(&path).unwrap();
        assert!(
            plan("--config /nonexistent")
                .unwrap_err()
                .to_string()
                .contains("/nonexistent")
        );
    }
}
