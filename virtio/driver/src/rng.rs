use treaty_virtio_ring::Segment;
use treaty_virtio_spec::rng::REQUEST_QUEUE;
use treaty_virtio_spec::{DeviceId, Features};

use crate::negotiate::go;
use crate::{DmaMemory, DriverError, DriverOptions, Queue, QueueOptions, Transport, negotiate};

/// The driver of an entropy source. virtio 1.3 §5.4
pub struct Rng<T: Transport, D: DmaMemory> {
    transport: T,
    queue: Queue<T, D>,
    features: Features,
}

impl<T: Transport, D: DmaMemory> Rng<T, D> {
    /// Resets the device, negotiates and starts it.
    pub fn start(mut transport: T, dma: D, options: &DriverOptions) -> Result<Self, DriverError> {
        if transport.device_id() != DeviceId::RNG {
            return Err(DriverError::NotVirtio("not an entropy source"));
        }
        let features = negotiate(&mut transport, options.ring_features)?;
        let queue_options = QueueOptions {
            size: options.queue_size,
            max_chain: 1,
            vector: options.vector,
        };
        let queue = Queue::start(&mut transport, &dma, REQUEST_QUEUE, features, &queue_options)?;
        go(&mut transport)?;
        Ok(Self {
            transport,
            queue,
            features,
        })
    }

    /// What was negotiated.
    pub fn features(&self) -> Features {
        self.features
    }

    /// Asks for up to `buffer.len` random bytes. False if the queue is full.
    pub fn request(&mut self, buffer: Segment, token: u64) -> bool {
        self.queue.offer(&[], &[buffer], token).is_ok()
    }

    /// Takes back one buffer: its token and how many bytes are random, which is at most its length.
    pub fn reap(&mut self) -> Result<Option<(u64, u32)>, DriverError> {
        Ok(self.queue.reap()?.map(|used| (used.token, used.written)))
    }

    /// The queue, for notifying, arming and counting.
    pub fn queue(&mut self) -> &mut Queue<T, D> {
        &mut self.queue
    }

    /// The transport, for acknowledging interrupts.
    pub fn transport(&mut self) -> &mut T {
        &mut self.transport
    }

    /// Resets the device and gives the transport back.
    pub fn stop(mut self) -> Result<T, DriverError> {
        self.transport.set_status(0)?;
        Ok(self.transport)
    }
}
