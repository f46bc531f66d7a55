//! What a person sees: logs, the one error line, exit codes.

use std::process::ExitCode;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, reload};

/// What the log says, from quiet to loud.
const LEVELS: [&str; 4] = ["warn", "info", "debug", "trace"];

/// Changes what the log says while the program runs.
pub struct LogLevel {
    filter: reload::Handle<EnvFilter, Registry>,
    /// Index in [`LEVELS`].
    level: usize,
}

impl LogLevel {
    /// One level louder or quieter. From then on TREATY_LOG's filter is forgotten.
    pub fn step(&mut self, louder: bool) {
        self.level = if louder {
            (self.level + 1).min(LEVELS.len() - 1)
        } else {
            self.level.saturating_sub(1)
        };
        let level = LEVELS[self.level];
        match self.filter.reload(EnvFilter::new(level)) {
            // Said whatever the level is: the operator wants to see that the signal has come.
            Ok(()) => eprintln!("treaty: log level {level}"),
            Err(error) => eprintln!("treaty: the log level stays: {error}"),
        }
    }
}

/// Logs go to standard error; the guest's serial port may own standard output.
pub fn start_logging(verbose: u8) -> LogLevel {
    let level = usize::from(verbose).min(LEVELS.len() - 1);
    let filter = EnvFilter::try_from_env("TREATY_LOG").unwrap_or_else(|_| EnvFilter::new(LEVELS[level]));
    let (layer, filter) = reload::Layer::new(filter);
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_target(false);
    tracing_subscriber::registry().with(layer).with(lines).init();
    LogLevel { filter, level }
}

/// Success carries its own code; an error is one line on standard error and code 1.
pub fn exit_code(result: anyhow::Result<u8>) -> ExitCode {
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            complain(&error);
            ExitCode::from(1)
        }
    }
}

/// Says an error, in one line on standard error.
pub fn complain(error: &anyhow::Error) {
    eprintln!("treaty: {}", one_line(error));
}

/// Prints lines to standard output. A reader that has gone away (`| head`) has what it wanted.
pub fn print(text: &str) -> anyhow::Result<()> {
    use anyhow::Context as _;
    use std::io::Write as _;

    match std::io::stdout().write_all(format!("{text}\n").as_bytes()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context("cannot write to standard output"),
    }
}

/// The error and its causes, outermost first, without repeating what a cause already says.
fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain().map(|cause| cause.to_string().replace('\n', " ")) {
        if line.contains(&cause) {
            continue;
        }
        if !line.is_empty() {
            line.push_str(": ");
        }
        line.push_str(&cause);
    }
    line
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    #[test]
    fn causes_are_said_once_in_one_line() {
        let error = Err::<(), _>(std::io::Error::other("no\nspace"))
            .context("disk: no space")
            .unwrap_err();
        assert_eq!(super::one_line(&error), "disk: no space");
        let error = Err::<(), _>(std::io::Error::other("gone"))
            .context("disk")
            .unwrap_err();
        assert_eq!(super::one_line(&error), "disk: gone");
    }
}
