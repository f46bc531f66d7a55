use std::sync::Arc;

use treaty_bus::{Access, BusDevice};

use crate::{PowerControl, PowerRequest};

const FAST_RESET: u8 = 1;
const A20_GATE: u8 = 1 << 1;

/// Port 0x92: a fast reset, and the gate of address line 20, which is kept and means nothing: the line is always open.
pub struct SystemControl {
    value: u8,
    power: Arc<dyn PowerControl>,
}

impl SystemControl {
    /// Resets through `power`.
    pub fn new(power: Arc<dyn PowerControl>) -> Self {
        Self {
            value: A20_GATE,
            power,
        }
    }
}

impl BusDevice for SystemControl {
    fn read(&mut self, _offset: u64, data: &mut [u8]) -> Access {
        data.fill(self.value);
        Access::Done
    }

    fn write(&mut self, _offset: u64, data: &[u8]) -> Access {
        let [value] = data else { return Access::Fault };
        if value & FAST_RESET != 0 {
            self.power.request(PowerRequest::Reset);
        }
        self.value = value & A20_GATE;
        Access::Done
    }
}
