//! The driving end of a qtest session: a child that speaks the protocol over its standard input and output.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// How long a register may take to say what is waited for.
const PATIENCE: Duration = Duration::from_secs(60);
const INTERVAL: Duration = Duration::from_millis(2);

/// A machine without processors, ours or QEMU's.
pub struct Session {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    /// Interrupts as they were said: number and level.
    interrupts: Vec<(u32, bool)>,
}

impl Session {
    /// Starts the machine.
    pub fn start(command: &mut Command) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        let to = child.stdin.take().context("no standard input")?;
        let from = BufReader::new(child.stdout.take().context("no standard output")?);
        Ok(Self {
            child,
            to,
            from,
            interrupts: Vec::new(),
        })
    }

    /// Sends a command; its answer without `OK`.
    pub fn command(&mut self, text: &str) -> Result<String> {
        writeln!(self.to, "{text}")?;
        loop {
            let mut line = String::new();
            ensure!(self.from.read_line(&mut line)? > 0, "{text}: the machine is gone");
            let mut words = line.split_whitespace();
            match (words.next(), words.next(), words.next()) {
                (Some("IRQ"), Some(how), Some(number)) => {
                    self.interrupts.push((number.parse()?, how == "raise"));
                }
                (Some("OK"), rest, None) => return Ok(rest.unwrap_or_default().to_owned()),
                _ => bail!("{text}: {line}"),
            }
        }
    }

    fn value(&mut self, text: &str) -> Result<u64> {
        let answer = self.command(text)?;
        let hex = answer.strip_prefix("0x");
        let hex = hex.with_context(|| format!("{text}: {answer}"))?;
        Ok(u64::from_str_radix(hex, 16)?)
    }

    /// Reads a port; `width` is `b`, `w` or `l`.
    pub fn input(&mut self, width: char, port: u16) -> Result<u64> {
        self.value(&format!("in{width} 0x{port:x}"))
    }

    /// Writes a port.
    pub fn output(&mut self, width: char, port: u16, value: u64) -> Result<()> {
        self.command(&format!("out{width} 0x{port:x} 0x{value:x}"))
            .map(drop)
    }

    /// Reads 32 bits of memory.
    pub fn readl(&mut self, address: u64) -> Result<u64> {
        self.value(&format!("readl 0x{address:x}"))
    }

    /// Writes 32 bits of memory.
    pub fn writel(&mut self, address: u64, value: u64) -> Result<()> {
        self.command(&format!("writel 0x{address:x} 0x{value:x}"))
            .map(drop)
    }

    /// Reads memory.
    pub fn read(&mut self, address: u64, len: usize) -> Result<Vec<u8>> {
        let answer = self.command(&format!("read 0x{address:x} 0x{len:x}"))?;
        let hex = answer.strip_prefix("0x").context("no data")?;
        let byte = |at: usize| Ok(u8::from_str_radix(&hex[at..at + 2], 16)?);
        (0..hex.len()).step_by(2).map(byte).collect()
    }

    /// Writes memory.
    pub fn write(&mut self, address: u64, bytes: &[u8]) -> Result<()> {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let len = bytes.len();
        self.command(&format!("write 0x{address:x} 0x{len:x} 0x{hex}"))
            .map(drop)
    }

    /// Sets the PCI configuration address.
    fn address(&mut self, slot: u8, function: u8, register: u8) -> Result<()> {
        let address = 1 << 31 | u64::from(slot) << 11 | u64::from(function) << 8 | u64::from(register & !3);
        self.output('l', 0xcf8, address)
    }

    /// Reads 32 bits of a function's configuration.
    pub fn config(&mut self, slot: u8, function: u8, register: u8) -> Result<u64> {
        self.address(slot, function, register)?;
        self.input('l', 0xcfc)
    }

    /// Writes 32 bits of a function's configuration.
    pub fn set_config(&mut self, slot: u8, function: u8, register: u8, value: u64) -> Result<()> {
        self.address(slot, function, register)?;
        self.output('l', 0xcfc, value)
    }

    /// Repeats `read` until its value passes `done`; the value.
    pub fn wait(
        &mut self,
        what: &str,
        mut read: impl FnMut(&mut Self) -> Result<u64>,
        done: impl Fn(u64) -> bool,
    ) -> Result<u64> {
        let begin = Instant::now();
        loop {
            let value = read(self)?;
            if done(value) {
                return Ok(value);
            }
            ensure!(begin.elapsed() < PATIENCE, "{what} stays 0x{value:x}");
            // QEMU's clock stands still while its processors do, so it is not asked to step.
            std::thread::sleep(INTERVAL);
        }
    }

    /// True if that interrupt was raised since this was last asked.
    pub fn was_raised(&mut self, number: u32) -> bool {
        let raised = self.interrupts.contains(&(number, true));
        self.interrupts.retain(|(other, _)| *other != number);
        raised
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
