//! The small devices that every PC has: UART, clock, keyboard controller, power management, debug ports.
//!
//! Owns: their registers, and [`PowerControl`], how a guest asks for a reset or for power-off.
//! Must not know: KVM, PCI, virtio, which ports and interrupt pins they are wired to.
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic
    )
)]

mod calendar;
mod debug;
mod i8042;
mod pm;
mod power;
mod rtc;
mod system_control;
mod uart;

pub use debug::{DebugConsole, PostCode};
pub use i8042::I8042;
pub use pm::{
    PM_CONTROL_OFFSET, PM_EVENT_OFFSET, PM_LEN, PM_RESET_OFFSET, PM_RESET_VALUE, PM_SLEEP_TYPE_OFF,
    PM_TIMER_OFFSET, PowerManagement,
};
pub use power::{PowerControl, PowerRequest};
pub use rtc::Rtc;
pub use system_control::SystemControl;
pub use uart::Uart;
