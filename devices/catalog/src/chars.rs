use std::sync::Arc;

use treaty_chardev::{Chardev, ChardevError};
use treaty_plan::CharTarget;

/// What a character endpoint may need of whoever runs the device.
#[derive(Clone)]
pub struct CharContext {
    /// Called when the user types the escape (Ctrl-A x) on the terminal.
    pub on_quit: Arc<dyn Fn() + Send + Sync>,
}

/// Opens a character endpoint; says on standard error where a new pseudo-terminal is.
pub fn open_char(name: &str, target: &CharTarget, context: &CharContext) -> Result<Chardev, ChardevError> {
    let chardev = match target {
        CharTarget::Stdio => {
            let on_quit = context.on_quit.clone();
            Chardev::stdio(move || on_quit())?
        }
        CharTarget::Pty => Chardev::pty()?,
        CharTarget::None => Chardev::null(),
        CharTarget::File(path) => Chardev::file(path, false)?,
        CharTarget::Socket(path) => Chardev::socket(path)?,
    };
    if let Some(path) = chardev.pty_path() {
        eprintln!("{name}: pseudo-terminal at {}", path.display());
    }
    Ok(chardev)
}
