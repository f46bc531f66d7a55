//! Rigs that drive our devices in process, and the suite that every device passes on every rig.
//!
//! Owns: the rigs ([`rig`]), a driver over them ([`Driver`]), the conformance suite ([`conform`]), a device to test rigs
//! with ([`Echo`]), the independent drivers of the `virtio-drivers` crate over our rigs ([`peer`]), our own ([`ours`]),
//! network namespaces ([`netns`]), how long a long test is ([`scale`]), a vhost-user front-end of single messages ([`wire`]).
//! Must not know: device types. A device's own tests depend on this crate, never the other way round, and production code
//! never does.
//!
//! # A device under the suite
//! In `devices/NAME/tests/conformance.rs`, with `treaty-testkit` and `treaty-worker` as dev-dependencies:
//! ```ignore
//! struct RngSubject;
//!
//! impl Subject for RngSubject {
//!     fn name(&self) -> &'static str { "rng" }
//!     fn device(&mut self, worker: &WorkerHandle) -> Box<dyn VirtioDevice> {
//!         Box::new(Rng::new(RngConfig::default(), worker.clone()))
//!     }
//!     fn queues(&self, _accepted: Features) -> Vec<u16> { vec![0] }
//!     fn io(&mut self, driver: &mut Driver, _round: u64) {
//!         let done = driver.transfer(0, &[], &[16]);   // one chain: no readable bytes, 16 writable ones
//!         assert_eq!(done.written, 16);
//!     }
//!     fn begin(&mut self, driver: &mut Driver) -> Vec<Token> {
//!         let tokens = vec![driver.offer(0, &[], &[16])];
//!         driver.kick(0);
//!         tokens
//!     }
//! }
//!
//! #[test]
//! fn conforms() { conform(&mut RngSubject); }
//! ```
//! The suite runs {direct, mmio, pci with MSI-X and ioeventfds, pci with INTx and without} x {split, packed} x {event_idx} x {indirect} x
//! {in_order}: start, stop, stop again, reset, reset with I/O in flight, restart, save, restore, sparse queues, violation, queue reset.
//! Completions are waited for by interrupt, so a lost one fails the test.

mod conformance;
mod driver;
mod echo;
pub mod holdings;
pub mod host;
mod memory;
pub mod netns;
pub mod ours;
pub mod peer;
pub mod random;
pub mod rig;
mod scale;
mod subject;
pub mod wire;

pub use conformance::{conform, conform_on};
pub use driver::{Done, Driver, Token, WAIT_LIMIT};
pub use echo::{Echo, EchoSubject, INVERT, NEEDS_INVERT, PANIC};
pub use memory::{Allocator, MEMORY_LEN, guest_memory};
pub use scale::scale;
pub use subject::Subject;
