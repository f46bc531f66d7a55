use std::sync::Arc;
use std::sync::mpsc::Sender;

use treaty_buffers::{AlignedBlock, IoBuffers};
use treaty_storage::{BlockQueue, Finished, Request, RequestKind, StorageError};
use treaty_stream::Stream;
use treaty_worker::Turn;

use super::negotiation::{ALLOCATION_ID, Agreed};
use super::status::{Answer, Inbox, Question};
use crate::NbdError;
use crate::wire::{
    CHUNK_MAGIC, REQUEST_LEN, REQUEST_MAGIC, Reader, SIMPLE_REPLY_MAGIC, Writer, chunk, command,
    command_flag, errno, state,
};

/// Requests of one connection that are under way; further ones stay in the socket.
const MAX_REQUESTS: usize = 128;

/// Bytes of data of one connection that are under way, answers that the client does not read included.
const MAX_BYTES: usize = 64 << 20;

/// Longest data of one request in bytes. The protocol lets every client send this much.
const MAX_DATA: usize = 32 << 20;

/// Extents in one answer.
const MAX_EXTENTS: usize = 8192;

/// Alignment of data in memory, for O_DIRECT.
const ALIGNMENT: usize = 4096;

/// A request as it came in.
#[derive(Clone, Copy)]
struct Head {
    flags: u16,
    kind: u16,
    cookie: u64,
    offset: u64,
    len: u32,
}

/// A request that the image has.
struct Flying {
    head: Head,
    data: Option<AlignedBlock>,
}

/// A write whose data is coming in.
struct Incoming {
    head: Head,
    /// Absent if the request is refused, and its data thrown away.
    data: Option<AlignedBlock>,
    rest: IoBuffers,
    skip: usize,
    refused: u32,
}

/// The requests of one connection.
pub(crate) struct Work {
    agreed: Agreed,
    queue: Box<dyn BlockQueue>,
    flying: Vec<Option<Flying>>,
    free: Vec<u32>,
    incoming: Option<Incoming>,
    /// Questions under way.
    questions: usize,
    bytes: usize,
    asker: Sender<Question>,
    inbox: Arc<Inbox>,
    done: Vec<Finished>,
    /// The client has said goodbye.
    leaving: bool,
}

impl Work {
    pub(crate) fn new(
        agreed: Agreed,
        asker: Sender<Question>,
        inbox: Arc<Inbox>,
    ) -> Result<Self, StorageError> {
        Ok(Self {
            queue: agreed.export.image.queue()?,
            agreed,
            flying: Vec::new(),
            free: Vec::new(),
            incoming: None,
            questions: 0,
            bytes: 0,
            asker,
            inbox,
            done: Vec::new(),
            leaving: false,
        })
    }

    /// Requests under way.
    pub(crate) fn in_flight(&self) -> usize {
        self.flying.len() - self.free.len() + self.questions
    }

    /// True if nothing is under way, in the image neither: a format may have tables to write.
    pub(crate) fn is_drained(&self) -> bool {
        self.in_flight() == 0 && self.queue.in_flight() == 0
    }

    pub(crate) fn is_leaving(&self) -> bool {
        self.leaving
    }

    fn has_room(&self, stream: &Stream) -> bool {
        self.in_flight() < MAX_REQUESTS && self.bytes + stream.unsent() < MAX_BYTES
    }

    /// Takes requests that have come in. True if there was one, or part of one.
    pub(crate) fn accept(&mut self, turn: &mut Turn<'_>, stream: &mut Stream) -> Result<bool, NbdError> {
        let mut any = false;
        while !self.leaving {
            if let Some(incoming) = &mut self.incoming {
                let moved = if incoming.skip > 0 {
                    let count = incoming.skip.min(stream.received().len());
                    stream.consume(count);
                    incoming.skip -= count;
                    count
                } else {
                    stream.receive_into(&mut incoming.rest)?
                };
                any |= moved > 0;
                if incoming.skip > 0 || !incoming.rest.is_empty() {
                    return Ok(any && moved > 0);
                }
                if let Some(incoming) = self.incoming.take() {
                    self.data_complete(turn, stream, incoming);
                }
                continue;
            }
            if !self.has_room(stream) {
                return Ok(any);
            }
            let Some(head) = take_head(stream)? else {
                return Ok(any);
            };
            any = true;
            self.begin(turn, stream, head)?;
        }
        Ok(any)
    }

    fn begin(&mut self, turn: &mut Turn<'_>, stream: &mut Stream, head: Head) -> Result<(), NbdError> {
        match head.kind {
            command::DISCONNECT => {
                self.leaving = true;
                return Ok(());
            }
            command::WRITE => return self.begin_write(turn, stream, head),
            _ => {}
        }
        if let Err(error) = self.check(&head) {
            self.refuse(stream, &head, error);
            return Ok(());
        }
        let (offset, len) = (head.offset, u64::from(head.len));
        match head.kind {
            command::READ => {
                let data = AlignedBlock::new(head.len as usize, ALIGNMENT);
                let buffers = data.buffers();
                self.submit(turn, head, RequestKind::Read { offset }, buffers, Some(data));
            }
            command::FLUSH => self.submit(turn, head, RequestKind::Flush, IoBuffers::new(), None),
            command::TRIM => {
                let kind = RequestKind::Discard { offset, len };
                self.submit(turn, head, kind, IoBuffers::new(), None);
            }
            command::WRITE_ZEROES => {
                let unmap = head.flags & command_flag::NO_HOLE == 0;
                let kind = RequestKind::WriteZeroes { offset, len, unmap };
                self.submit(turn, head, kind, IoBuffers::new(), None);
            }
            // `check` lets nothing else through.
            _ => self.ask(&head),
        }
        Ok(())
    }

    fn begin_write(&mut self, turn: &mut Turn<'_>, stream: &mut Stream, head: Head) -> Result<(), NbdError> {
        let len = head.len as usize;
        if len > MAX_DATA {
            return Err(NbdError::Protocol("a write of more than 32 MiB"));
        }
        let refused = self.check(&head).err().unwrap_or_default();
        let data = (refused == 0).then(|| AlignedBlock::new(len, ALIGNMENT));
        let incoming = Incoming {
            head,
            rest: data.as_ref().map(AlignedBlock::buffers).unwrap_or_default(),
            skip: if data.is_some() { 0 } else { len },
            data,
            refused,
        };
        if incoming.data.is_none() && len == 0 {
            self.data_complete(turn, stream, incoming);
        } else {
            self.incoming = Some(incoming);
        }
        Ok(())
    }

    fn data_complete(&mut self, turn: &mut Turn<'_>, stream: &mut Stream, incoming: Incoming) {
        let Incoming {
            head, data, refused, ..
        } = incoming;
        let Some(data) = data else {
            return self.refuse(stream, &head, refused);
        };
        let durable = head.flags & command_flag::FUA != 0 || self.agreed.export.writes_through;
        let kind = RequestKind::Write {
            offset: head.offset,
            durable,
        };
        let buffers = data.buffers();
        self.submit(turn, head, kind, buffers, Some(data));
    }

    /// Refuses what no image can do; the image looks at the rest.
    fn check(&self, head: &Head) -> Result<(), u32> {
        let capabilities = self.agreed.export.image.capabilities();
        let allowed = match head.kind {
            command::READ => command_flag::DF,
            command::WRITE | command::TRIM => command_flag::FUA,
            command::WRITE_ZEROES => command_flag::FUA | command_flag::NO_HOLE,
            command::BLOCK_STATUS if self.agreed.allocation => command_flag::REQ_ONE,
            command::FLUSH => 0,
            _ => return Err(errno::EINVAL),
        };
        if head.flags & !(allowed | command_flag::FUA) != 0 {
            return Err(errno::EINVAL);
        }
        let writes = matches!(head.kind, command::WRITE | command::TRIM | command::WRITE_ZEROES);
        if writes && self.agreed.export.is_read_only() {
            return Err(errno::EPERM);
        }
        match head.kind {
            command::FLUSH if head.offset == 0 && head.len == 0 => return Ok(()),
            command::FLUSH => return Err(errno::EINVAL),
            command::TRIM if !capabilities.discard => return Err(errno::ENOTSUP),
            command::WRITE_ZEROES if !capabilities.write_zeroes => return Err(errno::ENOTSUP),
            _ => {}
        }
        let end = head.offset.checked_add(u64::from(head.len));
        let inside = end.is_some_and(|end| end <= capabilities.len);
        let block_mask = u64::from(capabilities.block_size) - 1;
        let whole = (head.offset | u64::from(head.len)) & block_mask == 0;
        let transfer = matches!(head.kind, command::READ | command::WRITE);
        if head.len == 0 || !inside || (!whole && head.kind != command::BLOCK_STATUS) {
            return Err(errno::EINVAL);
        }
        if transfer && head.len > capabilities.max_transfer {
            return Err(errno::EINVAL);
        }
        Ok(())
    }

    fn submit(
        &mut self,
        turn: &mut Turn<'_>,
        head: Head,
        kind: RequestKind,
        buffers: IoBuffers,
        data: Option<AlignedBlock>,
    ) {
        self.bytes += buffers.len();
        let flying = Some(Flying { head, data });
        let tag = match self.free.pop() {
            Some(tag) => {
                self.flying[tag as usize] = flying;
                tag
            }
            None => {
                self.flying.push(flying);
                self.flying.len() as u32 - 1
            }
        };
        self.queue.submit(turn, Request { tag, kind, buffers });
    }

    fn ask(&mut self, head: &Head) {
        self.questions += 1;
        let question = Question {
            image: self.agreed.export.image.clone(),
            cookie: head.cookie,
            offset: head.offset,
            len: u64::from(head.len),
            one: head.flags & command_flag::REQ_ONE != 0,
            inbox: self.inbox.clone(),
        };
        if self.asker.send(question).is_err() {
            self.questions -= 1;
        }
    }

    /// Answers what the image has finished. True if there was something.
    pub(crate) fn reap(&mut self, turn: &mut Turn<'_>, stream: &mut Stream) -> bool {
        let mut done = std::mem::take(&mut self.done);
        self.queue.poll(turn, &mut done);
        let any = !done.is_empty();
        for finished in done.drain(..) {
            self.finished(turn, stream, finished);
        }
        self.done = done;
        any
    }

    fn finished(&mut self, turn: &mut Turn<'_>, stream: &mut Stream, finished: Finished) {
        let Finished { tag, result, .. } = finished;
        let Some(mut flying) = self.flying.get_mut(tag as usize).and_then(Option::take) else {
            return;
        };
        self.free.push(tag);
        self.bytes -= flying.data.as_ref().map_or(0, AlignedBlock::len);
        let head = flying.head;
        if let Err(error) = result {
            return self.refuse(stream, &head, number_of(&error));
        }
        let durable = head.flags & command_flag::FUA != 0 || self.agreed.export.writes_through;
        match head.kind {
            // A trim or zeroing is made durable by a flush; its answer then is the request's.
            command::TRIM | command::WRITE_ZEROES if durable => {
                let flush = Head { flags: 0, ..head };
                let flush = Head {
                    kind: command::FLUSH,
                    ..flush
                };
                self.submit(turn, flush, RequestKind::Flush, IoBuffers::new(), None);
            }
            command::READ => {
                let data = flying.data.take().map(|data| data.buffers()).unwrap_or_default();
                self.answer_read(stream, &head, &data);
            }
            _ => stream.send(&simple(0, head.cookie)),
        }
    }

    fn answer_read(&self, stream: &mut Stream, head: &Head, data: &IoBuffers) {
        if self.agreed.structured {
            let len = 8 + data.len() as u32;
            let header = chunk_header(chunk::OFFSET_DATA, head.cookie, len);
            stream.send(&header.u64(head.offset).0);
        } else {
            stream.send(&simple(0, head.cookie));
        }
        stream.send_buffers(data);
    }

    fn refuse(&self, stream: &mut Stream, head: &Head, error: u32) {
        let chunked = matches!(head.kind, command::READ | command::BLOCK_STATUS);
        if self.agreed.structured && chunked {
            let header = chunk_header(chunk::ERROR, head.cookie, 6);
            stream.send(&header.u32(error).u16(0).0);
        } else {
            stream.send(&simple(error, head.cookie));
        }
    }

    /// Answers questions about ranges. True if there was one.
    pub(crate) fn answer_questions(&mut self, stream: &mut Stream) -> bool {
        let answers = self.inbox.take();
        for answer in &answers {
            self.questions -= 1;
            let body = match &answer.extents {
                Ok(_) => descriptors(answer),
                Err(error) => {
                    let header = chunk_header(chunk::ERROR, answer.cookie, 6);
                    stream.send(&header.u32(number_of(error)).u16(0).0);
                    continue;
                }
            };
            let header = chunk_header(chunk::BLOCK_STATUS, answer.cookie, 4 + body.len() as u32);
            stream.send(&header.u32(ALLOCATION_ID).bytes(&body).0);
        }
        !answers.is_empty()
    }
}

fn take_head(stream: &mut Stream) -> Result<Option<Head>, NbdError> {
    let mut reader = Reader(stream.received());
    let Some(magic) = reader.u32() else {
        return Ok(None);
    };
    if magic != REQUEST_MAGIC {
        return Err(NbdError::Protocol("a request begins with something else"));
    }
    let (Some(flags), Some(kind), Some(cookie), Some(offset), Some(len)) = (
        reader.u16(),
        reader.u16(),
        reader.u64(),
        reader.u64(),
        reader.u32(),
    ) else {
        return Ok(None);
    };
    stream.consume(REQUEST_LEN);
    Ok(Some(Head {
        flags,
        kind,
        cookie,
        offset,
        len,
    }))
}

/// Extents as the protocol writes them: length and bits, neighbours with the same bits as one.
fn descriptors(answer: &Answer) -> Vec<u8> {
    let end = answer.offset + answer.len;
    let mut list: Vec<(u64, u32)> = Vec::new();
    let mut at = answer.offset;
    for extent in answer.extents.iter().flatten() {
        if extent.offset != at || at >= end || extent.len == 0 {
            break;
        }
        let len = extent.len.min(end - at);
        at += len;
        let zero = if extent.zero || !extent.data {
            state::ZERO
        } else {
            0
        };
        let hole = if extent.data { 0 } else { state::HOLE };
        let full = list.len() == MAX_EXTENTS || answer.one && !list.is_empty();
        match list.last_mut() {
            Some((total, bits)) if *bits == zero | hole => *total += len,
            _ if full => break,
            _ => list.push((len, zero | hole)),
        }
    }
    if list.is_empty() {
        list.push((answer.len, 0));
    }
    let writer = list.iter().fold(Writer::default(), |writer, &(len, bits)| {
        // Not more than what was asked for, which is 32 bits.
        writer.u32(len as u32).u32(bits)
    });
    writer.0
}

fn simple(error: u32, cookie: u64) -> Vec<u8> {
    Writer::default().u32(SIMPLE_REPLY_MAGIC).u32(error).u64(cookie).0
}

/// The only chunk of a reply.
fn chunk_header(kind: u16, cookie: u64, len: u32) -> Writer {
    Writer::default()
        .u32(CHUNK_MAGIC)
        .u16(chunk::DONE)
        .u16(kind)
        .u64(cookie)
        .u32(len)
}

fn number_of(error: &StorageError) -> u32 {
    match error {
        StorageError::ReadOnly => errno::EPERM,
        StorageError::Unsupported(_) => errno::ENOTSUP,
        StorageError::Host { source, .. } => {
            let number = match source.raw_os_error().unwrap_or(libc::EIO) {
                libc::EDQUOT => libc::ENOSPC as u32,
                number => number as u32,
            };
            if errno::ALL.contains(&number) {
                number
            } else {
                errno::EIO
            }
        }
        _ => errno::EINVAL,
    }
}
