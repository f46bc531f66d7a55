//! QEMU's monitor protocol, as far as the lab needs it.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

/// A connection to one QEMU.
pub struct Qmp {
    stream: UnixStream,
    lines: BufReader<UnixStream>,
}

/// QEMU takes a moment to listen, and a command can wait for the machine's lock.
const LIMIT: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(20);

impl Qmp {
    /// Connects as soon as QEMU listens.
    pub fn connect(socket: &Path) -> Result<Self> {
        let deadline = Instant::now() + LIMIT;
        let stream = loop {
            match UnixStream::connect(socket) {
                Ok(stream) => break stream,
                Err(error) if Instant::now() > deadline => {
                    return Err(error).context("QEMU's monitor does not listen");
                }
                Err(_) => std::thread::sleep(PAUSE),
            }
        };
        stream.set_read_timeout(Some(LIMIT))?;
        let lines = BufReader::new(stream.try_clone()?);
        let mut qmp = Self { stream, lines };
        qmp.next()?;
        qmp.run("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Runs a command; what it returned.
    pub fn run(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let message = json!({ "execute": command, "arguments": arguments });
        // In one piece: after `quit`, nobody reads the rest.
        self.stream.write_all(format!("{message}\n").as_bytes())?;
        loop {
            let mut answer = self.next()?;
            if let Some(error) = answer.get("error") {
                bail!("QEMU refuses {command}: {error}");
            }
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
        }
    }

    /// The next message; events come between answers.
    fn next(&mut self) -> Result<Value> {
        let mut line = String::new();
        let count = self
            .lines
            .read_line(&mut line)
            .context("no answer from QEMU's monitor")?;
        ensure!(count > 0, "QEMU closed its monitor");
        Ok(serde_json::from_str(&line)?)
    }

    /// Moves the machine to the QEMU that waits for it at `uri`, while it runs. What QEMU counted.
    pub fn migrate(&mut self, uri: &str) -> Result<Value> {
        // Slow enough that the guest works meanwhile, and long enough for it to end.
        let limits = json!({ "max-bandwidth": 48 << 20, "downtime-limit": 1000 });
        self.run("migrate-set-parameters", limits)?;
        self.run("migrate", json!({ "uri": uri }))?;
        let deadline = Instant::now() + LIMIT;
        loop {
            let state = self.run("query-migrate", json!({}))?;
            match state["status"].as_str() {
                Some("completed") => return Ok(state["ram"].clone()),
                Some("failed" | "cancelled") => bail!("the migration failed: {state}"),
                _ => ensure!(Instant::now() < deadline, "the migration does not end: {state}"),
            }
            std::thread::sleep(PAUSE);
        }
    }
}
