//! Unix sockets that are listened on: made safely, removed again.
//!
//! Owns: the rules for the path (a socket nobody listens on is replaced; a living one and any other file are left alone).
//! Must not know: what is spoken on the socket.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// A listening socket; what was made here is removed when dropped.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    made: Option<PathBuf>,
}

/// The socket could not be had.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another program listens there.
    #[error("socket {}: another program listens on it; choose another path", .0.display())]
    InUse(PathBuf),
    /// There is something else at that path.
    #[error("socket {}: the file exists and is not a socket; choose another path", .0.display())]
    NotASocket(PathBuf),
    /// The system refused.
    #[error("socket {}: {source}", path.display())]
    Host {
        /// The socket's path.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

impl Listener {
    /// Listens on `path`; only this user may connect (mode 0600).
    pub fn bind(path: &Path) -> Result<Self, ListenError> {
        let host = |source| ListenError::Host {
            path: path.into(),
            source,
        };
        match fs::symlink_metadata(path) {
            Err(_) => {}
            Ok(found) if !found.file_type().is_socket() => return Err(ListenError::NotASocket(path.into())),
            Ok(_) if UnixStream::connect(path).is_ok() => return Err(ListenError::InUse(path.into())),
            Ok(_) => fs::remove_file(path).map_err(host)?,
        }
        let socket = UnixListener::bind(path).map_err(host)?;
        let made = Self {
            socket,
            made: Some(path.into()),
        };
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(host)?;
        Ok(made)
    }

    /// A socket that listens already (from systemd, or another parent); its path is left alone.
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self {
            socket: UnixListener::from(fd),
            made: None,
        }
    }

    /// The socket.
    pub fn socket(&self) -> &UnixListener {
        &self.socket
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(path) = &self.made {
            // If it is gone already, so much the better.
            let _ = fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_not_taken_from_anybody() {
        let path = std::env::temp_dir().join(format!("treaty-listen-{}", std::process::id()));
        let living = Listener::bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(Listener::bind(&path), Err(ListenError::InUse(_))));
        drop(living);
        assert!(!path.exists());
        drop(UnixListener::bind(&path).unwrap());
        drop(Listener::bind(&path).expect("a stale socket is replaced"));
        fs::write(&path, "text").unwrap();
        assert!(matches!(Listener::bind(&path), Err(ListenError::NotASocket(_))));
        fs::remove_file(&path).unwrap();
    }
}
