//! Processes and their command lines.

use std::fs;
use std::path::{Path, PathBuf};

use treaty_qemu_args::{Keys, Line};

/// A QEMU that runs a machine.
#[derive(Clone, Debug)]
pub struct Process {
    /// Its process ID.
    pub pid: u32,
    /// Its command line.
    pub line: Line,
    /// Where it was started: relative paths begin there.
    pub directory: PathBuf,
}

/// The QEMU processes under `proc_dir`, of whatever user, in order of their IDs.
pub fn processes(proc_dir: &Path) -> Vec<Process> {
    let Ok(entries) = fs::read_dir(proc_dir) else {
        return Vec::new();
    };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let mut found: Vec<Process> = pids.filter_map(|pid| read(proc_dir, pid)).collect();
    found.sort_by_key(|process| process.pid);
    found
}

fn read(proc_dir: &Path, pid: u32) -> Option<Process> {
    let dir = proc_dir.join(pid.to_string());
    let bytes = fs::read(dir.join("cmdline")).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let words: Vec<&str> = text.trim_end_matches('\0').split('\0').collect();
    // Behind a dynamic loader that was named (`ld.so .. qemu-system-x86_64 ..`), the program is a later word.
    let behind = words
        .first()
        .is_some_and(|word| file_name(word).starts_with("ld"));
    let depth = if behind { 8 } else { 1 };
    let at = words.iter().take(depth).position(|word| is_machine(word))?;
    let line = Line::parse(words.get(at..)?.iter().copied()).ok()?;
    Some(Process {
        pid,
        line,
        directory: fs::read_link(dir.join("cwd")).unwrap_or_else(|_| "/".into()),
    })
}

fn file_name(word: &str) -> &str {
    word.rsplit('/').next().unwrap_or_default()
}

fn is_machine(word: &str) -> bool {
    let name = file_name(word);
    name.starts_with("qemu-system-") || name == "qemu-kvm" || name == "kvm"
}

impl Process {
    /// The machine's name: `-name`, or the first disk, or the process.
    pub fn name(&self) -> String {
        let named = self.line.all("name").find_map(|option| option.keys.get("guest"));
        named.map_or_else(|| format!("qemu-{}", self.pid), str::to_owned)
    }

    /// Its vCPUs.
    pub fn cpus(&self) -> u32 {
        let smp = self.line.all("smp").last();
        let number = |key: &str| smp?.keys.get(key)?.parse::<u32>().ok();
        let product = ["sockets", "dies", "cores", "threads"]
            .iter()
            .filter_map(|key| number(key))
            .product();
        number("cpus").unwrap_or(product).max(1)
    }

    /// The socket that its QMP monitor listens on, if there is one.
    pub fn monitor_socket(&self) -> Option<PathBuf> {
        let direct = self
            .line
            .all("qmp")
            .find_map(|option| option.text.strip_prefix("unix:"));
        let path = match direct {
            Some(text) => Keys::parse(text, Some("path")).get("path").map(str::to_owned),
            None => self.line.all("mon").find_map(|option| {
                if option.keys.get("mode") != Some("control") {
                    return None;
                }
                let chardev = self.line.with("chardev", "id", option.keys.get("chardev")?)?;
                chardev.keys.get("path").map(str::to_owned)
            }),
        };
        path.map(|path| self.directory.join(path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proc_with(lines: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (pid, line) in lines {
            fs::create_dir(dir.path().join(pid)).unwrap();
            fs::write(
                dir.path().join(pid).join("cmdline"),
                line.replace(' ', "\0") + "\0",
            )
            .unwrap();
        }
        dir
    }

    #[test]
    fn machines_are_found_and_other_programs_are_not() {
        let dir = proc_with(&[
            (
                "20",
                "/usr/bin/qemu-system-x86_64 -name guest=web,debug-threads=on -smp 2,cores=2 -qmp unix:q,server=on,wait=off",
            ),
            (
                "3",
                "/lab/ld.so --library-path /l /lab/qemu-system-x86_64 -chardev socket,id=m,path=/m,server=on -mon chardev=m,mode=control",
            ),
            ("5", "vim qemu-system-x86_64.c"),
            ("6", "qemu-img info x"),
            ("self", "x"),
        ]);
        let found = processes(dir.path());
        let pids: Vec<u32> = found.iter().map(|process| process.pid).collect();
        assert_eq!(pids, [3, 20]);
        assert_eq!((found[1].name().as_str(), found[1].cpus()), ("web", 2));
        assert_eq!(found[1].monitor_socket(), Some("/q".into()));
        assert_eq!(found[0].monitor_socket(), Some("/m".into()));
        assert_eq!(found[0].name(), "qemu-3");
    }
}
