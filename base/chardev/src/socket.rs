use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A Unix socket that one client at a time may connect to; the next one waits in the backlog until the first has left.
pub(crate) struct Socket {
    listener: UnixListener,
    path: PathBuf,
    client: Mutex<Option<UnixStream>>,
}

impl Socket {
    /// Listens. A socket file that nobody listens on is replaced.
    pub(crate) fn listen(path: &Path) -> io::Result<Self> {
        let listener = match UnixListener::bind(path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_stale(path) => {
                std::fs::remove_file(path)?;
                UnixListener::bind(path)?
            }
            other => other?,
        };
        listener.set_nonblocking(true)?;
        Ok(Self {
            listener,
            path: path.to_owned(),
            client: Mutex::new(None),
        })
    }

    fn client(&self) -> MutexGuard<'_, Option<UnixStream>> {
        self.client.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn connected(&self) -> bool {
        self.client().is_some()
    }

    /// The client, or who waits for one. It changes only in [`read`](Self::read): the reader polls it.
    pub(crate) fn input_fd(&self) -> RawFd {
        self.client()
            .as_ref()
            .map_or(self.listener.as_raw_fd(), AsRawFd::as_raw_fd)
    }

    pub(crate) fn output_fd(&self) -> Option<RawFd> {
        self.client().as_ref().map(AsRawFd::as_raw_fd)
    }

    /// Accepts a client if there is none; lets go of one that has left (the next call finds the next one).
    pub(crate) fn read(&self, dst: &mut [u8]) -> io::Result<usize> {
        let mut client = self.client();
        if client.is_none() {
            let (stream, _) = self.listener.accept()?;
            stream.set_nonblocking(true)?;
            *client = Some(stream);
        }
        let result = client.as_mut().map_or(Ok(0), |stream| stream.read(dst));
        match result {
            Ok(0) if !dst.is_empty() => {
                *client = None;
                Err(io::ErrorKind::WouldBlock.into())
            }
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                *client = None;
                Err(io::ErrorKind::WouldBlock.into())
            }
            other => other,
        }
    }

    /// A client that fails is shut down, not closed: the reader may be polling its descriptor, and will notice.
    pub(crate) fn write(&self, src: &[u8]) -> io::Result<usize> {
        let mut client = self.client();
        let Some(stream) = client.as_mut() else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        stream.write(src).inspect_err(|error| {
            if error.kind() != io::ErrorKind::WouldBlock {
                // It fails only when the connection is gone already.
                let _ = stream.shutdown(Shutdown::Both);
            }
        })
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Somebody may have removed it already.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn is_stale(path: &Path) -> bool {
    UnixStream::connect(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}
