use std::sync::Arc;

use treaty_chardev::Chardev;

use crate::life::{End, Life};
use crate::machine::BuildError;
use crate::plan::CharTarget;

/// Opens a character endpoint for `user`. Ctrl-A x on a terminal ends the machine; the path of a pty is printed.
pub(crate) fn open(user: &str, target: &CharTarget, life: &Arc<Life>) -> Result<Chardev, BuildError> {
    let opened = match target {
        CharTarget::Stdio => {
            let life = life.clone();
            Chardev::stdio(move || life.end(End::Quit))
        }
        CharTarget::Pty => Chardev::pty(),
        CharTarget::None => Ok(Chardev::null()),
        CharTarget::File(path) => Chardev::file(path, false),
        CharTarget::Socket(path) => Chardev::socket(path),
    };
    let chardev = opened.map_err(|source| BuildError::Endpoint {
        user: user.to_owned(),
        source,
    })?;
    if let Some(path) = chardev.pty_path() {
        eprintln!("treaty: {user} is at {}", path.display());
    }
    Ok(chardev)
}
