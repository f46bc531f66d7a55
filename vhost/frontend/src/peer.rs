use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use treaty_listen::Listener;

use crate::BackendError;

/// Where the back-end is.
pub enum Peer {
    /// It listens here.
    Connect(PathBuf),
    /// It connects to this socket of ours.
    Listen(PathBuf, Listener),
}

impl Peer {
    /// Listens on `path` for the back-end.
    pub fn listen(path: &Path) -> Result<Self, BackendError> {
        let listener = Listener::bind(path)?;
        Ok(Self::Listen(path.into(), listener))
    }

    /// The socket's path.
    pub fn path(&self) -> &Path {
        match self {
            Self::Connect(path) | Self::Listen(path, _) => path,
        }
    }

    /// The first connection: a back-end that should listen must be there, one that connects is waited for.
    pub(crate) fn first(&self) -> Result<UnixStream, BackendError> {
        let Self::Listen(path, listener) = self else {
            return self.again();
        };
        let stream = listener.socket().accept().map(|(stream, _)| stream);
        let stream = stream.map_err(unreachable(path))?;
        // From now on nobody waits here.
        listener
            .socket()
            .set_nonblocking(true)
            .map_err(unreachable(path))?;
        Ok(stream)
    }

    /// A later connection, if it can be had now.
    pub(crate) fn again(&self) -> Result<UnixStream, BackendError> {
        match self {
            Self::Connect(path) => UnixStream::connect(path).map_err(unreachable(path)),
            Self::Listen(path, listener) => {
                let stream = listener.socket().accept().map(|(stream, _)| stream);
                stream.map_err(unreachable(path))
            }
        }
    }

    /// Readable when a back-end has connected.
    pub(crate) fn fd(&self) -> Option<RawFd> {
        match self {
            Self::Connect(_) => None,
            Self::Listen(_, listener) => Some(listener.socket().as_raw_fd()),
        }
    }
}

fn unreachable(path: &Path) -> impl Fn(std::io::Error) -> BackendError {
    move |source| BackendError::Connect {
        path: path.display().to_string(),
        source,
    }
}
