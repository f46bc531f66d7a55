use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
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
            Self::Connect(path) => connect_now(path).map_err(unreachable(path)),
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

/// Connects, or fails at once if the listener has not taken the connections before this one: nobody waits for a back-end that is
/// stopped. `unix(7)`
#[allow(unsafe_code)]
fn connect_now(path: &Path) -> io::Result<UnixStream> {
    // SAFETY: takes no pointers; the result is checked and owned below.
    let fd = unsafe {
        let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        libc::socket(libc::AF_UNIX, kind, 0)
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just created, no other owner.
    let stream = UnixStream::from(unsafe { OwnedFd::from_raw_fd(fd) });
    // SAFETY: all-zero is a valid address.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    let bytes = path.as_os_str().as_bytes();
    // The last byte stays zero.
    if bytes.len() >= address.sun_path.len() {
        return Err(io::ErrorKind::InvalidFilename.into());
    }
    for (to, from) in address.sun_path.iter_mut().zip(bytes) {
        *to = *from as libc::c_char;
    }
    let len = size_of::<libc::sockaddr_un>() as libc::socklen_t;
    // SAFETY: a live address of that length.
    if unsafe { libc::connect(fd, (&raw const address).cast(), len) } < 0 {
        return Err(io::Error::last_os_error());
    }
    stream.set_nonblocking(false)?;
    Ok(stream)
}

fn unreachable(path: &Path) -> impl Fn(io::Error) -> BackendError {
    move |source| BackendError::Connect {
        path: path.display().to_string(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    /// Hardening row 32: a back-end that is stopped leaves the thread free to answer its transport.
    #[test]
    fn hardening_32_a_listener_that_takes_no_connection_holds_nobody() {
        let path = std::env::temp_dir().join(format!("treaty-stopped-{}", std::process::id()));
        let _listener = UnixListener::bind(&path).unwrap();
        let peer = Peer::Connect(path.clone());
        // The queue of the listener holds 4096 at most.
        let refused = (0..5000).find_map(|_| peer.again().map_err(|error| error.to_string()).err());
        assert!(refused.unwrap().contains("treaty-stopped"));
        std::fs::remove_file(path).unwrap();
    }
}
