//! `treaty run`

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, bail};
use treaty_vmm::api::ApiServer;
use treaty_vmm::doctor::{KernelSpeed, kernel_speed};
use treaty_vmm::plan::{
    CharTarget, ConsolePlan, DiskPlan, MachinePlan, MemorySize, NetPlan, RngPlan, from_flag,
};
use treaty_vmm::{End, Runner};

/// Build a machine and run it until its guest switches it off.
///
/// The guest's serial port is this terminal; Ctrl-A x ends the machine. Exit code 0 when the guest powered off or
/// somebody quit, 1 when something failed or the guest crashed. A reboot starts the guest again.
///
/// Example: treaty run --kernel vmlinuz --initrd initrd.img --cmdline "console=ttyS0 root=/dev/vda"
/// --disk path=root.img,format=raw --net user --rng
#[derive(clap::Args)]
pub struct Args {
    /// Linux kernel: bzImage (vmlinuz), or ELF (vmlinux).
    #[arg(long, value_name = "FILE")]
    kernel: PathBuf,
    /// Initial RAM disk.
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// Kernel command line [default: console=ttyS0].
    #[arg(long, value_name = "TEXT")]
    cmdline: Option<String>,
    /// vCPUs, 1 to 32.
    #[arg(long, default_value_t = 1, value_name = "N")]
    cpus: u8,
    /// Guest memory, such as 512M or 4G.
    #[arg(long, default_value = "512M", value_name = "SIZE")]
    memory: MemorySize,
    /// Back guest memory with reserved pages of 2 MiB (/proc/sys/vm/nr_hugepages).
    #[arg(long)]
    hugepages: bool,
    /// Where COM1 goes: stdio, file=PATH, pty, socket=PATH or none.
    #[arg(long, default_value = "stdio", value_name = "TARGET")]
    serial: CharTarget,
    /// A virtio disk (repeatable): path=FILE,format=raw[,readonly][,direct][,serial=TEXT][,queues=N]
    /// [,transport=pci|mmio][,ring=split|packed]
    #[arg(long = "disk", value_name = "KEY=VALUE,...", value_parser = disk)]
    disks: Vec<DiskPlan>,
    /// A virtio network card (repeatable): tap=NAME, user, or socket=PATH; then [,mac=xx:xx:xx:xx:xx:xx][,queues=N]
    /// [,mtu=N][,transport=pci|mmio][,ring=split|packed]
    #[arg(long = "net", value_name = "BACKEND,...", value_parser = net)]
    nets: Vec<NetPlan>,
    /// A virtio entropy source; may be followed by =transport=pci|mmio,ring=split|packed
    #[arg(long, value_name = "KEY=VALUE,...", value_parser = rng, num_args = 0..=1, default_missing_value = "", require_equals = true)]
    rng: Option<RngPlan>,
    /// A virtio console port (repeatable): stdio, file=PATH, pty, socket=PATH or none; then [,name=TEXT]
    /// [,transport=pci|mmio][,ring=split|packed]. Ports with the same transport and ring share a device.
    #[arg(long = "console", value_name = "TARGET,...", value_parser = console)]
    consoles: Vec<ConsolePlan>,
    /// Answer the control API (`treaty ctl`) on this Unix socket.
    #[arg(long, value_name = "PATH")]
    api: Option<PathBuf>,
}

fn disk(text: &str) -> Result<DiskPlan, String> {
    from_flag(text, None).map_err(|error| error.to_string())
}

fn net(text: &str) -> Result<NetPlan, String> {
    from_flag(text, None).map_err(|error| error.to_string())
}

fn rng(text: &str) -> Result<RngPlan, String> {
    from_flag(text, None).map_err(|error| error.to_string())
}

fn console(text: &str) -> Result<ConsolePlan, String> {
    from_flag(text, Some("to")).map_err(|error| error.to_string())
}

impl Args {
    fn into_plan(self) -> MachinePlan {
        MachinePlan {
            kernel: Some(self.kernel),
            initrd: self.initrd,
            cmdline: self.cmdline.unwrap_or_else(|| MachinePlan::default().cmdline),
            cpus: self.cpus,
            memory: self.memory,
            hugepages: self.hugepages,
            serial: self.serial,
            disks: self.disks,
            nets: self.nets,
            rng: self.rng,
            consoles: self.consoles,
            api: self.api,
        }
    }
}

pub fn main(args: Args) -> anyhow::Result<u8> {
    let plan = args.into_plan();
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
        End::Crash(why) => bail!("the guest crashed: {why}"),
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
