//! `treaty ctl`

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use serde::de::DeserializeOwned;
use treaty_plan::from_flag;
use treaty_vmm::api::{DeviceInfo, LayerFormat, MachineStatus, SnapshotRequest};

use crate::{counters, output};

/// Ask a running machine something, or tell it what to do.
///
/// The machine was started with `treaty run --api SOCKET`. Any HTTP client does the same:
/// `curl --unix-socket SOCKET http://treaty/api/v1/status`
#[derive(clap::Args)]
pub struct Args {
    /// The machine's API socket.
    #[arg(long, short, env = "TREATY_API", value_name = "PATH")]
    socket: PathBuf,
    /// Print the answer as JSON.
    #[arg(long)]
    json: bool,
    /// Seconds to wait for an answer.
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    timeout: u64,
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// State, vCPUs, memory, uptime.
    Status,
    /// Stop the vCPUs and drain every queue.
    Pause,
    /// Go on after a pause; try what failed on disks with on-error=stop again.
    Resume,
    /// Press the ACPI power button; the guest decides what follows.
    PowerButton,
    /// End the machine without asking the guest.
    Quit,
    /// List the virtio devices.
    Devices,
    /// What the instruments know of every device and queue; --json gives all of it (docs/counters.md). Daemons answer too
    /// (`treaty serve --metrics SOCKET`).
    Counters,
    /// Keep a disk's contents as they are; what the guest writes from now on goes to a new image on top.
    ///
    /// The guest stops for the moment that it takes. The old image is the new one's backing file and is not written to any
    /// more. Start the machine the next time with `--disk path=NEW,format=qcow2,backing=on`.
    Snapshot {
        /// The disk's name, as `devices` lists it or by the order of --disk: disk0.
        disk: String,
        /// `path=FILE[,format=qcow2]`: the new image; the file must not exist.
        #[arg(value_parser = layer)]
        layer: Layer,
    },
}

/// The new image of a snapshot.
#[derive(Clone, Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Layer {
    path: PathBuf,
    #[serde(default)]
    format: LayerFormat,
}

fn layer(text: &str) -> Result<Layer, String> {
    from_flag(text, Some("path")).map_err(|error| error.to_string())
}

impl What {
    fn request(&self) -> (&'static str, &'static str) {
        match self {
            Self::Status => ("GET", "status"),
            Self::Devices => ("GET", "devices"),
            Self::Counters => ("GET", "counters"),
            Self::Pause => ("PUT", "pause"),
            Self::Resume => ("PUT", "resume"),
            Self::PowerButton => ("PUT", "power-button"),
            Self::Quit => ("PUT", "quit"),
            Self::Snapshot { .. } => ("PUT", "snapshot"),
        }
    }

    /// The request's body.
    fn body(&self) -> anyhow::Result<String> {
        let Self::Snapshot { disk, layer } = self else {
            return Ok(String::new());
        };
        // The monitor may have another current directory.
        let path = std::path::absolute(&layer.path)?;
        Ok(serde_json::to_string(&SnapshotRequest {
            disk: disk.clone(),
            path,
            format: layer.format,
        })?)
    }
}

pub fn main(args: &Args) -> anyhow::Result<u8> {
    let (method, path) = args.what.request();
    let body = args.what.body()?;
    let text = exchange(
        &args.socket,
        method,
        path,
        &body,
        Duration::from_secs(args.timeout),
    )?;
    let text = match args.what {
        _ if args.json => text,
        What::Devices => lines(&parse::<Vec<DeviceInfo>>(&text)?, device_text),
        What::Counters => counters::text(&parse(&text)?),
        _ => status_text(&parse(&text)?),
    };
    output::print(&text)?;
    Ok(0)
}

fn lines(devices: &[DeviceInfo], show: fn(&DeviceInfo) -> Vec<String>) -> String {
    devices.iter().flat_map(show).collect::<Vec<_>>().join("\n")
}

pub fn parse<T: DeserializeOwned>(text: &str) -> anyhow::Result<T> {
    serde_json::from_str(text).context("the machine's answer is not what this version of treaty expects")
}

/// One request and its answer's body; an error answer becomes an error.
pub(crate) fn exchange(
    socket: &Path,
    method: &str,
    path: &str,
    body: &str,
    timeout: Duration,
) -> anyhow::Result<String> {
    let name = socket.display();
    let mut stream = UnixStream::connect(socket)
        .with_context(|| format!("cannot reach a machine at {name}; was it started with --api {name}?"))?;
    stream.set_read_timeout(Some(timeout))?;
    let length = body.len();
    let text = format!(
        "{method} /api/v1/{path} HTTP/1.1\r\nHost: treaty\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    );
    stream
        .write_all(text.as_bytes())
        .with_context(|| format!("{name}: the machine hung up"))?;
    let mut answer = Vec::new();
    stream
        .read_to_end(&mut answer)
        .with_context(|| format!("{name}: no answer within {} s (--timeout)", timeout.as_secs()))?;
    let (code, body) = split(&answer).with_context(|| format!("{name}: that is no Treaty machine"))?;
    if code == 200 {
        return Ok(body);
    }
    let value: serde_json::Value = serde_json::from_str(&body).unwrap_or_default();
    bail!(
        "{}",
        value["error"]
            .as_str()
            .unwrap_or("the machine refused without a reason")
    );
}

/// Status code and body of a complete HTTP answer.
fn split(answer: &[u8]) -> anyhow::Result<(u16, String)> {
    let mut headers = [httparse::EMPTY_HEADER; 16];
    let mut response = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(head) = response.parse(answer)? else {
        bail!("the answer is cut off")
    };
    let code = response.code.context("the answer has no status code")?;
    let body = answer.get(head..).unwrap_or_default();
    Ok((code, String::from_utf8(body.to_vec())?))
}

fn status_text(status: &MachineStatus) -> String {
    let state = serde_json::json!(status.state);
    let mut text = format!(
        "state    {}\npid      {}\ncpus     {}\nmemory   {} MiB\nuptime   {:.1} s\nreboots  {}",
        state.as_str().unwrap_or_default(),
        status.pid,
        status.cpus,
        status.memory_bytes >> 20,
        status.uptime_seconds,
        status.reboots
    );
    if !status.degraded.is_empty() {
        text += &format!("\ndegraded {} (back-end away)", status.degraded.join(", "));
    }
    text
}

fn device_text(device: &DeviceInfo) -> Vec<String> {
    let running = device.queues.iter().filter(|queue| queue.running).count();
    let mut lines = vec![format!(
        "{:<10} {:<8} {:<5} {:<12} status {:#04x}  {running} of {} queues run  accepted {:#x}",
        device.name,
        device.kind,
        device.transport,
        device.location,
        device.status,
        device.queues.len(),
        device.accepted
    )];
    if let Some(reason) = &device.needs_reset {
        lines.push(format!("{:<10} needs a reset: {reason}", ""));
    }
    if let Some(reason) = &device.stopped {
        lines.push(format!("{:<10} stopped, `resume` tries again: {reason}", ""));
    }
    if let Some(back_end) = &device.back_end {
        let state = if back_end.degraded {
            "degraded: the back-end is away"
        } else {
            "connected"
        };
        lines.push(format!(
            "{:<10} back-end {}: {state}, {} reconnects",
            "", back_end.socket, back_end.reconnects
        ));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::split;

    #[test]
    fn only_whole_answers_count() {
        let (code, body) = split(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}").unwrap();
        assert_eq!((code, body.as_str()), (200, "{}"));
        assert!(split(b"HTTP/1.1 200 OK\r\nContent").is_err());
        assert!(split(b"220 ftp ready\r\n").is_err());
    }
}
