use std::sync::Arc;

use treaty_pci::{IoAddress, IoEvents};
use treaty_virtio_device::Doorbell;

/// Where one doorbell listens.
#[derive(Clone)]
pub(crate) struct Place {
    pub address: IoAddress,
    pub datamatch: Option<u32>,
    pub doorbell: Doorbell,
}

/// The ioeventfds of one device. Where one cannot be had, notifications arrive as register writes instead.
pub(crate) struct Notifier {
    io: Arc<dyn IoEvents>,
    places: Vec<Place>,
}

impl Notifier {
    pub fn new(io: Arc<dyn IoEvents>) -> Self {
        let places = Vec::new();
        Self { io, places }
    }

    /// Moves all of them to `places`.
    pub fn place(&mut self, places: Vec<Place>) {
        self.clear();
        for place in places {
            match self
                .io
                .register(place.address, place.datamatch, place.doorbell.fd())
            {
                Ok(()) => self.places.push(place),
                Err(error) => tracing::debug!(address = ?place.address, %error, "no ioeventfd"),
            }
        }
    }

    fn clear(&mut self) {
        for place in self.places.drain(..) {
            self.io
                .unregister(place.address, place.datamatch, place.doorbell.fd());
        }
    }
}

impl Drop for Notifier {
    fn drop(&mut self) {
        self.clear();
    }
}
