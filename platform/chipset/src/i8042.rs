use std::sync::Arc;

use treaty_bus::{Access, BusDevice};

use crate::{PowerControl, PowerRequest};

const STATUS_AND_COMMAND: u64 = 4;
const PULSE_RESET: u8 = 0xfe;

/// A keyboard controller with nothing plugged in, whose reset line works. Registers at 0 (data) and 4 (status and command).
pub struct I8042 {
    power: Arc<dyn PowerControl>,
}

impl I8042 {
    /// Resets through `power`.
    pub fn new(power: Arc<dyn PowerControl>) -> Self {
        Self { power }
    }
}

impl BusDevice for I8042 {
    /// Zero everywhere: both buffers are empty, so nobody waits for one.
    fn read(&mut self, _offset: u64, _data: &mut [u8]) -> Access {
        Access::Done
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Access {
        if offset == STATUS_AND_COMMAND && data == [PULSE_RESET] {
            self.power.request(PowerRequest::Reset);
        }
        Access::Done
    }
}
