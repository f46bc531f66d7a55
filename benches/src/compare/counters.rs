//! Reading a running machine's counters from outside: exits to user space, and the processor's time.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use treaty_lab::Qmp;

/// Counters at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count {
    /// Exits of vCPUs to the monitor.
    pub exits: u64,
    /// Nanoseconds that its threads ran, vCPUs included.
    pub cpu_ns: u64,
}

/// Who is asked.
pub enum Counters {
    /// Treaty's control socket.
    Api(PathBuf),
    /// QEMU's monitor.
    Qmp(Box<Qmp>),
}

const LIMIT: Duration = Duration::from_secs(5);

impl Counters {
    /// Now. `None` if the machine is not there to be asked, or its kernel does not count.
    pub fn read(&mut self, pid: u32) -> Option<Count> {
        let exits = match self {
            Self::Api(socket) => treaty_exits(socket)?,
            Self::Qmp(qmp) => qemu_exits(qmp)?,
        };
        Some(Count {
            exits,
            cpu_ns: cpu_ns(pid)?,
        })
    }
}

fn treaty_exits(socket: &Path) -> Option<u64> {
    let mut stream = UnixStream::connect(socket).ok()?;
    stream.set_read_timeout(Some(LIMIT)).ok()?;
    let request = "GET /api/v1/status HTTP/1.1\r\nHost: treaty\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (_, body) = answer.split_once("\r\n\r\n")?;
    let status: Value = serde_json::from_str(body.trim()).ok()?;
    let count = |name: &str| status["exits"][name].as_u64();
    Some(count("port")? + count("memory")?)
}

/// KVM counts an exit for memory only if user space has to answer, and every one for a port: the probe touches no port
/// that the kernel answers for.
fn qemu_exits(qmp: &mut Qmp) -> Option<u64> {
    let wanted = json!({
        "target": "vcpu",
        "providers": [{ "provider": "kvm", "names": ["io_exits", "mmio_exits"] }],
    });
    let vcpus = qmp.run("query-stats", wanted).ok()?;
    let stats = vcpus
        .as_array()?
        .iter()
        .flat_map(|vcpu| vcpu["stats"].as_array().into_iter().flatten());
    stats.map(|stat| stat["value"].as_u64()).sum()
}

/// Time on a CPU of every thread of the process.
fn cpu_ns(pid: u32) -> Option<u64> {
    let mut sum = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task")).ok()? {
        // A thread may end meanwhile.
        let text = fs::read_to_string(task.ok()?.path().join("schedstat")).unwrap_or_default();
        sum += text
            .split_whitespace()
            .next()
            .and_then(|word| word.parse::<u64>().ok())
            .unwrap_or(0);
    }
    Some(sum)
}
