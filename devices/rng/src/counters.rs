treaty_virtio_device::counters! {
    /// What the request queue counts.
    pub struct RngCounters {
        /// Random bytes given to the driver.
        bytes,
        /// Chains without a writable byte, or with one outside guest memory.
        bad_chains,
        /// Reads of the source file that failed, or met its end.
        source_failures,
        /// Times the rate limit made the queue wait.
        throttled,
    }
}
