//! The SCSI controller: registers, scripts and tables that say anything.
#![no_main]
use std::cell::RefCell;
use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use treaty_fuzz::Bytes;
use treaty_fuzz::machine::{Line, MEMORY, Stage, memory};
use treaty_lsi::{Lsi, Parts, TargetConfig};
use treaty_memory::GuestMemory;
use treaty_pci::PciDevice;
use treaty_storage::{BlockImage, RamImage};

const DSP: u64 = 0x2c;
const RAM: u32 = 0xe801_0000;

thread_local! {
    static STAGE: RefCell<Stage> = RefCell::new(Stage::new());
}

fuzz_target!(|data: &[u8]| {
    STAGE.with_borrow_mut(|stage| {
        let memory = memory();
        let mut lsi = controller(stage, &memory);
        run(&mut Bytes(data), &mut lsi, &memory, stage);
        drop(lsi);
        stage.pump();
    });
});

fn controller(stage: &Stage, memory: &GuestMemory) -> Lsi {
    let mut targets = [const { None }; Lsi::PLACES];
    for (number, cdrom) in [(0, false), (1, true)] {
        targets[number] = Some(TargetConfig {
            image: Arc::new(RamImage::new(64)) as Arc<dyn BlockImage>,
            cdrom,
            serial: "1".into(),
        });
    }
    let mut lsi = Lsi::new(Parts {
        memory: memory.clone(),
        line: Arc::new(Line),
        gsi: 16,
        io_address: 0xc000,
        register_address: 0xe800_0000,
        ram_address: RAM.into(),
        worker: stage.handle(),
        targets,
    })
    .expect("a controller");
    lsi.write_config(4, &[7, 0]);
    lsi.write_bar(1, 0x48, &[0x0c]);
    lsi
}

/// An instruction of a kind that there is, mostly.
fn instruction(bytes: &mut Bytes) -> Option<[u32; 3]> {
    const KINDS: [u32; 16] = [
        0x4100_0000,
        0x4000_0000,
        0x4300_0000,
        0x0e00_0000,
        0x0a00_0000,
        0x0800_0000,
        0x0900_0000,
        0x0b00_0001,
        0x0f00_0001,
        0x1800_0000,
        0x5000_0000,
        0x4800_0000,
        0x6000_0040,
        0x8008_0000,
        0xe100_0004,
        0xc000_0004,
    ];
    let pick = bytes.u8()?;
    let first = KINDS[usize::from(pick & 15)];
    let more = match pick >> 4 {
        0..8 => 0,
        8..12 => u32::from(bytes.u8()?),
        _ => bytes.word()?,
    };
    Some([first ^ more, bytes.word()?, bytes.word()?])
}

fn run(bytes: &mut Bytes, lsi: &mut Lsi, memory: &GuestMemory, stage: &mut Stage) -> Option<()> {
    // An honest selection with a command that the fuzzer chooses is where most scripts begin.
    let begin = [
        0x4100_0000u32,
        0,
        0x0e00_0001,
        0x200,
        0x0a00_0006,
        0x210,
        0x0900_0100,
        0x1000,
    ];
    for (at, word) in (0u64..).zip(begin) {
        memory.write(at * 4, &word.to_le_bytes()).ok()?;
    }
    memory.write(0x200, &[0xc0]).ok()?;
    loop {
        let step = bytes.u8()?;
        match step >> 5 {
            0 => {
                let (register, value) = (bytes.u8()?, bytes.u8()?);
                lsi.write_bar(1, register.into(), &[value]);
            }
            1 => {
                let (register, value) = (bytes.u8()?, bytes.word()?);
                lsi.write_bar(0, (register & 0xfc).into(), &value.to_le_bytes());
            }
            2 => {
                let mut data = [0; 4];
                lsi.read_bar(u8::from(step & 1), (bytes.u8()? & 0xfc).into(), &mut data);
            }
            3 | 4 => {
                let place = u64::from(step & 0x1f) * 8;
                let words = instruction(bytes)?;
                let len = if words[0] >> 29 == 6 { 3 } else { 2 };
                let all = words.map(u32::to_le_bytes);
                memory.write(place, all.as_flattened().get(..len * 4)?).ok()?;
            }
            5 => {
                let at = u64::from(bytes.u16()?) % (MEMORY as u64 - 4);
                memory.write(at, &bytes.word()?.to_le_bytes()).ok()?;
            }
            6 => {
                // The command's bytes.
                memory.write(0x210 + u64::from(step & 15), &[bytes.u8()?]).ok()?;
            }
            _ => {
                let start = u32::from(step & 0x1f) * 8;
                lsi.write_bar(1, DSP, &start.to_le_bytes());
                stage.pump();
                stage.pump();
            }
        }
    }
}
