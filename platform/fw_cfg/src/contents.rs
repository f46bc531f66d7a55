use std::collections::BTreeMap;

/// Keys of the items that have no name.
pub mod key {
    /// `QEMU`.
    pub const SIGNATURE: u16 = 0x00;
    /// Which interfaces there are: bit 0 the ports, bit 1 DMA.
    pub const ID: u16 = 0x01;
    /// Bytes of RAM, 64 bits.
    pub const RAM_SIZE: u16 = 0x03;
    /// vCPUs at start, 16 bits.
    pub const CPU_COUNT: u16 = 0x05;
    /// Whether firmware offers a menu and waits for a key, 16 bits.
    pub const BOOT_MENU: u16 = 0x0e;
    /// The largest number of vCPUs, 16 bits.
    pub const MAX_CPUS: u16 = 0x0f;
    /// The directory of files.
    pub const FILE_DIRECTORY: u16 = 0x19;
    /// The first file; the others follow.
    pub const FIRST_FILE: u16 = 0x20;
    /// The timer's ISA interrupt 0 arrives at pin 2 of the I/O APIC, 32 bits.
    pub const IRQ0_OVERRIDE: u16 = 0x8002;
}

const PORTS_AND_DMA: u32 = 0b11;
/// Bytes of a name, with the zero at its end.
const NAME_LEN: usize = 56;

/// What firmware can select. Set up when the machine is built, then only read.
#[derive(Clone, Debug)]
pub struct Contents {
    items: BTreeMap<u16, Vec<u8>>,
    files: BTreeMap<String, Vec<u8>>,
}

impl Default for Contents {
    fn default() -> Self {
        let mut contents = Self {
            items: BTreeMap::new(),
            files: BTreeMap::new(),
        };
        contents.add_item(key::SIGNATURE, b"QEMU".to_vec());
        contents.add_item(key::ID, PORTS_AND_DMA.to_le_bytes().to_vec());
        contents
    }
}

impl Contents {
    /// Adds the item of a key. Numbers are little endian.
    pub fn add_item(&mut self, key: u16, bytes: Vec<u8>) {
        self.items.insert(key, bytes);
    }

    /// Adds a file; the first 55 bytes of its name count.
    pub fn add_file(&mut self, name: &str, bytes: Vec<u8>) {
        self.files.insert(name.to_owned(), bytes);
    }

    /// Everything by key, the files and their directory too.
    pub(crate) fn into_items(mut self) -> BTreeMap<u16, Vec<u8>> {
        let mut directory = (self.files.len() as u32).to_be_bytes().to_vec();
        for (key, (name, bytes)) in (key::FIRST_FILE..).zip(self.files) {
            directory.extend((bytes.len() as u32).to_be_bytes());
            directory.extend(key.to_be_bytes());
            directory.extend([0; 2]);
            directory.extend(fixed_name(&name));
            self.items.insert(key, bytes);
        }
        self.items.insert(key::FILE_DIRECTORY, directory);
        self.items
    }
}

/// A name as both the directory and the loader write it.
pub(crate) fn fixed_name(name: &str) -> [u8; NAME_LEN] {
    let mut field = [0; NAME_LEN];
    for (to, from) in field.iter_mut().take(NAME_LEN - 1).zip(name.bytes()) {
        *to = from;
    }
    field
}
