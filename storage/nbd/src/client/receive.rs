use treaty_buffers::IoBuffers;
use treaty_stream::Stream;

use super::active::{Active, Purpose};
use super::negotiation::ExportInfo;
use crate::NbdError;
use crate::wire::{CHUNK_LEN, CHUNK_MAGIC, Reader, SIMPLE_REPLY_LEN, SIMPLE_REPLY_MAGIC, chunk};

/// Longest chunk that is not data: an error with its message, or the descriptors of a range.
const MAX_CHUNK: usize = 256 << 10;

/// Where the reading of replies is.
#[derive(Default)]
pub(crate) enum Receiver {
    /// Before a reply.
    #[default]
    Header,
    /// In the data of a read.
    Data {
        cookie: u64,
        /// Where the rest goes.
        rest: IoBuffers,
        /// It is the last chunk.
        done: bool,
    },
}

/// What the replies came to.
pub(crate) enum Event {
    /// Nothing more for now.
    Wait,
    /// Something came in that ends no request.
    Progress,
    /// A request's part has ended.
    Ended(u64),
    /// What a range consists of: lengths and bits of `state`.
    Extents(Vec<(u32, u32)>),
}

/// Finds requests by cookie.
pub(crate) trait Requests {
    fn find(&mut self, cookie: u64) -> Option<&mut Active>;
}

struct Chunk {
    last: bool,
    kind: u16,
    cookie: u64,
    len: usize,
}

impl Receiver {
    /// Goes on with what has come in, up to the next event.
    pub(crate) fn advance(
        &mut self,
        stream: &mut Stream,
        requests: &mut dyn Requests,
        export: &ExportInfo,
    ) -> Result<Event, NbdError> {
        match self {
            Self::Data { cookie, rest, done } => {
                let moved = stream.receive_into(rest)?;
                let (cookie, done, over) = (*cookie, *done, rest.is_empty());
                let active = requests.find(cookie).ok_or(UNKNOWN)?;
                active.filled += moved as u64;
                if !over {
                    return Ok(if moved > 0 { Event::Progress } else { Event::Wait });
                }
                *self = Self::Header;
                Ok(if done {
                    Event::Ended(cookie)
                } else {
                    Event::Progress
                })
            }
            Self::Header => {
                let Some(magic) = Reader(stream.received()).u32() else {
                    return Ok(Event::Wait);
                };
                match magic {
                    SIMPLE_REPLY_MAGIC => self.simple(stream, requests, export),
                    CHUNK_MAGIC if export.structured => self.chunk(stream, requests, export),
                    _ => Err(NbdError::Protocol("a reply begins with something else")),
                }
            }
        }
    }

    fn simple(
        &mut self,
        stream: &mut Stream,
        requests: &mut dyn Requests,
        export: &ExportInfo,
    ) -> Result<Event, NbdError> {
        let mut reader = Reader(stream.received());
        let (Some(_), Some(error), Some(cookie)) = (reader.u32(), reader.u32(), reader.u64()) else {
            return Ok(Event::Wait);
        };
        stream.consume(SIMPLE_REPLY_LEN);
        let active = requests.find(cookie).ok_or(UNKNOWN)?;
        if error != 0 {
            active.error.get_or_insert(error);
            return Ok(Event::Ended(cookie));
        }
        match active.purpose {
            Purpose::Read if export.structured => {
                Err(NbdError::Protocol("a read was answered without chunks"))
            }
            Purpose::Read => {
                let rest = active.buffers.slice(0, active.buffers.len()).unwrap_or_default();
                let done = true;
                *self = Self::Data { cookie, rest, done };
                Ok(Event::Progress)
            }
            Purpose::Status => Err(NbdError::Protocol("a question was answered without an answer")),
            _ => Ok(Event::Ended(cookie)),
        }
    }

    fn chunk(
        &mut self,
        stream: &mut Stream,
        requests: &mut dyn Requests,
        export: &ExportInfo,
    ) -> Result<Event, NbdError> {
        let mut reader = Reader(stream.received());
        let (Some(_), Some(flags), Some(kind), Some(cookie), Some(len)) = (
            reader.u32(),
            reader.u16(),
            reader.u16(),
            reader.u64(),
            reader.u32(),
        ) else {
            return Ok(Event::Wait);
        };
        let chunk = Chunk {
            last: flags & chunk::DONE != 0,
            kind,
            cookie,
            len: len as usize,
        };
        let active = requests.find(cookie).ok_or(UNKNOWN)?;
        if chunk.kind == chunk::OFFSET_DATA {
            return self.data(stream, active, &chunk);
        }
        if chunk.len > MAX_CHUNK {
            return Err(NbdError::Protocol("a chunk is too long"));
        }
        let Some(body) = reader.bytes(chunk.len) else {
            return Ok(Event::Wait);
        };
        let event = body_chunk(active, &chunk, body, export)?;
        stream.consume(CHUNK_LEN + chunk.len);
        match event {
            // Extents come in one chunk, or the question's end is told by an empty one.
            Event::Progress if chunk.last => Ok(Event::Ended(cookie)),
            Event::Extents(_) if !chunk.last => Err(NbdError::Protocol("extents in several chunks")),
            event => Ok(event),
        }
    }

    fn data(&mut self, stream: &mut Stream, active: &Active, chunk: &Chunk) -> Result<Event, NbdError> {
        let mut reader = Reader(stream.received());
        let (Some(_), Some(offset)) = (reader.bytes(CHUNK_LEN), reader.u64()) else {
            return Ok(Event::Wait);
        };
        let outside = NbdError::Protocol("data for a place that was not asked for");
        let len = chunk.len.checked_sub(8).filter(|&len| len > 0);
        let at = offset.checked_sub(active.offset);
        let (Some(len), Some(at), Purpose::Read) = (len, at, active.purpose) else {
            return Err(outside);
        };
        let at = usize::try_from(at).unwrap_or(usize::MAX);
        let rest = active.buffers.slice(at, len).ok_or(outside)?;
        stream.consume(CHUNK_LEN + 8);
        *self = Self::Data {
            cookie: chunk.cookie,
            rest,
            done: chunk.last,
        };
        Ok(Event::Progress)
    }
}

const UNKNOWN: NbdError = NbdError::Protocol("a reply to nothing that was asked");

/// A chunk that has come in as a whole.
fn body_chunk(
    active: &mut Active,
    chunk: &Chunk,
    body: &[u8],
    export: &ExportInfo,
) -> Result<Event, NbdError> {
    let mut reader = Reader(body);
    match chunk.kind {
        chunk::NONE if chunk.len == 0 && chunk.last => Ok(Event::Progress),
        chunk::OFFSET_HOLE if chunk.len == 12 && active.purpose == Purpose::Read => {
            let outside = NbdError::Protocol("a hole in a place that was not asked for");
            let (Some(offset), Some(len)) = (reader.u64(), reader.u32()) else {
                return Err(outside);
            };
            let at = offset.checked_sub(active.offset);
            let at = at.and_then(|at| usize::try_from(at).ok()).unwrap_or(usize::MAX);
            let mut hole = active.buffers.slice(at, len as usize).ok_or(outside)?;
            hole.fill(0);
            active.filled += u64::from(len);
            Ok(Event::Progress)
        }
        chunk::BLOCK_STATUS if active.purpose == Purpose::Status => {
            if reader.u32() != export.allocation {
                return Err(NbdError::Protocol("extents of something that was not asked for"));
            }
            let mut extents = Vec::new();
            while let (Some(len), Some(bits)) = (reader.u32(), reader.u32()) {
                if len == 0 {
                    return Err(NbdError::Protocol("an extent without length"));
                }
                extents.push((len, bits));
            }
            if extents.is_empty() {
                return Err(NbdError::Protocol("no extents"));
            }
            Ok(Event::Extents(extents))
        }
        kind if kind & chunk::ERROR_BIT != 0 => {
            let error = reader
                .u32()
                .ok_or(NbdError::Protocol("an error without a number"))?;
            active.error.get_or_insert(error.max(1));
            Ok(Event::Progress)
        }
        _ => Err(NbdError::Protocol("a chunk of an unknown kind")),
    }
}
