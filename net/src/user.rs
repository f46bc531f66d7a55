use std::io::{self, BufRead, BufReader};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use treaty_buffers::IoBuffers;
use treaty_virtio_spec::net::Header;

use crate::stream::{FrameReader, FrameWriter};
use crate::{
    BackendError, Capabilities, Offloads, PacketBackend, PacketReceiver, PacketSender, Received, Sent,
};

/// Lines of the child's standard error that are passed to the log; more would let a guest fill it.
const LOGGED_LINES: usize = 32;

/// How user networking is set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserOptions {
    /// The program; looked up in PATH if it has no '/'.
    pub program: String,
    /// MTU in bytes, announced to the guest by DHCP, NDP and the device.
    pub mtu: u16,
    /// More of passt's options, such as `-t 2222:22` to forward a port.
    pub arguments: Vec<String>,
}

impl Default for UserOptions {
    fn default() -> Self {
        Self {
            program: "passt".into(),
            mtu: 65520,
            arguments: Vec::new(),
        }
    }
}

/// A network without privileges: passt as a child process turns the guest's frames into the host's own sockets. It is
/// given one end of a socket pair as its standard input, and ends when the other end is closed or this is dropped.
pub struct User {
    capabilities: Capabilities,
    wire: Arc<Wire>,
    child: Child,
}

/// Our end. Frames that were taken in part outlive the queues: a queue that is stopped and started again goes on in the
/// middle of the stream. The locks are not contended, there is one sender and one receiver.
struct Wire {
    stream: UnixStream,
    reader: Mutex<FrameReader>,
    writer: Mutex<FrameWriter>,
}

impl User {
    /// Starts passt.
    pub fn start(options: &UserOptions) -> Result<Self, BackendError> {
        let (near, far) = UnixStream::pair().map_err(BackendError::host("make a socket pair for passt"))?;
        near.set_nonblocking(true)
            .map_err(BackendError::host("make the socket of passt non-blocking"))?;
        let mut child = Command::new(&options.program)
            .args(["--foreground", "--quiet", "--one-off", "--fd", "0", "--mtu"])
            .arg(options.mtu.to_string())
            .args(&options.arguments)
            .stdin(OwnedFd::from(far))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| start_error(&options.program, error))?;
        if let Some(stderr) = child.stderr.take() {
            std::thread::Builder::new()
                .name("passt-log".into())
                .spawn(move || pass_on_log(stderr))
                .map_err(BackendError::host("start a thread for passt's messages"))?;
        }
        Ok(Self {
            capabilities: Capabilities {
                send: Offloads::NONE,
                receive: Offloads::NONE,
                max_pairs: 1,
                mtu: Some(options.mtu),
            },
            wire: Arc::new(Wire {
                stream: near,
                reader: Mutex::new(FrameReader::new()),
                writer: Mutex::default(),
            }),
            child,
        })
    }

    /// The child's process ID.
    pub fn process_id(&self) -> u32 {
        self.child.id()
    }
}

fn start_error(program: &str, error: io::Error) -> BackendError {
    if error.kind() == io::ErrorKind::NotFound {
        return BackendError::Refused(format!(
            "user networking needs {program}, which is not installed: `apt install passt`"
        ));
    }
    BackendError::host(format!("start {program}"))(error)
}

/// Reads to the end, so that the child never waits for its messages to be read.
fn pass_on_log(stderr: ChildStderr) {
    let mut logged = 0;
    for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
        let text = String::from_utf8_lossy(&line);
        // Said for every message on hosts without a system logger.
        if logged < LOGGED_LINES && !text.is_empty() && !text.starts_with("Failed to send ") {
            tracing::info!("passt: {text}");
            logged += 1;
        }
    }
}

impl Drop for User {
    fn drop(&mut self) {
        // Fails only if it has ended already. Then it is reaped: no zombie stays.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl PacketBackend for User {
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
        Ok(Box::new(End(self.wire.clone())))
    }

    fn receiver(&mut self, _: u16) -> Result<Box<dyn PacketReceiver>, BackendError> {
        Ok(Box::new(End(self.wire.clone())))
    }
}

struct End(Arc<Wire>);

impl PacketSender for End {
    fn send(&mut self, _: &Header, frame: &IoBuffers) -> Sent {
        let mut writer = self.0.writer.lock().unwrap_or_else(PoisonError::into_inner);
        writer.send(&self.0.stream, frame)
    }

    fn output_fd(&self) -> Option<RawFd> {
        Some(self.0.stream.as_raw_fd())
    }
}

impl PacketReceiver for End {
    fn receive(&mut self, frame: &mut [u8]) -> Received {
        let mut reader = self.0.reader.lock().unwrap_or_else(PoisonError::into_inner);
        match reader.next(&self.0.stream, frame) {
            Received::Down(reason) => Received::Down(format!("passt: {reason}")),
            other => other,
        }
    }

    fn input_fd(&self) -> Option<RawFd> {
        Some(self.0.stream.as_raw_fd())
    }
}
