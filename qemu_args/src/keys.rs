use serde_json::Value;

/// The `key=value,..` behind an option, in the order in which they were given. A key that was given twice is there twice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keys(Vec<(String, String)>);

impl Keys {
    /// Reads QEMU's form: `,,` is a comma in a value, a bare word is a switch, and `noword` switches it off. The first word
    /// stands for `first` if it has no key.
    pub fn parse(text: &str, first: Option<&str>) -> Self {
        let mut keys = Vec::new();
        for (index, item) in split_commas(text).into_iter().enumerate() {
            let (key, value) = match (item.split_once('='), first) {
                (Some((key, value)), _) => (key.to_owned(), value.to_owned()),
                (None, Some(first)) if index == 0 => (first.to_owned(), item),
                (None, _) if item.is_empty() => continue,
                (None, _) => match item.strip_prefix("no") {
                    // QEMU has words that begin with "no" of their own.
                    Some(word) if !["wait", "delay"].contains(&word) && !item.starts_with("node") => {
                        (word.to_owned(), "off".to_owned())
                    }
                    Some("wait") => ("wait".to_owned(), "off".to_owned()),
                    Some("delay") => ("nodelay".to_owned(), "on".to_owned()),
                    _ => (item, "on".to_owned()),
                },
            };
            keys.push((key, value));
        }
        Self(keys)
    }

    /// Reads the JSON form that libvirt uses; what is nested gets dots: `{"file":{"driver":"x"}}` is `file.driver=x`.
    pub fn parse_json(text: &str) -> Result<Self, serde_json::Error> {
        let mut keys = Vec::new();
        flatten(&serde_json::from_str(text)?, "", &mut keys);
        Ok(Self(keys))
    }

    /// The last value of `key`: QEMU lets the last one win.
    pub fn get(&self, key: &str) -> Option<&str> {
        let mut found = self.0.iter().rev().filter(|(other, _)| other == key);
        found.next().map(|(_, value)| value.as_str())
    }

    /// Like [`get`](Self::get), and takes the key away.
    pub fn take(&mut self, key: &str) -> Option<String> {
        let value = self.get(key).map(str::to_owned);
        self.0.retain(|(other, _)| other != key);
        value
    }

    /// Adds a key.
    pub fn set(&mut self, key: &str, value: &str) {
        self.0.push((key.to_owned(), value.to_owned()));
    }

    /// Those that nobody took.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// True if all were taken.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// At single commas; a doubled one is a comma.
fn split_commas(text: &str) -> Vec<String> {
    let mut items = vec![String::new()];
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        let doubled = letter == ',' && letters.next_if_eq(&',').is_some();
        match items.last_mut() {
            Some(item) if letter != ',' || doubled => item.push(letter),
            _ => items.push(String::new()),
        }
    }
    items
}

fn flatten(value: &Value, path: &str, keys: &mut Vec<(String, String)>) {
    let below = |name: &str| {
        if path.is_empty() {
            name.to_owned()
        } else {
            format!("{path}.{name}")
        }
    };
    match value {
        Value::Object(fields) => fields
            .iter()
            .for_each(|(name, value)| flatten(value, &below(name), keys)),
        Value::Array(items) => items
            .iter()
            .enumerate()
            .for_each(|(index, value)| flatten(value, &below(&index.to_string()), keys)),
        Value::String(text) => keys.push((path.to_owned(), text.clone())),
        Value::Bool(on) => keys.push((path.to_owned(), if *on { "on" } else { "off" }.to_owned())),
        Value::Null => {}
        Value::Number(number) => keys.push((path.to_owned(), number.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(keys: &Keys) -> Vec<(&str, &str)> {
        keys.iter().collect()
    }

    #[test]
    fn qemus_own_form() {
        let keys = Keys::parse("virtio-net-pci,netdev=n0,mq=on,noromfile,x-a", Some("driver"));
        assert_eq!(
            pairs(&keys),
            [
                ("driver", "virtio-net-pci"),
                ("netdev", "n0"),
                ("mq", "on"),
                ("romfile", "off"),
                ("x-a", "on")
            ]
        );
        let mut keys = Keys::parse("file=a,,b,,.img,if=virtio,if=ide", None);
        assert_eq!(keys.take("file").as_deref(), Some("a,b,.img"));
        assert_eq!(keys.take("if").as_deref(), Some("ide"), "the last one wins");
        assert!(keys.is_empty());
        assert_eq!(
            pairs(&Keys::parse("unix:/s,server,nowait", Some("to"))),
            [("to", "unix:/s"), ("server", "on"), ("wait", "off")]
        );
    }

    #[test]
    fn libvirts_form() {
        let keys = Keys::parse_json(
            r#"{"driver":"qcow2","node-name":"n","cache":{"direct":true},"file":{"driver":"file","filename":"/d"}}"#,
        )
        .unwrap();
        assert_eq!(keys.get("file.filename"), Some("/d"));
        assert_eq!(keys.get("cache.direct"), Some("on"));
        assert!(Keys::parse_json("{").is_err());
    }
}
