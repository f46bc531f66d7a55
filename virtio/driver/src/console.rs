use treaty_virtio_spec::console::{RECEIVE_QUEUE_0, TRANSMIT_QUEUE_0};
use treaty_virtio_spec::{DeviceId, Features};

use crate::negotiate::go;
use crate::pool::{ReceivePool, TransmitPool};
use crate::{DmaMemory, DriverError, DriverOptions, Queue, QueueOptions, Transport, negotiate};

/// Bytes of one buffer.
const BUFFER: u32 = 256;

/// The driver of a console's port 0. virtio 1.3 §5.3
pub struct Console<T: Transport, D: DmaMemory> {
    transport: T,
    features: Features,
    receive: ReceivePool<T, D>,
    transmit: TransmitPool<T, D>,
}

impl<T: Transport, D: DmaMemory> Console<T, D> {
    /// Resets the device, negotiates (without MULTIPORT) and starts it. All receive buffers are offered.
    pub fn start(mut transport: T, dma: D, options: &DriverOptions) -> Result<Self, DriverError> {
        if transport.device_id() != DeviceId::CONSOLE {
            return Err(DriverError::NotVirtio("not a console"));
        }
        let features = negotiate(&mut transport, options.ring_features)?;
        let queue = QueueOptions {
            size: options.queue_size,
            max_chain: 1,
            vector: options.vector,
        };
        let mut receive =
            ReceivePool::start(&mut transport, &dma, RECEIVE_QUEUE_0, features, &queue, BUFFER)?;
        let transmit = TransmitPool::start(
            &mut transport,
            &dma,
            TRANSMIT_QUEUE_0,
            features,
            &queue,
            (0, BUFFER),
        )?;
        go(&mut transport)?;
        receive.queue().notify();
        Ok(Self {
            transport,
            features,
            receive,
            transmit,
        })
    }

    /// What was negotiated.
    pub fn features(&self) -> Features {
        self.features
    }

    /// Queues up to 256 bytes of output; the device sees them at the next [`notify`](Queue::notify) of the
    /// [`transmit_queue`](Self::transmit_queue). False if the queue is full.
    pub fn write(&mut self, bytes: &[u8]) -> Result<bool, DriverError> {
        self.transmit.send(bytes)
    }

    /// Takes back one buffer that was output; false if there is none.
    pub fn reap_written(&mut self) -> Result<bool, DriverError> {
        self.transmit.reap()
    }

    /// Copies one buffer of input to `bytes`, as much as fits.
    pub fn read(&mut self, bytes: &mut [u8]) -> Result<Option<usize>, DriverError> {
        let got = self.receive.receive(0, bytes)?;
        if got.is_some() {
            self.receive.queue().notify();
        }
        Ok(got)
    }

    /// The transmit queue, for notifying, arming and counting.
    pub fn transmit_queue(&mut self) -> &mut Queue<T, D> {
        self.transmit.queue()
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
