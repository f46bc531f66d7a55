//! Joins standard input and output to a Unix socket: `lab-connect PATH`. L1 has no other program for that.

use std::io::{self, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

fn main() -> anyhow::Result<()> {
    let path = std::env::args()
        .nth(1)
        .ok_or_else(|| anyhow::anyhow!("usage: lab-connect PATH"))?;
    let mut stream = UnixStream::connect(&path)?;
    let mut reader = stream.try_clone()?;
    let from = std::thread::spawn(move || -> io::Result<()> {
        let mut out = io::stdout();
        io::copy(&mut reader, &mut out)?;
        out.flush()
    });
    io::copy(&mut io::stdin(), &mut stream)?;
    // The other end has heard everything and had its time to answer.
    stream.shutdown(Shutdown::Both)?;
    from.join()
        .map_err(|_| anyhow::anyhow!("the reading thread panicked"))??;
    Ok(())
}
