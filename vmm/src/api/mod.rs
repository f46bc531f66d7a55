//! The control API: HTTP and JSON on a Unix socket. `openapi.json` beside this file describes it and is served at
//! `/api/v1/openapi.json`.
//!
//! One thread answers; it calls [`Control`] and never touches the data path. The socket belongs to the user who started
//! the machine (mode 0600): whoever may connect may stop the machine.

mod server;
mod types;

pub use server::{ApiError, ApiServer};
pub use types::{
    BackEndInfo, Control, ControlError, DeviceInfo, LayerFormat, MachineState, MachineStatus, QueueInfo,
    SnapshotRequest,
};

/// The description of the API, OpenAPI 3.1.
pub const OPENAPI: &str = include_str!("openapi.json");
