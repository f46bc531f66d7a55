use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::path::{Path, PathBuf};

use crate::sys;

/// A pseudo terminal. We hold its far end open too: the near end then never reports a hang-up while nobody is attached.
pub(crate) struct Pty {
    near: File,
    _far: File,
    path: PathBuf,
}

impl Pty {
    pub(crate) fn open() -> io::Result<Self> {
        let pair = sys::open_pty()?;
        sys::set_nonblocking(pair.master.as_raw_fd())?;
        // No echo: what the guest prints must not come back to it as input.
        let mut settings = sys::raw_settings(&sys::terminal_settings(pair.slave.as_raw_fd())?);
        settings.c_oflag &= !libc::OPOST;
        sys::apply_terminal_settings(pair.slave.as_raw_fd(), &settings)?;
        Ok(Self {
            near: pair.master,
            _far: pair.slave,
            path: pair.path,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn fd(&self) -> RawFd {
        self.near.as_raw_fd()
    }

    pub(crate) fn read(&self, dst: &mut [u8]) -> io::Result<usize> {
        (&self.near).read(dst)
    }

    pub(crate) fn write(&self, src: &[u8]) -> io::Result<usize> {
        (&self.near).write(src)
    }
}
