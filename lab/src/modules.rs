//! Kernel modules: which files are needed for a module, in the order in which to insert them.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::kernel;

/// The modules of one unpacked kernel package.
#[derive(Debug)]
pub struct Modules {
    files: HashMap<String, PathBuf>,
    builtin: HashSet<String>,
}

/// One module, ready for `insmod`.
#[derive(Debug)]
pub struct Module {
    /// Its name, with underscores.
    pub name: String,
    /// The uncompressed file.
    pub data: Vec<u8>,
}

impl Modules {
    /// Reads the names under `dir`, which is `lib/modules/VERSION` of the package.
    pub fn scan(dir: &Path) -> Result<Self> {
        let mut files = HashMap::new();
        let mut pending = vec![dir.join("kernel")];
        while let Some(dir) = pending.pop() {
            for entry in fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))? {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    pending.push(entry.path());
                } else if let Some(name) = module_name(&entry.path()) {
                    files.insert(name, entry.path());
                }
            }
        }
        let list = fs::read_to_string(dir.join("modules.builtin")).context("no modules.builtin")?;
        let builtin = list
            .lines()
            .filter_map(|line| module_name(Path::new(line)))
            .collect();
        Ok(Self { files, builtin })
    }

    /// `names` and all that they depend on, each once, dependencies first. What is built into the kernel is left out.
    pub fn load_order(&self, names: &[&str]) -> Result<Vec<Module>> {
        let mut done = HashSet::new();
        let mut order = Vec::new();
        for name in names {
            self.visit(&name.replace('-', "_"), &mut done, &mut order)?;
        }
        Ok(order)
    }

    fn visit(&self, name: &str, done: &mut HashSet<String>, order: &mut Vec<Module>) -> Result<()> {
        if self.builtin.contains(name) || !done.insert(name.to_owned()) {
            return Ok(());
        }
        let Some(path) = self.files.get(name) else {
            bail!("this kernel has no module {name}")
        };
        let data = kernel::decompress(fs::read(path)?)?;
        for dependency in dependencies(&data) {
            self.visit(&dependency, done, order)?;
        }
        order.push(Module {
            name: name.to_owned(),
            data,
        });
        Ok(())
    }
}

/// `kernel/fs/9p/9p.ko.xz` is module `9p`; names differ in `-` and `_` between file and kernel.
fn module_name(path: &Path) -> Option<String> {
    let file = path.file_name()?.to_str()?;
    let stem = file.split_once(".ko")?.0;
    Some(stem.replace('-', "_"))
}

/// The `depends=` entry of a module's `.modinfo` section.
fn dependencies(data: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(start) = data.windows(KEY.len()).position(|w| w == KEY) else {
        return Vec::new();
    };
    let value = &data[start + KEY.len()..];
    let end = value.iter().position(|b| *b == 0).unwrap_or(value.len());
    let text = String::from_utf8_lossy(&value[..end]);
    text.split(',')
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_dependencies_are_read() {
        assert_eq!(
            module_name(Path::new("kernel/x/kvm-amd.ko.xz")).unwrap(),
            "kvm_amd"
        );
        assert_eq!(module_name(Path::new("modules.order")), None);
        assert_eq!(
            dependencies(b"ELF\0license=GPL\0depends=kvm,cc-p\0x"),
            ["kvm", "cc_p"]
        );
        assert!(dependencies(b"ELF\0depends=\0x").is_empty());
    }
}
