use std::io::{IsTerminal, Write};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use treaty_image_tool::Progress;

/// Shorter jobs show nothing unless they are asked to.
const PATIENCE: Duration = Duration::from_secs(2);

const PAUSE: Duration = Duration::from_millis(200);

/// Does `job` and shows on standard error how far it is: with -p from the start, else on a terminal if it takes its time.
pub fn shown<T>(asked: bool, quiet: bool, job: impl FnOnce(&Progress) -> T) -> T {
    let progress = Progress::default();
    let terminal = std::io::stderr().is_terminal();
    if quiet || !(asked || terminal) {
        return job(&progress);
    }
    std::thread::scope(|scope| {
        let (ended, wait) = channel::<()>();
        let bar = scope.spawn(|| {
            let wait = wait;
            let started = Instant::now();
            let mut shown = false;
            while matches!(wait.recv_timeout(PAUSE), Err(RecvTimeoutError::Timeout)) {
                if asked || started.elapsed() >= PATIENCE {
                    show(&progress, started.elapsed());
                    shown = true;
                }
            }
            if shown || asked {
                show(&progress, started.elapsed());
                eprintln!();
            }
        });
        let result = job(&progress);
        drop(ended);
        // A bar that panicked shows nothing; the job is what counts.
        let _ = bar.join();
        result
    })
}

fn show(progress: &Progress, elapsed: Duration) {
    const WIDTH: usize = 30;
    let (fraction, (done, _)) = (progress.fraction(), progress.get());
    let full = (fraction * WIDTH as f64) as usize;
    let rate = done as f64 / elapsed.as_secs_f64().max(0.001) / f64::from(1 << 20);
    let mut line = format!(
        "\r    ({:.2}/100%) [{:<WIDTH$}] {rate:.0} MiB/s",
        fraction * 100.0,
        "#".repeat(full)
    );
    if fraction > 0.01 && fraction < 1.0 {
        let left = elapsed.as_secs_f64() * (1.0 - fraction) / fraction;
        line += &format!(", {left:.0} s left  ");
    } else {
        line += &" ".repeat(16);
    }
    // Nobody reads it: nothing to be done.
    let _ = std::io::stderr().write_all(line.as_bytes());
}
