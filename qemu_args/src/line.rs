use crate::keys::Keys;
use crate::options::{self, Form};
use crate::shorthand;

/// An option of a command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opt {
    /// Its name in the long form that QEMU itself reduces it to: `device`, `drive`, `netdev`.
    pub name: &'static str,
    /// As it was given: `-cdrom boot.iso`.
    pub given: String,
    /// The word that followed it; empty for a switch.
    pub text: String,
    /// The same, taken apart, for options that have keys.
    pub keys: Keys,
}

/// A QEMU command line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Line {
    /// The options, in order.
    pub options: Vec<Opt>,
}

/// What QEMU would refuse, too.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    /// No such option.
    #[error("{given}: QEMU has no such option{}", hint.map(|name| format!("; is it -{name}?")).unwrap_or_default())]
    Unknown {
        /// As given.
        given: String,
        /// One that is written alike.
        hint: Option<&'static str>,
    },
    /// The line ends where a value should be.
    #[error("{0}: a value must follow")]
    NoValue(String),
    /// The value begins as JSON and is none.
    #[error("{given}: not JSON: {reason}")]
    Json {
        /// As given.
        given: String,
        /// What the parser says.
        reason: String,
    },
}

impl Line {
    /// Reads the words behind the program's name; the name itself may be the first. Short forms become long ones.
    pub fn parse<I>(words: I) -> Result<Self, LineError>
    where
        I: IntoIterator,
        I::Item: Into<String>,
    {
        let mut words = words.into_iter().map(Into::into).enumerate().peekable();
        words.next_if(|(_, word)| is_program(word));
        let mut options = Vec::new();
        while let Some((_, word)) = words.next() {
            options.push(match word.strip_prefix('-') {
                Some(name) if !name.is_empty() => option(&word, name, || words.next().map(|(_, word)| word))?,
                // A word alone is the first hard disk.
                _ => Opt {
                    name: "hda",
                    given: word.clone(),
                    text: word,
                    keys: Keys::default(),
                },
            });
        }
        Ok(Self {
            options: shorthand::expand(options),
        })
    }

    /// The options of that name.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Opt> {
        self.options.iter().filter(move |option| option.name == name)
    }

    /// True if the switch was given.
    pub fn has(&self, name: &str) -> bool {
        self.all(name).next().is_some()
    }

    /// The option of that name whose key is so: `with("drive", "id", "d0")`.
    pub fn with(&self, name: &str, key: &str, value: &str) -> Option<&Opt> {
        self.options
            .iter()
            .find(|option| option.name == name && option.keys.get(key) == Some(value))
    }
}

/// True for a word that names QEMU's program for a machine.
pub(crate) fn is_program(word: &str) -> bool {
    let name = word.rsplit('/').next().unwrap_or_default();
    name.starts_with("qemu-system-") || ["qemu-kvm", "kvm"].contains(&name)
}

fn option(word: &str, name: &str, next: impl FnOnce() -> Option<String>) -> Result<Opt, LineError> {
    let name = name.strip_prefix('-').unwrap_or(name);
    let (name, form) = options::find(name).ok_or_else(|| LineError::Unknown {
        given: word.to_owned(),
        hint: options::nearest(name),
    })?;
    if form == Form::Switch {
        return Ok(Opt {
            name,
            given: word.to_owned(),
            text: String::new(),
            keys: Keys::default(),
        });
    }
    let text = next().ok_or_else(|| LineError::NoValue(word.to_owned()))?;
    let given = format!("{word} {text}");
    let keys = match form {
        Form::Keys(_) if text.starts_with('{') => {
            Keys::parse_json(&text).map_err(|error| LineError::Json {
                given: given.clone(),
                reason: error.to_string(),
            })?
        }
        Form::Keys(first) => Keys::parse(&text, first),
        Form::Switch | Form::Text => Keys::default(),
    };
    Ok(Opt {
        name,
        given,
        text,
        keys,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Result<Line, LineError> {
        Line::parse(text.split_whitespace())
    }

    #[test]
    fn one_dash_two_dashes_and_the_programs_name() {
        let names =
            |text: &str| -> Vec<&str> { line(text).unwrap().options.iter().map(|o| o.name).collect() };
        assert_eq!(
            names("/usr/bin/qemu-system-x86_64 -m 1G --nodefaults"),
            ["m", "nodefaults"]
        );
        assert_eq!(names("-m 1G"), ["m"]);
    }

    #[test]
    fn what_qemu_does_not_have() {
        let refused = |text: &str| line(text).unwrap_err().to_string();
        assert_eq!(
            refused("-drives file=x"),
            "-drives: QEMU has no such option; is it -drive?"
        );
        assert_eq!(refused("-zzz"), "-zzz: QEMU has no such option");
        assert_eq!(refused("-m"), "-m: a value must follow");
        assert!(refused("-device {x").starts_with("-device {x: not JSON"));
    }
}
