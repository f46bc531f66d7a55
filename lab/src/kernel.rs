//! Takes the ELF kernel out of a bzImage.
//!
//! An ELF kernel is entered directly by PVH; a bzImage unpacks itself first, which costs seconds in an emulator.

use anyhow::{Result, bail, ensure};

use crate::exec;

const SETUP_SECTORS: usize = 0x1f1;
const MAGIC: usize = 0x202;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;

/// Returns the ELF file inside `image` (the x86 boot protocol, version 2.08 or later).
pub fn vmlinux(image: &[u8]) -> Result<Vec<u8>> {
    ensure!(image.get(MAGIC..MAGIC + 4) == Some(b"HdrS"), "not a bzImage");
    let word = |at: usize| -> Result<usize> {
        match image.get(at..at + 4) {
            Some(bytes) => Ok(u32::from_le_bytes(bytes.try_into()?) as usize),
            None => bail!("the bzImage ends early"),
        }
    };
    let sectors = match image[SETUP_SECTORS] {
        0 => 4, // what the boot protocol says zero means
        n => usize::from(n),
    };
    let start = (sectors + 1) * 512 + word(PAYLOAD_OFFSET)?;
    let Some(payload) = image.get(start..start + word(PAYLOAD_LENGTH)?) else {
        bail!("the bzImage ends early")
    };
    let elf = decompress(payload.to_vec())?;
    ensure!(
        elf.starts_with(b"\x7fELF"),
        "the payload of the bzImage is not an ELF file"
    );
    Ok(elf)
}

/// Decompresses by the magic number in front; returns anything unknown as it is.
pub fn decompress(data: Vec<u8>) -> Result<Vec<u8>> {
    match data.get(..4) {
        Some(b"\xfd7zX") => exec::filter("xz", &["-dc"], data),
        Some(b"\x28\xb5\x2f\xfd") => exec::filter("zstd", &["-dcq"], data),
        Some([0x1f, 0x8b, ..]) => exec::filter("gzip", &["-dcq"], data),
        _ => Ok(data),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 1024];
        image[SETUP_SECTORS] = 1;
        image[MAGIC..MAGIC + 4].copy_from_slice(b"HdrS");
        image[PAYLOAD_OFFSET..PAYLOAD_OFFSET + 4].copy_from_slice(&16u32.to_le_bytes());
        image[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        image.extend_from_slice(&[0; 16]);
        image.extend_from_slice(payload);
        image
    }

    #[test]
    fn the_payload_is_found_behind_the_setup_sectors() {
        assert_eq!(vmlinux(&image(b"\x7fELFxyz")).unwrap(), b"\x7fELFxyz");
    }

    #[test]
    fn short_and_foreign_files_are_refused() {
        assert!(vmlinux(b"MZ").is_err());
        assert!(vmlinux(&image(b"not an elf file")).is_err());
        let mut cut = image(b"\x7fELFxyz");
        cut.truncate(1041);
        assert!(vmlinux(&cut).is_err());
    }
}
