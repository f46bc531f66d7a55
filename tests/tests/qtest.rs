//! Register-level tests of the PC's devices over QEMU's qtest protocol, with no processor: each looks at our machine and at
//! QEMU's in the same way, and what it sees must be the same.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use treaty_lab::{Cache, Tree};
use treaty_tests::qtest::Session;
use treaty_tests::qtest::machine::{CARD_MAC, CARD_SLOT};

const DISK_SECTORS: u64 = 4096;

/// What was looked at, and what was there.
type Seen = Vec<(String, u64)>;

/// A disk whose sectors begin with their number.
fn disk() -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    for sector in 0..DISK_SECTORS {
        let mut bytes = [sector as u8; 512];
        bytes[..8].copy_from_slice(&sector.to_le_bytes());
        file.write_all(&bytes).unwrap();
    }
    file
}

/// A network boot ROM for the card: the one that comes with QEMU.
fn rom(tree: &Tree) -> PathBuf {
    tree.root()
        .join("usr/share/qemu/pxe-e1000.rom")
        .canonicalize()
        .unwrap()
}

fn ours(disk: &Path) -> Session {
    let mut machine = Command::new(env!("CARGO_BIN_EXE_qtest-machine"));
    let rom = rom(&Cache::open().unwrap().tree());
    Session::start(machine.arg(disk).arg(rom)).unwrap()
}

fn qemu(disk: &Path) -> Session {
    let tree = Cache::open().unwrap().tree();
    let mut qemu = tree.qemu();
    let [a, b, c, d, e, f] = CARD_MAC;
    // Debian's QEMU lacks the accelerator without processors: with another, they are not started.
    qemu.args(["-machine", "pc,accel=tcg", "-S", "-m", "64", "-qtest", "stdio"]);
    qemu.args(["-qtest-log", "/dev/null", "-netdev", "hubport,id=n,hubid=0"]);
    qemu.arg("-drive")
        .arg(format!("if=ide,index=0,format=raw,file={}", disk.display()));
    qemu.arg("-device").arg(format!(
        "e1000,netdev=n,addr={CARD_SLOT},mac={a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x},romfile={}",
        rom(&tree).display()
    ));
    Session::start(&mut qemu).unwrap()
}

/// Looks at both machines; what was seen on ours.
fn same_on_both(look: fn(&mut Session) -> Result<Seen>) -> Seen {
    let (first, second) = (disk(), disk());
    let seen = look(&mut ours(first.path())).unwrap();
    let peer = look(&mut qemu(second.path())).unwrap();
    for (ours, theirs) in seen.iter().zip(&peer) {
        assert_eq!(ours, theirs, "ours, then QEMU's");
    }
    assert_eq!(seen.len(), peer.len());
    seen
}

fn value(seen: &Seen, name: &str) -> u64 {
    let found = seen.iter().find(|(other, _)| other == name);
    found.unwrap_or_else(|| panic!("{name} was not looked at")).1
}

fn functions(session: &mut Session) -> Result<Seen> {
    let mut seen = Seen::new();
    for (slot, function) in [(0, 0), (1, 0), (1, 1), (1, 2), (1, 3), (2, 0), (3, 0)] {
        let mut put = |what: &str, value| seen.push((format!("{slot}.{function} {what}"), value));
        put("identity", session.config(slot, function, 0)?);
        put("class", session.config(slot, function, 8)? >> 8);
        put("header type", session.config(slot, function, 0xc)? >> 16 & 0xff);
        put("interrupt pin", session.config(slot, function, 0x3c)? >> 8 & 0xff);
    }
    for (function, register) in [(1, 0x20), (1, 0x10)] {
        session.set_config(1, function, register, 0xffff_ffff)?;
        let size = session.config(1, function, register)?;
        seen.push((format!("1.{function} {register:#x}"), size));
    }
    for register in [0x10, 0x14, 0x18] {
        session.set_config(CARD_SLOT, 0, register, 0xffff_ffff)?;
        seen.push((
            format!("card {register:#x}"),
            session.config(CARD_SLOT, 0, register)?,
        ));
    }
    for (name, slot, register, value) in [("routes", 1, 0x60, 0x0b0a_8580), ("shadow", 0, 0x5c, 0x3310_0133)]
    {
        session.set_config(slot, 0, register, value)?;
        seen.push((name.into(), session.config(slot, 0, register)?));
    }
    Ok(seen)
}

#[test]
fn pci_functions_are_those_of_a_pc() {
    let seen = same_on_both(functions);
    assert_eq!(value(&seen, "0.0 identity"), 0x1237_8086);
    assert_eq!(value(&seen, "1.0 identity"), 0x7000_8086);
    assert_eq!(value(&seen, "1.1 identity"), 0x7010_8086);
    assert_eq!(value(&seen, "1.3 identity"), 0x7113_8086);
    assert_eq!(value(&seen, "3.0 identity"), 0xffff_ffff);
}

fn small_devices(session: &mut Session) -> Result<Seen> {
    let mut seen = Seen::new();
    session.output('w', 0x510, 0)?;
    for at in 0..6 {
        seen.push((format!("fw_cfg signature {at}"), session.input('b', 0x511)?));
    }
    seen.push(("fw_cfg DMA".into(), session.input('l', 0x514)?));
    for register in [0x15, 0x16, 0x17, 0x18, 0x30, 0x31, 0x34, 0x35, 0x5b, 0x5f] {
        session.output('b', 0x70, register)?;
        seen.push((format!("clock memory {register:#x}"), session.input('b', 0x71)?));
    }
    // Copies the signature into memory: select, read.
    session.write(0x1000, &[0, 0, 0, 0xa, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0x20, 0])?;
    session.output('l', 0x514, 0)?;
    session.output('l', 0x518, 0x0010_0000)?;
    seen.push(("fw_cfg DMA outcome".into(), session.readl(0x1000)?));
    seen.push(("fw_cfg DMA data".into(), session.readl(0x2000)?));
    Ok(seen)
}

#[test]
fn fw_cfg_and_the_clock_tell_the_same() {
    let seen = same_on_both(small_devices);
    assert_eq!(
        value(&seen, "fw_cfg DMA data"),
        u64::from(u32::from_le_bytes(*b"QEMU"))
    );
}

const STATUS: u16 = 0x1f7;
const BSY: u64 = 0x80;
const DRQ: u64 = 0x08;
const BUS_MASTER: u16 = 0xc040;

/// Sends a command for one sector and waits until the drive is not busy; the status.
fn ata(session: &mut Session, lba: u64, opcode: u64) -> Result<u64> {
    session.output('b', 0x1f2, 1)?;
    for (port, shift) in [(0x1f3, 0), (0x1f4, 8), (0x1f5, 16)] {
        session.output('b', port, lba >> shift & 0xff)?;
    }
    session.output('b', 0x1f6, 0xe0 | lba >> 24 & 0xf)?;
    session.output('b', STATUS, opcode)?;
    ata_status(session)
}

fn ata_status(session: &mut Session) -> Result<u64> {
    session.wait(
        "the status",
        |session| session.input('b', 0x3f6),
        |status| status & BSY == 0,
    )
}

fn ata_words(session: &mut Session) -> Result<Vec<u64>> {
    (0..256).map(|_| session.input('w', 0x1f0)).collect()
}

fn drive(session: &mut Session) -> Result<Seen> {
    let mut seen = Seen::new();
    let mut put = |what: &str, value| seen.push((what.to_owned(), value));
    session.command("irq_intercept_in ioapic")?;
    session.output('b', 0x3f6, 0)?;
    session.set_config(1, 1, 0x20, u64::from(BUS_MASTER))?;
    session.set_config(1, 1, 4, 5)?;
    put("identify", ata(session, 0, 0xec)?);
    put("identify raises", session.was_raised(14).into());
    let words = ata_words(session)?;
    put("sectors", words[60] | words[61] << 16);
    put("LBA and DMA", words[49] & 0x300);
    put("48-bit addresses", words[83] >> 10 & 1);
    put("after the data", session.input('b', STATUS)? & (BSY | DRQ));
    put("read", ata(session, 77, 0x20)?);
    put("first word read", ata_words(session)?[0]);
    put("write", ata(session, 100, 0x30)?);
    for word in 0..256 {
        session.output('w', 0x1f0, 0x4100 + word)?;
    }
    put("written", ata_status(session)? & !0x10);
    put("flush", ata(session, 0, 0xe7)? & 0xe9);
    // One descriptor: 512 bytes at 0x3000, the last.
    session.write(0x2000, &[0, 0x30, 0, 0, 0, 2, 0, 0x80])?;
    session.output('l', BUS_MASTER + 4, 0x2000)?;
    session.output('b', BUS_MASTER + 2, 0x06)?;
    session.output('b', BUS_MASTER, 0x08)?;
    session.input('b', STATUS)?;
    session.was_raised(14);
    ata(session, 100, 0xc8)?;
    session.output('b', BUS_MASTER, 0x09)?;
    let bus_master = |session: &mut Session| session.input('b', BUS_MASTER + 2);
    put(
        "bus master",
        session.wait("the bus master", bus_master, |status| status & 4 != 0)? & 7,
    );
    put("DMA raises", session.was_raised(14).into());
    put("after DMA", session.input('b', STATUS)? & (BSY | DRQ | 1));
    session.output('b', BUS_MASTER, 0)?;
    put("first words by DMA", session.readl(0x3000)?);
    put("last words by DMA", session.readl(0x31fc)?);
    put("outside", ata(session, DISK_SECTORS, 0x20)? & 1);
    put("unknown command", ata(session, 0, 0xff)? & 1);
    put("its error", session.input('b', 0x1f1)?);
    Ok(seen)
}

#[test]
fn a_drive_reads_writes_and_masters_the_bus() {
    let seen = same_on_both(drive);
    assert_eq!(value(&seen, "sectors"), DISK_SECTORS);
    assert_eq!(value(&seen, "first word read"), 77);
    assert_eq!(value(&seen, "first words by DMA"), 0x4101_4100);
    assert_eq!(value(&seen, "last words by DMA"), 0x41ff_41fe);
}

const REGISTERS: u64 = 0x9000_0000;
const RING: u64 = 0x4000;
/// The end of the frame, FCS inserted, status reported.
const EOP_IFCS_RS: u8 = 0x0b;
const TXDW: u64 = 1;

fn card(session: &mut Session) -> Result<Seen> {
    let mut seen = Seen::new();
    let mut put = |what: &str, value| seen.push((what.to_owned(), value));
    session.command("irq_intercept_in ioapic")?;
    // Pin A of the card's slot is PIRQB.
    session.set_config(1, 0, 0x60, 0x8080_0b80)?;
    session.set_config(CARD_SLOT, 0, 0x10, REGISTERS)?;
    session.set_config(CARD_SLOT, 0, 4, 7)?;
    session.writel(REGISTERS, 1 << 26)?;
    put("control after a reset", session.readl(REGISTERS)? >> 26 & 1);
    put("link", session.readl(REGISTERS + 8)? & 2);
    for word in 0..3 {
        session.writel(REGISTERS + 0x14, word << 8 | 1)?;
        let eeprom = |session: &mut Session| session.readl(REGISTERS + 0x14);
        let read = session.wait("the EEPROM", eeprom, |value| value & 0x10 != 0)?;
        put(&format!("EEPROM {word}"), read >> 16);
    }
    put("address, low", session.readl(REGISTERS + 0x5400)?);
    put("address, high", session.readl(REGISTERS + 0x5404)?);
    // A ring of eight descriptors, one of them ready: 64 bytes at 0x5000.
    session.write(RING, &[0; 128])?;
    session.write(
        RING,
        &[0, 0x50, 0, 0, 0, 0, 0, 0, 64, 0, 0, EOP_IFCS_RS, 0, 0, 0, 0],
    )?;
    session.write(0x5000, &[0x55; 64])?;
    for (register, value) in [
        (0x3800, RING),
        (0x3804, 0),
        (0x3808, 128),
        (0x3810, 0),
        (0x3818, 0),
        (0xd0, TXDW),
        (0x400, 2),
        (0x3818, 1),
    ] {
        session.writel(REGISTERS + register, value)?;
    }
    let status = |session: &mut Session| session.readl(RING + 12);
    put(
        "descriptor",
        session.wait("the descriptor", status, |status| status & 1 != 0)? & 1,
    );
    put("head", session.readl(REGISTERS + 0x3810)?);
    let mut raised = false;
    let cause = |session: &mut Session| {
        let cause = session.readl(REGISTERS + 0xc8)?;
        session.writel(REGISTERS + 0xc8, 0)?;
        raised |= session.was_raised(11);
        Ok(cause | u64::from(raised) << 32)
    };
    session.wait("the interrupt", cause, |cause| cause >> 32 != 0)?;
    put("cause", session.readl(REGISTERS + 0xc0)? & TXDW);
    put("cause, read again", session.readl(REGISTERS + 0xc0)? & TXDW);
    put("frames sent", session.readl(REGISTERS + 0x4080)?);
    put("bytes sent", session.readl(REGISTERS + 0x4088)?);
    Ok(seen)
}

#[test]
fn a_card_sends_a_frame_and_interrupts() {
    let seen = same_on_both(card);
    assert_eq!(value(&seen, "EEPROM 0"), 0x5452);
    assert_eq!(value(&seen, "cause"), TXDW);
    assert_eq!(value(&seen, "cause, read again"), 0);
    assert_eq!(value(&seen, "frames sent"), 1);
}

fn boot_rom(session: &mut Session) -> Result<Seen> {
    const ROM: u64 = 0x9100_0000;
    let mut seen = Seen::new();
    let mut put = |what: &str, value| seen.push((what.to_owned(), value));
    session.set_config(CARD_SLOT, 0, 0x30, 0xffff_fffe)?;
    put("size", session.config(CARD_SLOT, 0, 0x30)?);
    session.set_config(CARD_SLOT, 0, 4, 2)?;
    session.set_config(CARD_SLOT, 0, 0x30, ROM | 1)?;
    put("register", session.config(CARD_SLOT, 0, 0x30)?);
    put("signature", session.readl(ROM)? & 0xffff);
    for offset in (0..0x1_0000).step_by(0x1000) {
        put(&format!("at {offset:#x}"), session.readl(ROM + offset)?);
    }
    session.writel(ROM, 0)?;
    put("signature after a write", session.readl(ROM)? & 0xffff);
    Ok(seen)
}

#[test]
fn a_cards_boot_rom_is_there_for_firmware() {
    let seen = same_on_both(boot_rom);
    assert_eq!(value(&seen, "signature"), 0xaa55);
    assert_eq!(value(&seen, "signature after a write"), 0xaa55);
}

/// Commands that are none, and accesses to nobody, are answered; the machine goes on.
#[test]
fn nonsense_is_refused_and_does_no_harm() {
    let disk = disk();
    let mut session = ours(disk.path());
    for wrong in [
        "",
        "frob",
        "inb",
        "inb x",
        "write 0x0 0x2 0x1",
        "read 0x0 0xffffffffffff",
    ] {
        let error = session.command(wrong).unwrap_err().to_string();
        assert!(error.contains("FAIL"), "{wrong}: {error}");
    }
    assert_eq!(session.input('b', 0x1234).unwrap(), 0xff);
    assert_eq!(session.readl(0xfd00_0000).unwrap(), 0xffff_ffff);
    assert_eq!(session.config(0, 0, 0).unwrap(), 0x1237_8086);
}
