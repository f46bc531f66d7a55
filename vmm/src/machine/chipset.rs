use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use treaty_bus::BusDevice;
use treaty_chipset::{DebugConsole, I8042, PM_LEN, PostCode, PowerManagement, Rtc, Uart};

use super::BuildError;
use super::build::Build;
use crate::guard::Guarded;
use crate::layout;

/// The power button's side of it.
pub(crate) type Power = Arc<Mutex<Guarded<PowerManagement>>>;

/// Adds the devices that every machine has; returns where the power button is.
pub(super) fn add(build: &mut Build<'_>) -> Result<Power, BuildError> {
    let life = build.host.life.clone();
    add_ports(build, "RTC", layout::RTC_PORTS, clock(build))?;
    add_ports(build, "port 80", layout::POST_CODE_PORTS, PostCode::default())?;
    add_ports(
        build,
        "debug console",
        layout::DEBUG_CONSOLE_PORTS,
        DebugConsole::default(),
    )?;
    add_ports(build, "i8042", layout::I8042_PORTS, I8042::new(life.clone()))?;
    let sci = build.vm.level_line(layout::SCI_GSI);
    let power = PowerManagement::new(life, Box::new(move |level| sci.set(level)));
    let power = Arc::new(Mutex::new(Guarded::new("power management", power)));
    build
        .ports
        .register(layout::PM_START..layout::PM_START + PM_LEN, power.clone())?;
    add_com1(build)?;
    Ok(power)
}

pub(super) fn add_ports(
    build: &mut Build<'_>,
    name: &str,
    ports: Range<u64>,
    device: impl BusDevice + 'static,
) -> Result<(), BuildError> {
    Ok(build
        .ports
        .register(ports, Arc::new(Mutex::new(Guarded::new(name, device))))?)
}

/// The clock; its memory tells firmware of the machine.
fn clock(build: &Build<'_>) -> Rtc {
    let mut clock = Rtc::new(Box::new(unix_now_s));
    let ram = layout::ram(build.plan.memory.bytes());
    let bytes = |index: usize| ram.get(index).map_or(0, |(_, len)| *len);
    clock.set_machine(bytes(0), bytes(1), build.plan.cpus);
    clock
}

fn add_com1(build: &mut Build<'_>) -> Result<(), BuildError> {
    let line = build.vm.edge_line(layout::COM1_GSI)?;
    let serial = &build.host.serial;
    let uart = Uart::new(serial.output(), Box::new(move || line.pulse()));
    let uart = Arc::new(Mutex::new(Guarded::new("COM1", uart)));
    serial.connect(&uart);
    Ok(build.ports.register(layout::COM1_PORTS, uart)?)
}

fn unix_now_s() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_secs()).unwrap_or(i64::MAX)
}
