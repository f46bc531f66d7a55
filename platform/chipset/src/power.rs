/// What a guest asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerRequest {
    /// Start again from the beginning.
    Reset,
    /// Switch off.
    Off,
}

/// Who carries it out. Called on a vCPU thread with the device's lock held: it takes note and returns.
pub trait PowerControl: Send + Sync {
    /// Takes note of the request; the first one counts.
    fn request(&self, request: PowerRequest);
}
