use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

use crate::{Address, sys};

/// A connected socket, or one that is about to be. It never blocks.
#[derive(Debug)]
pub enum Socket {
    /// TCP.
    Tcp(TcpStream),
    /// Unix.
    Unix(UnixStream),
}

impl Socket {
    /// Begins to connect. `attempt` counts from 0 and picks one of several addresses of the same name.
    pub(crate) fn connect(address: &Address, attempt: usize) -> io::Result<Self> {
        match address {
            Address::Unix(path) => Ok(Self::Unix(UnixStream::from(sys::connect_unix(path)?))),
            Address::Tcp { resolved, .. } => {
                let address = resolved
                    .get(attempt % resolved.len().max(1))
                    .ok_or_else(|| io::Error::other("no address"))?;
                Ok(Self::Tcp(TcpStream::from(sys::connect_tcp(address)?)))
            }
        }
    }

    pub(crate) fn set_up(&self) -> io::Result<()> {
        match self {
            Self::Tcp(socket) => {
                socket.set_nonblocking(true)?;
                socket.set_nodelay(true)
            }
            Self::Unix(socket) => socket.set_nonblocking(true),
        }
    }

    /// True once connected; the error if that failed.
    pub(crate) fn is_connected(&self) -> io::Result<bool> {
        let (error, connected) = match self {
            Self::Tcp(socket) => (socket.take_error()?, socket.peer_addr().is_ok()),
            Self::Unix(socket) => (socket.take_error()?, socket.peer_addr().is_ok()),
        };
        error.map_or(Ok(connected), Err)
    }

    pub(crate) fn shut_down(&self) {
        // It may have ended already, which is all that is wanted.
        let _ = match self {
            Self::Tcp(socket) => socket.shutdown(Shutdown::Both),
            Self::Unix(socket) => socket.shutdown(Shutdown::Both),
        };
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        match self {
            Self::Tcp(socket) => socket.as_raw_fd(),
            Self::Unix(socket) => socket.as_raw_fd(),
        }
    }
}

impl Read for &Socket {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Socket::Tcp(socket) => (&*socket).read(into),
            Socket::Unix(socket) => (&*socket).read(into),
        }
    }
}

impl Write for &Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Socket::Tcp(socket) => (&*socket).write(bytes),
            Socket::Unix(socket) => (&*socket).write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
