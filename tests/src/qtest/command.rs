//! The commands of QEMU's qtest protocol, a line each. QEMU `system/qtest.c` describes them.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use treaty_bus::Bus;

use super::machine::Machine;

/// The most bytes that one command moves.
const MOST: usize = 16 << 20;
/// What time a step takes at most: the machine's clock is the host's.
const LONGEST_STEP: Duration = Duration::from_secs(1);

/// Carries out one line; returns the answer without its line end.
pub fn run(machine: &Machine, started: Instant, line: &str) -> Result<String> {
    let mut words = line.split_whitespace();
    let name = words.next().context("an empty line")?;
    let words: Vec<&str> = words.collect();
    match name {
        "inb" | "inw" | "inl" => {
            let port = number(&words, 0)?;
            Ok(format!("OK 0x{:04x}", read(&machine.ports, port, width(name)?)))
        }
        "outb" | "outw" | "outl" => {
            let (port, value) = (number(&words, 0)?, number(&words, 1)?);
            machine
                .ports
                .write(port, part(&value.to_le_bytes(), width(name)?));
            Ok("OK".into())
        }
        "readb" | "readw" | "readl" | "readq" => {
            let bytes = load(machine, number(&words, 0)?, width(name)?);
            let mut whole = [0; 8];
            whole[..bytes.len()].copy_from_slice(&bytes);
            Ok(format!("OK 0x{:016x}", u64::from_le_bytes(whole)))
        }
        "writeb" | "writew" | "writel" | "writeq" => {
            let value = number(&words, 1)?.to_le_bytes();
            store(machine, number(&words, 0)?, part(&value, width(name)?));
            Ok("OK".into())
        }
        "read" | "write" | "memset" => bytes(machine, name, &words),
        "clock_step" | "clock_set" => Ok(clock(started, &words)),
        "irq_intercept_in" | "irq_intercept_out" => {
            machine.interrupts.intercept(true);
            Ok("OK".into())
        }
        "endianness" => Ok("OK little".into()),
        other => bail!("unknown command {other}"),
    }
}

fn bytes(machine: &Machine, name: &str, words: &[&str]) -> Result<String> {
    let (address, len) = (number(words, 0)?, usize::try_from(number(words, 1)?)?);
    ensure!(len <= MOST, "{len} bytes are more than {MOST}");
    match name {
        "read" => {
            let hex: String = load(machine, address, len)
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect();
            return Ok(format!("OK 0x{hex}"));
        }
        "memset" => store(machine, address, &vec![number(words, 2)? as u8; len]),
        _ => {
            let text = words.get(2).and_then(|text| text.strip_prefix("0x"));
            let text = text.context("the data begins with 0x")?;
            ensure!(text.len() == len * 2, "{len} bytes were announced");
            let byte = |at: usize| u8::from_str_radix(text.get(at..at + 2).unwrap_or_default(), 16);
            let data = (0..text.len())
                .step_by(2)
                .map(byte)
                .collect::<Result<Vec<_>, _>>()?;
            store(machine, address, &data);
        }
    }
    Ok("OK".into())
}

/// Waits as long as the step says; the answer is the time since the start, in nanoseconds.
fn clock(started: Instant, words: &[&str]) -> String {
    let step = words.first().and_then(|text| parse(text)).unwrap_or(0);
    std::thread::sleep(Duration::from_nanos(step).min(LONGEST_STEP));
    format!("OK {}", started.elapsed().as_nanos())
}

fn load(machine: &Machine, address: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    if machine.memory.read(address, &mut bytes).is_err() {
        machine.mmio.read(address, &mut bytes);
    }
    bytes
}

fn store(machine: &Machine, address: u64, bytes: &[u8]) {
    if machine.memory.write(address, bytes).is_err() {
        machine.mmio.write(address, bytes);
    }
}

fn read(bus: &Bus, port: u64, width: usize) -> u64 {
    let mut bytes = [0; 8];
    bus.read(port, &mut bytes[..width]);
    u64::from_le_bytes(bytes)
}

fn part(bytes: &[u8; 8], width: usize) -> &[u8] {
    &bytes[..width]
}

fn width(name: &str) -> Result<usize> {
    Ok(match name.as_bytes().last() {
        Some(b'b') => 1,
        Some(b'w') => 2,
        Some(b'l') => 4,
        Some(b'q') => 8,
        _ => bail!("{name} has no width"),
    })
}

fn number(words: &[&str], index: usize) -> Result<u64> {
    let text = words
        .get(index)
        .with_context(|| format!("argument {} is missing", index + 1))?;
    parse(text).with_context(|| format!("{text:?} is no number"))
}

fn parse(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}
