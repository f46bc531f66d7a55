use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::time::Duration;

use rustls::Connection;
use treaty_buffers::IoBuffers;
use treaty_worker::{HostOp, Turn};

use crate::buffer::Buffer;
use crate::{Address, ClientTls, ServerTls, Socket, sys};

/// Bytes that are read ahead of whoever consumes them.
const MAX_RECEIVED: usize = 1 << 20;

/// Bytes asked of the socket at once.
const READ_BYTES: usize = 128 << 10;

/// How often a stream is looked at while its task is being stopped: the reactor does not wait for peers then.
const STOPPING_NS: u64 = 1_000_000;

/// A connection of a task. Bytes are sent and received without ever waiting; [`wait`](Self::wait) asks the reactor for a
/// turn when there may be more.
///
/// The reactor's answers carry the key that was given and the next one. A stream that is no longer needed is
/// [shut down](Self::shut_down), and dropped when it is [not waited for](Self::is_waited_for) any more.
pub struct Stream {
    socket: Socket,
    connected: bool,
    tls: Option<Box<Connection>>,
    received: Buffer,
    unsent: Buffer,
    /// The peer will send nothing more.
    ended: bool,
    /// Waits for reading and for writing that the reactor has.
    waits: [bool; 2],
}

impl Stream {
    /// Begins to connect; `attempt` counts from 0 and picks one of several addresses of the same name.
    pub fn connect(address: &Address, attempt: usize) -> io::Result<Self> {
        let mut stream = Self::new(Socket::connect(address, attempt)?)?;
        stream.connected = false;
        Ok(stream)
    }

    /// Over a connected socket.
    pub fn new(socket: Socket) -> io::Result<Self> {
        socket.set_up()?;
        Ok(Self {
            socket,
            connected: true,
            tls: None,
            received: Buffer::default(),
            unsent: Buffer::default(),
            ended: false,
            waits: [false; 2],
        })
    }

    /// From now on both sides speak TLS; we connected. Refused if the peer has sent something that was not consumed.
    pub fn start_client_tls(&mut self, tls: &ClientTls) -> io::Result<()> {
        self.start_tls(tls.connect().map_err(io::Error::other)?)
    }

    /// As [`start_client_tls`](Self::start_client_tls) for the side that listened.
    pub fn start_server_tls(&mut self, tls: &ServerTls) -> io::Result<()> {
        self.start_tls(tls.accept().map_err(io::Error::other)?)
    }

    fn start_tls(&mut self, connection: Connection) -> io::Result<()> {
        if !self.received.is_empty() || self.tls.is_some() {
            return Err(io::Error::other("the peer sent something where TLS should begin"));
        }
        self.tls = Some(Box::new(connection));
        Ok(())
    }

    /// True once TLS protects what is sent and received.
    pub fn is_protected(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| !tls.is_handshaking())
    }

    /// What has come in and was not consumed.
    pub fn received(&self) -> &[u8] {
        self.received.bytes()
    }

    /// Drops the first `count` bytes of what has come in.
    pub fn consume(&mut self, count: usize) {
        self.received.consume(count);
    }

    /// True if the peer will send nothing more than what has come in.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// Sends these bytes, now or as soon as the peer takes them.
    pub fn send(&mut self, bytes: &[u8]) {
        self.unsent.push(bytes);
    }

    /// As [`send`](Self::send). The bytes are copied.
    pub fn send_buffers(&mut self, buffers: &IoBuffers) {
        let fill = |room: &mut [u8]| Ok::<_, ()>(buffers.copy_to(room));
        let _ = self.unsent.fill(buffers.len(), fill);
    }

    /// Bytes that the peer has not taken yet.
    pub fn unsent(&self) -> usize {
        self.unsent.len()
    }

    /// Moves what can be moved without waiting, in both directions. An error ends the connection. What it has received must
    /// be looked at before the next [`wait`](Self::wait), which is for what comes after it.
    pub fn exchange(&mut self) -> io::Result<()> {
        self.flush()?;
        if self.connected {
            self.read()?;
        }
        // TLS answers some of what it reads.
        self.flush()
    }

    /// Sends what can be sent without waiting.
    pub fn flush(&mut self) -> io::Result<()> {
        self.connected = self.connected || self.socket.is_connected()?;
        if self.connected {
            return self.write();
        }
        Ok(())
    }

    fn write(&mut self) -> io::Result<()> {
        let Some(tls) = &mut self.tls else {
            while !self.unsent.is_empty() {
                match (&self.socket).write(self.unsent.bytes()) {
                    Ok(0) => return Err(ErrorKind::WriteZero.into()),
                    Ok(count) => self.unsent.consume(count),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
            return Ok(());
        };
        loop {
            while tls.wants_write() {
                match tls.write_tls(&mut &self.socket) {
                    Ok(0) => return Err(ErrorKind::WriteZero.into()),
                    Ok(_) => {}
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
            if tls.is_handshaking() || self.unsent.is_empty() {
                return Ok(());
            }
            let taken = tls.writer().write(self.unsent.bytes())?;
            self.unsent.consume(taken);
        }
    }

    fn read(&mut self) -> io::Result<()> {
        while !self.ended && self.received.len() < MAX_RECEIVED {
            let result = match &mut self.tls {
                None => self.received.fill(READ_BYTES, |room| (&self.socket).read(room)),
                Some(tls) => read_tls(tls, &self.socket, &mut self.received),
            };
            match result {
                Ok(0) => self.ended = true,
                Ok(count) if count < READ_BYTES && self.tls.is_none() => return Ok(()),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Moves what has come in, and what can be had without waiting, to the front of `into`, which is advanced by as much.
    /// Answers how much it was; 0 if nothing is there yet.
    pub fn receive_into(&mut self, into: &mut IoBuffers) -> io::Result<usize> {
        let mut moved = into.copy_from(self.received.bytes());
        self.received.consume(moved);
        into.advance(moved);
        if into.is_empty() || !self.received.is_empty() || self.tls.is_some() || self.ended {
            return Ok(moved);
        }
        match sys::read_buffers(self.socket.as_raw_fd(), into) {
            Ok(0) => self.ended = true,
            Ok(count) => {
                into.advance(count);
                moved += count;
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(error) => return Err(error),
        }
        Ok(moved)
    }

    /// Asks for a turn when the peer has sent something, or has taken something if bytes are unsent. Call it last in a turn.
    /// The completions have the keys `key` and `key + 1`; give them to [`woken`](Self::woken).
    pub fn wait(&mut self, turn: &mut Turn<'_>, key: u64) {
        if turn.stopping() {
            return turn.wake_at(turn.now() + STOPPING_NS);
        }
        let fd = self.socket.as_raw_fd();
        let reads = self.connected && !self.ended && self.received.len() < MAX_RECEIVED;
        let tls_writes = self.tls.as_ref().is_some_and(|tls| tls.wants_write());
        let writes = !self.connected || !self.unsent.is_empty() || tls_writes;
        if reads && !self.waits[0] {
            self.waits[0] = true;
            turn.submit(HostOp::readable(fd), key);
        }
        if writes && !self.waits[1] {
            self.waits[1] = true;
            turn.submit(HostOp::writable(fd), key + 1);
        }
    }

    /// The reactor has answered; `which` is its key less the one given to [`wait`](Self::wait).
    pub fn woken(&mut self, which: u64) {
        if let Some(wait) = self.waits.get_mut(which as usize) {
            *wait = false;
        }
    }

    /// True while the reactor has an operation on the socket: it must not be dropped.
    pub fn is_waited_for(&self) -> bool {
        self.waits.contains(&true)
    }

    /// Waits on the caller's thread until there may be something to [`exchange`](Self::exchange), or until that long. For
    /// streams that no task has yet.
    pub fn sleep(&self, limit: Duration) -> io::Result<()> {
        let tls_writes = self.tls.as_ref().is_some_and(|tls| tls.wants_write());
        let writes = !self.connected || !self.unsent.is_empty() || tls_writes;
        sys::wait(self.socket.as_raw_fd(), writes, limit)
    }

    /// The task that it belonged to has left its worker, and with it every operation: the stream may have a new one.
    pub fn leave_task(&mut self) {
        self.waits = [false; 2];
    }

    /// Ends the connection in both directions; whatever waits for it is answered soon.
    pub fn shut_down(&mut self) {
        self.socket.shut_down();
        self.ended = true;
    }
}

/// Reads and decrypts; answers the plain bytes that came in, 0 at the end. WouldBlock: nothing more for now.
fn read_tls(tls: &mut Connection, socket: &Socket, received: &mut Buffer) -> io::Result<usize> {
    let before = received.len();
    loop {
        match received.fill(READ_BYTES, |room| tls.reader().read(room)) {
            // A TLS close, as opposed to a cut connection.
            Ok(0) => return Ok(received.len() - before),
            Ok(_) if received.len() >= MAX_RECEIVED => break,
            Ok(_) => continue,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        if received.len() > before {
            break;
        }
        if tls.read_tls(&mut &*socket)? == 0 {
            return match tls.is_handshaking() {
                true => Err(ErrorKind::UnexpectedEof.into()),
                false => Ok(0),
            };
        }
        if let Err(error) = tls.process_new_packets() {
            // Tell the peer why, if it still listens.
            let _ = tls.write_tls(&mut &*socket);
            return Err(io::Error::new(ErrorKind::InvalidData, error));
        }
        if tls.wants_write() && tls.is_handshaking() {
            return Err(ErrorKind::WouldBlock.into());
        }
    }
    Ok(received.len() - before)
}
