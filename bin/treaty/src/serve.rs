//! `treaty serve`

use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1, SIGUSR2};
use treaty_catalog::{CharContext, DiskContext, Opened, WorkerPool};
use treaty_listen::Listener;
use treaty_nbd::Server;
use treaty_plan::{
    ConsolePlan, DaemonPlan, DiskPlan, NetPlan, Served, ServedPlan, TelemetryChoice, WorkersPlan,
};
use treaty_vhost_backend::{Endpoint, Options, Stop, serve_with};
use treaty_worker::{Poll, ReactorKind};

use crate::output::LogLevel;
use crate::served::Counted;
use crate::{config, nbd};

/// Run devices as vhost-user back-ends for QEMU, Cloud Hypervisor, DPDK and other front-ends; export images by NBD.
///
/// The guest's memory must be shared. With QEMU:
/// -object memory-backend-memfd,id=m,size=1G,share=on -machine memory-backend=m
/// -chardev socket,id=c0,path=SOCKET,reconnect=1 and the device that the subcommand's help names.
///
/// One front-end is served after the other until SIGTERM or SIGINT; then every queue is drained. Exit code 0.
/// SIGUSR1 makes the log one level louder, SIGUSR2 one quieter (warn, info, debug, trace).
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    device: Option<Device>,
    /// Serve the devices of a TOML file instead: [[device]] socket = "...", and one of disk = {...}, net = {...},
    /// rng = true, console = {...}; or [[nbd]] socket = "..." with [[nbd.export]] name = "...", disk = {...}.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Answer GET /metrics (OpenMetrics, for Prometheus) and GET /api/v1/counters (`treaty ctl --socket SOCKET counters`) at
    /// this address, such as 127.0.0.1:9100, or on this Unix socket. Whoever reaches the address may read.
    #[arg(long, global = true, value_name = "ADDR|SOCKET")]
    metrics: Option<treaty_metrics::Address>,
    /// Time a sample of the requests (on), none (off), or one of every burst (dense); counters count always.
    #[arg(long, global = true, value_name = "on|off|dense", default_value = "on")]
    telemetry: TelemetryChoice,
}

#[derive(clap::Subcommand)]
enum Device {
    /// A disk. QEMU: -device vhost-user-blk-pci,chardev=c0,num-queues=N
    Blk {
        #[command(flatten)]
        socket: Socket,
        /// path=FILE|URI,format=raw[,readonly][,lock=running][,cache=MODE][,iops=N][,bps=N][,serial=TEXT][,queues=N]; or
        /// format=null,size=SIZE
        #[arg(long, value_name = "KEY=VALUE,...")]
        disk: String,
        #[command(flatten)]
        workers: Workers,
    },
    Nbd(nbd::Args),
    /// A network card. QEMU: -netdev vhost-user,id=n0,chardev=c0,queues=N -device virtio-net-pci,netdev=n0,mq=on
    Net {
        #[command(flatten)]
        socket: Socket,
        /// tap=NAME, user, socket=PATH, or for measuring null or loopback; then [,queues=N]
        #[arg(long, value_name = "BACKEND,...")]
        net: String,
        #[command(flatten)]
        workers: Workers,
    },
    /// An entropy source. QEMU: -device vhost-user-rng-pci,chardev=c0
    Rng {
        #[command(flatten)]
        socket: Socket,
    },
    /// A console, for front-ends that have one: QEMU has not.
    Console {
        #[command(flatten)]
        socket: Socket,
        /// stdio, file=PATH, pty, socket=PATH or none; then [,name=TEXT]
        #[arg(long, value_name = "TARGET,...")]
        console: String,
    },
}

#[derive(clap::Args)]
struct Socket {
    /// Listen on this Unix socket. Without it and --fd: the socket that systemd passes.
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Connect to the socket instead of listening: the front-end listens.
    #[arg(long, requires = "socket")]
    client: bool,
    /// Use a descriptor that the parent has opened: a listening socket.
    #[arg(long, value_name = "N", conflicts_with = "socket")]
    fd: Option<RawFd>,
    /// Offer ACCESS_PLATFORM: the guest's IOMMU may translate addresses (QEMU: iommu_platform=on,ats=on).
    #[arg(long)]
    iommu: bool,
    /// Offer PAGEFAULT: memory of a migrated guest may arrive after the guest has started. The front-end can then write to this
    /// process: for one that is trusted.
    #[arg(long)]
    postcopy: bool,
}

/// The threads that run a device's virtqueues; in a file, fields of `disk` and `net`.
#[derive(clap::Args)]
struct Workers {
    /// Worker threads: COUNT [default: one for each virtqueue], the CPU that each is kept on (cpus=0:1), and which of them runs each
    /// virtqueue (map=0:0:1:1) [default: in turn]. A card's virtqueues are receive 0, transmit 0, receive 1, ...
    #[arg(long, value_name = "COUNT[,cpus=C:..][,map=W:..]")]
    workers: Option<String>,
    /// When there is nothing to do: off (sleep), adaptive (look on for at most so many microseconds, as long as that pays) or
    /// always (never sleep) [default: adaptive,us=32]
    #[arg(long, value_name = "off|adaptive[,us=N]|always")]
    poll: Option<String>,
}

impl Workers {
    fn plan(&self) -> anyhow::Result<WorkersPlan> {
        let mut plan: WorkersPlan = match &self.workers {
            Some(text) => text
                .parse()
                .map_err(|error| anyhow::anyhow!("--workers {text}: {error}"))?,
            None => WorkersPlan::default(),
        };
        if let Some(text) = &self.poll {
            let flag: config::PollFlag = config::device("--poll", text, Some("mode"))?;
            (plan.poll, plan.poll_us) = (Some(flag.mode), flag.us);
        }
        Ok(plan)
    }
}

/// The first descriptor that systemd passes.
const SYSTEMD_FD: RawFd = 3;

impl Socket {
    fn endpoint(&self) -> anyhow::Result<Endpoint> {
        match (&self.socket, self.fd) {
            (Some(path), _) => endpoint(path.clone(), self.client),
            (None, Some(fd)) => inherited(fd),
            (None, None) if passed_by_systemd() => inherited(SYSTEMD_FD),
            (None, None) => bail!("give --socket PATH or --fd N, or start it by systemd socket activation"),
        }
    }
}

/// systemd addresses the descriptors to one process. `sd_listen_fds(3)`
fn passed_by_systemd() -> bool {
    let number = |name| {
        std::env::var(name)
            .ok()
            .and_then(|value| value.parse::<u32>().ok())
    };
    number("LISTEN_PID") == Some(std::process::id()) && number("LISTEN_FDS").is_some_and(|count| count >= 1)
}

fn endpoint(path: PathBuf, client: bool) -> anyhow::Result<Endpoint> {
    Ok(if client {
        Endpoint::Connect(path)
    } else {
        Endpoint::Listen(Listener::bind(&path)?)
    })
}

#[allow(unsafe_code)]
fn inherited(fd: RawFd) -> anyhow::Result<Endpoint> {
    // SAFETY: only asks the kernel about a number.
    let open = unsafe { libc::fcntl(fd, libc::F_GETFD) } >= 0;
    if fd < SYSTEMD_FD || !open {
        bail!("descriptor {fd} is not an open socket of the parent");
    }
    // SAFETY: it is open, above the standard streams, and inherited: nothing in this process has opened or owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    Ok(Endpoint::Listen(Listener::from_fd(fd)))
}

/// A device that waits for its front-ends.
struct Ready {
    opened: Opened,
    endpoint: Endpoint,
    options: Options,
}

pub fn main(args: Args, log: LogLevel) -> anyhow::Result<u8> {
    let stop = Stop::new().context("cannot make an eventfd")?;
    let chars = CharContext {
        on_quit: Arc::new({
            let stop = stop.clone();
            move || stop.stop()
        }),
    };
    let mut disks = DiskContext::default();
    let (ready, servers) = match (args.config, args.device) {
        (Some(path), None) => from_file(&config::read(&path)?, &chars, &mut disks)?,
        (None, Some(Device::Nbd(args))) => (vec![], vec![nbd::start(&args.into_plan()?, &mut disks)?]),
        (None, Some(device)) => (vec![from_flags(device, &chars, &mut disks)?], vec![]),
        _ => bail!(
            "give either a device (blk, nbd, net, rng, console) or --config FILE; see treaty serve --help"
        ),
    };
    let counted = Counted::new(args.telemetry);
    let _metrics = match &args.metrics {
        Some(address) => Some(counted.answer(address)?),
        None => None,
    };
    obey_signals(stop.clone(), log)?;
    serve_all(ready, &stop, &counted)?;
    // Waiting ends with an error: it was stopped.
    while !servers.is_empty() && stop.sleep(Duration::from_secs(3600)).is_ok() {}
    Ok(0)
}

fn from_flags(device: Device, chars: &CharContext, disks: &mut DiskContext) -> anyhow::Result<Ready> {
    let (socket, opened) = match device {
        Device::Blk {
            socket,
            disk,
            workers,
        } => {
            let mut plan: DiskPlan = config::device("--disk", &disk, None)?;
            plan.set_workers(&workers.plan()?);
            (socket, open(Served::Disk(&plan), "", chars, disks)?)
        }
        Device::Net { socket, net, workers } => {
            let mut plan: NetPlan = config::device("--net", &net, None)?;
            plan.set_workers(&workers.plan()?);
            (socket, open(Served::Net(&plan), "", chars, disks)?)
        }
        Device::Nbd(_) => bail!("this is no vhost-user device"),
        Device::Rng { socket } => (socket, open(Served::Rng, "", chars, disks)?),
        Device::Console { socket, console } => {
            let plan: ConsolePlan = config::device("--console", &console, Some("to"))?;
            (socket, open(Served::Console(&plan), "", chars, disks)?)
        }
    };
    Ok(Ready {
        opened,
        endpoint: socket.endpoint()?,
        options: Options {
            iommu: socket.iommu,
            postcopy: socket.postcopy,
        },
    })
}

fn from_file(
    plan: &DaemonPlan,
    chars: &CharContext,
    disks: &mut DiskContext,
) -> anyhow::Result<(Vec<Ready>, Vec<Server>)> {
    plan.check()?;
    let ready = |(index, device): (usize, &ServedPlan)| {
        let opened = open(device.served()?, &index.to_string(), chars, disks)?;
        Ok(Ready {
            opened,
            endpoint: endpoint(device.socket.clone(), device.client)?,
            options: Options {
                iommu: device.iommu,
                postcopy: device.postcopy,
            },
        })
    };
    let ready = plan
        .devices
        .iter()
        .enumerate()
        .map(ready)
        .collect::<anyhow::Result<_>>()?;
    let servers = plan.nbd.iter().map(|plan| nbd::start(plan, disks));
    let servers = servers.collect::<anyhow::Result<_>>()?;
    Ok((ready, servers))
}

/// Checks the plan and opens what it names; the device's name is its kind and `suffix`.
fn open(
    served: Served<'_>,
    suffix: &str,
    chars: &CharContext,
    disks: &mut DiskContext,
) -> anyhow::Result<Opened> {
    served.check()?;
    let name = |kind| format!("{kind}{suffix}");
    Ok(match served {
        Served::Disk(plan) => treaty_catalog::disk(&name("blk"), plan, disks)?,
        Served::Net(plan) => treaty_catalog::net(&name("net"), plan)?,
        Served::Rng => treaty_catalog::rng(&name("rng")),
        Served::Console(plan) => treaty_catalog::console(&name("console"), &[plan], chars)?,
    })
}

fn obey_signals(stop: Stop, mut log: LogLevel) -> anyhow::Result<()> {
    let mut signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT, SIGUSR1, SIGUSR2])
        .context("cannot take signals")?;
    thread::Builder::new().name("signals".into()).spawn(move || {
        for signal in signals.forever() {
            match signal {
                SIGUSR1 | SIGUSR2 => log.step(signal == SIGUSR1),
                _ => return stop.stop(),
            }
        }
    })?;
    Ok(())
}

/// One thread for each device. All stop together.
fn serve_all(ready: Vec<Ready>, stop: &Stop, counted: &Counted) -> anyhow::Result<()> {
    thread::scope(|scope| {
        let serve_one = |Ready {
                             opened,
                             endpoint,
                             options,
                         }| {
            let usual = Poll::Adaptive {
                max_us: Poll::USUAL_MAX_US,
            };
            let mut pool = WorkerPool::new(ReactorKind::Auto, usual);
            let mut built = opened.build(&mut pool)?;
            let name = opened.name();
            counted.add(name, &endpoint, &built);
            serve_with(endpoint, &mut *built.device, stop, &options).with_context(|| name.to_owned())
        };
        let threads: Vec<_> = ready
            .into_iter()
            .map(|ready| scope.spawn(move || serve_one(ready)))
            .collect();
        for thread in threads {
            thread
                .join()
                .map_err(|_| anyhow::anyhow!("a device's thread failed"))??;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use treaty_plan::PollChoice;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        workers: Workers,
    }

    fn workers(line: &str) -> anyhow::Result<WorkersPlan> {
        let words = std::iter::once("serve").chain(line.split_whitespace());
        Line::try_parse_from(words)?.workers.plan()
    }

    #[test]
    fn worker_flags_make_a_plan() {
        let plan = workers("--workers 2,cpus=2:3,map=0:1:1 --poll adaptive,us=50").unwrap();
        assert_eq!((plan.count(3), plan.worker_of(2, 3)), (2, 1));
        assert_eq!((plan.cpu_of(0), plan.cpu_of(1)), (Some(2), Some(3)));
        assert_eq!((plan.poll, plan.poll_us), (Some(PollChoice::Adaptive), Some(50)));
        let mut disk: DiskPlan = config::device("--disk", "path=d,format=raw,queues=3,cpus=7", None).unwrap();
        disk.set_workers(&workers("--poll always").unwrap());
        assert_eq!(
            (disk.workers().poll, disk.workers().cpu_of(0)),
            (Some(PollChoice::Always), Some(7))
        );
    }

    #[test]
    fn refusals_name_the_flag() {
        let refused = |line| workers(line).unwrap_err().to_string();
        assert!(refused("--poll sometimes").starts_with("--poll sometimes: "));
        assert!(refused("--workers two").starts_with("--workers two: "));
        assert!(refused("--workers 1,cpus=0-3").starts_with("--workers 1,cpus=0-3: "));
    }
}
