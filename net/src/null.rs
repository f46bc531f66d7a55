use std::os::fd::RawFd;

use treaty_buffers::IoBuffers;
use treaty_virtio_spec::net::Header;

use crate::{
    BackendError, Capabilities, Offloads, PacketBackend, PacketReceiver, PacketSender, Received, Sent,
};

/// Takes everything and brings nothing: for measuring what is above it.
pub struct Null(Capabilities);

impl Null {
    /// With that many pairs and all offloads.
    pub fn new(pairs: u16) -> Self {
        Self(Capabilities {
            send: Offloads::ALL,
            receive: Offloads::ALL,
            max_pairs: pairs.max(1),
            mtu: None,
        })
    }
}

impl PacketBackend for Null {
    fn capabilities(&self) -> &Capabilities {
        &self.0
    }

    fn set_receive_offloads(&mut self, _: Offloads) -> Result<(), BackendError> {
        Ok(())
    }

    fn set_pairs(&mut self, _: u16) -> Result<(), BackendError> {
        Ok(())
    }

    fn sender(&mut self, _: u16) -> Result<Box<dyn PacketSender>, BackendError> {
        Ok(Box::new(Nowhere))
    }

    fn receiver(&mut self, _: u16) -> Result<Box<dyn PacketReceiver>, BackendError> {
        Ok(Box::new(Nowhere))
    }
}

struct Nowhere;

impl PacketSender for Nowhere {
    fn send(&mut self, _: &Header, _: &IoBuffers) -> Sent {
        Sent::Taken
    }

    fn output_fd(&self) -> Option<RawFd> {
        None
    }
}

impl PacketReceiver for Nowhere {
    fn receive(&mut self, _: &mut [u8]) -> Received {
        Received::Nothing
    }

    fn input_fd(&self) -> Option<RawFd> {
        None
    }
}
