//! The network controller: registers and descriptors that say anything; frames that it sends come back.
#![no_main]
use std::cell::RefCell;
use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use treaty_bus::NothingPosted;
use treaty_e1000::{Config, E1000, Model, Parts};
use treaty_fuzz::Bytes;
use treaty_fuzz::machine::{Line, MEMORY, Stage, memory};
use treaty_memory::GuestMemory;
use treaty_net::Null;
use treaty_pci::PciDevice;

/// Control, receive and transmit control, and the rings' registers.
const REGISTERS: [u32; 24] = [
    0x0000, 0x0008, 0x0014, 0x0018, 0x0020, 0x00c0, 0x00c4, 0x00c8, 0x00d0, 0x0100, 0x0400, 0x2800, 0x2804,
    0x2808, 0x2810, 0x2818, 0x2820, 0x3800, 0x3804, 0x3808, 0x3810, 0x3818, 0x3828, 0x5400,
];
const RX_RING: u32 = 0x1000;
const TX_RING: u32 = 0x2000;

thread_local! {
    static STAGE: RefCell<Stage> = RefCell::new(Stage::new());
}

fuzz_target!(|data: &[u8]| {
    STAGE.with_borrow_mut(|stage| {
        let memory = memory();
        let mut card = card(stage, &memory);
        run(&mut Bytes(data), &mut card, &memory, stage);
        drop(card);
        stage.pump();
    });
});

fn set(card: &mut E1000, register: u32, value: u32) {
    card.write_bar(0, register.into(), &value.to_le_bytes());
}

/// Rings of sixteen, both directions on, and what is sent looped back to the receiver.
fn card(stage: &Stage, memory: &GuestMemory) -> E1000 {
    let config = Config {
        model: Model::I82540em,
        mac: [2, 0, 0, 0, 0, 1],
        clock: Some(Arc::new(|| 0)),
    };
    let mut card = E1000::new(
        &config,
        Parts {
            memory: memory.clone(),
            line: Arc::new(Line),
            gsi: 16,
            bar_address: 0xe800_0000,
            io_address: 0xc000,
            worker: stage.handle(),
            backend: Box::new(Null::new(1)),
            posted: Arc::new(NothingPosted),
        },
    )
    .expect("a card");
    card.write_config(4, &[7, 0]);
    for (register, value) in [
        (0x2800, RX_RING),
        (0x2808, 256),
        (0x2818, 15),
        (0x3800, TX_RING),
        (0x3808, 256),
        // Promiscuous, with loop-back.
        (0x0100, 0x0000_80da),
        (0x0400, 2),
    ] {
        set(&mut card, register, value);
    }
    for index in 0..16u32 {
        let buffer = u64::from(0x4000 + index * 2048);
        let at = u64::from(RX_RING + index * 16);
        memory.write(at, &buffer.to_le_bytes()).expect("memory");
    }
    card
}

fn run(bytes: &mut Bytes, card: &mut E1000, memory: &GuestMemory, stage: &mut Stage) -> Option<()> {
    loop {
        let step = bytes.u8()?;
        match step >> 5 {
            0 => {
                let register = REGISTERS[usize::from(bytes.u8()?) % REGISTERS.len()];
                set(card, register, bytes.word()?);
            }
            1 => set(card, u32::from(bytes.u16()? & 0x7ffc), bytes.word()?),
            2 => {
                let mut data = [0; 4];
                card.read_bar(0, u64::from(bytes.u16()? & 0x7ffc), &mut data);
            }
            3 | 4 => {
                // A descriptor: where, how long, which command.
                let place = u64::from(TX_RING) + u64::from(step & 15) * 16;
                let (address, length) = (u64::from(bytes.u16()?), bytes.word()?);
                let command = [bytes.u8()?, bytes.u8()?];
                memory.write(place, &address.to_le_bytes()).ok()?;
                let low = length.to_le_bytes();
                memory
                    .write(place + 8, &[low[0], low[1], low[2], command[0]])
                    .ok()?;
                memory.write(place + 12, &[0, command[1], low[3], 0]).ok()?;
            }
            5 => {
                let at = u64::from(bytes.u16()?) % (MEMORY as u64 - 4);
                memory.write(at, &bytes.word()?.to_le_bytes()).ok()?;
            }
            _ => {
                set(card, 0x3818, u32::from(step & 15));
                stage.pump();
                stage.pump();
            }
        }
    }
}
