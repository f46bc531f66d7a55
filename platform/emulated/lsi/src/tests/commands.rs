//! Whole commands over the bus.

use super::rig::*;
use crate::registers::*;

#[test]
fn a_disk_is_written_and_read() {
    let mut rig = Rig::awake();
    let bytes = pattern(16 * 512);
    rig.put(DATA, &bytes);
    let write = [0x2a, 0, 0, 0, 0, 8, 0, 0, 16, 0];
    assert_eq!(rig.io(0, &write, DATA_OUT, 16 * 512), 0);
    assert_eq!(rig.disk.contents()[8 * 512..24 * 512], bytes);
    rig.put(DATA, &[0; 16 * 512]);
    let read = [0x28, 0, 0, 0, 0, 8, 0, 0, 16, 0];
    assert_eq!(rig.io(0, &read, DATA_IN, 16 * 512), 0);
    assert_eq!(rig.get(DATA, bytes.len()), bytes);
    assert_eq!(rig.io(0, &[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0], 0, 0), 0, "flush");
    // The CD-ROM says that it is one.
    assert_eq!(rig.io(2, &[0x12, 0, 0, 0, 36, 0], DATA_IN, 36), 0);
    assert_eq!(rig.get(DATA, 2), [5, 0x80]);
}

#[test]
fn what_failed_is_told_once() {
    let mut rig = Rig::awake();
    let far = [0x28, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 1, 0];
    assert_eq!(rig.io(0, &far, 0, 0), 2);
    let ask = [3, 0, 0, 0, 18, 0];
    assert_eq!(rig.io(0, &ask, DATA_IN, 18), 0);
    let sense = rig.get(DATA, 18);
    assert_eq!((sense[2], sense[12]), (5, 0x21));
    assert_eq!(rig.io(0, &ask, DATA_IN, 18), 0);
    assert_eq!(rig.get(DATA, 18)[2], 0);
}

/// Selection with a tag, a disconnection, and the reselection that brings the data; the table says where.
#[test]
fn a_tagged_read_disconnects_and_comes_back() {
    let mut rig = Rig::awake();
    let bytes = pattern(600 << 10);
    rig.put(DATA, &bytes);
    let blocks = (bytes.len() / 512) as u16;
    let [high, low] = blocks.to_be_bytes();
    let write = [0x2a, 0, 0, 0, 0, 0, 0, high, low, 0];
    assert_eq!(tagged(&mut rig, &write, DATA_OUT, bytes.len()), (0, 2));
    assert_eq!(rig.disk.contents()[..bytes.len()], bytes);
    rig.put(DATA, &vec![0; bytes.len()]);
    let read = [0x28, 0, 0, 0, 0, 0, 0, high, low, 0];
    assert_eq!(tagged(&mut rig, &read, DATA_IN, bytes.len()), (0, 2));
    assert_eq!(rig.get(DATA, bytes.len()), bytes);
}

const DISPATCH: u32 = SCRIPT + 0x40;
const MISMATCH: u32 = SCRIPT + 0x200;
const SAVED: u32 = TABLE + 0x20;

/// A script that selects by table, follows the target's phases, and goes on where a move was broken off.
fn dispatcher(rig: &Rig, data_move: u32) {
    let when = |phase: u32, to: u32| [0x800b_0000 | phase, to];
    let begin = [
        // By table: identity 0.
        [0x4300_0018, SCRIPT],
        [0x1800_0000 | MESSAGE_OUT, 0],
        [0x1800_0000 | COMMAND, 8],
        [JUMP, DISPATCH],
    ];
    rig.words(SCRIPT, begin.as_flattened());
    let dispatch = [
        when(MESSAGE_IN, SCRIPT + 0x80),
        when(DATA_IN, data_move),
        when(DATA_OUT, data_move),
        when(STATUS, SCRIPT + 0x140),
        [INT, 50],
    ];
    rig.words(DISPATCH, dispatch.as_flattened());
    let message_in = [
        [mov(MESSAGE_IN, 1), SMALL + 0x90],
        // Save pointers: go on; disconnect: wait; anything else is wrong.
        [0x800c_0002, SCRIPT + 0xb0],
        [0x800c_0004, SCRIPT + 0xc0],
        [INT, 51],
        [INT, 52],
        [INT, 53],
        // 0xb0
        [CLEAR_ACK, 0],
        [JUMP, DISPATCH],
        // 0xc0
        [CLEAR_ACK, 0],
        [WAIT_DISCONNECT, 0],
        [WAIT_RESELECT, SCRIPT + 0x98],
        // Identity and tag, in one move.
        [mov(MESSAGE_IN, 3), SMALL + 0x91],
        [CLEAR_ACK, 0],
        [JUMP, DISPATCH],
    ];
    rig.words(SCRIPT + 0x80, message_in.as_flattened());
    rig.words(SCRIPT + 0x140, &END);
    let moves = [
        [0x1800_0000 | DATA_IN, 0x10],
        [JUMP, DISPATCH],
        [0x1800_0000, 0x10],
        [JUMP, DISPATCH],
    ];
    rig.words(SCRIPT + 0x168, moves.as_flattened());
    let mismatch = [
        // What is left goes to the table; count how often.
        [0xf000_0004 | u32::from(RBC) << 16, 0x10],
        [0xf000_0004 | u32::from(UA) << 16, 0x14],
        [0xf000_0004 | u32::from(IA) << 16, 0x20],
        [0x7800_0000 | 6 << 24 | u32::from(SCRATCHB) << 16 | 1 << 8, 0],
        [JUMP, DISPATCH],
    ];
    rig.words(MISMATCH, mismatch.as_flattened());
}

/// One command by a script with a dispatcher: its status, and how often the target left in the middle of the data.
fn tagged(rig: &mut Rig, cdb: &[u8], phase: u32, len: usize) -> (u8, u8) {
    rig.put(SMALL, &[0xc0, 0x20, 0x42]);
    rig.put(SMALL + 0x10, cdb);
    rig.words(
        TABLE,
        &[3, SMALL, cdb.len() as u32, SMALL + 0x10, len as u32, DATA],
    );
    rig.words(TABLE + 0x18, &[0x0000_0000]);
    rig.write_u32(DSA, TABLE);
    rig.write_u32(PMJAD1, MISMATCH);
    rig.write(CCNTL0, ENPMJ);
    rig.write(SCRATCHB, 0);
    let data_move = if phase == DATA_IN {
        SCRIPT + 0x168
    } else {
        SCRIPT + 0x178
    };
    dispatcher(rig, data_move);
    rig.write_u32(DSP, SCRIPT);
    let stop = rig.stopped();
    assert_eq!((stop.dstat, stop.sist, stop.dsps), (dstat::SIR, 0, 99));
    assert_eq!(rig.get(SMALL + 0x91, 3), [0x80, 0x20, 0x42]);
    let times = rig.read(SCRATCHB);
    if times > 0 {
        assert_eq!(rig.get(SAVED, 4), data_move.to_le_bytes(), "where the move was");
        assert_eq!(rig.read_u32(ESA), TABLE + 0x10);
    }
    (rig.get(SMALL + 0x80, 1)[0], times)
}

/// A command whose target has let the bus go, and is back, or soon will be.
fn one_away() -> Rig {
    let mut rig = Rig::awake();
    rig.put(SMALL, &[0xc0, 0x20, 0x42]);
    rig.put(SMALL + 0x10, &[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    let ask = [
        [select(0), 0],
        [mov(MESSAGE_OUT, 3), SMALL],
        [mov(COMMAND, 10), SMALL + 0x10],
        [mov(MESSAGE_IN, 1), SMALL + 0x90],
        [CLEAR_ACK, 0],
        [WAIT_DISCONNECT, 0],
        [INT, 50],
    ];
    assert_eq!(rig.run(ask.as_flattened()).dsps, 50);
    if let Some(ticket) = rig.lsi.pause() {
        assert!(ticket.wait(std::time::Duration::from_secs(60)));
    }
    rig.lsi.resume();
    rig
}

/// The script that selects goes to where it waits for targets, and finds the one that came first. Linux's driver does this
/// whenever a disk is quicker than the next command, with SIGP set as often as not.
#[test]
fn a_target_that_comes_instead_of_a_selection_is_not_waited_for_again() {
    const LOST: u32 = SCRIPT + 0x40;
    let came_first = |signal: u8| {
        let mut rig = one_away();
        rig.write(ISTAT0, signal);
        let lost = [
            [WAIT_RESELECT, SCRIPT + 0x60],
            [mov(MESSAGE_IN, 3), SMALL + 0x91],
            [CLEAR_ACK, 0],
            [INT, 99],
            // 0x60: told by SIGP.
            [INT, 61],
        ];
        rig.words(LOST, lost.as_flattened());
        let dsps = rig.run(&[select(2), LOST, INT, 60]).dsps;
        if dsps == 99 {
            assert_eq!(rig.get(SMALL + 0x91, 3), [0x80, 0x20, 0x42]);
        }
        dsps
    };
    for signal in [0, istat::SIGP] {
        // 60: the disk was slower this time, and the CD-ROM was selected.
        let found = (0..100).map(|_| came_first(signal)).find(|dsps| *dsps != 60);
        assert_eq!(found, Some(99), "SIGP {signal:#x}");
    }
}

#[test]
fn a_phase_that_was_not_expected_is_an_interrupt_without_a_jump() {
    let mut rig = Rig::awake();
    rig.put(SMALL, &[0x80]);
    rig.put(SMALL + 0x10, &[0x12, 0, 0, 0, 36, 0]);
    let stop = rig.run(&[
        select(0),
        0,
        mov(MESSAGE_OUT, 1),
        SMALL,
        mov(COMMAND, 6),
        SMALL + 0x10,
        mov(DATA_IN, 100),
        DATA,
        INT,
        1,
    ]);
    assert_eq!((stop.dstat, stop.sist), (0, sist::MA));
    assert_eq!(rig.read_u32(DBC) & 0xff_ffff, 64);
    assert_eq!(rig.read_u32(DNAD), DATA + 36);
    assert_eq!(rig.read_u32(DSP), SCRIPT + 0x20);
    assert_eq!(rig.read(SBCL) & 7, 3, "status");
    // The script goes on from there.
    let stop = rig.run(&END);
    assert_eq!((stop.dsps, rig.get(SMALL + 0x80, 2)), (99, vec![0, 0]));
}

#[test]
fn negotiations_are_answered_and_aborts_obeyed() {
    let mut rig = Rig::awake();
    // Wide transfers: the answer is 8 bits.
    rig.put(SMALL, &[0x80, 1, 2, 3, 1]);
    rig.put(SMALL + 0x10, &[0; 6]);
    let begin = [
        [select(0), 0],
        [mov(MESSAGE_OUT, 5), SMALL],
        [mov(MESSAGE_IN, 4), SMALL + 0x20],
        [CLEAR_ACK, 0],
        [mov(COMMAND, 6), SMALL + 0x10],
    ];
    let stop = rig.run(&[begin.as_flattened(), &END].concat());
    assert_eq!(stop.dsps, 99);
    assert_eq!(rig.get(SMALL + 0x20, 4), [1, 2, 3, 0]);
    // An abort frees the bus; that is an error only if it was not expected.
    rig.put(SMALL, &[0x80, 0x06]);
    let abort = [
        select(0),
        0,
        mov(MESSAGE_OUT, 2),
        SMALL,
        WAIT_DISCONNECT,
        0,
        INT,
        3,
    ];
    assert_eq!(rig.run(&abort).dsps, 3);
    rig.write(SCNTL2, SDU);
    let stop = rig.run(&abort);
    assert_eq!((stop.dstat, stop.sist), (0, sist::UDC));
    // A unit that is not there.
    rig.write(SCNTL2, 0);
    rig.put(SMALL, &[0x81]);
    rig.put(SMALL + 0x10, &[0; 6]);
    let begin = [
        [select(0), 0],
        [mov(MESSAGE_OUT, 1), SMALL],
        [mov(COMMAND, 6), SMALL + 0x10],
    ];
    assert_eq!(rig.run(&[begin.as_flattened(), &END].concat()).dsps, 99);
    assert_eq!(rig.get(SMALL + 0x80, 1), [2]);
}

/// As a firmware does it that selects without ATN and sends a message all the same.
#[test]
fn a_lenient_selection() {
    let mut rig = Rig::awake();
    rig.put(SMALL, &[0x80]);
    rig.put(SMALL + 0x10, &[0; 6]);
    let message = [
        [0x4000_0000, 0],
        [mov(MESSAGE_OUT, 1), SMALL],
        [mov(COMMAND, 6), SMALL + 0x10],
    ];
    assert_eq!(rig.run(&[message.as_flattened(), &END].concat()).dsps, 99);
    let command = [[0x4000_0000, 0], [mov(COMMAND, 6), SMALL + 0x10]];
    // The last acknowledgement is left to the next selection.
    let end = [
        mov(STATUS, 1),
        SMALL + 0x80,
        mov(MESSAGE_IN, 1),
        SMALL + 0x81,
        INT,
        98,
    ];
    for _ in 0..2 {
        assert_eq!(rig.run(&[command.as_flattened(), &end].concat()).dsps, 98);
        assert_eq!(rig.get(SMALL + 0x80, 2), [0, 0]);
    }
}

#[test]
fn compare_and_write_is_done_once() {
    let mut rig = Rig::awake();
    let new = pattern(512);
    rig.put(DATA, &[vec![0; 512], new.clone()].concat());
    let cdb = [0x89, 0, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 1, 0, 0];
    assert_eq!(rig.io(0, &cdb, DATA_OUT, 1024), 0);
    assert_eq!(rig.disk.contents()[9 * 512..10 * 512], new);
    assert_eq!(rig.io(0, &cdb, DATA_OUT, 1024), 2);
    assert_eq!(rig.io(0, &[3, 0, 0, 0, 18, 0], DATA_IN, 18), 0);
    assert_eq!(rig.get(DATA + 2, 1), [14], "miscompare");
    // WRITE SAME with a block, and with zeroes.
    rig.put(DATA, &new);
    let same = [0x93, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 4, 0, 0, 0];
    assert_eq!(rig.io(0, &same, DATA_OUT, 512), 0);
    let contents = rig.disk.contents();
    assert!(
        contents[16 * 512..1040 * 512]
            .chunks(512)
            .all(|block| block == new)
    );
    let zeroes = [0x93, 1, 0, 0, 0, 0, 0, 0, 0, 17, 0, 0, 0, 2, 0, 0];
    assert_eq!(rig.io(0, &zeroes, 0, 0), 0);
    assert!(
        rig.disk.contents()[17 * 512..19 * 512]
            .iter()
            .all(|byte| *byte == 0)
    );
}
