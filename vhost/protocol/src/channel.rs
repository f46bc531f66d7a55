#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::payload::{FLAG_NEED_REPLY, FLAG_REPLY, FLAG_VERSION, FLAG_VERSION_MASK, Header};
use crate::table::{REPLY_PAYLOAD, Row, row};
use crate::{MAX_FDS, MAX_PAYLOAD};

/// Why a connection ends.
#[derive(Debug, thiserror::Error)]
pub enum ProtocolError {
    /// The peer closed it between two messages.
    #[error("the peer has gone")]
    Closed,
    /// The peer closed it within a message.
    #[error("the peer has gone in the middle of a message")]
    HalfMessage,
    /// The system refused.
    #[error("socket: {0}")]
    Socket(#[from] io::Error),
    /// Nobody wants the answer any more.
    #[error("the answer to {0} is not waited for any longer")]
    GivenUp(&'static str),
    /// No answer in time.
    #[error("no answer to {0} in time")]
    Timeout(&'static str),
    /// A code that is not in the table.
    #[error("unknown request {0}")]
    UnknownRequest(u32),
    /// Version or flags are wrong.
    #[error("request {request}: flags {flags:#x} are wrong")]
    Flags {
        /// Request code.
        request: u32,
        /// Header flags.
        flags: u32,
    },
    /// The payload is not as long as the table says, or not as long as its own counts say.
    #[error("{request}: {size} payload bytes")]
    PayloadSize {
        /// Request name.
        request: &'static str,
        /// Bytes.
        size: usize,
    },
    /// More or fewer descriptors than the table says.
    #[error("{request}: {count} file descriptors")]
    FdCount {
        /// Request name.
        request: &'static str,
        /// Descriptors.
        count: usize,
    },
}

/// One received message. Its descriptors are closed when it is dropped.
#[derive(Debug)]
pub struct Message {
    /// Its row.
    pub row: &'static Row,
    /// The sender wants an answer (REPLY_ACK).
    pub need_reply: bool,
    /// Payload; its length fits the row.
    pub payload: Vec<u8>,
    /// Descriptors; their number fits the row.
    pub fds: Vec<OwnedFd>,
}

impl Message {
    /// The payload's start as `T`; bytes behind it are left alone.
    pub fn read<T: FromBytes>(&self) -> Result<T, ProtocolError> {
        T::read_from_prefix(&self.payload)
            .map(|(value, _)| value)
            .map_err(|_| self.bad_size())
    }

    /// As [`read`](Self::read) for layouts whose trailing padding senders may leave out.
    pub fn read_padded<T: FromBytes + IntoBytes + Default>(&self) -> T {
        let mut value = T::default();
        let bytes = value.as_mut_bytes();
        let count = bytes.len().min(self.payload.len());
        if let (Some(to), Some(from)) = (bytes.get_mut(..count), self.payload.get(..count)) {
            to.copy_from_slice(from);
        }
        value
    }

    /// The error for a payload that contradicts itself.
    pub fn bad_size(&self) -> ProtocolError {
        ProtocolError::PayloadSize {
            request: self.row.name,
            size: self.payload.len(),
        }
    }

    /// The only descriptor, if there is one.
    pub fn take_fd(&mut self) -> Option<OwnedFd> {
        self.fds.pop()
    }
}

/// A connected socket that carries messages.
pub struct Channel {
    stream: UnixStream,
    /// What the peer may request.
    rows: &'static [Row],
    partial: Partial,
}

/// What has arrived of the next message.
#[derive(Default)]
struct Partial {
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// How long a peer may leave its end of the socket full.
const SEND_LIMIT: Duration = Duration::from_secs(10);

const HEADER_LEN: usize = size_of::<Header>();

impl Channel {
    /// Over a connected socket; `rows` are the requests that the peer may send. Sending waits for a peer that does not
    /// read, but not for ever.
    pub fn new(stream: UnixStream, rows: &'static [Row]) -> Self {
        // Fails only for a zero duration.
        let _ = stream.set_write_timeout(Some(SEND_LIMIT));
        Self {
            stream,
            rows,
            partial: Partial::default(),
        }
    }

    /// The socket, for polling.
    pub fn fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }

    /// Takes what has arrived; the next request if it is complete. Never waits.
    pub fn try_receive(&mut self) -> Result<Option<Message>, ProtocolError> {
        if !self.fill()? {
            return Ok(None);
        }
        let (header, partial) = self.take_header()?;
        let row = row(self.rows, header.request).ok_or(ProtocolError::UnknownRequest(header.request))?;
        if header.flags & FLAG_REPLY != 0 {
            return Err(ProtocolError::Flags {
                request: header.request,
                flags: header.flags,
            });
        }
        check(row.name, &partial, &row.payload, &row.fds)?;
        let payload = partial.bytes.get(HEADER_LEN..).unwrap_or_default().to_vec();
        let need_reply = header.flags & FLAG_NEED_REPLY != 0;
        Ok(Some(Message {
            row,
            need_reply,
            payload,
            fds: partial.fds,
        }))
    }

    /// Waits for the reply to `request` that was just sent. Anything else than that reply is an error.
    pub fn receive_reply(
        &mut self,
        request: &'static Row,
        limit: Duration,
    ) -> Result<Message, ProtocolError> {
        self.receive_reply_unless(request, limit, NO_FD)
    }

    /// The same, and gives up as soon as `quit` is readable.
    pub fn receive_reply_unless(
        &mut self,
        request: &'static Row,
        limit: Duration,
        quit: RawFd,
    ) -> Result<Message, ProtocolError> {
        let deadline = Instant::now() + limit;
        while !self.fill()? {
            let left = deadline.saturating_duration_since(Instant::now());
            match wait_readable(self.fd(), quit, left)? {
                Ready::Channel if !left.is_zero() => {}
                Ready::Quit => return Err(ProtocolError::GivenUp(request.name)),
                Ready::Channel | Ready::Nothing => return Err(ProtocolError::Timeout(request.name)),
            }
        }
        let (header, partial) = self.take_header()?;
        if header.request != request.code || header.flags & FLAG_REPLY == 0 {
            return Err(ProtocolError::Flags {
                request: header.request,
                flags: header.flags,
            });
        }
        check(request.name, &partial, &REPLY_PAYLOAD, &request.reply_fds())?;
        let payload = partial.bytes.get(HEADER_LEN..).unwrap_or_default().to_vec();
        Ok(Message {
            row: request,
            need_reply: false,
            payload,
            fds: partial.fds,
        })
    }

    /// Sends a request. With `need_reply` the peer answers even if the table has no reply (REPLY_ACK).
    pub fn send(
        &self,
        request: &Row,
        need_reply: bool,
        payload: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), ProtocolError> {
        let flags = if need_reply {
            FLAG_VERSION | FLAG_NEED_REPLY
        } else {
            FLAG_VERSION
        };
        self.send_raw(request.code, flags, payload, fds)
    }

    /// Sends a short request that needs no answer, or fails at once if the peer has left its end of the socket full.
    pub fn send_now(&self, request: &Row, payload: &[u8]) -> Result<(), ProtocolError> {
        let size = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        let header = Header {
            request: request.code,
            flags: FLAG_VERSION,
            size,
        };
        let mut bytes = header.as_bytes().to_vec();
        bytes.extend_from_slice(payload);
        match send_once(self.fd(), &bytes, &[], libc::MSG_DONTWAIT)? {
            count if count == bytes.len() => Ok(()),
            _ => Err(ProtocolError::HalfMessage),
        }
    }

    /// Answers `request`.
    pub fn reply(&self, request: &Row, payload: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), ProtocolError> {
        self.send_raw(request.code, FLAG_VERSION | FLAG_REPLY, payload, fds)
    }

    /// Answers `request` with a fixed layout.
    pub fn reply_value<T: IntoBytes + Immutable>(
        &self,
        request: &Row,
        value: &T,
    ) -> Result<(), ProtocolError> {
        self.reply(request, value.as_bytes(), &[])
    }

    fn send_raw(
        &self,
        request: u32,
        flags: u32,
        payload: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), ProtocolError> {
        let size = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        let mut bytes = Header { request, flags, size }.as_bytes().to_vec();
        bytes.extend_from_slice(payload);
        let mut rest: &[u8] = &bytes;
        let mut fds = fds;
        while !rest.is_empty() {
            let count = send_once(self.fd(), rest, fds, 0)?;
            fds = &[];
            rest = rest.get(count..).unwrap_or_default();
        }
        Ok(())
    }

    /// Reads until a whole message is there (true) or nothing more has arrived (false).
    fn fill(&mut self) -> Result<bool, ProtocolError> {
        loop {
            let want = self.wanted()?;
            let missing = want - self.partial.bytes.len();
            if missing == 0 {
                return Ok(true);
            }
            let mut chunk = [0; MAX_PAYLOAD + HEADER_LEN];
            let room = chunk.get_mut(..missing).unwrap_or_default();
            match receive_once(self.fd(), room, &mut self.partial.fds)? {
                None => return Ok(false),
                Some(0) if self.partial.bytes.is_empty() => return Err(ProtocolError::Closed),
                Some(0) => return Err(ProtocolError::HalfMessage),
                Some(count) => self
                    .partial
                    .bytes
                    .extend_from_slice(room.get(..count).unwrap_or_default()),
            }
            if self.partial.fds.len() > MAX_FDS {
                return Err(ProtocolError::FdCount {
                    request: "message",
                    count: self.partial.fds.len(),
                });
            }
        }
    }

    /// Bytes of the message so far known: the header's, then the whole. The header is checked here, before the payload
    /// is waited for.
    fn wanted(&self) -> Result<usize, ProtocolError> {
        let Ok((header, _)) = Header::read_from_prefix(&self.partial.bytes) else {
            return Ok(HEADER_LEN);
        };
        if header.flags & FLAG_VERSION_MASK != FLAG_VERSION {
            return Err(ProtocolError::Flags {
                request: header.request,
                flags: header.flags,
            });
        }
        let size = header.size as usize;
        if size > MAX_PAYLOAD {
            return Err(ProtocolError::PayloadSize {
                request: "message",
                size,
            });
        }
        Ok(HEADER_LEN + size)
    }

    fn take_header(&mut self) -> Result<(Header, Partial), ProtocolError> {
        let partial = std::mem::take(&mut self.partial);
        let (header, _) = Header::read_from_prefix(&partial.bytes).map_err(|_| ProtocolError::HalfMessage)?;
        Ok((header, partial))
    }
}

fn check(
    request: &'static str,
    partial: &Partial,
    payload: &std::ops::RangeInclusive<usize>,
    fds: &std::ops::RangeInclusive<usize>,
) -> Result<(), ProtocolError> {
    let size = partial.bytes.len().saturating_sub(HEADER_LEN);
    if !payload.contains(&size) {
        return Err(ProtocolError::PayloadSize { request, size });
    }
    if !fds.contains(&partial.fds.len()) {
        return Err(ProtocolError::FdCount {
            request,
            count: partial.fds.len(),
        });
    }
    Ok(())
}

/// Not a descriptor: `poll` skips it.
const NO_FD: RawFd = -1;

enum Ready {
    Channel,
    Quit,
    Nothing,
}

fn wait_readable(fd: RawFd, quit: RawFd, limit: Duration) -> io::Result<Ready> {
    let poll = |fd| libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    let mut polls = [poll(fd), poll(quit)];
    let limit_ms = i32::try_from(limit.as_millis()).unwrap_or(i32::MAX).max(1);
    // SAFETY: two pollfds, on the stack, alive during the call.
    let count = unsafe { libc::poll(polls.as_mut_ptr(), 2, limit_ms) };
    let [_, quit] = polls;
    match count {
        -1 if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => Ok(Ready::Channel),
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Ready::Nothing),
        _ if quit.revents != 0 => Ok(Ready::Quit),
        _ => Ok(Ready::Channel),
    }
}

/// Room for the control data of [`MAX_FDS`] descriptors, aligned as `cmsghdr` wants.
#[repr(C, align(8))]
struct Control([u8; 64]);

const FD_BYTES: usize = size_of::<RawFd>() * MAX_FDS;
// SAFETY: CMSG_SPACE only computes.
const _: () = assert!(unsafe { libc::CMSG_SPACE(FD_BYTES as u32) } as usize <= size_of::<Control>());

/// One `recvmsg`: `None` if nothing is there, otherwise bytes read. Descriptors are appended to `fds`.
fn receive_once(fd: RawFd, room: &mut [u8], fds: &mut Vec<OwnedFd>) -> Result<Option<usize>, ProtocolError> {
    let mut control = Control([0; 64]);
    let mut iov = libc::iovec {
        iov_base: room.as_mut_ptr().cast(),
        iov_len: room.len(),
    };
    // SAFETY: all-zero is a valid msghdr.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &mut iov;
    header.msg_iovlen = 1;
    header.msg_control = control.0.as_mut_ptr().cast();
    header.msg_controllen = control.0.len();
    // SAFETY: the header points to live buffers of the lengths given.
    let count = unsafe { libc::recvmsg(fd, &mut header, libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT) };
    if count < 0 {
        let error = io::Error::last_os_error();
        return match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(None),
            _ => Err(error.into()),
        };
    }
    take_fds(&header, fds);
    if header.msg_flags & libc::MSG_CTRUNC != 0 {
        return Err(ProtocolError::FdCount {
            request: "message",
            count: MAX_FDS + 1,
        });
    }
    Ok(Some(count.unsigned_abs()))
}

fn take_fds(header: &libc::msghdr, fds: &mut Vec<OwnedFd>) {
    // SAFETY: the kernel has filled the control buffer; CMSG_* walk it within msg_controllen.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(header) };
    while !next.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR return null or a whole header inside the buffer.
        let cmsg = unsafe { std::ptr::read_unaligned(next) };
        if cmsg.cmsg_level == libc::SOL_SOCKET && cmsg.cmsg_type == libc::SCM_RIGHTS {
            // SAFETY: data begins behind the header, inside the buffer.
            let data = unsafe { libc::CMSG_DATA(next) };
            // SAFETY: CMSG_LEN only computes.
            let bytes = cmsg
                .cmsg_len
                .saturating_sub(unsafe { libc::CMSG_LEN(0) } as usize);
            for index in 0..bytes / size_of::<RawFd>() {
                // SAFETY: index is below the number of descriptors that cmsg_len covers.
                let fd = unsafe { std::ptr::read_unaligned(data.cast::<RawFd>().add(index)) };
                // SAFETY: the kernel has just installed this descriptor for us; nobody else owns it.
                fds.push(unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
        // SAFETY: as for CMSG_FIRSTHDR.
        next = unsafe { libc::CMSG_NXTHDR(header, next) };
    }
}

/// One `sendmsg` with these flags; bytes sent.
fn send_once(fd: RawFd, bytes: &[u8], fds: &[BorrowedFd<'_>], flags: i32) -> io::Result<usize> {
    assert!(
        fds.len() <= MAX_FDS,
        "our own messages carry at most MAX_FDS descriptors"
    );
    let mut control = Control([0; 64]);
    let mut iov = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    // SAFETY: all-zero is a valid msghdr.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &mut iov;
    header.msg_iovlen = 1;
    if !fds.is_empty() {
        let data_len = (size_of::<RawFd>() * fds.len()) as u32;
        header.msg_control = control.0.as_mut_ptr().cast();
        // SAFETY: CMSG_SPACE only computes.
        header.msg_controllen = unsafe { libc::CMSG_SPACE(data_len) } as usize;
        // SAFETY: the control buffer holds CMSG_SPACE of MAX_FDS descriptors (asserted above), so the header and its data
        // lie inside it.
        unsafe {
            let cmsg = libc::CMSG_FIRSTHDR(&header);
            (*cmsg).cmsg_level = libc::SOL_SOCKET;
            (*cmsg).cmsg_type = libc::SCM_RIGHTS;
            (*cmsg).cmsg_len = libc::CMSG_LEN(data_len) as usize;
            for (index, fd) in fds.iter().enumerate() {
                std::ptr::write_unaligned(libc::CMSG_DATA(cmsg).cast::<RawFd>().add(index), fd.as_raw_fd());
            }
        }
    }
    loop {
        // SAFETY: the header points to live buffers of the lengths given.
        let count = unsafe { libc::sendmsg(fd, &header, libc::MSG_NOSIGNAL | flags) };
        if count >= 0 {
            return Ok(count.unsigned_abs());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
