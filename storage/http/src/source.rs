use std::io;
use std::time::{Duration, Instant};

use treaty_stream::{Address, ClientTls, Stream};

use crate::HttpError;
use crate::head::Head;
use crate::url::Url;

/// How long a server may take to describe a file.
const OPEN_LIMIT: Duration = Duration::from_secs(30);

/// Redirects that are followed.
const MAX_REDIRECTS: usize = 5;

/// A file on a server, and what it was when it was opened.
pub(crate) struct Source {
    pub(crate) name: String,
    url: Url,
    pub(crate) address: Address,
    tls: Option<ClientTls>,
    pub(crate) len: u64,
    /// Absent if the server says nothing by which a change could be seen.
    version: Option<String>,
}

impl Source {
    /// Asks the server for the file's length. Waits for the network.
    pub(crate) fn open(name: &str) -> Result<Self, HttpError> {
        let mut url: Url = name.parse()?;
        let deadline = Instant::now() + OPEN_LIMIT;
        for _ in 0..=MAX_REDIRECTS {
            let mut source = Self {
                name: name.to_owned(),
                address: Address::resolve(&url.host, url.port)?,
                tls: match url.tls {
                    true => Some(ClientTls::new(&url.host, url.certificates.as_deref())?),
                    false => None,
                },
                url: url.clone(),
                len: 0,
                version: None,
            };
            let head = source.first_byte(deadline)?;
            match (head.status, head.range, &head.location) {
                (206, Some((_, _, len)), _) => {
                    source.len = len;
                    source.version = head.version;
                    return Ok(source);
                }
                (301 | 302 | 303 | 307 | 308, _, Some(location)) => url = url.follow(location)?,
                (200 | 206, ..) => return Err(HttpError::Answer("the server cannot send parts of a file")),
                (416, ..) => return Err(HttpError::Answer("the file is empty")),
                (status, ..) => return Err(HttpError::Status(status)),
            }
        }
        Err(HttpError::Answer(
            "the server leads from one place to another without end",
        ))
    }

    /// The head of the answer to a request for the first byte.
    fn first_byte(&self, deadline: Instant) -> Result<Head, HttpError> {
        let mut last = io::Error::other("the name stands for no address").into();
        for attempt in 0..self.address.count() {
            let asked = self.connect(attempt).and_then(|mut stream| {
                stream.send(&self.request(0, 1));
                ask(&mut stream, deadline)
            });
            match asked {
                Err(HttpError::Host(error)) => {
                    let text = format!("cannot reach {}: {error}", self.address);
                    last = HttpError::Host(io::Error::new(error.kind(), text));
                }
                other => return other,
            }
        }
        Err(last)
    }

    /// Begins to connect.
    pub(crate) fn connect(&self, attempt: usize) -> Result<Stream, HttpError> {
        let mut stream = Stream::connect(&self.address, attempt)?;
        if let Some(tls) = &self.tls {
            stream.start_client_tls(tls)?;
        }
        Ok(stream)
    }

    /// A request for a range.
    pub(crate) fn request(&self, offset: u64, len: u64) -> Vec<u8> {
        let (path, host) = (&self.url.path, self.url.authority());
        let last = offset + len.saturating_sub(1);
        format!(
            "GET {path} HTTP/1.1\r\nHost: {host}\r\nRange: bytes={offset}-{last}\r\nUser-Agent: treaty\r\n\
             Accept-Encoding: identity\r\nConnection: keep-alive\r\n\r\n"
        )
        .into_bytes()
    }

    /// Refuses an answer that is not the range asked for, of the file that was opened.
    pub(crate) fn check(&self, head: &Head, offset: u64, len: u64) -> Result<(), HttpError> {
        match head.status {
            206 => {}
            // The range that was asked for is not in the file any more.
            416 | 404 | 410 => return Err(HttpError::Changed),
            status => return Err(HttpError::Status(status)),
        }
        let Some((first, last, whole)) = head.range else {
            return Err(HttpError::Answer("a part without a range"));
        };
        if whole != self.len || head.version != self.version {
            return Err(HttpError::Changed);
        }
        if first != offset || last - first + 1 != len || head.body != Some(len) {
            return Err(HttpError::Answer("another range than was asked for"));
        }
        Ok(())
    }
}

/// Waits for the head of an answer.
fn ask(stream: &mut Stream, deadline: Instant) -> Result<Head, HttpError> {
    loop {
        stream.exchange()?;
        if let Some(head) = Head::parse(stream.received())? {
            return Ok(head);
        }
        if stream.has_ended() {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::from(io::ErrorKind::TimedOut).into());
        }
        stream.sleep(left)?;
    }
}
