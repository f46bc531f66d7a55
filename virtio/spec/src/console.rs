//! Console device. virtio 1.3 §5.3

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Feature bits. virtio 1.3 §5.3.3
pub mod feature {
    use crate::Features;

    /// The console's size is in `cols` and `rows`.
    pub const SIZE: Features = Features::bit(0);
    /// Several ports, and control queues.
    pub const MULTIPORT: Features = Features::bit(1);
    /// A character written to `emerg_wr` is output.
    pub const EMERG_WRITE: Features = Features::bit(2);
}

/// Port 0: host to guest. virtio 1.3 §5.3.2
pub const RECEIVE_QUEUE_0: u16 = 0;
/// Port 0: guest to host. virtio 1.3 §5.3.2
pub const TRANSMIT_QUEUE_0: u16 = 1;
/// Control messages to the driver, with MULTIPORT. virtio 1.3 §5.3.2
pub const CONTROL_RECEIVE_QUEUE: u16 = 2;
/// Control messages to the device, with MULTIPORT. virtio 1.3 §5.3.2
pub const CONTROL_TRANSMIT_QUEUE: u16 = 3;
/// Port 1's receive queue; two queues for each port from here on. virtio 1.3 §5.3.2
pub const RECEIVE_QUEUE_1: u16 = 4;

/// Device configuration. virtio 1.3 §5.3.4
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Config {
    /// Columns, with SIZE.
    pub cols: U16,
    /// Rows, with SIZE.
    pub rows: U16,
    /// Ports there can be, with MULTIPORT.
    pub max_nr_ports: U32,
    /// Write only, with EMERG_WRITE.
    pub emerg_wr: U32,
}

/// Bytes of [`Config`].
pub const CONFIG_SIZE: usize = size_of::<Config>();
/// Byte offset of `emerg_wr` in [`Config`].
pub const EMERG_WR_OFFSET: u32 = 8;

/// What each control message begins with (or is). virtio 1.3 §5.3.6.2
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Control {
    /// Port number.
    pub id: U32,
    /// One of [`event`].
    pub event: U16,
    /// Depends on the event.
    pub value: U16,
}

/// Bytes of [`Control`].
pub const CONTROL_SIZE: usize = size_of::<Control>();

/// Control events. virtio 1.3 §5.3.6.2
pub mod event {
    /// Driver: it is up (value 1) or failed (0).
    pub const DEVICE_READY: u16 = 0;
    /// Device: there is a port.
    pub const DEVICE_ADD: u16 = 1;
    /// Device: the port is gone.
    pub const DEVICE_REMOVE: u16 = 2;
    /// Driver: the port is ready (value 1) or failed (0).
    pub const PORT_READY: u16 = 3;
    /// Device: the port is a console.
    pub const CONSOLE_PORT: u16 = 4;
    /// Device: the console's new size; a [`super::Size`] follows.
    pub const RESIZE: u16 = 5;
    /// Both: the port was opened (value 1) or closed (0) by the sender's side.
    pub const PORT_OPEN: u16 = 6;
    /// Device: the port's name; UTF-8 text follows, without NUL.
    pub const PORT_NAME: u16 = 7;
}

/// What follows a RESIZE event. virtio 1.3 §5.3.6.2
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Size {
    /// Columns.
    pub cols: U16,
    /// Rows.
    pub rows: U16,
}
