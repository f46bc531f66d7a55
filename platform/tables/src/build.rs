use std::ops::Range;

use acpi_tables::facs::FACS;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, sdt::Sdt};

use crate::{Board, aml, fixed};

pub(crate) const OEM_ID: [u8; 6] = *b"TREATY";
pub(crate) const OEM_TABLE_ID: [u8; 8] = *b"TREATYVM";
pub(crate) const OEM_REVISION: u32 = 1;
/// FACS wants 64, nothing else more.
const ALIGNMENT: u64 = 64;

/// Finished tables.
#[derive(Clone, Debug)]
pub struct Tables {
    /// Guest physical address of the RSDP.
    pub rsdp: u64,
    /// All bytes, from the start of the range they were built for.
    pub bytes: Vec<u8>,
}

/// The tables do not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("ACPI tables need {needed} bytes, and there are {room}")]
pub struct TooLarge {
    needed: u64,
    room: u64,
}

/// Builds every table for guest addresses `place`. The RSDP comes first.
pub fn build(board: &Board, place: Range<u64>) -> Result<Tables, TooLarge> {
    let mut layout = Layout {
        start: place.start,
        bytes: Vec::new(),
    };
    let rsdp = layout.add(&[0; RSDP_LEN]);
    let facs = layout.add(&to_bytes(&FACS::new()));
    let dsdt = layout.add(dsdt(board).as_slice());
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    let tables = [fixed::fadt(board, facs, dsdt), fixed::madt(board)];
    for table in tables.into_iter().chain(fixed::mcfg(board)) {
        xsdt.add_entry(layout.add(&table));
    }
    let xsdt = layout.add(&to_bytes(&xsdt));
    let header = to_bytes(&Rsdp::new(OEM_ID, xsdt));
    layout.bytes.splice(..header.len(), header);
    let (needed, room) = (layout.bytes.len() as u64, place.end - place.start);
    if needed > room {
        return Err(TooLarge { needed, room });
    }
    Ok(Tables {
        rsdp,
        bytes: layout.bytes,
    })
}

/// Bytes of the RSDP.
pub const RSDP_LEN: usize = 36;

struct Layout {
    start: u64,
    bytes: Vec<u8>,
}

impl Layout {
    /// Appends a table and returns its guest address.
    fn add(&mut self, table: &[u8]) -> u64 {
        let at = (self.bytes.len() as u64).next_multiple_of(ALIGNMENT);
        self.bytes.resize(at as usize, 0);
        self.bytes.extend_from_slice(table);
        self.start + at
    }
}

fn dsdt(board: &Board) -> Sdt {
    const HEADER_LEN: u32 = 36;
    let mut table = Sdt::new(*b"DSDT", HEADER_LEN, 2, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.append_slice(&aml::definition_block(board));
    table
}

pub(crate) fn to_bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::{MmioDevice, PowerPorts};

    pub(crate) fn board(cpus: u8) -> Board {
        Board {
            cpus,
            local_apic: 0xfee0_0000,
            io_apic: 0xfec0_0000,
            ecam: Some(0xe000_0000..0xe010_0000),
            pci_window_32: 0xe800_0000..0xfc00_0000,
            pci_window_64: 0x40_0000_0000..0x44_0000_0000,
            intx_gsi: std::array::from_fn(|slot| 16 + slot as u32 % 8),
            mmio_devices: (0..32)
                .map(|n| MmioDevice {
                    base: 0xfd00_0000 + n * 0x1000,
                    len: 0x200,
                    gsi: 16 + n % 8,
                })
                .collect(),
            power: PowerPorts {
                event: 0x600,
                control: 0x604,
                timer: 0x608,
                reset: 0x60c,
                reset_value: 1,
                sleep_type_off: 5,
                sci: 9,
            },
            com1: (0x3f8, 4),
            rtc: 0x70,
        }
    }

    fn u32_at(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    fn u64_at(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    const START: u64 = 0xe_0000;

    /// The bytes of the table at a guest address, checked.
    fn table(tables: &Tables, address: u64) -> &[u8] {
        let bytes = &tables.bytes[(address - START) as usize..];
        let table = &bytes[..u32_at(bytes, 4) as usize];
        assert_eq!(
            sum(table),
            0,
            "checksum of {:?}",
            std::str::from_utf8(&table[..4])
        );
        table
    }

    #[test]
    fn every_table_is_reachable_and_sums_to_zero() {
        let tables = build(&board(32), START..START + 0x2_0000).unwrap();
        assert_eq!(tables.rsdp, START);
        assert_eq!(&tables.bytes[..8], b"RSD PTR ");
        assert_eq!((sum(&tables.bytes[..20]), sum(&tables.bytes[..36])), (0, 0));
        let xsdt = table(&tables, u64_at(&tables.bytes, 24));
        let names: Vec<_> = xsdt[36..]
            .chunks(8)
            .map(|entry| table(&tables, u64_at(entry, 0))[..4].to_vec())
            .collect();
        assert_eq!(names, [b"FACP".to_vec(), b"APIC".to_vec(), b"MCFG".to_vec()]);
        let fadt = table(&tables, u64_at(xsdt, 36));
        assert_eq!(&table(&tables, u64::from(u32_at(fadt, 40)))[..4], b"DSDT");
        let facs = u32_at(fadt, 36);
        assert_eq!(facs % 64, 0);
        assert_eq!(&tables.bytes[(u64::from(facs) - START) as usize..][..4], b"FACS");
    }

    #[test]
    fn a_board_without_ecam_has_no_mcfg() {
        let tables = build(
            &Board {
                ecam: None,
                ..board(1)
            },
            START..START + 0x2_0000,
        );
        let tables = tables.unwrap();
        let xsdt = table(&tables, u64_at(&tables.bytes, 24));
        assert_eq!(xsdt.len(), 36 + 2 * 8);
    }

    #[test]
    fn madt_lists_every_cpu_and_the_overrides() {
        let tables = build(&board(5), START..START + 0x2_0000).unwrap();
        let xsdt = table(&tables, u64_at(&tables.bytes, 24));
        let madt = table(&tables, u64_at(xsdt, 44));
        let mut kinds = Vec::new();
        let mut at = 44;
        while at < madt.len() {
            kinds.push(madt[at]);
            at += usize::from(madt[at + 1]);
        }
        assert_eq!(at, madt.len());
        assert_eq!(kinds, [0, 0, 0, 0, 0, 1, 2, 2, 4]);
    }

    #[test]
    fn too_little_room_is_said() {
        let error = build(&board(1), START..START + 0x400).unwrap_err();
        assert!(error.needed > error.room);
    }
}
