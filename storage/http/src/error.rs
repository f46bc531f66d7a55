use std::io;

use treaty_stream::TlsError;

/// Why a file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The URL.
    #[error("{0}")]
    Url(String),
    /// Certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The network, or the system.
    #[error("{0}")]
    Host(#[from] io::Error),
    /// The server sends what is no answer.
    #[error("the server's answer is wrong: {0}")]
    Answer(&'static str),
    /// The server refuses, perhaps only now.
    #[error("the server answered {0}")]
    Status(u16),
    /// The file is not what it was when it was opened.
    #[error("the file on the server has changed")]
    Changed,
}

impl HttpError {
    /// True if another try may do better.
    pub(crate) fn is_passing(&self) -> bool {
        match self {
            Self::Host(_) | Self::Answer(_) => true,
            Self::Status(status) => *status >= 500 || matches!(status, 408 | 429),
            Self::Url(_) | Self::Tls(_) | Self::Changed => false,
        }
    }
}
