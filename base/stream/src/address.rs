use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;

/// Where a peer listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// TCP: the addresses that a name stands for, tried in turn.
    Tcp {
        /// As the user wrote it.
        host: String,
        /// Port.
        port: u16,
        /// Not empty once resolved.
        resolved: Vec<SocketAddr>,
    },
    /// A Unix stream socket.
    Unix(PathBuf),
}

impl Address {
    /// Looks up a host name. May wait for the network: not for workers.
    pub fn resolve(host: &str, port: u16) -> io::Result<Self> {
        let resolved: Vec<_> = (host, port).to_socket_addrs()?.collect();
        if resolved.is_empty() {
            return Err(io::Error::other("the name stands for no address"));
        }
        Ok(Self::Tcp {
            host: host.to_owned(),
            port,
            resolved,
        })
    }

    /// How many addresses the name stands for: attempts that make sense.
    pub fn count(&self) -> usize {
        match self {
            Self::Tcp { resolved, .. } => resolved.len(),
            Self::Unix(_) => 1,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port, .. } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port, .. } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}
