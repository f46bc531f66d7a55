//! What a person sees: logs, the one error line, exit codes.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;

/// Logs go to standard error; the guest's serial port may own standard output.
pub fn start_logging(verbose: u8) {
    let default = match verbose {
        0 => "warn",
        1 => "info",
        2 => "debug",
        _ => "trace",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_env("TREATY_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(default));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .init();
}

/// Success carries its own code; an error is one line on standard error and code 1.
pub fn exit_code(result: anyhow::Result<u8>) -> ExitCode {
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("treaty: {}", one_line(&error));
            ExitCode::from(1)
        }
    }
}

/// Prints lines to standard output. A reader that has gone away (`| head`) has what it wanted.
pub fn print(text: &str) -> anyhow::Result<()> {
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
