treaty_virtio_device::counters! {
    /// What each queue counts.
    pub struct BlkCounters {
        /// Read requests that succeeded.
        reads,
        /// Write requests that succeeded.
        writes,
        /// Flush requests that succeeded.
        flushes,
        /// Discard requests that succeeded.
        discards,
        /// Write zeroes requests that succeeded.
        write_zeroes,
        /// Requests for the ID string.
        get_ids,
        /// Bytes read by successful requests.
        read_bytes,
        /// Bytes written by successful requests.
        written_bytes,
        /// Requests answered IOERR.
        failed,
        /// Requests answered UNSUPP.
        unsupported,
        /// Operations that the storage or the host failed.
        host_errors,
        /// Chains given back without a status: they had no writable byte, or their last one is outside guest memory.
        without_status,
        /// Times that a queue stopped fetching because too much was in flight.
        caps_reached,
    }
}
