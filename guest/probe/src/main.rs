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
mod exit;
mod heap;
mod intrinsics;
mod ports;

/// What the boot code calls at CPL 3.
#[unsafe(no_mangle)]
extern "C" fn probe_main(start_info: u64) -> ! {
    console::start();
    let clock = clock::Clock::calibrate(None);
    say!(
        "probe: start_info {start_info:#x} {}",
        boot::command_line(start_info)
    );
    say!("probe: tsc {} kHz by {}", clock.tsc_khz, clock.source);
    exit::leave(exit::SUCCESS)
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    say!("PROBE-PANIC {info}");
    exit::leave(exit::FAILURE)
}
