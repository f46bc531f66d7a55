//! What a SCSI disk or CD-ROM answers, whatever brings the command: ATAPI, a SCSI controller, virtio-scsi.
//!
//! Owns: [`Unit`], a logical unit: commands by table, sense data, inquiry and mode pages, media changes, reservations.
//! Must not know: images, workers, transports. A command ends in an [`Action`]: an answer, or what the caller is to do with
//! the image. Commands are those of SPC-4, SBC-3 and MMC-6; comments name sections as `SPC-4 §6.4`.
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic
    )
)]

mod action;
mod block;
mod bytes;
mod cdrom;
mod inquiry;
mod missing;
mod mode;
mod opcodes;
mod reserve;
mod sense;
mod table;
#[cfg(test)]
mod tests;
mod unit;
mod verify;

pub use action::{Action, Answer, Range};
pub use missing::missing_unit;
pub use sense::{Sense, Status};
pub use table::command_len;
pub use unit::{Event, Kind, Nexus, Unit, UnitConfig};
