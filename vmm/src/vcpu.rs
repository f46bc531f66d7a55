//! One thread per vCPU: enters the guest, brings its accesses to the buses, and looks up when it is kicked.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;

use treaty_bus::{Bus, PostedWrites};
use treaty_kvm::{Exit, Vcpu};
use treaty_telemetry::Space;

use crate::exits::Exits;
use crate::life::{End, Life, Next};
use crate::posted::Posted;

/// Where a vCPU's accesses go.
#[derive(Clone)]
pub(crate) struct Buses {
    pub(crate) ports: Arc<Bus>,
    pub(crate) memory: Arc<Bus>,
    pub(crate) posted: Arc<Posted>,
    pub(crate) exits: Arc<Exits>,
}

/// Starts the thread. It ends when the life does.
pub(crate) fn spawn(index: u8, vcpu: Vcpu, buses: Buses, life: Arc<Life>) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name(format!("vcpu{index}"))
        .spawn(move || {
            let at_panic = life.clone();
            if catch_unwind(AssertUnwindSafe(|| run(vcpu, &buses, &life))).is_err() {
                at_panic.end(End::Crash(format!("the thread of vCPU {index} panicked")));
            }
        })
}

fn run(mut vcpu: Vcpu, buses: &Buses, life: &Life) {
    let _kicks_reach_this_thread = vcpu.enter_thread();
    while life.checkpoint(|| vcpu.note_pause()) == Next::Run {
        let exit = vcpu.run();
        // Before anything else is done for the guest: what it wrote before comes first.
        buses.posted.bring();
        let end = match exit {
            Exit::PortIn { port, width, data } => {
                buses.exits.count(Space::Pio, || {
                    data.chunks_mut(width)
                        .for_each(|data| buses.ports.read(port.into(), data));
                });
                continue;
            }
            Exit::PortOut { port, width, data } => {
                buses.exits.count(Space::Pio, || {
                    data.chunks(width)
                        .for_each(|data| buses.ports.write(port.into(), data));
                });
                continue;
            }
            Exit::MmioRead { address, data } => {
                buses
                    .exits
                    .count(Space::Mmio, || buses.memory.read(address, data));
                continue;
            }
            Exit::MmioWrite { address, data } => {
                buses
                    .exits
                    .count(Space::Mmio, || buses.memory.write(address, data));
                continue;
            }
            Exit::Kicked => continue,
            Exit::Shutdown(why) => End::TripleFault(why.to_owned()),
            Exit::Broken(why) => End::Crash(format!("{why} ({})", vcpu.describe())),
        };
        life.end(end);
    }
}
