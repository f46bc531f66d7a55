//! Frames of every length, and the files that testpmd reads and writes.

use std::path::Path;

/// Shortest and longest Ethernet frame without its checksum, which no virtio card carries: 64 to 1518 bytes with it.
const LENGTHS: std::ops::RangeInclusive<usize> = 60..=1514;
/// Local experimental EtherType 1: nothing on the way knows what is in such a frame.
const HEADER: [u8; 14] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xb5];

/// A frame of every length in an order that `seed` decides, with noise in it.
pub fn every_length(seed: u64) -> Vec<Vec<u8>> {
    let mut noise = Noise(seed | 1);
    let mut lengths: Vec<usize> = LENGTHS.collect();
    for last in (1..lengths.len()).rev() {
        lengths.swap(last, (noise.next() % (last as u64 + 1)) as usize);
    }
    lengths.into_iter().map(|len| noise.frame(len)).collect()
}

/// xorshift64: the same frames for the same seed.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn frame(&mut self, len: usize) -> Vec<u8> {
        let mut frame = HEADER.to_vec();
        while frame.len() < len {
            frame.extend(self.next().to_le_bytes());
        }
        frame.truncate(len);
        frame
    }
}

/// libpcap's file format, version 2.4, microseconds.
const FILE_HEADER: [u32; 6] = [0xa1b2_c3d4, 0x0004_0002, 0, 0, 65535, 1];

pub fn write_pcap(path: &Path, frames: &[Vec<u8>]) {
    let mut bytes: Vec<u8> = FILE_HEADER.iter().flat_map(|word| word.to_le_bytes()).collect();
    for frame in frames {
        let len = frame.len() as u32;
        bytes.extend([0, 0, len, len].iter().flat_map(|word: &u32| word.to_le_bytes()));
        bytes.extend(frame);
    }
    std::fs::write(path, bytes).unwrap();
}

pub fn read_pcap(path: &Path) -> Vec<Vec<u8>> {
    let bytes = std::fs::read(path).unwrap();
    let mut rest = &bytes[24..];
    let mut frames = Vec::new();
    while !rest.is_empty() {
        let word = |at: usize| u32::from_le_bytes(rest[at..at + 4].try_into().unwrap()) as usize;
        let (captured, length) = (word(8), word(12));
        assert_eq!(captured, length, "testpmd cut a frame off");
        frames.push(rest[16..16 + captured].to_vec());
        rest = &rest[16 + captured..];
    }
    frames
}

/// Fails at the first frame that is not what it was.
pub fn assert_same(what: &str, got: &[Vec<u8>], wanted: &[Vec<u8>]) {
    for (index, (got, wanted)) in got.iter().zip(wanted).enumerate() {
        assert!(
            got == wanted,
            "{what}: frame {index} came back as {} bytes, was {}; they differ from byte {:?}",
            got.len(),
            wanted.len(),
            got.iter().zip(wanted).position(|(a, b)| a != b)
        );
    }
    assert_eq!(got.len(), wanted.len(), "{what}: number of frames");
}
