//! One test: a guest of `treaty run` in L1, scripts on both sides of it, and what is expected.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use crate::cache::Cache;
use crate::initramfs;

/// A kernel that the lab has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// Debian 12's.
    K6_1,
    /// Debian 13's.
    K6_12,
}

/// The file that a guest is booted from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Image {
    /// The ELF file, entered by PVH: the faster one.
    Vmlinux,
    /// The file as Debian ships it.
    Bzimage,
    /// None: the machine is a PC, and boots by its own firmware and the boot loader of a disk (`$LAB_BOOT_DISK`) whose Linux
    /// runs this script.
    BootDisk(&'static str),
}

/// What to boot in L1, and with what.
#[derive(Debug, Clone)]
pub struct Guest {
    /// The guest's kernel.
    pub kernel: Kernel,
    /// In which form.
    pub image: Image,
    /// vCPUs.
    pub cpus: u8,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Further flags of `treaty run`, mostly devices. The shell expands them: `$W` is the test's scratch directory.
    pub devices: Vec<String>,
    /// A script for the guest's busybox shell; `data/guest-init.sh` has the functions it may use.
    pub script: String,
}

/// A test in the lab.
#[derive(Debug, Clone)]
pub struct GuestTest {
    /// A unique name, as in `disk-ext4-6.12`.
    pub name: String,
    /// Shell commands for L1 before the guest starts. `data/l1-lib.sh` has the functions for all three.
    pub before: String,
    /// The guest; without one, the test is what L1 does.
    pub guest: Option<Guest>,
    /// Shell commands for L1 while the guest runs.
    pub beside: String,
    /// Shell commands for L1 after the guest has ended.
    pub after: String,
    /// How long the guest may run: three to four times what it takes on an idle machine.
    pub timeout: Duration,
    /// What must be so afterwards, besides that every script succeeded.
    pub expect: Vec<Expect>,
}

/// Something that must be so after a test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expect {
    /// The guest's console has this text.
    Console(String),
    /// `treaty run` ended with this code. Without this, 0 is expected.
    ExitCode(i32),
    /// The guest sent a file of this name and content.
    File(String, String),
}

impl Kernel {
    /// Both.
    pub const ALL: [Self; 2] = [Self::K6_1, Self::K6_12];
    /// The kernel that L1 runs.
    pub const L1: Self = Self::K6_1;

    /// The first two numbers of the version.
    pub const fn series(self) -> &'static str {
        match self {
            Self::K6_1 => "6.1",
            Self::K6_12 => "6.12",
        }
    }
}

impl Guest {
    /// A guest with one vCPU, no devices and an empty script.
    pub fn new(kernel: Kernel) -> Self {
        Self {
            kernel,
            image: Image::Vmlinux,
            cpus: 1,
            memory_mib: 256,
            devices: Vec::new(),
            script: String::new(),
        }
    }

    /// Quiet, because each character of a serial console is several exits; the rest spares seconds of waiting.
    pub(crate) const COMMAND_LINE: &str = "console=ttyS0 quiet panic=-1 mitigations=off cryptomgr.notests=1 \
                                random.trust_cpu=on tsc=reliable no_timer_check";

    fn command(&self, cache: &Cache) -> Result<String> {
        let files = cache.kernel(self.kernel)?;
        let (cpus, memory, devices) = (self.cpus, self.memory_mib, self.devices.join(" "));
        let rest = format!("--cpus {cpus} --memory {memory}M --api $API {devices}");
        let kernel = match self.image {
            Image::Vmlinux => files.vmlinux,
            Image::Bzimage => files.bzimage,
            Image::BootDisk(_) => {
                let firmware = cache.tree().root().join("usr/share/seabios/bios-256k.bin");
                let firmware = firmware.display();
                return Ok(format!("set -- run --machine pc --firmware {firmware} {rest}\n"));
            }
        };
        Ok(format!(
            "BASE={base}\n\
             set -- run --kernel {kernel} --initrd $W/initrd --cmdline '{line}' {rest}\n",
            base = files.guest_initramfs.display(),
            kernel = kernel.display(),
            line = Self::COMMAND_LINE,
        ))
    }

    /// What the test's scripts are told besides: where the disk is that it boots from.
    fn variables(&self, cache: &Cache) -> Result<String> {
        let Image::BootDisk(script) = self.image else {
            return Ok(String::new());
        };
        let disk = cache.boot_disk(self.kernel, script)?;
        Ok(format!("LAB_BOOT_DISK={}\n", disk.display()))
    }
}

impl GuestTest {
    /// A test of `guest` that takes up to half a minute.
    pub fn new(name: impl Into<String>, guest: Guest) -> Self {
        Self {
            guest: Some(guest),
            ..Self::without_guest(name, "")
        }
    }

    /// A test that is a script for L1.
    pub fn without_guest(name: impl Into<String>, script: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            before: script.into(),
            guest: None,
            beside: String::new(),
            after: String::new(),
            timeout: Duration::from_secs(60),
            expect: Vec::new(),
        }
    }

    /// True if its scripts run programs of the peers' packages.
    pub(crate) fn needs_peers(&self) -> bool {
        let scripts = [&self.before, &self.beside, &self.after];
        scripts.iter().any(|script| script.contains("$LAB_PEERS"))
    }

    /// The files for L1, named as they appear in `/run/lab`.
    pub(crate) fn files(&self, cache: &Cache) -> Result<Vec<(String, Vec<u8>)>> {
        let mut files = Vec::new();
        let mut add = |name: &str, data: Vec<u8>| files.push((format!("{}/{name}", self.name), data));
        let variables = self.guest.as_ref().map(|guest| guest.variables(cache));
        let variables = variables.transpose()?.unwrap_or_default();
        for (name, script) in [
            ("before.sh", &self.before),
            ("beside.sh", &self.beside),
            ("after.sh", &self.after),
        ] {
            add(name, format!("{variables}{script}").into_bytes());
        }
        if let Some(guest) = &self.guest {
            add("guest.sh", guest.command(cache)?.into_bytes());
            add("script.cpio", initramfs::guest_script(&guest.script));
        }
        Ok(files)
    }

    /// Judges the test by what L1 left in `dir`. `Err` holds what is wrong.
    pub(crate) fn judge(&self, dir: &Path) -> Result<(), String> {
        let read = |name: &str| {
            let bytes = fs::read(dir.join(name)).unwrap_or_default();
            String::from_utf8_lossy(&bytes).replace('\r', "")
        };
        let failed = read("failed");
        if !failed.is_empty() {
            return Err(failed.trim().to_owned());
        }
        if read("ended").is_empty() {
            return Err("it did not come to its end".into());
        }
        let Some(_) = self.guest else { return Ok(()) };
        let console = read("console.log");
        if let Some(line) = console.lines().find(|line| line.starts_with("GUEST: failed")) {
            return Err(line.to_owned());
        }
        let wanted_code = self.expect.iter().find_map(|e| {
            if let Expect::ExitCode(code) = e {
                Some(*code)
            } else {
                None
            }
        });
        let (wanted_code, code) = (
            wanted_code.unwrap_or(0).to_string(),
            read("code").trim().to_owned(),
        );
        if code != wanted_code {
            let why = if code == "137" { " (out of time)" } else { "" };
            return Err(format!("treaty run ended with {code:?}{why}, not {wanted_code}"));
        }
        self.expect.iter().try_for_each(|expect| expect.check(&console))
    }
}

impl Expect {
    fn check(&self, console: &str) -> Result<(), String> {
        match self {
            Self::Console(text) if !console.contains(text) => Err(format!("the console lacks {text:?}")),
            Self::File(name, wanted) => match sent_file(console, name) {
                None => Err(format!("the guest did not send {name}")),
                Some(found) if found != wanted.as_bytes() => Err(format!(
                    "{name} is {:?}, not {wanted:?}",
                    String::from_utf8_lossy(&found)
                )),
                Some(_) => Ok(()),
            },
            Self::Console(_) | Self::ExitCode(_) => Ok(()),
        }
    }
}

/// A file that the guest sent with `put NAME`.
pub fn sent_file(console: &str, name: &str) -> Option<Vec<u8>> {
    let start = format!("GUEST-FILE: {name}");
    let mut lines = console
        .lines()
        .map(str::trim_end)
        .skip_while(|line| *line != start);
    lines.next()?;
    let mut encoded = String::new();
    for line in lines {
        if line == "GUEST-FILE-END" {
            return decode_base64(&encoded);
        }
        encoded.push_str(line);
    }
    None
}

fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let (mut bits, mut count) = (0u32, 0);
    for c in text.bytes().filter(|c| *c != b'=') {
        let value = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_come_back_over_the_console() {
        let console = "noise\nGUEST-FILE: a\naGVs\nbG8K\nGUEST-FILE-END\nGUEST-FILE: b\n";
        assert_eq!(sent_file(console, "a").unwrap(), b"hello\n");
        assert_eq!(
            sent_file(console, "b"),
            None,
            "a file without its end is not taken"
        );
        assert_eq!(sent_file(console, "c"), None);
    }

    #[test]
    fn a_test_is_judged_by_what_it_left() {
        let dir = std::env::temp_dir().join(format!("treaty-judge-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let leave = |name: &str, text: &str| fs::write(dir.join(name), text).unwrap();
        let mut test = GuestTest::new("x", Guest::new(Kernel::K6_1));
        test.expect = vec![Expect::Console("mounted".into())];
        assert!(test.judge(&dir).unwrap_err().contains("did not come to its end"));
        leave("ended", "1");
        leave("code", "0\n");
        leave("console.log", "GUEST: up\r\nmounted\r\n");
        assert_eq!(test.judge(&dir), Ok(()));
        leave("code", "137\n");
        assert!(test.judge(&dir).unwrap_err().contains("out of time"));
        leave("console.log", "GUEST: failed: sum is 'a', not 'b'\n");
        assert!(test.judge(&dir).unwrap_err().contains("sum is 'a'"));
        leave("failed", "before: no tap\n");
        assert_eq!(test.judge(&dir).unwrap_err(), "before: no tap");
        fs::remove_dir_all(&dir).unwrap();
    }
}
