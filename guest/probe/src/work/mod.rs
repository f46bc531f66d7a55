//! The workloads: one file for each kind of device.

mod blk;
mod console;
pub mod emulated;
mod net;
mod rng;

use core::fmt;

use treaty_virtio_driver::{DriverError, DriverOptions, RING_FEATURES, Transport};
use treaty_virtio_spec::{DeviceId, Features, feature};

use crate::clock::Clock;
use crate::dma::Arena;
use crate::interrupts;
use crate::measure::{Case, Failure, Mode};
use crate::params::{Load, Params, Work};
use crate::say;
use crate::window::Window;

/// What every workload needs to know.
pub struct Context<'a> {
    /// The command line.
    pub params: &'a Params,
    /// The clock.
    pub clock: &'a Clock,
    /// Where the device is.
    pub place: &'a dyn fmt::Display,
    /// How completions are awaited.
    pub mode: Mode,
    /// How the driver is started.
    pub options: DriverOptions,
}

impl<'a> Context<'a> {
    fn case(&self, name: &'a str, features: Features, load: Load) -> Case<'a> {
        Case {
            name,
            place: self.place,
            mode: self.mode,
            virtio: true,
            features,
            load,
        }
    }
}

/// What became of one device's workloads.
#[derive(Default)]
pub struct Tally {
    /// Workloads that ran and whose data were right.
    pub passed: u32,
    /// Workloads that failed.
    pub failed: u32,
}

/// A place where a device is, as the report names it.
pub trait Place: fmt::Display {
    /// False if nobody knows which interrupt is the device's: it can only be polled.
    fn has_interrupt(&self) -> bool;
}

/// Runs every workload for the device that `open` opens, in every mode and layout that was asked for. `open` gets the
/// mode, because MSI-X is set up with the transport.
pub fn run_device<T: Transport<Registers = Window>>(
    params: &Params,
    clock: &Clock,
    place: &impl Place,
    mut open: impl FnMut(Mode) -> Result<T, DriverError>,
    tally: &mut Tally,
) {
    let (id, offered) =
        match open(Mode::Polled).map(|mut transport| (transport.device_id(), transport.features())) {
            Ok(found) => found,
            Err(error) => return fail(place, "open", &Failure::Driver(error), tally),
        };
    say!(
        "PROBE {{\"device\":\"{place}\",\"kind\":\"{}\",\"offers\":\"{:#x}\"}}",
        id.name(),
        offered.0
    );
    let modes = [
        (params.modes.0, Mode::Polled),
        (params.modes.1 && place.has_interrupt(), Mode::Interrupt),
    ];
    if params.modes.1 && !place.has_interrupt() {
        say!(
            "PROBE {{\"device\":\"{place}\",\"skipped\":\"interrupt mode: unknown interrupt, see mmio= and virtio_mmio.device=\"}}"
        );
    }
    let packed = offered.has(feature::RING_PACKED);
    let rings = [
        (params.rings.0, Features::NONE),
        (params.rings.1 && packed, feature::RING_PACKED),
    ];
    for (_, mode) in modes.into_iter().filter(|mode| mode.0) {
        for (_, ring) in rings.into_iter().filter(|ring| ring.0) {
            let plain = RING_FEATURES.without(feature::RING_PACKED);
            let options = DriverOptions {
                ring_features: ring | plain.without(params.refused),
                queue_size: params.queue_size,
                vector: (mode == Mode::Interrupt).then_some(0),
            };
            let context = Context {
                params,
                clock,
                place,
                mode,
                options,
            };
            for work in params.work.iter().filter(|work| device_of(**work) == Some(id)) {
                Arena.clear();
                let interrupting = mode == Mode::Interrupt;
                if interrupting {
                    interrupts::start();
                }
                let result = open(mode)
                    .map_err(Failure::from)
                    .and_then(|transport| dispatch(&context, *work, transport));
                if interrupting {
                    interrupts::stop();
                }
                match result {
                    Ok(()) => tally.passed += 1,
                    Err(failure) => {
                        fail(place, name_of(*work), &failure, tally);
                        // Its requests may still be under way: the arena must not be used again before a reset.
                        if open(Mode::Polled)
                            .and_then(|mut device| device.set_status(0))
                            .is_err()
                        {
                            return;
                        }
                    }
                }
            }
        }
    }
}

fn fail(place: &dyn fmt::Display, what: &str, failure: &Failure, tally: &mut Tally) {
    tally.failed += 1;
    say!("PROBE {{\"workload\":\"{what}\",\"device\":\"{place}\",\"error\":\"{failure}\"}}");
}

fn device_of(work: Work) -> Option<DeviceId> {
    Some(match work {
        Work::BlkRead(..) | Work::BlkWrite(..) => DeviceId::BLK,
        Work::Net(..) => DeviceId::NET,
        Work::Rng(_) => DeviceId::RNG,
        Work::Console(_) => DeviceId::CONSOLE,
        Work::E1000(_) | Work::IdeRead(_) | Work::IdeWrite(_) => return None,
    })
}

fn name_of(work: Work) -> &'static str {
    match work {
        Work::BlkRead(..) => "blk-read",
        Work::BlkWrite(..) => "blk-write",
        Work::Net(..) => "net-tx",
        Work::E1000(_) => "e1000-tx",
        Work::IdeRead(_) => "ide-read",
        Work::IdeWrite(_) => "ide-write",
        Work::Rng(_) => "rng",
        Work::Console(_) => "console",
    }
}

fn dispatch<T: Transport<Registers = Window>>(
    context: &Context<'_>,
    work: Work,
    transport: T,
) -> Result<(), Failure> {
    match work {
        Work::BlkRead(load) => blk::run(context, transport, load, false),
        Work::BlkWrite(load) => blk::run(context, transport, load, true),
        Work::Net(load) => net::run(context, transport, load),
        Work::Rng(bytes) => rng::run(context, transport, bytes),
        Work::Console(lines) => console::run(context, transport, lines),
        // Not virtio: never asked for here.
        Work::E1000(_) | Work::IdeRead(_) | Work::IdeWrite(_) => Ok(()),
    }
}
