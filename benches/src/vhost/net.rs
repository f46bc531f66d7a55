//! `treaty serve net` beside DPDK's vhost: packets go round between the client and a daemon that sends them back.
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail};

use super::daemon::{Daemon, Peers, Scratch, treaty};
use super::sample::{Sample, cases};
use crate::{Better, Case, Report};

const TESTPMD: &str = "dpdk-testpmd";
const PEER: &str = "DPDK vhost";
const UNIT: &str = "Mpps";
const SAMPLES: usize = 3;
/// What the client counts packets over.
const SAMPLE: Duration = Duration::from_millis(600);
/// Until both sides have started, and the packets go round at their pace.
const SETTLE: Duration = Duration::from_millis(500);
/// Bursts of 32 packets that go round.
const BURSTS: u32 = 7;

/// A ring of the client, and the packets on it.
struct Trial {
    name: String,
    device: &'static str,
    bytes: u32,
}

/// The client's rings, as its device arguments.
const RINGS: [(&str, &str); 6] = [
    ("split", "packed_vq=0,in_order=0,mrg_rxbuf=0"),
    ("split-mergeable", "packed_vq=0,in_order=0,mrg_rxbuf=1"),
    ("split-inorder", "packed_vq=0,in_order=1,mrg_rxbuf=1"),
    ("packed", "packed_vq=1,in_order=0,mrg_rxbuf=0"),
    ("packed-mergeable", "packed_vq=1,in_order=0,mrg_rxbuf=1"),
    ("packed-inorder", "packed_vq=1,in_order=1,mrg_rxbuf=1"),
];

fn trials() -> Vec<Trial> {
    let trial = |(ring, device): (&str, &'static str), bytes| Trial {
        name: format!("{ring}-{bytes}"),
        device,
        bytes,
    };
    let small = RINGS.map(|ring| trial(ring, 64));
    let large = [256, 1518].map(|bytes| trial(RINGS[0], bytes));
    let packed = [256, 1518].map(|bytes| trial(RINGS[5], bytes));
    small.into_iter().chain(large).chain(packed).collect()
}

struct Bench {
    scratch: Scratch,
    peers: Peers,
}

/// The cases that have `only` in their names.
pub fn report(only: &str) -> Result<Report> {
    let bench = Bench {
        peers: Peers::find(TESTPMD)?,
        scratch: Scratch::new()?,
    };
    let mut all = Vec::new();
    for trial in trials().iter().filter(|trial| trial.name.contains(only)) {
        match bench.run(trial) {
            Ok(samples) => all.extend(cases(&trial.name, UNIT, Better::Higher, PEER, &samples)),
            Err(error) => {
                let why = format!("{error:#}");
                all.push(Case::skipped(&trial.name, UNIT, Better::Higher, PEER, why));
            }
        }
    }
    let with_bar = |case: Case| Case {
        bar: case.peer,
        ..case
    };
    Ok(Report::new("vhost-net", all.into_iter().map(with_bar).collect()))
}

impl Bench {
    fn run(&self, trial: &Trial) -> Result<[Vec<Sample>; 2]> {
        let mut samples = [Vec::new(), Vec::new()];
        for number in 0..SAMPLES {
            for (side, samples) in samples.iter_mut().enumerate() {
                let socket = self.scratch.path(&format!("{}-{side}-{number}", trial.name));
                samples.push(Sample::around(|| self.sample(trial, side, &socket))?);
            }
        }
        Ok(samples)
    }

    fn sample(&self, trial: &Trial, side: usize, socket: &Path) -> Result<f64> {
        let log = socket.with_extension("daemon");
        let mut daemon = match side {
            0 => Daemon::start(ours(socket)?, Some(1), &log)?,
            _ => Daemon::start_listening(self.peer(socket), &log)?,
        };
        daemon.wait_for(socket)?;
        let figure = self.client(trial, socket);
        match side {
            0 => daemon.end()?,
            _ => daemon.tell("").and_then(|()| daemon.end_by_itself())?,
        };
        figure
    }

    fn testpmd(&self, name: &str, main: u32, device: &str) -> Command {
        let mut command = self.peers.command(TESTPMD);
        command.args(self.peers.dpdk_drivers());
        command.args([
            "--no-huge",
            "-m",
            "256",
            "--no-pci",
            "--iova-mode=va",
            "--no-telemetry",
        ]);
        command.args(["-l", "0,1", "--main-lcore", &main.to_string()]);
        command.args([
            &format!("--file-prefix=treaty-{}-{name}", std::process::id()),
            "--vdev",
            device,
        ]);
        command.args([
            "--",
            "--forward-mode=io",
            "--total-num-mbufs=4096",
            "--no-flush-rx",
        ]);
        command
    }

    /// Forwards what it receives on its one port to the same port, on CPU 1, until it is told a line.
    fn peer(&self, socket: &Path) -> Command {
        let device = format!("net_vhost0,iface={},queues=1", socket.display());
        self.testpmd("daemon", 0, &device)
    }

    /// Forwards on CPU 0; millions of packets a second that it has received.
    fn client(&self, trial: &Trial, socket: &Path) -> Result<f64> {
        let device = format!(
            "net_virtio_user0,path={},queue_size=256,{}",
            socket.display(),
            trial.device
        );
        let mut command = self.testpmd("client", 1, &device);
        command.args(["-i", &format!("--txpkts={}", trial.bytes)]);
        let log = socket.with_extension("client");
        let mut client = Daemon::start_listening(command, &log)?;
        client.wait_to_say("testpmd>")?;
        client.tell(&format!("start tx_first {BURSTS}"))?;
        std::thread::sleep(SETTLE);
        let clock = std::time::Instant::now();
        client.tell("show port stats 0")?;
        std::thread::sleep(SAMPLE);
        let took = clock.elapsed();
        client.tell("show port stats 0")?;
        client.tell("quit")?;
        let said = client.end_by_itself()?;
        let counts: Vec<f64> = said.lines().filter_map(received).collect();
        match counts[..] {
            [first, second, ..] if second > first => Ok((second - first) / took.as_secs_f64() / 1e6),
            _ => bail!("no packet came back"),
        }
    }
}

/// The count in a line of the client's statistics.
fn received(line: &str) -> Option<f64> {
    let (_, rest) = line.split_once("RX-packets:")?;
    rest.split_whitespace().next()?.parse().ok()
}

fn ours(socket: &Path) -> Result<Command> {
    let mut command = treaty()?;
    command.args([
        "serve",
        "net",
        "--net",
        "loopback",
        "--workers",
        "1",
        "--poll",
        "always",
    ]);
    command.arg("--socket").arg(socket);
    Ok(command)
}
