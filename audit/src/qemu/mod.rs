//! QEMU's machines on this host: found by their processes, known by their command lines, asked where a monitor socket is
//! given, counted by KVM's statistics and trace points where they may be read.

mod bus;
mod devices;
mod kvm;
mod process;
mod qmp;
mod trace;
mod virtio;

use std::path::PathBuf;
use std::time::{Duration, Instant};

pub use process::{Process, processes};
pub use qmp::{Qmp, QmpError};
pub use trace::{Access, Space, parse as parse_trace};

use crate::model::{Measure, Monitor, Vm};
use devices::Known;

/// What to look at, and how long.
#[derive(Clone, Debug)]
pub struct Options {
    /// Only these processes; all if empty.
    pub pids: Vec<u32>,
    /// Monitor sockets that the command lines do not name.
    pub sockets: Vec<(u32, PathBuf)>,
    /// How long to count.
    pub watch: Duration,
    /// Where `/proc` is.
    pub proc_dir: PathBuf,
    /// Where `/sys/kernel` is: KVM's statistics and trace points.
    pub kernel_dir: PathBuf,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            pids: Vec::new(),
            sockets: Vec::new(),
            watch: Duration::from_secs(5),
            proc_dir: "/proc".into(),
            kernel_dir: "/sys/kernel".into(),
        }
    }
}

/// A machine that is being watched.
struct Watched {
    process: Process,
    known: Vec<Known>,
    qmp: Option<Qmp>,
    kvm: Option<kvm::Counts>,
    trace: Option<trace::Recording>,
    interrupts: Vec<(String, u64)>,
    not_seen: Vec<String>,
}

/// Looks at every QEMU for `options.watch`, all at the same time.
pub fn audit(options: &Options) -> Vec<Vm> {
    let found = processes(&options.proc_dir).into_iter();
    let found = found.filter(|process| options.pids.is_empty() || options.pids.contains(&process.pid));
    let mut machines: Vec<Watched> = found.map(|process| begin(process, options)).collect();
    if machines.is_empty() {
        return Vec::new();
    }
    let start = Instant::now();
    std::thread::sleep(options.watch);
    let seconds = start.elapsed().as_secs_f64();
    machines
        .drain(..)
        .map(|machine| end(machine, options, seconds))
        .collect()
}

fn begin(process: Process, options: &Options) -> Watched {
    let mut not_seen = Vec::new();
    let mut known = devices::from_line(&process.line);
    let given = options
        .sockets
        .iter()
        .find(|(pid, _)| *pid == process.pid)
        .map(|(_, path)| path.clone());
    let mut qmp = match given.or_else(|| process.monitor_socket()) {
        None => {
            not_seen.push("what devices do: the command line has no QMP socket on a path; give one with --qmp PID=PATH (-qmp unix:PATH,server=on,wait=off)".into());
            None
        }
        Some(path) => match Qmp::connect(&path) {
            Ok(qmp) => Some(qmp),
            Err(error) => {
                not_seen.push(format!("what devices do: QMP at {}: {error}", path.display()));
                None
            }
        },
    };
    if let Some(qmp) = &mut qmp {
        if let Err(error) = bus::from_monitor(qmp, &mut known) {
            not_seen.push(format!("the PCI bus: {error}"));
        }
        if let Err(error) = devices::count_blocks(qmp, &mut known, true) {
            not_seen.push(format!("disk requests: {error}"));
        }
        if let Err(error) = virtio::ask(qmp, &mut known) {
            not_seen.push(format!(
                "virtio drivers and queues: {error} (QEMU 7.2 or later has x-query-virtio)"
            ));
        }
    }
    devices::number_names(&mut known);
    devices::count_packets(&options.proc_dir, process.pid, &mut known, true);
    let kvm = kvm::Counts::read(&options.kernel_dir, process.pid);
    if kvm.is_none() {
        not_seen.push("exits of the whole machine: /sys/kernel/debug/kvm cannot be read (root, debugfs mounted), or the guest is not on KVM".into());
    }
    let trace = match trace::Recording::start(&options.kernel_dir, &options.proc_dir, process.pid) {
        Ok(recording) => Some(recording),
        Err(error) => {
            not_seen.push(format!(
                "exits of each device: KVM's trace points cannot be used (root, tracefs mounted): {error}"
            ));
            None
        }
    };
    Watched {
        interrupts: kvm::vfio_interrupts(&options.proc_dir),
        process,
        known,
        qmp,
        kvm,
        trace,
        not_seen,
    }
}

fn end(mut machine: Watched, options: &Options, seconds: f64) -> Vm {
    let mut exits = None;
    if let Some(recording) = machine.trace.take() {
        let recorded = recording.stop();
        if recorded.lost > 0 {
            let text = format!(
                "{} exits: the trace buffer overflowed; figures of exits are too low",
                recorded.lost
            );
            machine.not_seen.push(text);
        }
        exits = Some(recorded.accesses);
    }
    if let Some(qmp) = &mut machine.qmp {
        let counted = devices::count_blocks(qmp, &mut machine.known, false)
            .and_then(|()| virtio::ask_again(qmp, &mut machine.known, seconds));
        if let Err(error) = counted {
            machine.not_seen.push(format!("what devices did: {error}"));
        }
    }
    devices::count_packets(&options.proc_dir, machine.process.pid, &mut machine.known, false);
    if let Some(accesses) = &exits {
        devices::attribute(accesses, &mut machine.known, seconds);
    }
    let later = kvm::vfio_interrupts(&options.proc_dir);
    let cpus = machine.process.cpus();
    let devices = machine.known.into_iter().map(|known| {
        let mut device = known.into_device(seconds, &machine.interrupts, &later);
        device.set(Measure::Cpus, f64::from(cpus));
        device.set(Measure::Watched, seconds);
        device
    });
    let devices = devices.collect();
    let now = kvm::Counts::read(&options.kernel_dir, machine.process.pid);
    let kvm_per_second = match (machine.kvm, now) {
        (Some(before), Some(after)) => after.rates(&before, seconds),
        _ => std::collections::BTreeMap::new(),
    };
    Vm {
        monitor: Monitor::Qemu,
        name: machine.process.name(),
        pid: machine.process.pid,
        cpus,
        watched_seconds: seconds,
        kvm_per_second,
        devices,
        not_seen: machine.not_seen,
    }
}
