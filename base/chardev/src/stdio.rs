use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Mutex;

use crate::sys;
use crate::terminal::RawMode;

/// Ctrl-A.
const ESCAPE: u8 = 0x01;

/// Standard input and output of the process.
pub(crate) struct Stdio {
    input: Stream,
    output: Stream,
    escape: Option<Mutex<Escape>>,
    _raw: Option<RawMode>,
}

struct Escape {
    filter: EscapeFilter,
    on_quit: Box<dyn FnMut() + Send>,
}

/// One direction. It was opened anew where possible, so that non-blocking mode is not forced on whoever shares the
/// original (the shell); otherwise each access asks first whether it would block.
struct Stream {
    file: File,
    ask_first: bool,
}

/// A pipe or terminal that is writable takes at least this much without blocking (PIPE_BUF is 4096; a terminal's buffer
/// is smaller when nearly full).
const CAREFUL_CHUNK: usize = 512;

impl Stream {
    fn open(fd: RawFd, write: bool) -> io::Result<Self> {
        let again = OpenOptions::new()
            .read(!write)
            .write(write)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(format!("/proc/self/fd/{fd}"));
        // A regular file opened anew would start at its beginning again.
        match again {
            Ok(file) if !file.metadata()?.is_file() => Ok(Self {
                file,
                ask_first: false,
            }),
            _ => Ok(Self {
                file: sys::duplicate(fd)?.into(),
                ask_first: true,
            }),
        }
    }

    fn ready(&self, events: libc::c_short) -> io::Result<()> {
        if self.ask_first && sys::poll([(self.file.as_raw_fd(), events)], 0)? == [0] {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(())
    }
}

impl Stdio {
    /// Puts the terminal in raw mode if standard input is one; then Ctrl-A x calls `on_quit`.
    pub(crate) fn open(on_quit: Box<dyn FnMut() + Send>) -> io::Result<Self> {
        let terminal = io::stdin().is_terminal();
        Ok(Self {
            input: Stream::open(libc::STDIN_FILENO, false)?,
            output: Stream::open(libc::STDOUT_FILENO, true)?,
            escape: terminal.then(|| {
                Mutex::new(Escape {
                    filter: EscapeFilter::default(),
                    on_quit,
                })
            }),
            _raw: terminal.then(|| RawMode::enter(libc::STDIN_FILENO)).transpose()?,
        })
    }

    pub(crate) fn input_fd(&self) -> RawFd {
        self.input.file.as_raw_fd()
    }

    pub(crate) fn output_fd(&self) -> RawFd {
        self.output.file.as_raw_fd()
    }

    /// `Ok(0)` is end of file; input that the escape swallowed whole is `WouldBlock`.
    pub(crate) fn read(&self, dst: &mut [u8]) -> io::Result<usize> {
        self.input.ready(libc::POLLIN)?;
        let count = (&self.input.file).read(dst)?;
        let Some(escape) = &self.escape else {
            return Ok(count);
        };
        let mut escape = escape.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let (kept, quit) = escape.filter.apply(dst.get_mut(..count).unwrap_or_default());
        if quit {
            (escape.on_quit)();
        }
        if kept == 0 && count > 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(kept)
    }

    pub(crate) fn write(&self, src: &[u8]) -> io::Result<usize> {
        self.output.ready(libc::POLLOUT)?;
        let limit = if self.output.ask_first {
            CAREFUL_CHUNK
        } else {
            src.len()
        };
        (&self.output.file).write(src.get(..limit).unwrap_or(src))
    }
}

/// Finds Ctrl-A sequences: x quits, a second Ctrl-A stands for one, before anything else the Ctrl-A is dropped.
#[derive(Default)]
pub(crate) struct EscapeFilter {
    pending: bool,
}

impl EscapeFilter {
    /// Filters in place; returns how many bytes are left and whether to quit. A sequence may span two calls.
    pub(crate) fn apply(&mut self, bytes: &mut [u8]) -> (usize, bool) {
        let mut kept = 0;
        let mut quit = false;
        for at in 0..bytes.len() {
            let byte = bytes[at];
            if !self.pending && byte == ESCAPE {
                self.pending = true;
                continue;
            }
            if std::mem::take(&mut self.pending) && matches!(byte, b'x' | b'X') {
                quit = true;
                continue;
            }
            bytes[kept] = byte;
            kept += 1;
        }
        (kept, quit)
    }
}

#[cfg(test)]
mod tests {
    use super::EscapeFilter;

    fn run(chunks: &[&[u8]]) -> (Vec<u8>, bool) {
        let mut filter = EscapeFilter::default();
        let (mut out, mut quit) = (Vec::new(), false);
        for chunk in chunks {
            let mut bytes = chunk.to_vec();
            let (kept, asked) = filter.apply(&mut bytes);
            out.extend_from_slice(&bytes[..kept]);
            quit |= asked;
        }
        (out, quit)
    }

    #[test]
    fn escape_quits_and_doubles() {
        assert_eq!(run(&[b"ls\n"]), (b"ls\n".to_vec(), false));
        assert_eq!(run(&[b"a\x01xb"]), (b"ab".to_vec(), true));
        assert_eq!(run(&[b"\x01", b"x"]), (vec![], true), "split over two reads");
        assert_eq!(
            run(&[b"\x01\x01x"]),
            (b"\x01x".to_vec(), false),
            "doubled is literal"
        );
        assert_eq!(
            run(&[b"\x01q"]),
            (b"q".to_vec(), false),
            "other commands do nothing"
        );
        assert_eq!(run(&[b"x"]), (b"x".to_vec(), false));
    }
}
