//! Instructions by themselves.

use super::rig::*;
use crate::registers::*;

/// `register = register op data`, and with SFBR as the source or the destination.
fn modify(direction: u32, register: u8, operator: u32, data: u8) -> [u32; 2] {
    let register = u32::from(register);
    let place = (register & 0x7f) << 16 | register & 0x80;
    [
        0x4000_0000 | direction << 27 | operator << 24 | place | u32::from(data) << 8,
        0,
    ]
}

#[test]
fn registers_are_there_in_memory_and_ports() {
    let mut rig = Rig::new();
    let mut identity = [0; 4];
    treaty_pci::PciDevice::read_config(&mut rig.lsi, 0, &mut identity);
    assert_eq!(identity, [0x00, 0x10, 0x12, 0x00]);
    rig.write_u32(SCRATCHA, 0x1234_5678);
    assert_eq!(rig.read_u32(SCRATCHA), 0x1234_5678);
    assert_eq!(rig.read(STEST4), 0xe0);
    rig.write(DSTAT, 0xff);
    assert_eq!(rig.read(DSTAT), dstat::DFE);
    rig.write(CTEST2, CTEST2_SRTCH);
    assert_eq!(rig.read_u32(SCRATCHA), 0xe800_0000);
    assert_eq!(rig.read_u32(SCRATCHB), RAM);
    rig.write(CTEST2, 0);
    assert_eq!(rig.read_u32(SCRATCHA), 0x1234_5678);
}

#[test]
fn arithmetic_and_jumps() {
    let mut rig = Rig::new();
    let script = [
        modify(7, SCRATCHA, 0, 0xf0),
        // 0xf0 + 0x20 is 0x10 and a carry, which the next byte takes.
        modify(7, SCRATCHA, 6, 0x20),
        modify(7, SCRATCHA + 1, 7, 0),
        modify(6, SCRATCHA, 2, 0x05),
        modify(5, SCRATCHA + 2, 3, 0xff),
        modify(7, IA, 0, 0x55),
        // Jump over the next instruction if SFBR is 0x15 but for the bits of the mask.
        [0x808c_0000 | 0xc0 << 8 | 0x15, 8],
        [INT, 1],
        // Not if the carry is set.
        [0x9828_0000, 2],
    ];
    let stop = rig.run(&[script.as_flattened(), &[INT, 3]].concat());
    assert_eq!(stop.dsps, 3, "the carry was consumed by the addition");
    assert_eq!(rig.read_u32(SCRATCHA) & 0x00ff_ffff, 0xea_0110);
    assert_eq!((rig.read(SFBR), rig.read(IA)), (0x15, 0x55));
    // Call and return, and an interrupt on the fly.
    let stop = rig.run(&[
        0x8808_0000,
        SCRIPT + 0x18,
        INT,
        4,
        INT,
        5,
        0x9818_0000,
        0,
        0x9008_0000,
        0,
    ]);
    assert_eq!(stop.dsps, 4);
    assert_ne!(rig.read(ISTAT0) & istat::INTF, 0);
    assert!(rig.level());
    rig.write(ISTAT0, istat::INTF);
    assert!(!rig.level());
}

#[test]
fn loads_stores_and_moves_reach_both_kinds_of_ram() {
    let mut rig = Rig::new();
    rig.put(TABLE + 8, &[1, 2, 3, 4]);
    rig.write_u32(DSA, TABLE);
    let script = [
        // Load four bytes relative to DSA, store them on the chip, and move them from there.
        0xf100_0004 | u32::from(SCRATCHA) << 16,
        8,
        0xe000_0004 | u32::from(SCRATCHA) << 16,
        RAM + 0x100,
        0xc000_0004,
        RAM + 0x100,
        DATA,
        INT,
        7,
    ];
    assert_eq!(rig.run(&script).dsps, 7);
    assert_eq!(rig.get(DATA, 4), [1, 2, 3, 4]);
    let mut seen = [0; 4];
    treaty_pci::PciDevice::read_bar(&mut rig.lsi, 2, 0x100, &mut seen);
    assert_eq!(seen, [1, 2, 3, 4]);
    // A script on the chip.
    let on_chip: Vec<u8> = [INT, 8]
        .iter()
        .flat_map(|word: &u32| word.to_le_bytes())
        .collect();
    for (at, word) in on_chip.chunks(4).enumerate() {
        treaty_pci::PciDevice::write_bar(&mut rig.lsi, 2, at as u64 * 4, word);
    }
    rig.write_u32(DSP, RAM);
    assert_eq!(rig.stopped().dsps, 8);
    // A long move, in several steps.
    let bytes = pattern(100_000);
    rig.put(DATA, &bytes);
    assert_eq!(
        rig.run(&[0xc000_0000 | 100_000, DATA, DATA + 0x10_0000, INT, 9])
            .dsps,
        9
    );
    assert_eq!(rig.get(DATA + 0x10_0000, bytes.len()), bytes);
}

#[test]
fn a_target_that_is_not_there_times_out_where_an_answer_is_needed() {
    let mut rig = Rig::new();
    let script = [
        select(5),
        SCRIPT,
        0x7834_1100,
        0,
        // When the phase is message out: the wait for it ends the selection.
        0x8703_0000,
        0,
        INT,
        1,
    ];
    let stop = rig.run(&script);
    assert_eq!((stop.dstat, stop.sist), (0, sist::STO));
    assert_eq!(rig.read_u32(DSP), SCRIPT + 0x18);
    assert_eq!(rig.read(SCRATCHA), 0x11, "the script went on until there");
    assert_eq!(rig.read(ISTAT0) & istat::CON, 0);
}

#[test]
fn signals_abort_and_resets() {
    let mut rig = Rig::new();
    rig.start(&[WAIT_RESELECT, SCRIPT + 0x10, INT, 1, INT, 2]);
    rig.until("running", |rig| rig.read(ISTAT1) & SRUN != 0);
    rig.write(ISTAT0, istat::SIGP);
    assert_eq!(rig.stopped().dsps, 2);
    assert_eq!(rig.read(CTEST2) & CTEST2_SIGP, CTEST2_SIGP);
    assert_eq!(rig.read(CTEST2) & CTEST2_SIGP, 0, "read once");
    rig.start(&[WAIT_RESELECT, SCRIPT]);
    rig.write(ISTAT0, istat::ABRT);
    assert_eq!(rig.stopped().dstat, dstat::ABRT);
    rig.write(SCNTL1, RST_LINE);
    assert_eq!(rig.read(SSTAT0), 2);
    assert_eq!(rig.stopped().sist, sist::RST);
    rig.write(SCNTL1, 0);
    assert_eq!(rig.read(SSTAT0), 0);
    rig.write(ISTAT0, istat::SRST);
    rig.write(SCRATCHA, 1);
    rig.write(ISTAT0, 0);
    assert_eq!((rig.read(SCRATCHA), rig.read(DIEN), rig.read(SCID)), (0, 0, 7));
}

#[test]
fn the_timer_and_single_steps() {
    let mut rig = Rig::new();
    rig.write(SIEN1, 0x06);
    rig.write(STIME1, 3);
    assert_eq!(rig.stopped().sist, sist::GEN);
    rig.write(DCNTL, SSM);
    let stop = rig.run(&[0x7834_2200, 0, INT, 1]);
    assert_eq!((stop.dstat, rig.read(SCRATCHA)), (dstat::SSI, 0x22));
    rig.write(DCNTL, STD);
    assert_eq!(rig.stopped().dsps, 1);
}
