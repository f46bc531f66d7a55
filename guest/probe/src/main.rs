//! The probe: a bare-metal guest that finds its virtio devices, runs small workloads on them and says what they cost.
//!
//! Owns: the boot path (PVH entry, static tables, the way to CPL 3), the guest's console and clock, the workloads.
//! Must not know: which monitor runs it, apart from the parameters on its command line.
//!
//! All of it runs at CPL 3, because hosts exist that interpret guest kernel code and run user code natively.
#![no_std]
#![no_main]
extern crate alloc;

mod boot;
mod clock;
mod console;
mod dma;
mod emulated;
mod exit;
mod heap;
mod interrupts;
mod intrinsics;
mod machine;
mod measure;
mod paging;
mod params;
mod pci;
mod ports;
mod window;
mod work;

use clock::Clock;
use params::Params;

/// What the boot code calls at CPL 3.
#[unsafe(no_mangle)]
extern "C" fn probe_main(start_info: u64) -> ! {
    console::start();
    let params = Params::parse(boot::command_line(start_info));
    let clock = Clock::calibrate(params.tsc_khz, params.latency);
    let start = clock::now();
    say!(
        "PROBE {{\"probe\":1,\"tsc_khz\":{},\"tsc_source\":\"{}\"}}",
        clock.tsc_khz,
        clock.source
    );
    // What a mark costs.
    measure::mark(&params, &clock, "begin");
    measure::mark(&params, &clock, "end");
    let tally = machine::run(&params, &clock);
    say!(
        "PROBE {{\"done\":true,\"passed\":{},\"failed\":{},\"ms\":{}}}",
        tally.passed,
        tally.failed,
        clock.ns(clock::now() - start) / 1_000_000,
    );
    exit::leave(if tally.failed == 0 {
        exit::SUCCESS
    } else {
        exit::FAILURE
    })
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    say!("PROBE-PANIC {info}");
    exit::leave(exit::FAILURE)
}
