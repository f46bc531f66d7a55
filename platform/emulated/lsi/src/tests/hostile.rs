//! What a hostile guest may try.

use std::time::{Duration, Instant};

use treaty_scsi_target::{Kind, Unit, UnitConfig};

use super::rig::*;
use crate::command::{Stage, Tag};
use crate::registers::*;
use crate::target::{MOST_AT_WORK, MOST_COMMANDS, PLACES, Target, Tasks};

/// Hardening row 21: a script that loops for ever holds neither a vCPU nor the worker.
#[test]
fn hardening_21_an_endless_script_holds_nobody() {
    let mut rig = Rig::awake();
    rig.start(&[JUMP, SCRIPT]);
    rig.until("running", |rig| rig.read(ISTAT1) & SRUN != 0);
    let begin = Instant::now();
    for round in 0..1000u32 {
        rig.write_u32(SCRATCHA, round);
        assert_eq!(rig.read_u32(SCRATCHA), round);
    }
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    // The script is still there, and ends when it is told to; then the chip works.
    assert_ne!(rig.read(ISTAT1) & SRUN, 0);
    rig.write(ISTAT0, istat::ABRT);
    assert_eq!(rig.stopped().dstat, dstat::ABRT);
    assert_eq!(rig.io(0, &[0; 6], 0, 0), 0);
}

/// Hardening row 22: scripts cannot reach the chip's own registers, nor anything but RAM.
#[test]
fn hardening_22_dma_reaches_ram_only() {
    let mut rig = Rig::awake();
    let registers = 0xe800_0000u32;
    let stores: [&[u32]; 4] = [
        &[0xe000_0004 | u32::from(SCRATCHA) << 16, registers + 0x2c],
        &[0xc000_0004, SMALL, registers + 0x2c],
        &[0xc000_0004, registers, SMALL],
        // Half on the chip, half behind it.
        &[0xc000_0008, SMALL, RAM + 8188],
    ];
    for script in stores {
        let stop = rig.run(&[script, &[INT, 1]].concat());
        assert_eq!((stop.dstat, stop.sist), (dstat::BF, 0), "{script:x?}");
    }
    rig.write_u32(DSP, registers);
    assert_eq!(rig.stopped().dstat, dstat::BF);
    // Nor does a target's data.
    rig.put(SMALL, &[0x80]);
    rig.put(SMALL + 0x10, &[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    let read = [
        [select(0), 0],
        [mov(MESSAGE_OUT, 1), SMALL],
        [mov(COMMAND, 10), SMALL + 0x10],
        [mov(DATA_IN, 512), registers],
        [INT, 1],
    ];
    assert_eq!(rig.run(read.as_flattened()).dstat, dstat::BF);
    // Without the guest's permission, RAM is out of reach too.
    treaty_pci::PciDevice::write_config(&mut rig.lsi, 4, &[3, 0]);
    assert_eq!(rig.run(&[INT, 1]).dstat, dstat::BF);
}

#[test]
fn illegal_instructions_stop_the_script() {
    let mut rig = Rig::new();
    // No bytes to move; a load across a boundary; an operation that there is not; a move that is not aligned.
    let scripts: [&[u32]; 5] = [
        &[mov(DATA_IN, 0), DATA],
        &[0xe100_0004 | u32::from(SCRATCHA + 1) << 16, SMALL],
        &[0xe100_0000 | u32::from(SCRATCHA) << 16, SMALL],
        &[0xa008_0000, 0],
        &[0xc000_0004, SMALL + 1, SMALL],
    ];
    for script in scripts {
        let stop = rig.run(&[script, &[INT, 1]].concat());
        assert_eq!((stop.dstat, stop.sist), (dstat::IID, 0), "{script:x?}");
    }
}

fn tasks() -> Tasks {
    let mut unit = Unit::new(UnitConfig {
        kind: Kind::Disk,
        vendor: "TREATY".into(),
        product: "DISK".into(),
        serial: "1".into(),
        len: Some(1 << 20),
        block_size: 512,
        optimal_size: 4096,
        read_only: false,
        discard: true,
    });
    unit.command(0, &[0; 6]);
    let mut targets = [const { None }; PLACES];
    targets[0] = Some(Target {
        unit,
        zeroes: true,
        told: false,
    });
    Tasks::new(targets)
}

fn tag(number: u8) -> Option<Tag> {
    Some(Tag { number, kind: 0x20 })
}

const READ: [u8; 10] = [0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0];

fn kept(tasks: &Tasks) -> usize {
    tasks.slots.iter().flatten().count()
}

/// Hardening rows 4 and 20: commands and their buffers have limits, whatever a guest queues and never fetches.
#[test]
fn hardening_04_and_20_commands_are_limited() {
    let mut tasks = tasks();
    let mut full = 0;
    for index in 0..MOST_COMMANDS + 20 {
        let slot = tasks.receive(0, (index >> 8) as u8, tag(index as u8), READ.to_vec());
        if tasks.stage(slot) == Stage::Status && tasks.slots[slot].as_ref().unwrap().block.is_none() {
            assert_eq!(tasks.status(slot), 0x28);
            tasks.left(slot);
            full += 1;
        }
    }
    assert_eq!(full, 20);
    assert_eq!(kept(&tasks), MOST_COMMANDS);
    let lent = tasks
        .slots
        .iter()
        .flatten()
        .filter(|command| command.block.is_some());
    assert_eq!(lent.count(), MOST_AT_WORK);
    assert_eq!(tasks.take_jobs().len(), MOST_AT_WORK);
    // A reset forgets all but what the host is still at; what comes then waits for that.
    tasks.reset();
    assert_eq!(kept(&tasks), MOST_AT_WORK);
    let slot = tasks.receive(0, 0, None, READ.to_vec());
    assert_eq!(tasks.stage(slot), Stage::Waiting);
    for slot in 0..MOST_AT_WORK {
        assert!(tasks.next_ready().is_none());
        tasks.job_done(slot, Ok(()));
    }
    assert_eq!(kept(&tasks), 1);
    assert_eq!(tasks.stage(slot), Stage::Status, "the reset is told first");
}

/// Hardening row 2: two commands with one name are both given up.
#[test]
fn hardening_02_a_name_that_is_taken() {
    let mut tasks = tasks();
    let first = tasks.receive(0, 0, tag(5), READ.to_vec());
    assert_eq!(tasks.take_jobs().len(), 1);
    let second = tasks.receive(0, 0, tag(5), READ.to_vec());
    assert_eq!(tasks.status(second), 2);
    tasks.left(second);
    tasks.job_done(first, Ok(()));
    assert_eq!(kept(&tasks), 0);
    let other = tasks.receive(0, 0, tag(6), READ.to_vec());
    assert_eq!(tasks.stage(other), Stage::Host);
}

/// An ordered command waits for all before it, and all after it wait for it.
#[test]
fn order_is_kept() {
    let mut tasks = tasks();
    let ordered = Some(Tag {
        number: 2,
        kind: 0x22,
    });
    let first = tasks.receive(0, 0, tag(1), READ.to_vec());
    let second = tasks.receive(0, 0, ordered, READ.to_vec());
    let third = tasks.receive(0, 0, tag(3), READ.to_vec());
    let stages = |tasks: &Tasks| [first, second, third].map(|slot| tasks.stage(slot) == Stage::Waiting);
    assert_eq!(stages(&tasks), [false, true, true]);
    for (slot, waiting) in [(first, [false, false, true]), (second, [false; 3])] {
        tasks.take_jobs();
        tasks.job_done(slot, Ok(()));
        tasks.moved(slot, 512);
        tasks.begin_waiting();
        assert_eq!(stages(&tasks), waiting);
    }
}

/// What failed is still known when REQUEST SENSE comes, however many other commands fail in between.
#[test]
fn a_failure_waits_to_be_asked_for() {
    let mut tasks = tasks();
    let far = [0x28, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 1, 0];
    let (first, other) = (
        tasks.receive(0, 0, tag(1), far.to_vec()),
        tasks.receive(0, 0, tag(2), READ.to_vec()),
    );
    assert_eq!(tasks.status(first), 2);
    tasks.left(first);
    tasks.left(other);
    tasks.take_jobs();
    tasks.job_done(other, Ok(()));
    assert!(tasks.next_ready().is_none(), "the other one has to wait");
    let asked = tasks.receive(0, 0, None, vec![3, 0, 0, 0, 18, 0]);
    let mut sense = [0; 18];
    tasks.buffer(asked, 18).copy_to(&mut sense);
    assert_eq!((sense[2], sense[12]), (5, 0x21));
    assert_eq!(tasks.next_ready(), Some(other));
}
