use std::io::Write;

use flate2::{Compress, Decompress, FlushCompress, FlushDecompress, Status};
use libdeflater::Decompressor;

use super::header::Compression;

/// How far deflate may look back, as a power of two: QEMU looks no further.
const WINDOW_BITS: u8 = 12;

/// Unpacks a cluster. `None` if the data is damaged. What follows the compressed data does not matter: its length is
/// only known in sectors.
pub(crate) fn unpack(kind: Compression, packed: &[u8], cluster: usize) -> Option<Vec<u8>> {
    let mut plain = vec![0; cluster];
    match kind {
        Compression::Zlib => {
            // The usual case in one go; what is cut off, or longer than a cluster, a byte at a time.
            if Decompressor::new().deflate_decompress(packed, &mut plain) == Ok(cluster) {
                return Some(plain);
            }
            let mut inflate = Decompress::new(false);
            // An error at the end of the output is no loss: the cluster is full.
            let _ = inflate.decompress(packed, &mut plain, FlushDecompress::Finish);
            (inflate.total_out() == cluster as u64).then_some(plain)
        }
        Compression::Zstd => {
            let mut decoder = zstd::stream::raw::Decoder::new().ok()?;
            let mut output = zstd::stream::raw::OutBuffer::around(plain.as_mut_slice());
            let mut input = zstd::stream::raw::InBuffer::around(packed);
            while output.pos() < cluster {
                let before = (input.pos(), output.pos());
                zstd::stream::raw::Operation::run(&mut decoder, &mut input, &mut output).ok()?;
                if before == (input.pos(), output.pos()) {
                    return None;
                }
            }
            Some(plain)
        }
    }
}

/// Packs a cluster; `None` if it does not get smaller.
pub(crate) fn pack(kind: Compression, plain: &[u8]) -> Option<Vec<u8>> {
    let packed = match kind {
        Compression::Zlib => {
            let mut deflate =
                Compress::new_with_window_bits(flate2::Compression::default(), false, WINDOW_BITS);
            // Only what gets smaller is of use.
            let mut packed = Vec::with_capacity(plain.len());
            let status = deflate
                .compress_vec(plain, &mut packed, FlushCompress::Finish)
                .ok()?;
            if status != Status::StreamEnd {
                return None;
            }
            packed
        }
        Compression::Zstd => {
            let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 0).ok()?;
            encoder.write_all(plain).ok()?;
            encoder.finish().ok()?
        }
    };
    // It lies in whole sectors.
    (packed.len().next_multiple_of(512) < plain.len()).then_some(packed)
}

#[cfg(test)]
mod tests {
    use super::{Compression, pack, unpack};

    #[test]
    fn what_is_packed_comes_back_and_rubbish_does_not() {
        let plain: Vec<u8> = (0..65536u32).map(|at| (at / 300) as u8).collect();
        for kind in [Compression::Zlib, Compression::Zstd] {
            let mut packed = pack(kind, &plain).unwrap();
            packed.extend_from_slice(&[7; 300]);
            assert_eq!(unpack(kind, &packed, plain.len()).unwrap(), plain);
            assert!(unpack(kind, &packed[..40], plain.len()).is_none());
            assert!(unpack(kind, &[0xff; 600], plain.len()).is_none());
        }
    }
}
