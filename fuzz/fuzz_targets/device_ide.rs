//! The IDE controller: task files, packets, PIO and bus-master tables that say anything.
#![no_main]
use std::cell::RefCell;
use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use treaty_bus::{BusTarget, NothingPosted};
use treaty_fuzz::Bytes;
use treaty_fuzz::machine::{Line, MEMORY, Stage, memory};
use treaty_ide::{DriveConfig, Ide, Parts};
use treaty_memory::GuestMemory;
use treaty_pci::PciDevice;
use treaty_storage::{BlockImage, RamImage};

thread_local! {
    static STAGE: RefCell<Stage> = RefCell::new(Stage::new());
}

fuzz_target!(|data: &[u8]| {
    STAGE.with_borrow_mut(|stage| {
        let memory = memory();
        let mut ide = controller(stage, &memory);
        run(&mut Bytes(data), &mut ide, &memory, stage);
        drop(ide);
        stage.pump();
    });
});

fn controller(stage: &Stage, memory: &GuestMemory) -> Ide {
    let drive = |cdrom| {
        Some(DriveConfig {
            image: Arc::new(RamImage::new(64)) as Arc<dyn BlockImage>,
            cdrom,
            serial: "1".into(),
            worker: stage.handle(),
        })
    };
    let mut ide = Ide::new(Parts {
        memory: memory.clone(),
        lines: [Arc::new(Line), Arc::new(Line)],
        io_address: 0xc000,
        drives: [drive(false), drive(true), None, None],
        posted: Arc::new(NothingPosted),
    })
    .expect("a controller");
    ide.write_config(4, &[5, 0]);
    ide
}

/// Commands that there are; others come as plain writes.
const COMMANDS: [u8; 16] = [
    0x20, 0x24, 0x25, 0x29, 0x30, 0x34, 0x35, 0x39, 0xa0, 0xc4, 0xc8, 0xca, 0xec, 0xef, 0x06, 0xe7,
];

fn run(bytes: &mut Bytes, ide: &mut Ide, memory: &GuestMemory, stage: &mut Stage) -> Option<()> {
    let [(command, control), _]: [(Arc<dyn BusTarget>, Arc<dyn BusTarget>); 2] = ide.fixed_ports();
    loop {
        let step = bytes.u8()?;
        match step >> 5 {
            0 => drop(command.write(u64::from(step & 7), &[bytes.u8()?])),
            1 => {
                // Once, and again for what 48-bit commands have before.
                for _ in 0..=step >> 4 & 1 {
                    command.write(u64::from(step & 7), &[bytes.u8()? & 0x3f]);
                }
            }
            2 => drop(command.write(7, &[COMMANDS[usize::from(step & 15)]])),
            3 => {
                let mut data = [0; 4];
                for _ in 0..bytes.u8()? {
                    command.read(0, &mut data[..2 + usize::from(step & 1) * 2]);
                }
            }
            4 => {
                for _ in 0..step & 15 {
                    command.write(0, &bytes.u16()?.to_le_bytes());
                }
            }
            5 => {
                // The table that the bus master is shown, and what it is told.
                let entry = bytes.word()?.to_le_bytes();
                memory.write(u64::from(step & 7) * 4, &entry).ok()?;
                let at = u64::from(bytes.u16()?) % (MEMORY as u64 - 4);
                memory.write(at, &entry).ok()?;
            }
            6 => {
                let (offset, value) = (u64::from(step & 15), bytes.u8()?);
                ide.write_bar(4, offset, &[value]);
                ide.read_bar(4, offset, &mut [0]);
            }
            _ => {
                if step & 0x10 != 0 {
                    control.write(0, &[step & 0x0f]);
                }
                stage.pump();
                let mut status = [0];
                command.read(7, &mut status);
            }
        }
    }
}
