//! `treaty img` and qemu-img side by side: the same command line for both, and the results compared.
#![allow(dead_code)]

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use treaty_lab::Tree;

/// How a version of qemu-img is had.
type Fetch = fn() -> anyhow::Result<Tree>;

/// Versions of qemu-img, and where they are from.
const PEERS: [(&str, Fetch); 2] = [
    ("10", treaty_lab::peers::trixie),
    ("7.2", treaty_lab::peers::bookworm),
];

/// One version of qemu-img, ours, and a folder for both to work in.
pub struct Side {
    pub version: &'static str,
    tree: Tree,
    folder: PathBuf,
}

impl Drop for Side {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// What a program said, with its code.
#[derive(Debug)]
pub struct Said {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Said {
    fn of(output: &Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// What it said with code 0.
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.out
    }
}

/// The words of a command line: no path here has a blank.
fn words(line: &str) -> Vec<&str> {
    line.split_whitespace()
        .map(|word| if word == "''" { "" } else { word })
        .collect()
}

impl Side {
    /// Our folder beside each version of qemu-img; says which are missing.
    pub fn all(test: &str) -> Vec<Self> {
        let found = PEERS.iter().filter_map(|(version, tree)| match tree() {
            Ok(tree) => {
                let name = format!("treaty-img-{}-{test}-{version}", std::process::id());
                let folder = std::env::temp_dir().join(name);
                std::fs::create_dir_all(&folder).unwrap();
                Some(Self {
                    version,
                    tree,
                    folder,
                })
            }
            Err(error) => {
                println!("SKIPPED: no qemu-img {version}: {error:#}");
                None
            }
        });
        found.collect()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn run(&self, mut command: Command, line: &str) -> Said {
        let command = command.args(words(line)).current_dir(&self.folder);
        Said::of(&command.stdin(Stdio::null()).output().unwrap())
    }

    /// `treaty img`.
    pub fn ours(&self, line: &str) -> Said {
        let mut command = Command::new(env!("CARGO_BIN_EXE_treaty"));
        command.arg("img").env_remove("TREATY_LOG");
        self.run(command, line)
    }

    /// `qemu-img`.
    pub fn theirs(&self, line: &str) -> Said {
        let mut line = line.to_owned();
        if self.version == "7.2" && line.starts_with("snapshot") {
            // It has no such option there.
            line = line.replace("-f qcow2 ", "").replace("-f raw ", "");
        }
        self.run(self.tree.command("qemu-img"), &line)
    }

    /// `qemu-io`, which must succeed.
    pub fn io(&self, image: &str, format: &str, commands: &[&str]) {
        let mut io = self.tree.command("qemu-io");
        io.args(["-f", format, image]).current_dir(&self.folder);
        for command in commands {
            io.args(["-c", command]);
        }
        let output = io.output().unwrap();
        let said = Said::of(&output);
        assert!(said.code == 0 && !said.out.contains("failed"), "{said:?}");
    }

    /// The same line for both, with the same exit code; what they said.
    pub fn both(&self, line: &str) -> (Said, Said) {
        let (ours, theirs) = (self.ours(line), self.theirs(line));
        let version = self.version;
        assert_eq!(
            ours.code, theirs.code,
            "qemu-img {version}: {line}: {ours:?} {theirs:?}"
        );
        (ours, theirs)
    }

    /// The same line for both, with this exit code.
    pub fn both_end_with(&self, code: i32, line: &str) {
        let (ours, theirs) = self.both(line);
        assert_eq!(ours.code, code, "{line}: {ours:?} {theirs:?}");
    }

    /// The same line for both, which print the same.
    pub fn both_say_the_same(&self, line: &str) -> String {
        let (ours, theirs) = self.both(line);
        assert_eq!(ours.out, theirs.out, "qemu-img {}: {line}", self.version);
        ours.out
    }

    /// The same line for both with ` --output=json`; the fields that theirs has are ours too.
    pub fn both_say_the_same_fields(&self, line: &str) -> serde_json::Value {
        let (ours, theirs) = self.both(&format!("{line} --output=json"));
        let (ours, theirs) = (ours.json(), theirs.json());
        for (path, value) in leaves(&theirs, String::new()) {
            // What 7.2 calls the file below is not told apart from it.
            if self.version == "7.2" && path.contains("children") {
                continue;
            }
            assert_eq!(
                ours.pointer(&path),
                Some(&value),
                "qemu-img {}: {line}: {path}",
                self.version
            );
        }
        ours
    }

    /// A raw file with data at some places: offset, bytes, what they are.
    pub fn raw(&self, name: &str, len: u64, data: &[(u64, usize, u8)]) {
        let file = std::fs::File::create(self.path(name)).unwrap();
        file.set_len(len).unwrap();
        for (offset, bytes, value) in data {
            file.write_all_at(&vec![*value; *bytes], *offset).unwrap();
        }
    }

    /// Somebody who has the image open for writing until the returned child is dropped.
    pub fn writer(&self, image: &str, format: &str) -> Writer {
        let mut io = self.tree.command("qemu-io");
        io.args(["-f", format, image]).current_dir(&self.folder);
        io.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = io.spawn().unwrap();
        use std::io::{Read, Write};
        child.stdin.as_mut().unwrap().write_all(b"length\n").unwrap();
        // It answers when it has the image.
        let mut seen = Vec::new();
        let out = child.stdout.as_mut().unwrap();
        let mut byte = [0];
        while !seen.windows(4).any(|window| window == b" MiB") {
            assert_eq!(out.read(&mut byte).unwrap(), 1, "qemu-io ended");
            seen.push(byte[0]);
        }
        Writer(child)
    }
}

/// An open image's user.
pub struct Writer(Child);

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Every value that is no object or array, with its JSON pointer.
fn leaves(value: &serde_json::Value, path: String) -> Vec<(String, serde_json::Value)> {
    use serde_json::Value;
    match value {
        Value::Object(map) => map
            .iter()
            .flat_map(|(key, value)| leaves(value, format!("{path}/{key}")))
            .collect(),
        Value::Array(list) => list
            .iter()
            .enumerate()
            .flat_map(|(index, value)| leaves(value, format!("{path}/{index}")))
            .collect(),
        leaf => vec![(path, leaf.clone())],
    }
}

/// True if both files have the same bytes.
pub fn same_bytes(one: &Path, other: &Path) -> bool {
    std::fs::read(one).unwrap() == std::fs::read(other).unwrap()
}
