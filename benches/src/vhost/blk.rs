//! `treaty serve blk` beside qemu-storage-daemon.
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::client::{BLOCK, Client, Load, Until};
use super::daemon::{Daemon, Peers, Scratch, counted, treaty};
use super::sample::{Sample, cases};
use crate::{Better, Case, Report, callgrind, cores};

const PEER: &str = "qemu-storage-daemon";
const COUNT_UNIT: &str = "instructions";
const SAMPLES: usize = 7;
const SAMPLE: Duration = Duration::from_millis(250);
/// Blocks of the image in the page cache.
const BLOCKS: u64 = 32 << 10;
/// The daemon's CPU; the client has CPU 0.
const DAEMON_CORE: usize = 1;
/// Requests of the shorter and the longer run whose difference is counted.
const COUNTED: [u64; 2] = [2_000, 12_000];

/// What is behind the disk.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Image {
    Null,
    Cached,
}

/// One comparison.
struct Trial {
    name: &'static str,
    image: Image,
    depth: usize,
    polled: bool,
    better: Better,
    bar: Option<f64>,
}

const TRIALS: [Trial; 6] = [
    trial("null-qd32", Image::Null, 32, true),
    trial("null-qd1", Image::Null, 1, true),
    trial("cached-qd32", Image::Cached, 32, true),
    Trial {
        bar: Some(2.5),
        ..trial("cached-qd1", Image::Cached, 1, true)
    },
    trial("cached-qd1-blocking", Image::Cached, 1, false),
    trial("cached-qd32-blocking", Image::Cached, 32, false),
];

const fn trial(name: &'static str, image: Image, depth: usize, polled: bool) -> Trial {
    let better = if depth == 1 { Better::Lower } else { Better::Higher };
    Trial {
        name,
        image,
        depth,
        polled,
        better,
        bar: None,
    }
}

/// What both daemons serve, and where.
struct Bench {
    scratch: Scratch,
    peers: Peers,
    image: PathBuf,
    peer_name: String,
}

/// The cases that have `only` in their names.
pub fn report(only: &str) -> Result<Report> {
    let scratch = Scratch::new()?;
    let image = scratch.path("image");
    write_image(&image).context("cannot write the image")?;
    let peers = Peers::find(PEER)?;
    let bench = Bench {
        peer_name: peers.named(PEER),
        peers,
        scratch,
        image,
    };
    let mut cases = Vec::new();
    for trial in TRIALS.iter().filter(|trial| trial.name.contains(only)) {
        match bench.run(trial) {
            Ok(more) => cases.extend(more),
            Err(error) => {
                let why = format!("{error:#}");
                cases.push(Case::skipped(trial.name, trial.unit(), trial.better, PEER, why));
            }
        }
    }
    let counts = [
        ("null-qd32-instructions", Image::Null),
        ("cached-qd32-instructions", Image::Cached),
    ];
    for (name, image) in counts.into_iter().filter(|(name, _)| name.contains(only)) {
        cases.push(bench.count(name, image).unwrap_or_else(|error| {
            Case::skipped(name, COUNT_UNIT, Better::Lower, PEER, format!("{error:#}"))
        }));
    }
    Ok(Report::new("vhost-blk", cases))
}

/// Every block begins with its number.
fn write_image(path: &Path) -> std::io::Result<()> {
    let mut file = BufWriter::new(std::fs::File::create(path)?);
    let mut block = [0x5a; BLOCK];
    for number in 0..BLOCKS {
        block[..8].copy_from_slice(&number.to_ne_bytes());
        file.write_all(&block)?;
    }
    file.flush()
}

impl Trial {
    fn unit(&self) -> &'static str {
        match self.better {
            Better::Lower => "us",
            Better::Higher => "kIOPS",
        }
    }

    fn figure(&self, answered: u64, took: Duration) -> f64 {
        let us = took.as_secs_f64() * 1e6;
        match self.better {
            Better::Lower => us / answered as f64,
            Better::Higher => answered as f64 / us * 1e3,
        }
    }

    fn load(&self) -> Load {
        Load {
            depth: self.depth,
            polled: self.polled,
        }
    }
}

impl Bench {
    fn ours(&self, image: Image, polled: bool, socket: &Path) -> Result<Command> {
        let mut command = treaty()?;
        let disk = match image {
            Image::Null => "format=null,size=128M,readonly".to_owned(),
            Image::Cached => format!("path={},format=raw,readonly", self.image.display()),
        };
        command
            .args(["serve", "blk", "--disk", &disk, "--socket"])
            .arg(socket);
        command.args(["--poll", if polled { "adaptive,us=1000" } else { "off" }]);
        Ok(command)
    }

    /// The same, as QEMU's users would say it.
    fn peer(&self, image: Image, polled: bool, socket: &Path) -> Command {
        let mut command = self.peers.command(PEER);
        let budget_ns = if polled { 1_000_000 } else { 0 };
        command.args(["--object", &format!("iothread,id=io,poll-max-ns={budget_ns}")]);
        let path = self.image.display();
        let node = match image {
            Image::Null => format!(
                "driver=null-co,node-name=n,size={},read-only=on",
                BLOCKS * BLOCK as u64
            ),
            Image::Cached => {
                format!("driver=file,node-name=n,filename={path},read-only=on,aio=io_uring,cache.direct=off")
            }
        };
        command.args(["--blockdev", &node, "--export"]);
        command.arg(format!(
            "vhost-user-blk,id=e,node-name=n,writable=off,iothread=io,addr.type=unix,addr.path={}",
            socket.display()
        ));
        command
    }

    fn run(&self, trial: &Trial) -> Result<Vec<Case>> {
        let sockets = ["ours", "peer"].map(|side| self.scratch.path(&format!("{}-{side}", trial.name)));
        let commands = [
            self.ours(trial.image, trial.polled, &sockets[0])?,
            self.peer(trial.image, trial.polled, &sockets[1]),
        ];
        let mut daemons = Vec::new();
        for (command, socket) in commands.into_iter().zip(&sockets) {
            let mut daemon = Daemon::start(command, Some(DAEMON_CORE), &socket.with_extension("log"))?;
            daemon.wait_for(socket)?;
            daemons.push(daemon);
        }
        let mut samples = [Vec::new(), Vec::new()];
        for _ in 0..SAMPLES {
            for (samples, socket) in samples.iter_mut().zip(&sockets) {
                samples.push(Sample::around(|| measure(trial, socket))?);
            }
        }
        for daemon in daemons {
            daemon.end()?;
        }
        let cases = cases(trial.name, trial.unit(), trial.better, &self.peer_name, &samples);
        Ok(cases.into_iter().map(|case| case.with_bar(trial.bar)).collect())
    }

    /// Everything that each daemon executes for a request: of two runs the difference.
    fn count(&self, name: &str, image: Image) -> Result<Case> {
        if !callgrind::available() {
            let why = "needs valgrind (Debian package `valgrind`)".to_owned();
            return Ok(Case::skipped(name, COUNT_UNIT, Better::Lower, PEER, why));
        }
        let mut counts = [0.0; 2];
        for (side, count) in counts.iter_mut().enumerate() {
            let mut totals = [0.0; 2];
            for (requests, total) in COUNTED.into_iter().zip(&mut totals) {
                let socket = self.scratch.path(&format!("{name}-{side}-{requests}"));
                let command = match side {
                    0 => self.ours(image, false, &socket)?,
                    _ => self.peer(image, false, &socket),
                };
                let log = socket.with_extension("log");
                let mut daemon = Daemon::start(counted(&command), None, &log)?;
                daemon.wait_for(&socket)?;
                let load = Load {
                    depth: 32,
                    polled: false,
                };
                Client::connect(&socket, load)?.run(Until::Requests(requests))?;
                *total = callgrind::collected(&daemon.end()?)?;
            }
            *count = (totals[1] - totals[0]) / (COUNTED[1] - COUNTED[0]) as f64;
        }
        Ok(Case::new(
            name,
            COUNT_UNIT,
            Better::Lower,
            &[counts[0]],
            (&self.peer_name, &[counts[1]]),
        ))
    }
}

fn measure(trial: &Trial, socket: &Path) -> Result<f64> {
    let client = std::thread::scope(|scope| {
        let client = scope.spawn(|| -> Result<f64> {
            cores::pin(0);
            let mut client = Client::connect(socket, trial.load())?;
            if trial.image == Image::Cached {
                client.verify()?;
            }
            client.run(Until::Time(SAMPLE / 5))?;
            let (answered, took) = client.run(Until::Time(SAMPLE))?;
            Ok(trial.figure(answered, took))
        });
        client.join()
    });
    client.map_err(|_| anyhow::anyhow!("the client failed"))?
}
