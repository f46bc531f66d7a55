//! A back-end in memory: copies what it is sent, and brings frames as they are supplied.
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use treaty_buffers::IoBuffers;
use treaty_net::{
    BackendError, Capabilities, Offloads, PacketBackend, PacketReceiver, PacketSender, Received, Sent,
};
use treaty_virtio_spec::net::Header;

#[derive(Clone)]
pub struct Host {
    capabilities: Capabilities,
    frame: usize,
    supply: Arc<AtomicU64>,
}

impl Host {
    pub fn new(frame: usize) -> Self {
        Self {
            capabilities: Capabilities {
                send: Offloads::ALL,
                receive: Offloads::ALL,
                max_pairs: 1,
                mtu: None,
            },
            frame,
            supply: Arc::default(),
        }
    }

    /// Lets that many frames arrive.
    pub fn supply(&self, frames: u64) {
        self.supply.fetch_add(frames, Ordering::SeqCst);
    }
}

impl PacketBackend for Host {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }
    fn set_receive_offloads(&mut self, _: Offloads) -> Result<(), BackendError> {
        Ok(())
    }
    fn set_pairs(&mut self, _: u16) -> Result<(), BackendError> {
        Ok(())
    }
    fn sender(&mut self, _: u16) -> Result<Box<dyn PacketSender>, BackendError> {
        Ok(Box::new(End {
            frame: vec![0; self.frame],
            supply: self.supply.clone(),
        }))
    }
    fn receiver(&mut self, _: u16) -> Result<Box<dyn PacketReceiver>, BackendError> {
        Ok(Box::new(End {
            frame: vec![0x5a; self.frame],
            supply: self.supply.clone(),
        }))
    }
}

struct End {
    frame: Vec<u8>,
    supply: Arc<AtomicU64>,
}

impl PacketSender for End {
    fn send(&mut self, _: &Header, frame: &IoBuffers) -> Sent {
        frame.copy_to(&mut self.frame);
        Sent::Taken
    }
    fn output_fd(&self) -> Option<RawFd> {
        None
    }
}

impl PacketReceiver for End {
    fn receive(&mut self, frame: &mut [u8]) -> Received {
        let supply = self.supply.load(Ordering::Relaxed);
        let Some(part) = frame.get_mut(..self.frame.len()).filter(|_| supply > 0) else {
            return Received::Nothing;
        };
        self.supply.fetch_sub(1, Ordering::Relaxed);
        part.copy_from_slice(&self.frame);
        Received::Frame {
            header: Header::default(),
            len: part.len(),
        }
    }
    /// The test rings the queue's doorbell instead.
    fn input_fd(&self) -> Option<RawFd> {
        None
    }
}
