//! Writes the `newc` archive that the kernel unpacks as an initramfs.
//!
//! Several archives one after another in a file are unpacked in order, so a guest's script is a small archive behind
//! a large one that never changes.

/// An archive in the making.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    inode: u32,
}

const KIND_DIRECTORY: u32 = 0o040_000;
const KIND_FILE: u32 = 0o100_000;
const KIND_SYMLINK: u32 = 0o120_000;
const KIND_CHARACTER: u32 = 0o020_000;

impl Archive {
    /// An empty archive.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a directory. Parents must have been added before.
    pub fn directory(&mut self, path: &str) {
        self.entry(path, KIND_DIRECTORY | 0o755, (0, 0), &[]);
    }

    /// Adds a file with permission bits `mode`.
    pub fn file(&mut self, path: &str, mode: u32, data: &[u8]) {
        self.entry(path, KIND_FILE | mode, (0, 0), data);
    }

    /// Adds a symbolic link.
    pub fn symlink(&mut self, path: &str, target: &str) {
        self.entry(path, KIND_SYMLINK | 0o777, (0, 0), target.as_bytes());
    }

    /// Adds a character device, which the kernel needs for `/dev/console` before anything is mounted.
    pub fn character_device(&mut self, path: &str, major: u32, minor: u32) {
        self.entry(path, KIND_CHARACTER | 0o600, (major, minor), &[]);
    }

    /// Ends the archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        // The kernel looks for the next archive at a multiple of four; whole sectors are the custom.
        self.pad(512);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), data: &[u8]) {
        self.inode += 1;
        let name_length = path.len() as u32 + 1;
        let data_length = u32::try_from(data.len()).expect("a file of an initramfs is under 4 GiB");
        let links = if mode & KIND_DIRECTORY != 0 { 2 } else { 1 };
        // inode, mode, uid, gid, links, mtime, size, device major and minor, rdev major and minor, name size, check
        let (major, minor) = device;
        let fields = [
            self.inode,
            mode,
            0,
            0,
            links,
            0,
            data_length,
            0,
            0,
            major,
            minor,
            name_length,
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad(4);
        self.bytes.extend_from_slice(data);
        self.pad(4);
    }

    fn pad(&mut self, multiple: usize) {
        let length = self.bytes.len().next_multiple_of(multiple);
        self.bytes.resize(length, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_has_aligned_entries_and_a_trailer() {
        let mut archive = Archive::new();
        archive.directory("bin");
        archive.file("bin/a", 0o755, b"hello");
        let bytes = archive.finish();
        assert_eq!(&bytes[..6], b"070701");
        assert_eq!(bytes.len() % 512, 0);
        // Header 110 bytes and "bin\0" make 114, padded to 116: the second entry starts there.
        assert_eq!(&bytes[116..122], b"070701");
        assert_eq!(&bytes[116 + 54..116 + 62], b"00000005");
        let data = 116 + (110usize + 6).next_multiple_of(4);
        assert_eq!(&bytes[data..data + 5], b"hello");
        assert!(bytes.windows(10).any(|w| w == b"TRAILER!!!"));
    }
}
