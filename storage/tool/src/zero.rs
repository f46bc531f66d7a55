/// Bytes looked at together: a compiler makes vector instructions of that.
const GROUP: usize = 128;

/// True if every byte is 0.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    let (groups, rest) = bytes.as_chunks::<GROUP>();
    groups
        .iter()
        .all(|group| group.iter().fold(0, |all, byte| all | byte) == 0)
        && rest.iter().all(|byte| *byte == 0)
}

/// Bytes that read alike: zeroes or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) start: usize,
    pub(crate) len: usize,
    pub(crate) zero: bool,
}

/// Splits `bytes` into runs of zeroes and of data, in units of `unit` bytes counted from `offset`, where `bytes` begins in
/// the image. With a unit of 0 all is data.
pub(crate) fn runs(bytes: &[u8], offset: u64, unit: usize, found: &mut Vec<Run>) {
    found.clear();
    let mut start = 0;
    while start < bytes.len() {
        let (len, zero) = if unit == 0 {
            (bytes.len(), false)
        } else {
            let into = (offset + start as u64) % unit as u64;
            let len = (unit - into as usize).min(bytes.len() - start);
            (len, is_zero(&bytes[start..start + len]))
        };
        match found.last_mut() {
            Some(last) if last.zero == zero => last.len += len,
            _ => found.push(Run { start, len, zero }),
        }
        start += len;
    }
}

#[cfg(test)]
mod tests {
    use super::{Run, is_zero, runs};

    #[test]
    fn one_byte_anywhere_is_seen() {
        for len in [0, 1, 127, 128, 129, 1000] {
            let mut bytes = vec![0; len];
            assert!(is_zero(&bytes));
            for at in 0..len {
                bytes[at] = 0x80;
                assert!(!is_zero(&bytes), "{len} {at}");
                bytes[at] = 0;
            }
        }
    }

    #[test]
    fn runs_are_made_of_whole_units() {
        let mut bytes = vec![0; 4096];
        bytes[1500] = 1;
        let mut found = Vec::new();
        let run = |start, len, zero| Run { start, len, zero };
        runs(&bytes, 0, 1024, &mut found);
        assert_eq!(
            found,
            [run(0, 1024, true), run(1024, 1024, false), run(2048, 2048, true)]
        );
        // Units count from the image's start.
        runs(&bytes, 512, 1024, &mut found);
        assert_eq!(
            found,
            [run(0, 512, true), run(512, 1024, false), run(1536, 2560, true)]
        );
        runs(&bytes, 0, 0, &mut found);
        assert_eq!(found, [run(0, 4096, false)]);
    }
}
