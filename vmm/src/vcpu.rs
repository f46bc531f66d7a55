//! One thread per vCPU: enters the guest, brings its accesses to the buses, and looks up when it is kicked.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;

use treaty_bus::Bus;
use treaty_kvm::{Exit, Vcpu};

use crate::life::{End, Life, Next};

/// Where a vCPU's accesses go.
#[derive(Clone)]
pub(crate) struct Buses {
    pub(crate) ports: Arc<Bus>,
    pub(crate) memory: Arc<Bus>,
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
        let end = match vcpu.run() {
            Exit::PortIn { port, width, data } => {
                data.chunks_mut(width)
                    .for_each(|data| buses.ports.read(port.into(), data));
                continue;
            }
            Exit::PortOut { port, width, data } => {
                data.chunks(width)
                    .for_each(|data| buses.ports.write(port.into(), data));
                continue;
            }
            Exit::MmioRead { address, data } => {
                buses.memory.read(address, data);
                continue;
            }
            Exit::MmioWrite { address, data } => {
                buses.memory.write(address, data);
                continue;
            }
            Exit::Kicked => continue,
            Exit::Shutdown(why) => End::TripleFault(why.to_owned()),
            Exit::Broken(why) => End::Crash(format!("{why} ({})", vcpu.describe())),
        };
        life.end(end);
    }
}
