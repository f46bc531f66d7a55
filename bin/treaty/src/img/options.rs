use std::collections::BTreeMap;

use anyhow::bail;

/// What `-o key=value,...` says: a later value of a key replaces an earlier one.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Options(BTreeMap<String, String>);

impl Options {
    /// Reads the values of all `-o`. A key alone means `on`; a comma in a value is doubled.
    pub fn parse(texts: &[String]) -> anyhow::Result<Self> {
        let mut found = BTreeMap::new();
        for text in texts {
            for item in items(text) {
                let (key, value) = item.split_once('=').unwrap_or((&item, "on"));
                if key.is_empty() {
                    bail!("'-o {text}': give key=value,...");
                }
                found.insert(key.to_owned(), value.to_owned());
            }
        }
        Ok(Self(found))
    }

    /// True if the user asks what there is.
    pub fn asks_for_help(&self) -> bool {
        self.0.contains_key("help") || self.0.contains_key("?")
    }

    /// Sets what another option of the command line says.
    pub fn set(&mut self, key: &str, value: impl Into<String>) {
        self.0.insert(key.to_owned(), value.into());
    }

    /// Takes a value out.
    pub fn take(&mut self, key: &str) -> Option<String> {
        self.0.remove(key)
    }

    /// Takes a switch out.
    pub fn take_switch(&mut self, key: &str) -> anyhow::Result<Option<bool>> {
        match self.take(key).as_deref() {
            None => Ok(None),
            Some("on" | "yes" | "true" | "y") => Ok(Some(true)),
            Some("off" | "no" | "false" | "n") => Ok(Some(false)),
            Some(other) => bail!("Parameter '{key}' expects 'on' or 'off', not '{other}'"),
        }
    }

    /// Takes a number or size out.
    pub fn take_size(&mut self, key: &str) -> anyhow::Result<Option<u64>> {
        let Some(text) = self.take(key) else {
            return Ok(None);
        };
        match text.parse::<super::size::Size>() {
            Ok(size) => Ok(Some(size.0)),
            Err(error) => bail!("{key}: {error}"),
        }
    }

    /// Refuses what nobody has taken.
    pub fn finish(self) -> anyhow::Result<()> {
        match self.0.into_keys().next() {
            Some(key) => bail!("Invalid parameter '{key}'; -o help lists those that there are"),
            None => Ok(()),
        }
    }
}

/// Splits at single commas.
fn items(text: &str) -> Vec<String> {
    let mut items = vec![String::new()];
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            ',' if letters.peek() == Some(&',') => letters.next(),
            ',' => {
                items.push(String::new());
                continue;
            }
            _ => None,
        };
        if let Some(last) = items.last_mut() {
            last.push(letter);
        }
    }
    items
}

#[cfg(test)]
mod tests {
    use super::Options;

    #[test]
    fn keys_values_and_doubled_commas() {
        let texts = [
            "size=1M,backing_file=a,,b".to_owned(),
            "lazy_refcounts,size=2M".to_owned(),
        ];
        let mut options = Options::parse(&texts).unwrap();
        assert_eq!(options.take_size("size").unwrap(), Some(2 << 20));
        assert_eq!(options.take("backing_file").as_deref(), Some("a,b"));
        assert_eq!(options.take_switch("lazy_refcounts").unwrap(), Some(true));
        options.finish().unwrap();
        let mut options = Options::parse(&["x=1,y=maybe".to_owned()]).unwrap();
        assert!(options.take_switch("y").is_err());
        assert!(options.finish().is_err());
    }
}
