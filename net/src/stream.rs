//! Frames over a byte stream, as QEMU's stream sockets have them: a big-endian u32 length, then the frame.

use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use treaty_buffers::IoBuffers;

use crate::sys::Gather;
use crate::{MAX_FRAME, Received, Sent};

const LENGTH_BYTES: usize = 4;
/// Read at once: several frames, or one of the largest.
const READ_BYTES: usize = 128 * 1024;

/// Takes frames out of a stream.
pub(crate) struct FrameReader {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl FrameReader {
    pub(crate) fn new() -> Self {
        Self {
            buffer: vec![0; READ_BYTES],
            start: 0,
            end: 0,
        }
    }

    /// The next frame, from what was read before or from the stream.
    pub(crate) fn next(&mut self, stream: &UnixStream, frame: &mut [u8]) -> Received {
        loop {
            match self.take(frame) {
                Received::Nothing => {}
                found => return found,
            }
            match self.read_more(stream) {
                Ok(0) => return Received::Down("the connection was closed".into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Received::Nothing,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Received::Down(error.to_string()),
            }
        }
    }

    /// A whole frame out of the buffer, if there is one.
    fn take(&mut self, frame: &mut [u8]) -> Received {
        let there = self.buffer.get(self.start..self.end).unwrap_or_default();
        let Some((length, rest)) = there.split_first_chunk::<LENGTH_BYTES>() else {
            return Received::Nothing;
        };
        let len = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
        if len == 0 || len > MAX_FRAME {
            return Received::Down(format!("a frame of {len} bytes was announced"));
        }
        let Some(bytes) = rest.get(..len) else {
            return Received::Nothing;
        };
        self.start += LENGTH_BYTES + len;
        match frame.get_mut(..len) {
            None => Received::Lost,
            Some(part) => {
                part.copy_from_slice(bytes);
                Received::Frame {
                    header: treaty_virtio_spec::net::Header::default(),
                    len,
                }
            }
        }
    }

    fn read_more(&mut self, mut stream: &UnixStream) -> io::Result<usize> {
        // What is left is less than one frame, and the buffer has room for more than one.
        self.buffer.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        let count = stream.read(self.buffer.get_mut(self.end..).unwrap_or_default())?;
        self.end += count;
        Ok(count)
    }
}

/// Puts frames into a stream. A frame that the stream took in part is kept and completed first.
#[derive(Default)]
pub(crate) struct FrameWriter {
    rest: Vec<u8>,
    gather: Gather,
}

impl FrameWriter {
    pub(crate) fn send(&mut self, stream: &UnixStream, frame: &IoBuffers) -> Sent {
        match self.flush(stream) {
            Ok(true) => {}
            Ok(false) => return Sent::Later,
            Err(_) => return Sent::Dropped,
        }
        let Ok(len) = u32::try_from(frame.len()) else {
            return Sent::Dropped;
        };
        let length = len.to_be_bytes();
        match self.gather.send(stream.as_raw_fd(), &length, frame) {
            Ok(sent) => {
                self.keep_rest(&length, frame, sent);
                Sent::Taken
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Sent::Later,
            Err(_) => Sent::Dropped,
        }
    }

    fn keep_rest(&mut self, length: &[u8], frame: &IoBuffers, sent: usize) {
        if sent == length.len() + frame.len() {
            return;
        }
        let mut whole = vec![0; length.len() + frame.len()];
        let (front, back) = whole.split_at_mut(length.len());
        front.copy_from_slice(length);
        frame.copy_to(back);
        whole.drain(..sent);
        self.rest = whole;
    }

    /// True if nothing is left over.
    fn flush(&mut self, stream: &UnixStream) -> io::Result<bool> {
        while !self.rest.is_empty() {
            match self
                .gather
                .send(stream.as_raw_fd(), &self.rest, &IoBuffers::new())
            {
                Ok(sent) => drop(self.rest.drain(..sent)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use treaty_buffers::AlignedBlock;

    use super::*;

    fn pair() -> (UnixStream, UnixStream) {
        let (near, far) = UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        far.set_nonblocking(true).unwrap();
        (near, far)
    }

    #[test]
    fn frames_survive_any_split_of_the_stream() {
        let (near, mut far) = pair();
        let mut wire = Vec::new();
        for (len, fill) in [(60usize, 1u8), (1, 2), (MAX_FRAME, 3), (1514, 4)] {
            wire.extend_from_slice(&u32::try_from(len).unwrap().to_be_bytes());
            wire.extend(std::iter::repeat_n(fill, len));
        }
        let mut reader = FrameReader::new();
        let mut frame = vec![0; MAX_FRAME];
        let mut found = Vec::new();
        for chunk in wire.chunks(777) {
            far.write_all(chunk).unwrap();
            while let Received::Frame { len, .. } = reader.next(&near, &mut frame) {
                assert!(frame[..len].iter().all(|byte| *byte == frame[0]));
                found.push((len, frame[0]));
            }
        }
        assert_eq!(found, [(60, 1), (1, 2), (MAX_FRAME, 3), (1514, 4)]);
        drop(far);
        assert!(matches!(reader.next(&near, &mut frame), Received::Down(_)));
    }

    #[test]
    fn an_absurd_length_ends_the_stream() {
        for length in [0u32, MAX_FRAME as u32 + 1, u32::MAX] {
            let (near, mut far) = pair();
            far.write_all(&length.to_be_bytes()).unwrap();
            let mut frame = vec![0; MAX_FRAME];
            assert!(matches!(
                FrameReader::new().next(&near, &mut frame),
                Received::Down(_)
            ));
        }
    }

    #[test]
    fn a_frame_taken_in_part_is_completed_first() {
        let (near, far) = pair();
        let block = AlignedBlock::new(60_000, 8);
        let mut buffers = block.buffers();
        let mut writer = FrameWriter::default();
        let mut sent = 0u8;
        loop {
            buffers.fill(sent);
            match writer.send(&near, &buffers) {
                Sent::Taken => sent += 1,
                Sent::Later => break,
                Sent::Dropped => panic!("the peer is there"),
            }
        }
        assert!(sent > 1);
        let mut reader = FrameReader::new();
        let mut frame = vec![0; MAX_FRAME];
        let mut expected = 0;
        while expected < sent {
            match reader.next(&far, &mut frame) {
                Received::Frame { len, .. } => {
                    assert_eq!(len, 60_000);
                    assert!(frame[..len].iter().all(|byte| *byte == expected));
                    expected += 1;
                }
                Received::Nothing => assert!(writer.flush(&near).is_ok()),
                other => panic!("{other:?}"),
            }
        }
        drop(far);
        assert_eq!(writer.send(&near, &buffers), Sent::Dropped);
    }
}
