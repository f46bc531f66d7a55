//! QEMU's monitor protocol.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

/// Somebody else may hold the monitor (libvirt does): it serves one at a time.
const LIMIT: Duration = Duration::from_secs(3);
/// An answer is shorter than this.
const LONGEST: u64 = 16 << 20;
/// Events between an answer and its question.
const EVENTS: usize = 1000;

/// A connection to one QEMU.
#[derive(Debug)]
pub struct Qmp {
    stream: UnixStream,
    lines: BufReader<UnixStream>,
}

/// Why the monitor did not answer.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// The socket.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It is busy.
    #[error(
        "no answer in 3 s: a monitor serves one client at a time, and libvirt holds its machines' (give them a second -qmp)"
    )]
    Silent,
    /// It answered something else.
    #[error("not QMP: {0}")]
    Odd(String),
    /// It refused.
    #[error("{command}: {reason}")]
    Refused {
        /// The command.
        command: String,
        /// QEMU's words.
        reason: String,
    },
}

impl Qmp {
    /// Connects and greets.
    pub fn connect(path: &Path) -> Result<Self, QmpError> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_write_timeout(Some(LIMIT))?;
        let lines = BufReader::new(stream.try_clone()?);
        let mut qmp = Self { stream, lines };
        let greeting = qmp.next()?;
        if greeting.get("QMP").is_none() {
            return Err(QmpError::Odd(greeting.to_string().chars().take(80).collect()));
        }
        qmp.run("qmp_capabilities", &json!({}))?;
        Ok(qmp)
    }

    /// Runs a command; what it returned.
    pub fn run(&mut self, command: &str, arguments: &Value) -> Result<Value, QmpError> {
        let message = json!({ "execute": command, "arguments": arguments });
        self.stream.write_all(format!("{message}\n").as_bytes())?;
        for _ in 0..EVENTS {
            let mut answer = self.next()?;
            if let Some(error) = answer.get("error") {
                return Err(QmpError::Refused {
                    command: command.to_owned(),
                    reason: error["desc"].as_str().unwrap_or("refused").to_owned(),
                });
            }
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
        }
        Err(QmpError::Odd("events without end".into()))
    }

    fn next(&mut self) -> Result<Value, QmpError> {
        let mut line = String::new();
        let read = (&mut self.lines).take(LONGEST).read_line(&mut line);
        match read {
            Ok(0) => Err(QmpError::Odd("it hung up".into())),
            Ok(_) => serde_json::from_str(&line).map_err(|error| QmpError::Odd(error.to_string())),
            Err(error) if [io::ErrorKind::WouldBlock, io::ErrorKind::TimedOut].contains(&error.kind()) => {
                Err(QmpError::Silent)
            }
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_socket_of_something_else_is_told_so() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(b"220 ftp ready\n").unwrap();
        });
        let error = Qmp::connect(&path).unwrap_err();
        assert!(error.to_string().starts_with("not QMP"), "{error}");
        server.join().unwrap();
        assert!(matches!(
            Qmp::connect(&dir.path().join("none")),
            Err(QmpError::Io(_))
        ));
    }
}
