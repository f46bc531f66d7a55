use std::sync::Arc;

use treaty_stream::Stream;

use super::options::{Export, ServerOptions};
use crate::NbdError;
use crate::wire::{
    BASE_ALLOCATION, INIT_MAGIC, MAX_STRING, OPTION_LEN, OPTION_MAGIC, OPTION_REPLY_MAGIC, Reader, Writer,
    handshake_flag, info, option, option_reply,
};

/// Longest option in bytes: what a client may make us keep before it has an export.
const MAX_OPTION: usize = 2 * MAX_STRING + 1024;

/// Options of one client; more is a client that never comes to the point.
const MAX_OPTIONS: usize = 1000;

/// Number of `base:allocation` in our answers.
pub(crate) const ALLOCATION_ID: u32 = 1;

/// What a client has asked for.
#[derive(Clone)]
pub(crate) struct Agreed {
    pub(crate) export: Export,
    /// Replies come in chunks.
    pub(crate) structured: bool,
    /// The client may ask for `base:allocation`.
    pub(crate) allocation: bool,
}

/// How far the handshake has come.
pub(crate) enum Step {
    /// More has to come in.
    Wait,
    /// Requests follow.
    Ready(Box<Agreed>),
    /// The client has had enough.
    Leave,
}

/// The server's half of the handshake.
pub(crate) struct Negotiation {
    options: Arc<ServerOptions>,
    greeted: bool,
    /// The client's flags have come.
    begun: bool,
    no_zeroes: bool,
    protected: bool,
    structured: bool,
    /// The export for which `base:allocation` was agreed on.
    allocation: Option<String>,
    count: usize,
}

impl Negotiation {
    pub(crate) fn new(options: Arc<ServerOptions>) -> Self {
        Self {
            options,
            greeted: false,
            begun: false,
            no_zeroes: false,
            protected: false,
            structured: false,
            allocation: None,
            count: 0,
        }
    }

    /// Goes on with what has come in.
    pub(crate) fn advance(&mut self, stream: &mut Stream) -> Result<Step, NbdError> {
        if !self.greeted {
            self.greeted = true;
            let flags = handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES;
            stream.send(&Writer::default().u64(INIT_MAGIC).u64(OPTION_MAGIC).u16(flags).0);
        }
        if !self.begun {
            let Some(flags) = Reader(stream.received()).u32() else {
                return Ok(Step::Wait);
            };
            let known = handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES;
            if flags & !u32::from(known) != 0 {
                return Err(NbdError::Protocol("unknown client flags"));
            }
            self.no_zeroes = flags & u32::from(handshake_flag::NO_ZEROES) != 0;
            self.begun = true;
            stream.consume(4);
        }
        loop {
            let mut reader = Reader(stream.received());
            let (Some(magic), Some(option), Some(len)) = (reader.u64(), reader.u32(), reader.u32()) else {
                return Ok(Step::Wait);
            };
            if magic != OPTION_MAGIC {
                return Err(NbdError::Protocol("an option begins with something else"));
            }
            self.count += 1;
            let len = len as usize;
            if len > MAX_OPTION || self.count > MAX_OPTIONS {
                return Err(NbdError::Protocol("too long an option, or too many"));
            }
            let Some(body) = reader.bytes(len) else {
                self.count -= 1;
                return Ok(Step::Wait);
            };
            let body = body.to_vec();
            stream.consume(OPTION_LEN + len);
            match self.option(stream, option, &body)? {
                Step::Wait => {}
                step => return Ok(step),
            }
        }
    }

    fn option(&mut self, stream: &mut Stream, option: u32, body: &[u8]) -> Result<Step, NbdError> {
        let must_protect = self.options.tls.is_some() && !self.protected;
        match option {
            option::ABORT => {
                reply(stream, option, option_reply::ACK, &[]);
                return Ok(Step::Leave);
            }
            option::STARTTLS => self.start_tls(stream, body)?,
            // This one has no way to be refused.
            option::EXPORT_NAME if must_protect => return Err(NbdError::Protocol("a client without TLS")),
            option::EXPORT_NAME => return self.export_name(stream, body),
            _ if must_protect => {
                reply(stream, option, option_reply::TLS_REQUIRED, b"TLS is required");
            }
            option::LIST => self.list(stream, body),
            option::INFO | option::GO => {
                if let Some(agreed) = self.go(stream, option, body)
                    && option == option::GO
                {
                    return Ok(Step::Ready(Box::new(agreed)));
                }
            }
            option::STRUCTURED_REPLY => {
                self.structured |= body.is_empty();
                answer(stream, option, body.is_empty(), "this option has no data");
            }
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => self.meta(stream, option, body),
            _ => reply(stream, option, option_reply::UNSUPPORTED, &[]),
        }
        Ok(Step::Wait)
    }

    fn start_tls(&mut self, stream: &mut Stream, body: &[u8]) -> Result<(), NbdError> {
        let Some(tls) = self.options.tls.clone() else {
            reply(
                stream,
                option::STARTTLS,
                option_reply::POLICY,
                b"this server has no TLS",
            );
            return Ok(());
        };
        if self.protected || !body.is_empty() {
            reply(stream, option::STARTTLS, option_reply::INVALID, &[]);
            return Ok(());
        }
        reply(stream, option::STARTTLS, option_reply::ACK, &[]);
        // The answer goes out in the clear; it is a few bytes, so that the socket takes it at once.
        stream.flush()?;
        if stream.unsent() > 0 {
            return Err(NbdError::Protocol("the client does not read"));
        }
        stream.start_server_tls(&tls)?;
        self.protected = true;
        // What was agreed on in the clear does not count.
        self.structured = false;
        self.allocation = None;
        Ok(())
    }

    fn export_name(&mut self, stream: &mut Stream, body: &[u8]) -> Result<Step, NbdError> {
        let name = std::str::from_utf8(body).unwrap_or("\0");
        let Some(export) = self.options.find(name).cloned() else {
            return Err(NbdError::Protocol("an export that there is not"));
        };
        let mut answer = Writer::default()
            .u64(export.image.capabilities().len)
            .u16(export.flags());
        if !self.no_zeroes {
            answer = answer.bytes(&[0; 124]);
        }
        stream.send(&answer.0);
        Ok(Step::Ready(Box::new(self.agreed(export))))
    }

    fn agreed(&self, export: Export) -> Agreed {
        Agreed {
            allocation: self.allocation.as_ref() == Some(&export.name),
            structured: self.structured,
            export,
        }
    }

    fn list(&self, stream: &mut Stream, body: &[u8]) {
        if !body.is_empty() {
            return reply(stream, option::LIST, option_reply::INVALID, &[]);
        }
        for export in &self.options.exports {
            let body = Writer::default().string(&export.name);
            reply(stream, option::LIST, option_reply::SERVER, &body.0);
        }
        reply(stream, option::LIST, option_reply::ACK, &[]);
    }

    fn go(&self, stream: &mut Stream, option: u32, body: &[u8]) -> Option<Agreed> {
        let mut reader = Reader(body);
        let name = reader.string();
        let count = reader.u16();
        let (Some(name), Some(count)) = (name, count) else {
            reply(
                stream,
                option,
                option_reply::INVALID,
                b"a name and a list are expected",
            );
            return None;
        };
        if reader.0.len() != 2 * usize::from(count) || name.len() > MAX_STRING {
            reply(
                stream,
                option,
                option_reply::INVALID,
                b"the list has another length",
            );
            return None;
        }
        let Some(export) = self.options.find(name).cloned() else {
            reply(stream, option, option_reply::UNKNOWN, b"there is no such export");
            return None;
        };
        let capabilities = export.image.capabilities();
        let description = Writer::default()
            .u16(info::EXPORT)
            .u64(capabilities.len)
            .u16(export.flags());
        reply(stream, option, option_reply::INFO, &description.0);
        let sizes = Writer::default()
            .u16(info::BLOCK_SIZE)
            .u32(capabilities.block_size)
            .u32(capabilities.optimal_size.max(4096))
            .u32(capabilities.max_transfer);
        reply(stream, option, option_reply::INFO, &sizes.0);
        while let Some(asked) = reader.u16() {
            if asked == info::NAME {
                let body = Writer::default().u16(info::NAME).bytes(export.name.as_bytes());
                reply(stream, option, option_reply::INFO, &body.0);
            }
        }
        reply(stream, option, option_reply::ACK, &[]);
        Some(self.agreed(export))
    }

    fn meta(&mut self, stream: &mut Stream, option: u32, body: &[u8]) {
        let set = option == option::SET_META_CONTEXT;
        if set {
            self.allocation = None;
        }
        let mut reader = Reader(body);
        let (Some(name), Some(count)) = (reader.string().map(str::to_owned), reader.u32()) else {
            return reply(
                stream,
                option,
                option_reply::INVALID,
                b"a name and a list are expected",
            );
        };
        if set && !self.structured {
            return reply(
                stream,
                option,
                option_reply::INVALID,
                b"structured replies come first",
            );
        }
        if self.options.find(&name).is_none() {
            return reply(stream, option, option_reply::UNKNOWN, b"there is no such export");
        }
        // Every query has at least a length: no more of them than fit.
        if count as usize > reader.0.len() / 4 {
            return reply(stream, option, option_reply::TOO_BIG, &[]);
        }
        let mut wanted = count == 0 && !set;
        for _ in 0..count {
            let Some(query) = reader.string() else {
                return reply(stream, option, option_reply::INVALID, b"a query is cut short");
            };
            wanted |= query == BASE_ALLOCATION || !set && query == "base:";
        }
        if wanted {
            let id = if set { ALLOCATION_ID } else { 0 };
            let body = Writer::default().u32(id).bytes(BASE_ALLOCATION.as_bytes());
            reply(stream, option, option_reply::META_CONTEXT, &body.0);
            if set {
                self.allocation = Some(name);
            }
        }
        reply(stream, option, option_reply::ACK, &[]);
    }
}

fn answer(stream: &mut Stream, option: u32, good: bool, reason: &str) {
    if good {
        reply(stream, option, option_reply::ACK, &[]);
    } else {
        reply(stream, option, option_reply::INVALID, reason.as_bytes());
    }
}

fn reply(stream: &mut Stream, option: u32, kind: u32, body: &[u8]) {
    let header = Writer::default()
        .u64(OPTION_REPLY_MAGIC)
        .u32(option)
        .u32(kind)
        .u32(body.len() as u32);
    stream.send(&header.bytes(body).0);
}
