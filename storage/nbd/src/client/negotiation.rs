use treaty_stream::{ClientTls, Stream};

use crate::NbdError;
use crate::wire::{
    BASE_ALLOCATION, INIT_MAGIC, OPTION_MAGIC, OPTION_REPLY_LEN, OPTION_REPLY_MAGIC, Reader, Writer,
    handshake_flag, info, option, option_reply,
};

/// Longest answer to an option, in bytes, and the most answers to all of them.
const MAX_ANSWER: usize = 64 << 10;
const MAX_ANSWERS: usize = 20_000;

/// What is asked of a server before it has an export for us.
#[derive(Clone, Debug)]
pub(crate) enum Goal {
    /// Use this export.
    Go(String),
    /// Say which exports there are.
    List,
}

/// What a server said about its export.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ExportInfo {
    pub(crate) len: u64,
    /// Bits of `export_flag`.
    pub(crate) flags: u16,
    /// Least, best and largest request in bytes.
    pub(crate) block_sizes: Option<(u32, u32, u32)>,
    /// Replies come in chunks.
    pub(crate) structured: bool,
    /// Number of `base:allocation`, if the server has it.
    pub(crate) allocation: Option<u32>,
}

impl ExportInfo {
    pub(crate) fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Hello,
    StartTls,
    Structured,
    Meta,
    Go,
    List,
    Done,
}

/// The client's half of the handshake.
pub(crate) struct Negotiation {
    goal: Goal,
    tls: Option<ClientTls>,
    state: State,
    answers: usize,
    pub(crate) export: ExportInfo,
    /// Names found by [`Goal::List`].
    pub(crate) names: Vec<String>,
}

/// One answer to an option.
struct Answer {
    kind: u32,
    body: Vec<u8>,
}

impl Negotiation {
    pub(crate) fn new(goal: Goal, tls: Option<ClientTls>) -> Self {
        Self {
            goal,
            tls,
            state: State::Hello,
            answers: 0,
            export: ExportInfo::default(),
            names: Vec::new(),
        }
    }

    /// Goes on with what has come in. True once the goal is reached.
    pub(crate) fn advance(&mut self, stream: &mut Stream) -> Result<bool, NbdError> {
        loop {
            if self.state == State::Done {
                return Ok(true);
            }
            if self.state == State::Hello {
                if !self.hello(stream)? {
                    return Ok(false);
                }
                continue;
            }
            let Some(answer) = self.take_answer(stream)? else {
                return Ok(false);
            };
            self.answer(stream, &answer)?;
        }
    }

    fn hello(&mut self, stream: &mut Stream) -> Result<bool, NbdError> {
        let mut reader = Reader(stream.received());
        let (Some(init), Some(magic), Some(flags)) = (reader.u64(), reader.u64(), reader.u16()) else {
            return Ok(false);
        };
        if init != INIT_MAGIC || magic != OPTION_MAGIC {
            return Err(NbdError::Protocol("this is no NBD server of the newstyle kind"));
        }
        if flags & handshake_flag::FIXED_NEWSTYLE == 0 {
            return Err(NbdError::Protocol("the server is older than fixed newstyle"));
        }
        stream.consume(18);
        let ours = handshake_flag::FIXED_NEWSTYLE | flags & handshake_flag::NO_ZEROES;
        stream.send(&u32::from(ours).to_be_bytes());
        match self.tls {
            Some(_) => self.ask(stream, State::StartTls),
            None => self.after_tls(stream),
        }
        Ok(true)
    }

    fn after_tls(&mut self, stream: &mut Stream) {
        match self.goal {
            Goal::Go(_) => self.ask(stream, State::Structured),
            Goal::List => self.ask(stream, State::List),
        }
    }

    /// Sends the option of a state and waits for its answer.
    fn ask(&mut self, stream: &mut Stream, state: State) {
        self.state = state;
        let name = match &self.goal {
            Goal::Go(name) => name.as_str(),
            Goal::List => "",
        };
        let body = Writer::default();
        let (option, body) = match state {
            State::StartTls => (option::STARTTLS, body),
            State::Structured => (option::STRUCTURED_REPLY, body),
            State::Meta => (
                option::SET_META_CONTEXT,
                body.string(name).u32(1).string(BASE_ALLOCATION),
            ),
            State::Go => (option::GO, body.string(name).u16(1).u16(info::BLOCK_SIZE)),
            State::List => (option::LIST, body),
            State::Hello | State::Done => return,
        };
        let header = Writer::default()
            .u64(OPTION_MAGIC)
            .u32(option)
            .u32(body.0.len() as u32);
        stream.send(&header.bytes(&body.0).0);
    }

    fn take_answer(&mut self, stream: &mut Stream) -> Result<Option<Answer>, NbdError> {
        let mut reader = Reader(stream.received());
        let (Some(magic), Some(_), Some(kind), Some(len)) =
            (reader.u64(), reader.u32(), reader.u32(), reader.u32())
        else {
            return Ok(None);
        };
        if magic != OPTION_REPLY_MAGIC {
            return Err(NbdError::Protocol(
                "an answer to an option begins with something else",
            ));
        }
        let len = len as usize;
        if len > MAX_ANSWER {
            return Err(NbdError::Protocol("an answer to an option is too long"));
        }
        let Some(body) = reader.bytes(len) else {
            return Ok(None);
        };
        self.answers += 1;
        if self.answers > MAX_ANSWERS {
            return Err(NbdError::Protocol("the answers to options never end"));
        }
        let body = body.to_vec();
        stream.consume(OPTION_REPLY_LEN + len);
        Ok(Some(Answer { kind, body }))
    }

    fn answer(&mut self, stream: &mut Stream, answer: &Answer) -> Result<(), NbdError> {
        let failed = answer.kind & option_reply::ERROR != 0;
        match self.state {
            State::StartTls if failed => return Err(refusal("TLS", answer)),
            State::StartTls => {
                if let Some(tls) = &self.tls {
                    stream.start_client_tls(tls)?;
                }
                self.after_tls(stream);
            }
            State::Structured if answer.kind == option_reply::TLS_REQUIRED => {
                return Err(refusal("a connection without TLS (use nbds://)", answer));
            }
            // An old server answers in simple replies, and knows no contexts.
            State::Structured if failed => self.ask(stream, State::Go),
            State::Structured => {
                self.export.structured = true;
                self.ask(stream, State::Meta);
            }
            State::Meta if answer.kind == option_reply::META_CONTEXT => self.meta(&answer.body)?,
            State::Meta => {
                if failed {
                    self.export.allocation = None;
                }
                self.ask(stream, State::Go);
            }
            State::Go => self.go(answer)?,
            State::List => self.list(answer)?,
            State::Hello | State::Done => {}
        }
        Ok(())
    }

    fn meta(&mut self, body: &[u8]) -> Result<(), NbdError> {
        let mut reader = Reader(body);
        let number = reader
            .u32()
            .ok_or(NbdError::Protocol("a context without number"))?;
        if reader.0 == BASE_ALLOCATION.as_bytes() {
            self.export.allocation = Some(number);
        }
        Ok(())
    }

    fn go(&mut self, answer: &Answer) -> Result<(), NbdError> {
        match answer.kind {
            option_reply::ACK => {
                if !self.export.has(crate::wire::export_flag::HAS_FLAGS) {
                    return Err(NbdError::Protocol("the server did not describe its export"));
                }
                self.state = State::Done;
                Ok(())
            }
            option_reply::INFO => {
                let mut reader = Reader(&answer.body);
                match reader.u16() {
                    Some(info::EXPORT) => {
                        let (Some(len), Some(flags)) = (reader.u64(), reader.u16()) else {
                            return Err(NbdError::Protocol("a short description of the export"));
                        };
                        (self.export.len, self.export.flags) = (len, flags);
                    }
                    Some(info::BLOCK_SIZE) => {
                        let (Some(least), Some(best), Some(most)) =
                            (reader.u32(), reader.u32(), reader.u32())
                        else {
                            return Err(NbdError::Protocol("short block sizes"));
                        };
                        let sane = least.is_power_of_two() && least <= 65536 && best >= least && most >= best;
                        if !sane {
                            return Err(NbdError::Protocol("block sizes that cannot be"));
                        }
                        self.export.block_sizes = Some((least, best, most));
                    }
                    _ => {}
                }
                Ok(())
            }
            option_reply::UNKNOWN => Err(refusal("this export, which it does not have", answer)),
            option_reply::TLS_REQUIRED => Err(refusal("a connection without TLS (use nbds://)", answer)),
            kind if kind & option_reply::ERROR != 0 => Err(refusal("the export", answer)),
            _ => Err(NbdError::Protocol("an unknown answer to GO")),
        }
    }

    fn list(&mut self, answer: &Answer) -> Result<(), NbdError> {
        match answer.kind {
            option_reply::ACK => self.state = State::Done,
            option_reply::SERVER => {
                let name = Reader(&answer.body).string();
                let name = name.ok_or(NbdError::Protocol("an export without a name"))?;
                self.names.push(name.to_owned());
            }
            option_reply::TLS_REQUIRED => {
                return Err(refusal("a connection without TLS (use nbds://)", answer));
            }
            _ => return Err(refusal("to list its exports", answer)),
        }
        Ok(())
    }
}

/// What the server gives as its reason goes into the message, as far as it can be printed.
fn refusal(what: &str, answer: &Answer) -> NbdError {
    let text: String = String::from_utf8_lossy(&answer.body)
        .chars()
        .filter(|letter| !letter.is_control())
        .take(200)
        .collect();
    if text.is_empty() {
        return NbdError::Refused(what.to_owned());
    }
    NbdError::Refused(format!("{what}: {text}"))
}
