use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use treaty_buffers::IoBuffers;
use treaty_virtio_spec::net::Header;

use crate::sys::Gather;
use crate::{
    BackendError, Capabilities, MAX_FRAME, Offloads, PacketBackend, PacketReceiver, PacketSender, Received,
    Sent, sys,
};

/// A wire between two machines: a Unix datagram socket at each end, one plain Ethernet frame to a datagram (QEMU's
/// `-netdev dgram` speaks the same). The ends may come and go in any order; what is sent to nobody is lost.
pub struct Socket {
    capabilities: Capabilities,
    local: PathBuf,
    peer: PathBuf,
    receive: Arc<UnixDatagram>,
}

impl Socket {
    /// One end of the wire called `path`. Whoever comes first gets `path` itself, the other `path.peer`; a third is refused.
    pub fn shared(path: &Path) -> Result<Self, BackendError> {
        let mut second = path.as_os_str().to_owned();
        second.push(".peer");
        let second = PathBuf::from(second);
        match Self::open(path, &second) {
            Err(BackendError::Host { source, .. }) if source.kind() == io::ErrorKind::AddrInUse => {
                Self::open(&second, path)
            }
            other => other,
        }
    }

    /// Receives at `local`, sends to `peer`, which need not exist yet. A socket file that nobody uses is replaced.
    pub fn open(local: &Path, peer: &Path) -> Result<Self, BackendError> {
        let receive = match UnixDatagram::bind(local) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_stale(local) => {
                std::fs::remove_file(local).and_then(|()| UnixDatagram::bind(local))
            }
            other => other,
        };
        let receive = receive
            .and_then(|socket| socket.set_nonblocking(true).map(|()| socket))
            .map_err(BackendError::host(format!(
                "receive packets at {}",
                local.display()
            )))?;
        Ok(Self {
            capabilities: Capabilities {
                send: Offloads::NONE,
                receive: Offloads::NONE,
                max_pairs: 1,
                mtu: None,
            },
            local: local.to_owned(),
            peer: peer.to_owned(),
            receive: Arc::new(receive),
        })
    }
}

fn is_stale(path: &Path) -> bool {
    let probe = UnixDatagram::unbound().and_then(|socket| socket.connect(path));
    probe.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Somebody may have removed it already.
        let _ = std::fs::remove_file(&self.local);
    }
}

impl PacketBackend for Socket {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn set_receive_offloads(&mut self, _: Offloads) -> Result<(), BackendError> {
        Ok(())
    }

    fn set_pairs(&mut self, _: u16) -> Result<(), BackendError> {
        Ok(())
    }

    fn sender(&mut self, _: u16) -> Result<Box<dyn PacketSender>, BackendError> {
        let socket = UnixDatagram::unbound().map_err(BackendError::host("make a datagram socket"))?;
        Ok(Box::new(Out {
            peer: self.peer.clone(),
            socket,
            connected: false,
            gather: Gather::default(),
        }))
    }

    fn receiver(&mut self, _: u16) -> Result<Box<dyn PacketReceiver>, BackendError> {
        Ok(Box::new(In(self.receive.clone())))
    }
}

/// Sends by a socket of its own that is connected to the peer: then it becomes writable when the peer has room, and the
/// receiving socket, not being connected, takes packets from a peer that was started again.
struct Out {
    peer: PathBuf,
    socket: UnixDatagram,
    connected: bool,
    gather: Gather,
}

impl Out {
    fn connect(&mut self) -> bool {
        self.connected = self.connected || self.socket.connect(&self.peer).is_ok();
        self.connected
    }
}

impl PacketSender for Out {
    fn send(&mut self, _: &Header, frame: &IoBuffers) -> Sent {
        // Twice: a peer that was started again is found at the second attempt.
        for _ in 0..2 {
            if !self.connect() {
                return Sent::Dropped;
            }
            match self.gather.send(self.socket.as_raw_fd(), &[], frame) {
                Ok(_) => return Sent::Taken,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Sent::Later,
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => self.connected = false,
                Err(_) => return Sent::Dropped,
            }
        }
        Sent::Dropped
    }

    fn output_fd(&self) -> Option<RawFd> {
        Some(self.socket.as_raw_fd())
    }
}

struct In(Arc<UnixDatagram>);

impl PacketReceiver for In {
    fn receive(&mut self, frame: &mut [u8]) -> Received {
        match sys::receive(self.0.as_raw_fd(), frame) {
            Ok(len) if (1..=MAX_FRAME.min(frame.len())).contains(&len) => Received::Frame {
                header: Header::default(),
                len,
            },
            Ok(_) => Received::Lost,
            // A datagram socket that is not connected has no other errors that last.
            Err(_) => Received::Nothing,
        }
    }

    fn input_fd(&self) -> Option<RawFd> {
        Some(self.0.as_raw_fd())
    }
}
