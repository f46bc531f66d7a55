treaty_virtio_device::counters! {
    /// What a receive queue counts.
    pub struct ReceiveCounters {
        /// Frames given to the driver.
        packets,
        /// Their bytes, without headers.
        bytes,
        /// Frames that the receive filter kept away.
        filtered,
        /// Frames that the host lost or cut.
        lost,
        /// Frames that need an offload which the driver did not accept, or exceed the MTU.
        unwanted,
        /// Frames that found no room in the buffers that a packet may have.
        too_long,
        /// Times a frame had to wait for the driver's buffers.
        waits,
        /// Chains too small for a header, or outside guest memory.
        bad_chains,
    }
}

treaty_virtio_device::counters! {
    /// What a transmit queue counts.
    pub struct TransmitCounters {
        /// Frames that the back-end took.
        packets,
        /// Their bytes, without headers.
        bytes,
        /// Frames that the back-end refused, or that waited for room when the queue had to stop.
        dropped,
        /// Times a frame had to wait for the back-end.
        waits,
        /// Headers that contradict the frame or the accepted features.
        bad_headers,
        /// Chains without a whole header and frame, too long, or outside guest memory.
        bad_chains,
    }
}

treaty_virtio_device::counters! {
    /// What the control queue counts.
    pub struct ControlCounters {
        /// Commands done.
        commands,
        /// Commands answered with an error.
        refused,
        /// Chains without room for the answer, or outside guest memory.
        bad_chains,
    }
}
