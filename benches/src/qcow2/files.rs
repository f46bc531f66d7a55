use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};
use treaty_lab::peers;

use super::program::Side;
use crate::vhost::{Peers, Scratch};

/// Bytes of the images with data.
pub const BYTES: u64 = 256 << 20;
/// Bytes of the compressed one.
const PACKED_BYTES: u64 = 64 << 20;
const BLOCK: usize = 4096;

/// The images, which the peer makes from one raw file.
pub struct Files {
    scratch: Scratch,
    peers: Peers,
    pub peer_name: String,
}

impl Files {
    pub fn make() -> Result<Self> {
        let tree = peers::trixie().context("Debian's qemu-utils could not be fetched")?;
        let peers = Peers::Unpacked(tree);
        let files = Self {
            scratch: Scratch::new()?,
            peer_name: peers.named("qemu-img"),
            peers,
        };
        files.write("disk.raw", BYTES)?;
        files.write("small.raw", PACKED_BYTES)?;
        let made = [
            "convert -f raw -O qcow2 disk.raw disk.qcow2",
            "convert -c -f raw -O qcow2 small.raw packed.qcow2",
            // Every table is there, and no data.
            "create -q -f qcow2 -o preallocation=metadata large.qcow2 1T",
        ];
        for arguments in made {
            files.peer(arguments)?;
        }
        Ok(files)
    }

    /// Where a file of that name is.
    pub fn path(&self, name: &str) -> PathBuf {
        self.scratch.path(name)
    }

    /// The peer's program.
    pub fn qemu_img(&self) -> Command {
        self.peers.command("qemu-img")
    }

    fn peer(&self, arguments: &str) -> Result<()> {
        let mut command = self.qemu_img();
        command.current_dir(self.scratch.path(""));
        let output = command.args(arguments.split(' ')).output()?;
        if !output.status.success() {
            bail!(
                "qemu-img {arguments}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(())
    }

    /// An image of 8 GiB without data, for one run of one side.
    pub fn fresh(&self, name: &str, side: Side) -> Result<PathBuf> {
        let name = format!("{}-{name}", side.name());
        let path = self.path(&name);
        let _ = std::fs::remove_file(&path);
        self.peer(&format!("create -q -f qcow2 {name} 8G"))?;
        Ok(path)
    }

    /// A file that does not exist, for one run of one side.
    pub fn target(&self, suffix: &str, side: Side) -> PathBuf {
        let path = self.path(&format!("{}-copy.{suffix}", side.name()));
        let _ = std::fs::remove_file(&path);
        path
    }

    /// Every block begins with its number; half of it can be compressed, and half of it hardly.
    fn write(&self, name: &str, bytes: u64) -> Result<()> {
        let path = self.path(name);
        let file = File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
        let mut file = BufWriter::new(file);
        let mut block = [0x5a; BLOCK];
        let mut random = 0x9e37_79b9_7f4a_7c15u64;
        for number in 0..bytes / BLOCK as u64 {
            block[..8].copy_from_slice(&number.to_le_bytes());
            for word in block[8..BLOCK / 2].as_chunks_mut::<8>().0 {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                *word = random.to_le_bytes();
            }
            file.write_all(&block)?;
        }
        file.flush().context("cannot write an image")
    }
}
