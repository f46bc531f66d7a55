//! qemu-img and qemu-io as judges of images.

use std::path::Path;
use std::process::Output;

use anyhow::{Context, Result, bail, ensure};
use treaty_lab::Tree;

/// One version of QEMU's image tools.
pub struct QemuImg {
    /// "10" or "7.2".
    pub version: &'static str,
    tree: Tree,
}

impl QemuImg {
    /// QEMU 10, then 7.2, as far as they can be had; says so if not.
    pub fn all() -> Vec<Self> {
        [
            ("10", treaty_lab::peers::trixie()),
            ("7.2", treaty_lab::peers::bookworm()),
        ]
        .into_iter()
        .filter_map(|(version, tree)| match tree {
            Ok(tree) => Some(Self { version, tree }),
            Err(error) => {
                println!("SKIPPED: qemu-img {version}: {error:#}");
                None
            }
        })
        .collect()
    }

    /// Runs one of the tools and gives its output whatever it is.
    pub fn output(&self, tool: &str, args: &[&str]) -> Result<Output> {
        let command = &mut self.tree.command(tool);
        command
            .args(args)
            .output()
            .with_context(|| format!("{tool} of QEMU {}", self.version))
    }

    /// Runs one of the tools, which must succeed, and gives what it says.
    pub fn run(&self, tool: &str, args: &[&str]) -> Result<String> {
        let output = self.output(tool, args)?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        if !output.status.success() {
            bail!(
                "QEMU {}: {tool} {}: {}\n{text}{complaint}",
                self.version,
                args.join(" "),
                output.status
            );
        }
        Ok(text)
    }

    /// `qemu-img`, which must succeed.
    pub fn img(&self, args: &[&str]) -> Result<String> {
        self.run("qemu-img", args)
    }

    /// `qemu-io` with commands on a qcow2 image. It fails if a pattern is not what was said.
    pub fn io(&self, image: &Path, commands: &[&str]) -> Result<()> {
        let image = image.display().to_string();
        let mut args = vec!["-f", "qcow2"];
        for command in commands {
            args.extend(["-c", command]);
        }
        args.push(&image);
        let text = self.run("qemu-io", &args)?;
        ensure!(
            !text.contains("verification failed"),
            "QEMU {}: {text}",
            self.version
        );
        ensure!(!text.contains("failed:"), "QEMU {}: {text}", self.version);
        Ok(())
    }

    /// The image has no errors, and no leaks either.
    pub fn check(&self, image: &Path) -> Result<()> {
        self.img(&["check", "-f", "qcow2", &image.display().to_string()])?;
        Ok(())
    }

    /// What a guest would read, all of it.
    pub fn contents(&self, image: &Path) -> Result<Vec<u8>> {
        let raw = image.with_extension("as-raw");
        let (from, to) = (image.display().to_string(), raw.display().to_string());
        self.img(&["convert", "-f", "qcow2", "-O", "raw", &from, &to])?;
        let bytes = std::fs::read(&raw)?;
        std::fs::remove_file(raw)?;
        Ok(bytes)
    }
}
