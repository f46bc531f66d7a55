use std::io;

use treaty_stream::TlsError;

/// Why a connection cannot be made, or ended.
#[derive(Debug, thiserror::Error)]
pub enum NbdError {
    /// The URI.
    #[error("{0}")]
    Uri(String),
    /// Certificates and keys.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The network, or the system.
    #[error("{0}")]
    Host(#[from] io::Error),
    /// The peer speaks something else, or lies.
    #[error("the peer broke the protocol: {0}")]
    Protocol(&'static str),
    /// The server does not want to.
    #[error("the server refused: {0}")]
    Refused(String),
}
