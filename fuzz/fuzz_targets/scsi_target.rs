//! A disk and a CD-ROM under commands that say anything: every range lies inside, every answer is as long as allowed.
#![no_main]
use libfuzzer_sys::fuzz_target;
use treaty_fuzz::Bytes;
use treaty_scsi_target::{Action, Kind, Range, Unit, UnitConfig, command_len, missing_unit};

const LEN: u64 = 1 << 20;

fuzz_target!(|data: &[u8]| {
    run(&mut Bytes(data));
});

fn inside(range: Range) {
    let end = range.offset.checked_add(range.len).expect("no overflow");
    assert!(end <= LEN, "{range:?}");
}

fn check(action: &Action) {
    match action {
        Action::Read(range)
        | Action::Verify(range)
        | Action::Write { range, .. }
        | Action::Zero { range, .. } => inside(*range),
        Action::Discard(ranges) => {
            assert!(ranges.len() <= Unit::MAX_UNMAP_RANGES);
            ranges.iter().copied().for_each(inside);
        }
        Action::Fill { range, block } => {
            inside(*range);
            assert!(range.len <= u64::from(Unit::MAX_FILL) && !block.is_empty());
        }
        Action::Compare {
            offset,
            expected,
            new,
        } => {
            let len = expected.len() as u64;
            inside(Range { offset: *offset, len });
            assert!(new.is_empty() || new.len() == expected.len());
            assert!(len <= u64::from(Unit::MAX_COMPARE));
        }
        Action::Answer(answer) => assert!(answer.data.len() <= 1 << 16),
        Action::Parameters(_) | Action::Flush => {}
    }
}

fn run(bytes: &mut Bytes) -> Option<()> {
    let shape = bytes.u8()?;
    let kind = if shape & 1 == 0 { Kind::Disk } else { Kind::Cdrom };
    let mut unit = Unit::new(UnitConfig {
        kind,
        vendor: "TREATY".into(),
        product: "DISK".into(),
        serial: "1".into(),
        len: (shape & 2 == 0).then_some(LEN),
        block_size: 512 << (shape >> 2 & 3),
        optimal_size: 4096,
        read_only: shape & 0x10 != 0,
        discard: shape & 0x20 == 0,
    });
    loop {
        let (nexus, opcode) = (u64::from(bytes.u8()? & 1), bytes.u8()?);
        let mut cdb = vec![opcode];
        while cdb.len() < command_len(&cdb).min(40) {
            // Most bytes of a command are 0.
            let byte = bytes.u8()?;
            cdb.push(if byte & 0xc0 == 0 {
                bytes.u8()?
            } else {
                byte & 0x3f & (byte >> 4)
            });
        }
        let action = unit.command(nexus, &cdb);
        check(&action);
        assert!(missing_unit(&cdb).data.len() <= 64);
        if let Action::Parameters(len) = action {
            let filler = bytes.u8()?;
            let mut data = vec![0; (len as usize).min(1 << 17)];
            for byte in data.iter_mut().take(48) {
                *byte = bytes.u8().unwrap_or(filler);
            }
            check(&unit.parameters(nexus, &cdb, &data));
        }
        match opcode {
            0xfe => drop(unit.change_medium((shape & 4 == 0).then_some(LEN))),
            0xff => unit.reset(),
            _ => drop(unit.take_events()),
        }
    }
}
