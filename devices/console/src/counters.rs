treaty_virtio_device::counters! {
    /// What one queue of a port counts.
    pub struct PortCounters {
        /// Bytes carried.
        bytes,
        /// Output bytes given up because the host took none when the queue had to stop.
        abandoned_bytes,
        /// Chains of the wrong direction, or outside guest memory.
        bad_chains,
    }
}

treaty_virtio_device::counters! {
    /// What one control queue counts.
    pub struct ControlCounters {
        /// Messages carried.
        messages,
        /// Messages of the driver that mean nothing: unknown event or port, too short.
        ignored,
        /// Chains of the wrong direction, too short for the message, or outside guest memory.
        bad_chains,
    }
}
