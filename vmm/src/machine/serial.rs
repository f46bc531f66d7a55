use std::sync::{Arc, Mutex, PoisonError, Weak};

use treaty_catalog::{CharContext, open_char};
use treaty_chardev::{Chardev, Pump};
use treaty_chipset::Uart;

use super::BuildError;
use crate::guard::Guarded;
use crate::plan::CharTarget;

type Com1 = Mutex<Guarded<Uart>>;

/// COM1's other end. It stays while the guest reboots: a terminal keeps its mode, a socket its client.
pub(crate) struct SerialEndpoint {
    chardev: Chardev,
    /// The UART of the current boot.
    uart: Arc<Mutex<Weak<Com1>>>,
    pump: Arc<Pump>,
}

impl SerialEndpoint {
    pub(crate) fn open(target: &CharTarget, context: &CharContext) -> Result<Self, BuildError> {
        let chardev = open_char("serial", target, context).map_err(BuildError::Serial)?;
        let uart: Arc<Mutex<Weak<Com1>>> = Arc::default();
        let current = uart.clone();
        let pump = Pump::start("com1", chardev.clone(), move |bytes| receive(&current, bytes)).map_err(
            |source| BuildError::Thread {
                what: "the input of COM1",
                source,
            },
        )?;
        Ok(Self {
            chardev,
            uart,
            pump: Arc::new(pump),
        })
    }

    pub(super) fn output(&self) -> Chardev {
        self.chardev.clone()
    }

    /// From now on input goes to this UART.
    pub(super) fn connect(&self, uart: &Arc<Com1>) {
        let pump = self.pump.clone();
        lock(uart).device_mut().notify_room(Box::new(move || pump.wake()));
        *lock(&self.uart) = Arc::downgrade(uart);
        self.pump.wake();
    }
}

/// What no UART is there for waits in the endpoint.
fn receive(uart: &Mutex<Weak<Com1>>, bytes: &[u8]) -> usize {
    let uart = lock(uart).upgrade();
    uart.map_or(0, |uart| lock(&uart).device_mut().receive(bytes))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
