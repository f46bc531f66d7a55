use crate::{Action, Answer, Event, Kind, Range, Sense, Status, Unit, UnitConfig, missing_unit};

fn config(kind: Kind) -> UnitConfig {
    UnitConfig {
        kind,
        vendor: "TREATY".into(),
        product: "DISK".into(),
        serial: "abc123".into(),
        len: Some(1 << 20),
        block_size: 512,
        optimal_size: 4096,
        read_only: false,
        discard: true,
    }
}

/// A unit that has told that it was switched on.
fn unit(kind: Kind) -> Unit {
    let mut unit = Unit::new(config(kind));
    assert_eq!(unit.command(1, &[0; 6]), Sense::POWER_ON.into());
    unit
}

fn data(action: Action) -> Vec<u8> {
    match action {
        Action::Answer(Answer {
            status: Status::Good,
            data,
            ..
        }) => data,
        other => panic!("{other:?}"),
    }
}

fn sense(action: Action) -> Option<Sense> {
    match action {
        Action::Answer(answer) => answer.sense,
        other => panic!("{other:?}"),
    }
}

#[test]
fn all_lengths_of_read_and_write_say_the_same() {
    let mut unit = unit(Kind::Disk);
    let range = Range {
        offset: 512 * 5,
        len: 512 * 3,
    };
    let reads: [&[u8]; 5] = [
        &[0x08, 0, 0, 5, 3, 0],
        &[0x28, 0, 0, 0, 0, 5, 0, 0, 3, 0],
        &[0xa8, 0, 0, 0, 0, 5, 0, 0, 0, 3, 0, 0],
        &[0x88, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 3, 0, 0],
        &[
            0x7f, 0, 0, 0, 0, 0, 0, 0x18, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            0, 3,
        ],
    ];
    for cdb in reads {
        assert_eq!(unit.command(1, cdb), Action::Read(range), "{cdb:x?}");
    }
    let durable = unit.command(1, &[0x2a, 8, 0, 0, 0, 5, 0, 0, 3, 0]);
    assert_eq!(durable, Action::Write { range, durable: true });
    assert_eq!(
        unit.command(1, &[0x08, 0, 0, 0, 0, 0]),
        Action::Read(Range {
            offset: 0,
            len: 256 * 512
        })
    );
}

/// Hardening row 19: no range of any command reaches past the end, whatever its numbers are.
#[test]
fn hardening_19_ranges_stay_inside() {
    let mut unit = unit(Kind::Disk);
    let far: [&[u8]; 4] = [
        &[0x28, 0, 0, 0, 8, 0, 0, 0, 1, 0],
        &[
            0x88, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0,
        ],
        &[0xaa, 0, 0, 0, 0, 0, 0, 0, 8, 1, 0, 0],
        &[
            0x93, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 1, 0, 0,
        ],
    ];
    for cdb in far {
        assert_eq!(sense(unit.command(1, cdb)), Some(Sense::OUT_OF_RANGE), "{cdb:x?}");
    }
    let cdb = [0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0];
    assert_eq!(unit.command(1, &cdb), Action::Parameters(24));
    let mut list = vec![0, 22, 0, 16, 0, 0, 0, 0];
    list.extend([0xff; 8]);
    list.extend([0, 0, 0, 2, 0, 0, 0, 0]);
    assert_eq!(sense(unit.parameters(1, &cdb, &list)), Some(Sense::OUT_OF_RANGE));
    list[3] = 32;
    assert_eq!(
        sense(unit.parameters(1, &cdb, &list)),
        Some(Sense::PARAMETER_LENGTH)
    );
    // Random commands of every opcode: an answer, or a range inside.
    let mut state = 7u64;
    for round in 0..200_000u32 {
        let mut cdb = [0u8; 16];
        for byte in &mut cdb {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            *byte = if state >> 60 < 10 { 0 } else { (state >> 33) as u8 };
        }
        cdb[0] = round as u8;
        let ranges = match unit.command(1, &cdb) {
            Action::Read(range) | Action::Write { range, .. } | Action::Zero { range, .. } => vec![range],
            Action::Parameters(len) => match unit.parameters(1, &cdb, &vec![1; len as usize]) {
                Action::Fill { range, .. } | Action::Zero { range, .. } => vec![range],
                Action::Discard(ranges) => ranges,
                _ => vec![],
            },
            _ => vec![],
        };
        for range in ranges {
            assert!(range.offset + range.len <= 1 << 20, "{cdb:x?}");
        }
    }
}

#[test]
fn inquiry_and_its_pages() {
    let mut unit = unit(Kind::Disk);
    let standard = data(unit.command(1, &[0x12, 0, 0, 0, 96, 0]));
    assert_eq!(standard.len(), 36);
    assert_eq!(&standard[8..20], b"TREATY  DISK");
    let pages = data(unit.command(1, &[0x12, 1, 0, 0, 255, 0]));
    assert_eq!(pages[4..], [0, 0x80, 0x83, 0xb0, 0xb1, 0xb2]);
    for page in &pages[4..] {
        let body = data(unit.command(1, &[0x12, 1, *page, 0, 255, 0]));
        assert_eq!(usize::from(body[3]) + 4, body.len(), "page {page:#x}");
        assert_eq!(body[1], *page);
    }
    assert_eq!(
        data(unit.command(1, &[0x12, 1, 0x80, 0, 255, 0]))[4..],
        *b"abc123"
    );
    assert_eq!(data(unit.command(1, &[0x12, 0, 0, 0, 5, 0])).len(), 5);
    assert_eq!(
        sense(unit.command(1, &[0x12, 1, 0xc0, 0, 255, 0])),
        Some(Sense::INVALID_FIELD)
    );
    let told = data(unit.command(1, &[0x03, 0, 0, 0, 18, 0]));
    assert_eq!((told[2], told[12]), (5, 0x24), "why the last one failed");
}

#[test]
fn the_write_cache_is_the_only_thing_that_changes() {
    let mut unit = unit(Kind::Disk);
    let caching = data(unit.command(1, &[0x1a, 8, 8, 0, 255, 0]));
    assert_eq!((caching[4], caching[6] & 4), (8, 4));
    let select = [0x15, 0x10, 0, 0, 24, 0];
    assert_eq!(unit.command(1, &select), Action::Parameters(24));
    let mut list = vec![0; 24];
    list[4..6].copy_from_slice(&[8, 18]);
    assert_eq!(unit.parameters(1, &select, &list), Action::Flush);
    let write = unit.command(1, &[0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    assert!(matches!(write, Action::Write { durable: true, .. }), "{write:?}");
    list[10] = 1;
    assert_eq!(
        sense(unit.parameters(1, &select, &list)),
        Some(Sense::INVALID_PARAMETER)
    );
}

#[test]
fn a_disc_is_read_changed_and_thrown_out() {
    let mut unit = unit(Kind::Cdrom);
    let capacity = data(unit.command(1, &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0]));
    assert_eq!(capacity, [0, 0, 1, 255, 0, 0, 8, 0]);
    let toc = data(unit.command(1, &[0x43, 2, 0, 0, 0, 0, 0, 0, 255, 0]));
    assert_eq!(toc[..4], [0, 18, 1, 1]);
    assert_eq!(
        toc[16..],
        [0, 0, 8, 62],
        "512 blocks and the lead-in are 8 seconds and 62 frames"
    );
    assert_eq!(sense(unit.command(1, &[0x2a; 10])), Some(Sense::INVALID_COMMAND));
    unit.command(1, &[0x1e, 0, 0, 0, 1, 0]);
    assert_eq!(
        sense(unit.command(1, &[0x1b, 0, 0, 0, 2, 0])),
        Some(Sense::REMOVAL_PREVENTED)
    );
    assert_eq!(unit.change_medium(None), None);
    unit.command(1, &[0x1e, 0, 0, 0, 0, 0]);
    unit.command(1, &[0x1b, 0, 0, 0, 2, 0]);
    assert_eq!(unit.take_events(), [Event::Ejected]);
    assert_eq!(sense(unit.command(1, &[0; 6])), Some(Sense::NO_MEDIUM));
    let events = [0x4a, 1, 0, 0, 0x10, 0, 0, 0, 8, 0];
    assert_eq!(data(unit.command(1, &events))[4..6], [3, 1], "removed, tray open");
    assert!(unit.change_medium(Some(4 << 30)).is_some());
    assert_eq!(data(unit.command(1, &events))[4..6], [2, 2], "new medium");
    assert_eq!(data(unit.command(1, &events))[4..6], [0, 2], "told once");
    assert_eq!(sense(unit.command(1, &[0; 6])), Some(Sense::MEDIUM_CHANGED));
    let configuration = data(unit.command(1, &[0x46, 0, 0, 0, 0, 0, 0, 0, 255, 0]));
    assert_eq!(configuration[6..8], [0, 0x10], "a DVD");
}

#[test]
fn reservations_keep_others_out() {
    let mut unit = unit(Kind::Disk);
    let read = [0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0];
    let write = [0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0];
    let out = |unit: &mut Unit, nexus, service: u8, kind: u8, key: u64, new: u64| {
        let cdb = [0x5f, service, kind, 0, 0, 0, 0, 0, 24, 0];
        assert_eq!(unit.command(nexus, &cdb), Action::Parameters(24));
        let list = [key.to_be_bytes(), new.to_be_bytes(), [0; 8]].concat();
        match unit.parameters(nexus, &cdb, &list) {
            Action::Answer(answer) => answer.status,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(out(&mut unit, 1, 0, 0, 0, 11), Status::Good);
    assert_eq!(out(&mut unit, 2, 0, 0, 0, 22), Status::Good);
    // Write exclusive.
    assert_eq!(out(&mut unit, 1, 1, 1, 11, 0), Status::Good);
    assert!(matches!(unit.command(2, &read), Action::Read(_)));
    assert_eq!(unit.command(2, &write), Answer::conflict().into());
    assert!(matches!(unit.command(1, &write), Action::Write { .. }));
    assert_eq!(out(&mut unit, 2, 1, 1, 22, 0), Status::ReservationConflict);
    // The second takes it over; the first is not registered any more.
    assert_eq!(out(&mut unit, 2, 4, 3, 22, 11), Status::Good);
    assert_eq!(unit.command(1, &read), Answer::conflict().into());
    let keys = data(unit.command(1, &[0x5e, 0, 0, 0, 0, 0, 0, 0, 255, 0]));
    assert_eq!(keys[8..], 22u64.to_be_bytes());
    assert_eq!(out(&mut unit, 2, 2, 3, 22, 0), Status::Good);
    assert!(matches!(unit.command(1, &write), Action::Write { .. }));
}

#[test]
fn verify_reads_or_compares() {
    let mut unit = unit(Kind::Disk);
    let range = Range {
        offset: 1024,
        len: 512,
    };
    let mut long = [0; 32];
    (long[0], long[7], long[9], long[19], long[31]) = (0x7f, 0x18, 0x0a, 2, 1);
    let verify: [&mut [u8]; 4] = [
        &mut [0x2f, 0, 0, 0, 0, 2, 0, 0, 1, 0],
        &mut [0xaf, 0, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0],
        &mut [0x8f, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0],
        &mut long,
    ];
    for cdb in verify {
        assert_eq!(unit.command(1, cdb), Action::Verify(range), "{cdb:x?}");
        let flags = if cdb[0] == 0x7f { 10 } else { 1 };
        cdb[flags] = 0b010;
        assert_eq!(unit.command(1, cdb), Action::Parameters(512), "{cdb:x?}");
        let compare = Action::Compare {
            offset: 1024,
            expected: vec![7; 512],
            new: vec![],
        };
        assert_eq!(unit.parameters(1, cdb, &[7; 512]), compare, "{cdb:x?}");
        cdb[flags] = 0b110;
        assert_eq!(sense(unit.command(1, cdb)), Some(Sense::INVALID_FIELD));
    }
    let mut swap = [0x89, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0];
    assert_eq!(unit.command(1, &swap), Action::Parameters(1024));
    let data = [[1; 512], [2; 512]].concat();
    let compare = Action::Compare {
        offset: 1024,
        expected: vec![1; 512],
        new: vec![2; 512],
    };
    assert_eq!(unit.parameters(1, &swap, &data), compare);
    assert_eq!(
        sense(unit.parameters(1, &swap, &data[1..])),
        Some(Sense::PARAMETER_LENGTH)
    );
    // More than the block limits page allows.
    let limits = self::data(unit.command(1, &[0x12, 1, 0xb0, 0, 255, 0]));
    swap[13] = limits[5];
    assert!(matches!(unit.command(1, &swap), Action::Parameters(_)));
    swap[13] += 1;
    assert_eq!(sense(unit.command(1, &swap)), Some(Sense::INVALID_FIELD));
}

#[test]
fn the_commands_that_there_are() {
    let mut unit = unit(Kind::Disk);
    let mut ask = |options: u8, opcode: u8, service: u8| {
        let cdb = [0xa3, 0x0c, options, opcode, 0, service, 0, 0, 16, 0, 0, 0];
        match unit.command(1, &cdb) {
            Action::Answer(answer) => (answer.sense, answer.data),
            other => panic!("{other:?}"),
        }
    };
    let (_, all) = ask(0, 0, 0);
    let len = u32::from_be_bytes([all[0], all[1], all[2], all[3]]) as usize;
    assert_eq!((len, len % 8), (all.len() - 4, 0));
    for row in all[4..].chunks(8) {
        let (opcode, service, has_service) = (row[0], row[3], row[5] & 1 != 0);
        let (_, one) = ask(if has_service { 2 } else { 1 }, opcode, service);
        assert_eq!(
            (one[1], &one[2..4], one[4]),
            (3, &row[6..8], opcode),
            "{opcode:#x}"
        );
    }
    assert_eq!(ask(1, 0xc1, 0).1[1], 1, "not there");
    assert_eq!(ask(1, 0x9e, 0).0, Some(Sense::INVALID_FIELD), "has services");
    assert_eq!(ask(3, 0x9e, 0x10).1[1], 3);
}

#[test]
fn units_that_are_not_there() {
    let inquiry = missing_unit(&[0x12, 0, 0, 0, 36, 0]);
    assert_eq!((inquiry.data.len(), inquiry.data[0]), (36, 0x7f));
    assert_eq!(missing_unit(&[0x03, 0, 0, 0, 8, 0]).data.len(), 8);
    assert_eq!(missing_unit(&[0x28; 10]).sense, Some(Sense::NO_UNIT));
    assert_eq!(
        missing_unit(&[0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0]).data.len(),
        16
    );
}

#[test]
fn a_full_status_names_who_holds_it() {
    let mut unit = unit(Kind::Disk);
    for (nexus, service, key, new) in [(1, 0, 0, 11u64), (2, 0, 0, 22), (1, 1, 11u64, 0)] {
        let cdb = [0x5f, service, 3, 0, 0, 0, 0, 0, 24, 0];
        assert_eq!(unit.command(nexus, &cdb), Action::Parameters(24));
        let list = [key.to_be_bytes(), new.to_be_bytes(), [0; 8]].concat();
        assert_eq!(unit.parameters(nexus, &cdb, &list), Answer::good().into());
    }
    let status = data(unit.command(1, &[0x5e, 3, 0, 0, 0, 0, 0, 1, 0, 0]));
    let rows: Vec<_> = status[8..]
        .chunks(48)
        .map(|row| (row[7], row[12], row[13], row[27]))
        .collect();
    assert_eq!(rows, [(11, 1, 3, 1), (22, 0, 0, 2)]);
    // What is to survive power loss cannot be had.
    let cdb = [0x5f, 0, 0, 0, 0, 0, 0, 0, 24, 0];
    let mut list = [0; 24];
    list[20] = 1;
    assert_eq!(
        sense(unit.parameters(1, &cdb, &list)),
        Some(Sense::INVALID_PARAMETER)
    );
}
