use std::path::PathBuf;

use treaty_memory::{GuestMemory, Region};

use super::*;
use crate::layout::MapKind;

const RAM: usize = 64 << 20;

fn memory() -> GuestMemory {
    GuestMemory::new(vec![Region::memfd(0, RAM).unwrap()]).unwrap()
}

struct TempFile(PathBuf);

impl TempFile {
    fn new(name: &str, bytes: &[u8]) -> Self {
        let path = std::env::temp_dir().join(format!("treaty-boot-{}-{name}", std::process::id()));
        std::fs::write(&path, bytes).unwrap();
        Self(path)
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn boot<'a>(kernel: &'a TempFile, initrd: Option<&'a TempFile>, cmdline: &'a str) -> Boot<'a> {
    const MAP: &[MapEntry] = &[MapEntry {
        start: 0,
        len: RAM as u64,
        kind: MapKind::Ram,
    }];
    Boot {
        kernel: &kernel.0,
        initrd: initrd.map(|file| file.0.as_path()),
        cmdline,
        memory_map: MAP,
        rsdp: 0xe_0000,
    }
}

fn bytes(memory: &GuestMemory, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    memory.read(at, &mut bytes).unwrap();
    bytes
}

fn u32_at(memory: &GuestMemory, at: u64) -> u32 {
    u32::from_le_bytes(bytes(memory, at, 4).try_into().unwrap())
}

fn u64_at(memory: &GuestMemory, at: u64) -> u64 {
    u64::from_le_bytes(bytes(memory, at, 8).try_into().unwrap())
}

fn put(image: &mut [u8], at: usize, value: &[u8]) {
    image[at..at + value.len()].copy_from_slice(value);
}

/// One loadable segment of `code` at 2 MiB, and a PVH note if `pvh`.
fn elf(code: &[u8], pvh: bool) -> Vec<u8> {
    let mut image = vec![0; 0x200];
    put(&mut image, 0, b"\x7fELF\x02\x01\x01");
    put(&mut image, 16, &[2, 0, 62, 0, 1, 0, 0, 0]);
    put(&mut image, 24, &0x20_0000u64.to_le_bytes());
    put(&mut image, 32, &64u64.to_le_bytes());
    put(&mut image, 52, &[64, 0, 56, 0, 1 + u8::from(pvh), 0]);
    let mut segment = |index: usize, kind: u32, offset: u64, address: u64, len: u64| {
        let at = 64 + index * 56;
        put(&mut image, at, &kind.to_le_bytes());
        put(&mut image, at + 8, &offset.to_le_bytes());
        put(&mut image, at + 24, &address.to_le_bytes());
        put(&mut image, at + 32, &len.to_le_bytes());
        put(&mut image, at + 40, &len.to_le_bytes());
        put(&mut image, at + 48, &4u64.to_le_bytes());
    };
    segment(0, 1, 0x200, 0x20_0000, code.len() as u64);
    if pvh {
        segment(1, 4, 0x100, 0, 20);
        put(
            &mut image,
            0x100,
            &[
                4, 0, 0, 0, 4, 0, 0, 0, 18, 0, 0, 0, b'X', b'e', b'n', 0, 0x40, 0, 0x20, 0,
            ],
        );
    }
    image.extend_from_slice(code);
    image
}

/// One sector of set-up and `code`, with a 64-bit entry.
fn bzimage(code: &[u8]) -> Vec<u8> {
    let mut image = vec![0; 1024];
    image[0x1f1] = 1;
    put(&mut image, 0x202, b"HdrS");
    put(&mut image, 0x206, &0x020fu16.to_le_bytes());
    image[0x211] = 1;
    put(&mut image, 0x214, &0x10_0000u32.to_le_bytes());
    put(&mut image, 0x22c, &0x7fff_ffffu32.to_le_bytes());
    put(&mut image, 0x236, &1u16.to_le_bytes());
    put(&mut image, 0x238, &32u32.to_le_bytes());
    put(&mut image, 0x258, &0x100_0000u64.to_le_bytes());
    put(&mut image, 0x260, &0x100_0000u32.to_le_bytes());
    image.extend_from_slice(code);
    image
}

#[test]
fn an_elf_image_with_a_pvh_note_starts_there() {
    let (memory, kernel) = (memory(), TempFile::new("pvh", &elf(b"code", true)));
    let initrd = TempFile::new("pvh-initrd", &[7; 5000]);
    let entry = load(&boot(&kernel, Some(&initrd), "console=ttyS0"), &memory).unwrap();
    let info = layout::PVH_START_INFO;
    let start_info = u32::try_from(info).unwrap();
    assert_eq!(
        entry,
        Entry::Pvh {
            rip: 0x20_0040,
            start_info,
            gdt: layout::GDT
        }
    );
    assert_eq!(bytes(&memory, 0x20_0000, 4), b"code");
    assert_eq!(
        (u32_at(&memory, info), u32_at(&memory, info + 12)),
        (0x336e_c578, 1)
    );
    assert_eq!(bytes(&memory, u64_at(&memory, info + 24), 14), b"console=ttyS0\0");
    assert_eq!(u64_at(&memory, info + 32), 0xe_0000);
    let module = u64_at(&memory, info + 16);
    let (start, len) = (u64_at(&memory, module), u64_at(&memory, module + 8));
    assert_eq!((start % 4096, len), (0, 5000));
    assert_eq!(bytes(&memory, start + 4999, 2), [7, 0]);
    let map = u64_at(&memory, info + 40);
    assert_eq!(
        (u64_at(&memory, map + 8), u32_at(&memory, map + 16)),
        (RAM as u64, 1)
    );
}

#[test]
fn an_elf_image_without_a_note_starts_in_long_mode() {
    let (memory, kernel) = (memory(), TempFile::new("elf64", &elf(b"code", false)));
    let Entry::Linux64 {
        rip,
        boot_params,
        page_tables,
        ..
    } = load(&boot(&kernel, None, "x"), &memory).unwrap()
    else {
        panic!("not the 64-bit entry");
    };
    assert_eq!(rip, 0x20_0000);
    assert_eq!(bytes(&memory, boot_params + 0x202, 4), b"HdrS");
    assert_eq!(u64_at(&memory, boot_params + 0x70), 0xe_0000);
    let pointers = u64_at(&memory, page_tables) & !0xfff;
    let last_directory = u64_at(&memory, pointers + 3 * 8) & !0xfff;
    assert_eq!(
        u64_at(&memory, last_directory + 511 * 8),
        0xffe0_0083,
        "the last 2 MiB below 4 GiB"
    );
}

#[test]
fn a_bzimage_starts_at_its_64_bit_entry() {
    let (memory, kernel) = (memory(), TempFile::new("bz", &bzimage(&[0x90; 4096])));
    let initrd = TempFile::new("bz-initrd", b"initrd");
    let entry = load(&boot(&kernel, Some(&initrd), "quiet"), &memory).unwrap();
    assert!(
        matches!(entry, Entry::Linux64 { rip: 0x10_0200, .. }),
        "{entry:?}"
    );
    let params = layout::BOOT_PARAMS;
    assert_eq!(u32_at(&memory, params + 0x21c), 6);
    let ramdisk = u64::from(u32_at(&memory, params + 0x218));
    assert_eq!(bytes(&memory, ramdisk, 6), b"initrd");
    assert!(ramdisk >= 0x200_0000, "not where the kernel unpacks itself");
    assert_eq!(bytes(&memory, params + 0x1e8, 1), [1], "one memory map entry");
    assert_eq!(bytes(&memory, params + 0x210, 1), [0xff]);
}

#[test]
fn what_cannot_be_booted_is_said() {
    let memory = memory();
    let refused = |image: &[u8], cmdline: &str| {
        let kernel = TempFile::new("bad", image);
        load(&boot(&kernel, None, cmdline), &memory)
            .unwrap_err()
            .to_string()
    };
    assert!(refused(b"#!/bin/sh\n", "").contains("neither a Linux bzImage nor"));
    assert!(refused(b"", "").contains("neither"));
    let mut elf_32 = elf(b"code", false);
    elf_32[4] = 1;
    assert!(refused(&elf_32, "").contains("built for x86-64"));
    let mut old = bzimage(&[0; 16]);
    old[0x236] = 0;
    assert!(refused(&old, "").contains("no 64-bit entry"));
    assert!(refused(&bzimage(&[0; 16]), &"x".repeat(33)).contains("33 bytes; this kernel takes 32"));
    let mut far = elf(b"code", false);
    put(&mut far, 64 + 24, &(1u64 << 40).to_le_bytes());
    assert!(refused(&far, "").contains("cannot load kernel"));
    let missing = TempFile(PathBuf::from("/nonexistent/vmlinux"));
    let error = load(&boot(&missing, None, ""), &memory).unwrap_err().to_string();
    assert!(
        error.starts_with("cannot read kernel /nonexistent/vmlinux"),
        "{error}"
    );
}

#[test]
fn an_initrd_that_does_not_fit_is_refused() {
    let kernel = TempFile::new("fit", &bzimage(&[0x90; 4096]));
    let initrd = TempFile::new("fit-initrd", b"");
    std::fs::File::options()
        .write(true)
        .open(&initrd.0)
        .unwrap()
        .set_len(40 << 20)
        .unwrap();
    let error = load(&boot(&kernel, Some(&initrd), ""), &memory()).unwrap_err();
    assert!(error.to_string().contains("give more --memory"), "{error}");
}
