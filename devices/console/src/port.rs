use std::io;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use treaty_chardev::Chardev;
use treaty_virtio_device::Doorbell;

use crate::{ConsoleConfig, WindowSize};

/// What the queues of one console device share. The data path touches only the atomics.
pub(crate) struct Shared {
    pub(crate) ports: Vec<Port>,
    /// Rung when a control message for the driver is due.
    pub(crate) control: Doorbell,
    cols: AtomicU16,
    rows: AtomicU16,
}

/// One port.
pub(crate) struct Port {
    pub(crate) chardev: Chardev,
    pub(crate) console: bool,
    pub(crate) name: Option<String>,
    /// Rung when the receive queue should look again.
    pub(crate) wake: Doorbell,
    guest_open: AtomicBool,
    host_open: AtomicBool,
    due: AtomicU32,
    /// Input that a stopped receive queue had read and not delivered.
    leftover: Mutex<Vec<u8>>,
}

/// Control messages due to the driver, one bit each: however often something changes, a port owes each at most once.
/// They are sent lowest bit first.
pub(crate) mod due {
    /// DEVICE_ADD
    pub(crate) const ADD: u32 = 1;
    /// CONSOLE_PORT
    pub(crate) const CONSOLE: u32 = 1 << 1;
    /// RESIZE
    pub(crate) const RESIZE: u32 = 1 << 2;
    /// PORT_NAME
    pub(crate) const NAME: u32 = 1 << 3;
    /// PORT_OPEN, with the state at the time of sending
    pub(crate) const OPEN: u32 = 1 << 4;
    /// The number of bits.
    pub(crate) const BITS: u32 = 5;
}

impl Shared {
    pub(crate) fn new(config: ConsoleConfig) -> io::Result<Self> {
        let size = config.size.unwrap_or(WindowSize { cols: 0, rows: 0 });
        let make = |port: crate::PortConfig| {
            Ok(Port {
                host_open: AtomicBool::new(port.chardev.connected()),
                chardev: port.chardev,
                console: port.console,
                name: port.name,
                wake: Doorbell::new()?,
                guest_open: AtomicBool::new(false),
                due: AtomicU32::new(0),
                leftover: Mutex::new(Vec::new()),
            })
        };
        Ok(Self {
            ports: config.ports.into_iter().map(make).collect::<io::Result<_>>()?,
            control: Doorbell::new()?,
            cols: AtomicU16::new(size.cols),
            rows: AtomicU16::new(size.rows),
        })
    }

    pub(crate) fn size(&self) -> WindowSize {
        WindowSize {
            cols: self.cols.load(Ordering::Relaxed),
            rows: self.rows.load(Ordering::Relaxed),
        }
    }

    pub(crate) fn set_size(&self, size: WindowSize) {
        self.cols.store(size.cols, Ordering::Relaxed);
        self.rows.store(size.rows, Ordering::Relaxed);
    }

    /// Notes messages for the driver and tells the control queue.
    pub(crate) fn owe(&self, port: &Port, bits: u32) {
        port.due.fetch_or(bits, Ordering::Release);
        self.control.ring();
    }

    /// Tells the driver if the host's side of a port has come or gone since the last call.
    pub(crate) fn check_host_side(&self, port: &Port) {
        let now = port.chardev.connected();
        if port.host_open.swap(now, Ordering::Relaxed) != now {
            self.owe(port, due::OPEN);
        }
    }
}

impl Port {
    pub(crate) fn due(&self) -> u32 {
        self.due.load(Ordering::Acquire)
    }

    pub(crate) fn settle(&self, bits: u32) {
        self.due.fetch_and(!bits, Ordering::AcqRel);
    }

    pub(crate) fn host_open(&self) -> bool {
        self.host_open.load(Ordering::Relaxed)
    }

    pub(crate) fn guest_open(&self) -> bool {
        self.guest_open.load(Ordering::Acquire)
    }

    /// The driver opened or closed the port: input flows, or waits.
    pub(crate) fn set_guest_open(&self, open: bool) {
        self.guest_open.store(open, Ordering::Release);
        self.wake.ring();
    }

    /// Input kept from the receive queue's last run.
    pub(crate) fn take_leftover(&self) -> Vec<u8> {
        std::mem::take(&mut *self.leftover.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn leftover(&self) -> Vec<u8> {
        self.leftover
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(crate) fn keep_leftover(&self, bytes: Vec<u8>) {
        *self.leftover.lock().unwrap_or_else(PoisonError::into_inner) = bytes;
    }

    /// Back to power-on state.
    pub(crate) fn reset(&self) {
        self.guest_open.store(false, Ordering::Release);
        self.due.store(0, Ordering::Release);
        self.keep_leftover(Vec::new());
    }
}
