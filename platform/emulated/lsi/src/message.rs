//! Messages from the chip to a target. SPI-4 §16

use crate::command::Tag;

/// Bytes of messages in one connection.
const MOST: usize = 64;

/// What a message is about to end. SPI-4 §16.4
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// ABORT TASK: the command that the connection is about.
    Task,
    /// ABORT TASK SET: all that this initiator has with the logical unit.
    Unit,
    /// CLEAR TASK SET: all that anybody has with it.
    Everybody,
    /// TARGET RESET.
    Target,
}

/// A message that was understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    Identify {
        lun: u8,
        may_disconnect: bool,
    },
    Tag(Tag),
    /// The target has this to say to it.
    Reply(Vec<u8>),
    Abort(Scope),
}

/// Collects messages until ATN is taken away.
#[derive(Default)]
pub(crate) struct Parser(Vec<u8>);

impl Parser {
    /// What is too much is not heard.
    pub(crate) fn take(&mut self, bytes: &[u8]) {
        let room = MOST.saturating_sub(self.0.len());
        self.0.extend(bytes.iter().take(room));
    }

    /// All messages that were sent.
    pub(crate) fn end(&mut self) -> Vec<Heard> {
        let bytes = std::mem::take(&mut self.0);
        let mut rest = bytes.as_slice();
        let mut heard = Vec::new();
        while let Some((one, next)) = message(rest) {
            heard.extend(one);
            rest = next;
        }
        heard
    }
}

const REJECT: u8 = 0x07;

/// The first message, and what follows it. What is cut off ends all.
fn message(bytes: &[u8]) -> Option<(Option<Heard>, &[u8])> {
    let (first, rest) = bytes.split_first()?;
    let heard = match *first {
        0x01 => return extended(rest),
        // Errors that the initiator saw, rejections, and nothing.
        0x05 | 0x07 | 0x08 | 0x09 => None,
        0x06 => Some(Heard::Abort(Scope::Unit)),
        0x0c => Some(Heard::Abort(Scope::Target)),
        0x0d => Some(Heard::Abort(Scope::Task)),
        0x0e => Some(Heard::Abort(Scope::Everybody)),
        kind @ 0x20..=0x22 => {
            let (number, rest) = rest.split_first()?;
            let tag = Tag {
                number: *number,
                kind,
            };
            return Some((Some(Heard::Tag(tag)), rest));
        }
        // The other messages of two bytes.
        0x23..=0x2f => return Some((Some(Heard::Reply(vec![REJECT])), rest.get(1..)?)),
        identify @ 0x80.. => Some(Heard::Identify {
            lun: identify & 0x3f,
            may_disconnect: identify & 0x40 != 0,
        }),
        _ => Some(Heard::Reply(vec![REJECT])),
    };
    Some((heard, rest))
}

/// Negotiations: the bus is narrow and asynchronous, and every answer says so. SPI-4 §16.3
fn extended(bytes: &[u8]) -> Option<(Option<Heard>, &[u8])> {
    const SYNCHRONOUS: u8 = 0x01;
    const WIDE: u8 = 0x03;
    let (len, rest) = bytes.split_first()?;
    let (body, rest) = rest.split_at_checked(match len {
        0 => 256,
        len => usize::from(*len),
    })?;
    let reply = match body {
        [SYNCHRONOUS, period, _] => vec![0x01, 3, SYNCHRONOUS, *period, 0],
        [WIDE, _] => vec![0x01, 2, WIDE, 0],
        _ => vec![REJECT],
    };
    Some((Some(Heard::Reply(reply)), rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hear(bytes: &[u8]) -> Vec<Heard> {
        let mut parser = Parser::default();
        parser.take(bytes);
        parser.end()
    }

    #[test]
    fn messages_in_a_row() {
        let identify = Heard::Identify {
            lun: 3,
            may_disconnect: true,
        };
        let tag = Tag {
            number: 9,
            kind: 0x22,
        };
        let narrow = Heard::Reply(vec![1, 2, 3, 0]);
        assert_eq!(
            hear(&[0xc3, 0x22, 9, 1, 2, 3, 1]),
            [identify, Heard::Tag(tag), narrow]
        );
        assert_eq!(hear(&[1, 3, 1, 12, 31, 8]), [Heard::Reply(vec![1, 3, 1, 12, 0])]);
        assert_eq!(
            hear(&[1, 6, 4, 9, 0, 31, 1, 2]),
            [Heard::Reply(vec![REJECT])],
            "PPR"
        );
        assert_eq!(hear(&[0x0d]), [Heard::Abort(Scope::Task)]);
    }

    #[test]
    fn what_is_cut_off_or_too_much_is_dropped() {
        assert_eq!(hear(&[0x20]), []);
        assert_eq!(hear(&[1, 3, 1]), []);
        assert_eq!(hear(&[1, 0, 1]), []);
        assert_eq!(hear(&[0x08; 1000]), []);
        assert_eq!(hear(&[0x10; 1000]).len(), MOST);
    }
}
