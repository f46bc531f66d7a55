use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Where a character device's bytes go; written `stdio`, `pty`, `none`, `file=PATH` or `socket=PATH`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum CharTarget {
    /// Standard input and output of this process; raw mode if it is a terminal.
    Stdio,
    /// A new pseudo-terminal; its path is printed.
    Pty,
    /// Output is dropped, there is no input.
    None,
    /// Output is written to a file, there is no input.
    File(PathBuf),
    /// A Unix socket is listened on; one client at a time.
    Socket(PathBuf),
}

impl FromStr for CharTarget {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            None if text == "stdio" => Ok(Self::Stdio),
            None if text == "pty" => Ok(Self::Pty),
            None if text == "none" => Ok(Self::None),
            Some(("file", path)) if !path.is_empty() => Ok(Self::File(path.into())),
            Some(("socket", path)) if !path.is_empty() => Ok(Self::Socket(path.into())),
            _ => Err(format!(
                "{text:?} is not a character target: give stdio, pty, none, file=PATH or socket=PATH"
            )),
        }
    }
}

impl fmt::Display for CharTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdio => f.write_str("stdio"),
            Self::Pty => f.write_str("pty"),
            Self::None => f.write_str("none"),
            Self::File(path) => write!(f, "file={}", path.display()),
            Self::Socket(path) => write!(f, "socket={}", path.display()),
        }
    }
}

impl TryFrom<String> for CharTarget {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<CharTarget> for String {
    fn from(target: CharTarget) -> Self {
        target.to_string()
    }
}
