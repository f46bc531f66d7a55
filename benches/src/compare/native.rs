//! What the host does by itself.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;

const TIME: Duration = Duration::from_millis(200);
const BLOCK: u64 = 4096;

/// Random reads of 4 KiB of a cached file by one thread, a system call each, in a second.
pub fn reads_per_second(path: &Path) -> Result<f64> {
    let file = File::open(path)?;
    let blocks = file.metadata()?.len() / BLOCK;
    let mut buffer = [0; BLOCK as usize];
    let (mut random, mut count) = (0x2545_f491_4f6c_dd1d_u64, 0_u64);
    let begin = Instant::now();
    while begin.elapsed() < TIME {
        for _ in 0..64 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            file.read_exact_at(&mut buffer, random % blocks * BLOCK)?;
            count += 1;
        }
    }
    Ok(count as f64 / begin.elapsed().as_secs_f64())
}
