//! The device's own state, through a pipe, for migration.
//!
//! The pipe's other end belongs to a front-end that may never read or write it: nobody waits here. The connection's thread does a
//! part whenever it can, and the rest when it is asked how it went.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use treaty_vhost_protocol::Message;
use treaty_vhost_protocol::payload::{TransferState, VRING_FD_NONE};
use treaty_virtio_device::SavedState;

use crate::handlers::{Outcome, number};
use crate::session::{Session, SessionError, refused};

/// More bytes of state than any device has.
const MAX_STATE: usize = 1 << 20;
/// Bytes at a time.
const PIECE: usize = 4096;
/// Pieces at a time.
const PIECES_PER_TURN: usize = 64;

/// What a transfer has come to.
#[derive(Default)]
pub enum Transfer {
    /// There was none.
    #[default]
    None,
    /// It goes on.
    Running(Running),
    /// It is over: everything is written, or read and taken up.
    Over(Result<(), String>),
}

/// A transfer on its way.
pub struct Running {
    fd: OwnedFd,
    what: What,
}

enum What {
    /// To the front-end; from `at` on.
    Save { bytes: Vec<u8>, at: usize },
    /// From it; so far.
    Load(Vec<u8>),
}

/// SET_DEVICE_STATE_FD: the direction.
enum Direction {
    Save,
    Load,
}

impl TryFrom<u32> for Direction {
    type Error = String;

    fn try_from(value: u32) -> Result<Self, String> {
        match value {
            0 => Ok(Self::Save),
            1 => Ok(Self::Load),
            _ => Err(format!("direction {value}")),
        }
    }
}

/// The only phase there is: all rings are stopped.
const PHASE_STOPPED: u32 = 0;

impl Transfer {
    /// What to wait for: a descriptor (or -1, which `poll` skips) and its events.
    pub fn waits_for(&self) -> (RawFd, i16) {
        match self {
            Self::Running(Running { fd, what }) => (
                fd.as_raw_fd(),
                match what {
                    What::Save { .. } => libc::POLLOUT,
                    What::Load(_) => libc::POLLIN,
                },
            ),
            Self::None | Self::Over(_) => (-1, 0),
        }
    }
}

/// SET_DEVICE_STATE_FD. The channel is the front-end's; we make none of our own.
pub fn begin(session: &mut Session<'_>, message: Message) -> Result<Outcome, SessionError> {
    match start(session, message)? {
        Ok(running) => {
            session.transfer = Transfer::Running(running);
            proceed(session);
            Ok(number(VRING_FD_NONE))
        }
        Err(reason) => {
            tracing::warn!(%reason, "no transfer of state");
            session.transfer = Transfer::None;
            Ok(number(VRING_FD_NONE | 1))
        }
    }
}

fn start(session: &Session<'_>, mut message: Message) -> Result<Result<Running, String>, SessionError> {
    let TransferState { direction, phase } = message.read()?;
    let fd = message.take_fd();
    let fd = fd.ok_or_else(|| refused(message.row.name, "no descriptor"))?;
    Ok(start_with(session, direction, phase, fd))
}

fn start_with(session: &Session<'_>, direction: u32, phase: u32, fd: OwnedFd) -> Result<Running, String> {
    let direction = Direction::try_from(direction)?;
    if phase != PHASE_STOPPED {
        return Err(format!("phase {phase}"));
    }
    check_stopped(session)?;
    check_pipe(&fd)?;
    let what = match direction {
        Direction::Load => What::Load(Vec::new()),
        Direction::Save => {
            let state = session.device.save().map_err(|error| error.to_string())?;
            let bytes = serde_json::to_vec(&state).map_err(|error| error.to_string())?;
            What::Save { bytes, at: 0 }
        }
    };
    Ok(Running { fd, what })
}

fn check_stopped(session: &Session<'_>) -> Result<(), String> {
    match session.vrings.iter().position(|vring| vring.running) {
        Some(index) => Err(format!("ring {index} runs")),
        None => Ok(()),
    }
}

/// Hardening row 11: only of pipes and sockets can be asked that they do not wait.
fn check_pipe(fd: &OwnedFd) -> Result<(), String> {
    #[allow(unsafe_code)]
    // SAFETY: all-zero is a valid stat; the descriptor is open and the buffer lives during the call.
    let mode = unsafe {
        let mut stat: libc::stat = std::mem::zeroed();
        match libc::fstat(fd.as_raw_fd(), &mut stat) {
            0 => stat.st_mode & libc::S_IFMT,
            _ => 0,
        }
    };
    match mode {
        libc::S_IFIFO | libc::S_IFSOCK => Ok(()),
        _ => Err("the channel is neither a pipe nor a socket".into()),
    }
}

/// CHECK_DEVICE_STATE: whatever can be done is done now. A front-end that asks before it has closed its end is told no.
pub fn check(session: &mut Session<'_>) -> Outcome {
    proceed(session);
    let reason = match &session.transfer {
        Transfer::Over(Ok(())) => return number(0),
        Transfer::Over(Err(reason)) => reason,
        Transfer::Running(_) => "it is not over",
        Transfer::None => "there was none",
    };
    tracing::warn!(reason, "no transfer of state");
    number(1)
}

/// Goes on with a transfer, as far as that goes without waiting.
pub fn proceed(session: &mut Session<'_>) {
    let Transfer::Running(running) = &mut session.transfer else {
        return;
    };
    let result = match running.step() {
        Ok(false) => return,
        Ok(true) => Ok(()),
        Err(error) => Err(error.to_string()),
    };
    let Transfer::Running(Running { what, .. }) = std::mem::take(&mut session.transfer) else {
        return;
    };
    let result = result.and_then(|()| match what {
        What::Save { .. } => Ok(()),
        What::Load(bytes) => take_up(session, &bytes),
    });
    session.transfer = Transfer::Over(result);
}

/// The state is checked here as far as that goes without the device, which hears of it once it knows its features.
fn take_up(session: &mut Session<'_>, bytes: &[u8]) -> Result<(), String> {
    check_stopped(session)?;
    let state: SavedState = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let ours = session.device.description().id.0;
    if state.device != ours {
        return Err(format!(
            "the state is of device type {}, this is {ours}",
            state.device
        ));
    }
    session.loaded = Some(state);
    match session.negotiated {
        true => restore(session),
        false => Ok(()),
    }
}

/// Gives the device the state that has arrived, if one has. Features are negotiated, no ring runs.
pub fn restore(session: &mut Session<'_>) -> Result<(), String> {
    match session.loaded.take() {
        Some(state) => session.device.restore(state).map_err(|error| error.to_string()),
        None => Ok(()),
    }
}

impl Running {
    /// True when it is over.
    fn step(&mut self) -> io::Result<bool> {
        for _ in 0..PIECES_PER_TURN {
            let moved = match &mut self.what {
                What::Save { bytes, at } => {
                    let rest = bytes.get(*at..).unwrap_or_default();
                    if rest.is_empty() {
                        return Ok(true);
                    }
                    let count = write_now(&self.fd, rest.get(..PIECE).unwrap_or(rest))?;
                    count.inspect(|count| *at += count)
                }
                What::Load(bytes) => {
                    let mut piece = [0; PIECE];
                    let count = read_now(&self.fd, &mut piece)?;
                    bytes.extend_from_slice(piece.get(..count.unwrap_or(0)).unwrap_or_default());
                    if bytes.len() > MAX_STATE {
                        return Err(io::Error::other("more state than any device has"));
                    }
                    if count == Some(0) {
                        return Ok(true);
                    }
                    count
                }
            };
            if moved.is_none() {
                return Ok(false);
            }
        }
        Ok(false)
    }
}

fn read_now(fd: &OwnedFd, bytes: &mut [u8]) -> io::Result<Option<usize>> {
    let part = libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    };
    #[allow(unsafe_code)]
    // SAFETY: one part, a live buffer of that length. -1 is no offset: pipes have none.
    let count = unsafe { libc::preadv2(fd.as_raw_fd(), &part, 1, -1, libc::RWF_NOWAIT) };
    moved(count)
}

fn write_now(fd: &OwnedFd, bytes: &[u8]) -> io::Result<Option<usize>> {
    let part = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    #[allow(unsafe_code)]
    // SAFETY: one part, a live buffer of that length that is only read.
    let count = unsafe { libc::pwritev2(fd.as_raw_fd(), &part, 1, -1, libc::RWF_NOWAIT) };
    moved(count)
}

/// Bytes moved, or `None` if that would have waited.
fn moved(count: isize) -> io::Result<Option<usize>> {
    match usize::try_from(count) {
        Ok(count) => Ok(Some(count)),
        Err(_) => match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            error => Err(error),
        },
    }
}
