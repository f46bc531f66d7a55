use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use treaty_listen::Listener;
use treaty_virtio_device::{DeviceEvents, EventSink, VirtioDevice};

use crate::notify::Events;
use crate::session::{Session, Stop, wait};

/// Where front-ends come from.
pub enum Endpoint {
    /// Listens; serves one front-end after the other.
    Listen(Listener),
    /// Connects to a front-end that listens, again and again.
    Connect(PathBuf),
    /// One connection that somebody else made.
    Connected(UnixStream),
}

/// Time between two tries to reach a front-end that listens.
const RETRY: Duration = Duration::from_millis(200);

/// Serves `device` until `stop` is stopped (every ring drained), or a [`Connected`](Endpoint::Connected) peer has gone.
///
/// A connection that ends in an error is logged and the next one is served: a front-end cannot take the device down.
pub fn serve(endpoint: Endpoint, device: &mut dyn VirtioDevice, stop: &Stop) -> io::Result<()> {
    serve_with(endpoint, device, stop, &Options::default())
}

/// What a back-end offers only if it is asked to.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Addresses may be translated by the guest's IOMMU (ACCESS_PLATFORM). There are front-ends that accept it and then send no
    /// translations.
    pub iommu: bool,
    /// Memory may arrive after the guest has started (PAGEFAULT). The front-end gets a descriptor by which it can write to this
    /// process and hold its threads: for front-ends that are trusted.
    pub postcopy: bool,
}

/// As [`serve`], with options.
///
/// # Errors
/// If nobody can be waited for.
pub fn serve_with(
    endpoint: Endpoint,
    device: &mut dyn VirtioDevice,
    stop: &Stop,
    options: &Options,
) -> io::Result<()> {
    let events = Arc::new(Events::default());
    device.attach(DeviceEvents::new(events.clone() as Arc<dyn EventSink>));
    let mut one = |stream: UnixStream| {
        tracing::info!("front-end connected");
        let session = Session::new(stream, device, events.clone(), options);
        match session.and_then(|session| session.serve(stop)) {
            Ok(()) => tracing::info!("front-end gone"),
            Err(error) => tracing::error!(%error, "connection closed"),
        }
    };
    match endpoint {
        Endpoint::Connected(stream) => one(stream),
        Endpoint::Listen(listener) => {
            while wait([(listener.socket().as_raw_fd(), libc::POLLIN)], stop.fd(), None)? {
                match listener.socket().accept() {
                    Ok((stream, _)) => one(stream),
                    Err(error) => {
                        tracing::error!(%error, "cannot take a connection");
                        // Stopped meanwhile: the loop's condition sees it.
                        let _ = stop.sleep(RETRY);
                    }
                }
            }
        }
        Endpoint::Connect(path) => {
            while !stop.is_stopped() {
                match UnixStream::connect(&path) {
                    Ok(stream) => one(stream),
                    // Stopped meanwhile: the loop's condition sees it.
                    Err(_) => drop(stop.sleep(RETRY)),
                }
            }
        }
    }
    Ok(())
}
