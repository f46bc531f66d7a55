use core::mem::offset_of;

use treaty_virtio_spec::net::{Config, HEADER_SIZE, PLAIN_FRAME_SIZE, feature as net_feature};
use treaty_virtio_spec::{DeviceId, Features};

use crate::negotiate::go;
use crate::pool::{ReceivePool, TransmitPool};
use crate::{DmaMemory, DriverError, DriverOptions, Queue, QueueOptions, Transport, negotiate};

/// First receive and transmit queue. virtio 1.3 §5.1.2
const RECEIVE_QUEUE: u16 = 0;
const TRANSMIT_QUEUE: u16 = 1;

const HEADROOM: u32 = HEADER_SIZE as u32;
/// Header and frame, rounded up to a cache line.
const BUFFER: u32 = (HEADROOM + PLAIN_FRAME_SIZE as u32).next_multiple_of(64);

/// The driver of a network card, over its first pair of queues, without offloads. virtio 1.3 §5.1
pub struct Net<T: Transport, D: DmaMemory> {
    transport: T,
    features: Features,
    mac: [u8; 6],
    receive: ReceivePool<T, D>,
    transmit: TransmitPool<T, D>,
}

impl<T: Transport, D: DmaMemory> Net<T, D> {
    /// Resets the device, negotiates and starts it. All receive buffers are offered.
    pub fn start(mut transport: T, dma: D, options: &DriverOptions) -> Result<Self, DriverError> {
        if transport.device_id() != DeviceId::NET {
            return Err(DriverError::NotVirtio("not a network card"));
        }
        let features = negotiate(&mut transport, net_feature::MAC | options.ring_features)?;
        let mut mac = [0x02, 0, 0, 0, 0, 1];
        if features.has(net_feature::MAC) {
            transport.read_config(offset_of!(Config, mac), &mut mac)?;
        }
        let queue = QueueOptions {
            size: options.queue_size,
            max_chain: 1,
            vector: options.vector,
        };
        let mut receive = ReceivePool::start(&mut transport, &dma, RECEIVE_QUEUE, features, &queue, BUFFER)?;
        let room = (HEADROOM, BUFFER - HEADROOM);
        let transmit = TransmitPool::start(&mut transport, &dma, TRANSMIT_QUEUE, features, &queue, room)?;
        go(&mut transport)?;
        receive.queue().notify();
        Ok(Self {
            transport,
            features,
            mac,
            receive,
            transmit,
        })
    }

    /// What was negotiated.
    pub fn features(&self) -> Features {
        self.features
    }

    /// The card's address.
    pub fn mac(&self) -> [u8; 6] {
        self.mac
    }

    /// Queues a frame; the device sees it at the next [`notify`](Queue::notify) of the
    /// [`transmit_queue`](Self::transmit_queue). False if the queue is full.
    #[inline]
    pub fn send(&mut self, frame: &[u8]) -> Result<bool, DriverError> {
        self.transmit.send(frame)
    }

    /// Takes back the buffer of one frame that was sent; false if there is none.
    #[inline]
    pub fn reap_sent(&mut self) -> Result<bool, DriverError> {
        self.transmit.reap()
    }

    /// Copies one received frame to `frame`, as much as fits, and offers the buffer again; the device sees that at
    /// the next [`notify`](Queue::notify) of the [`receive_queue`](Self::receive_queue).
    #[inline]
    pub fn receive(&mut self, frame: &mut [u8]) -> Result<Option<usize>, DriverError> {
        self.receive.receive(HEADROOM, frame)
    }

    /// The transmit queue, for notifying, arming and counting.
    pub fn transmit_queue(&mut self) -> &mut Queue<T, D> {
        self.transmit.queue()
    }

    /// The receive queue.
    pub fn receive_queue(&mut self) -> &mut Queue<T, D> {
        self.receive.queue()
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
