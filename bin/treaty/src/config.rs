//! Configuration: files, and the text of `KEY=VALUE,...` flags.

use std::path::Path;

use anyhow::{Context, anyhow};
use serde::de::DeserializeOwned;
use treaty_plan::{PollChoice, from_flag};

/// The text of `--poll`.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PollFlag {
    /// off, adaptive or always.
    pub mode: PollChoice,
    /// The longest that an adaptive worker looks on, in microseconds.
    pub us: Option<u32>,
}

/// Reads a TOML file. Errors say the line, the field and what is allowed.
pub fn read<T: DeserializeOwned>(path: &Path) -> anyhow::Result<T> {
    let name = path.display();
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read --config {name}"))?;
    toml::from_str(&text).map_err(|error| {
        let before = error
            .span()
            .and_then(|span| text.get(..span.start))
            .unwrap_or_default();
        let line = 1 + before.matches('\n').count();
        anyhow!("{name}, line {line}: {}", error.message())
    })
}

/// Reads a device flag; its error is one line that names the flag. `first`: see [`from_flag`].
pub fn device<T: DeserializeOwned>(flag: &str, text: &str, first: Option<&str>) -> anyhow::Result<T> {
    from_flag(text, first).map_err(|error| anyhow!("{flag} {text}: {error}"))
}
