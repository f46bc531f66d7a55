//! `key=value,switch,...` as it is written on a command line, read by the same serde definitions as `machine.toml`: a field exists
//! once, and both forms give the same names, defaults and errors.

use std::fmt;

use serde::de::value::{MapDeserializer, StringDeserializer};
use serde::de::{DeserializeOwned, Deserializer, Error as _, IntoDeserializer, Visitor};
use serde::forward_to_deserialize_any;

/// Why a flag's text is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct FlagError(String);

impl serde::de::Error for FlagError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self(message.to_string())
    }
}

/// Reads `text` as a `T`. `first` names the key that a leading item stands for if it has no key of its own
/// (`--console pty,name=x` for `to=pty,name=x`).
pub fn from_flag<T: DeserializeOwned>(text: &str, first: Option<&str>) -> Result<T, FlagError> {
    let mut pairs: Vec<(String, FlagValue)> = Vec::new();
    for (index, item) in text.split(',').enumerate().filter(|(_, item)| !item.is_empty()) {
        let (key, value) = match (first, item.split_once('=')) {
            (Some(first), pair) if index == 0 && pair.is_none_or(|(key, _)| key != first) => {
                (first, Some(item))
            }
            (_, Some((key, value))) => (key, Some(value)),
            (_, None) => (item, None),
        };
        if pairs.iter().any(|(other, _)| other == key) {
            return Err(FlagError(format!("{key} is given twice")));
        }
        pairs.push((
            key.to_owned(),
            FlagValue {
                key: key.to_owned(),
                text: value.map(str::to_owned),
            },
        ));
    }
    T::deserialize(MapDeserializer::new(pairs.into_iter()))
}

/// A value that is text until somebody wants a number or a switch.
struct FlagValue {
    key: String,
    text: Option<String>,
}

impl FlagValue {
    fn text(self) -> Result<String, FlagError> {
        self.text
            .ok_or_else(|| FlagError(format!("{0} needs a value: {0}=...", self.key)))
    }
}

impl<'de> IntoDeserializer<'de, FlagError> for FlagValue {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

macro_rules! numbers {
    ($($method:ident $visit:ident $type:ty),*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FlagError> {
            let key = self.key.clone();
            let text = self.text()?;
            let max = <$type>::MAX;
            visitor.$visit(text.parse::<$type>().map_err(|_| {
                FlagError(format!("{key}={text}: give a whole number of at most {max}"))
            })?)
        }
    )*};
}

impl<'de> Deserializer<'de> for FlagValue {
    type Error = FlagError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FlagError> {
        visitor.visit_string(self.text()?)
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FlagError> {
        match self.text.as_deref() {
            None | Some("true" | "on" | "yes") => visitor.visit_bool(true),
            Some("false" | "off" | "no") => visitor.visit_bool(false),
            Some(text) => Err(FlagError(format!("{}={text}: give on or off", self.key))),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FlagError> {
        visitor.visit_some(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, FlagError> {
        let key = self.key.clone();
        let text: StringDeserializer<FlagError> = self.text()?.into_deserializer();
        text.deserialize_enum(name, variants, visitor)
            .map_err(|error| FlagError::custom(format!("{key}: {error}")))
    }

    numbers!(deserialize_u8 visit_u8 u8, deserialize_u16 visit_u16 u16, deserialize_u32 visit_u32 u32);

    forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct newtype_struct seq tuple
        tuple_struct map struct identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CharTarget, ConsolePlan, DiskPlan, NetBackend, NetPlan, RingChoice, TransportChoice};

    #[test]
    fn a_disk_flag_names_the_same_fields_as_the_file() {
        let text = "path=/a b.img,format=raw,readonly,serial=123,queues=4,transport=mmio,ring=packed";
        let flag: DiskPlan = from_flag(text, None).unwrap();
        let file: DiskPlan = toml::from_str(
            "path='/a b.img'\nformat='raw'\nreadonly=true\nserial='123'\nqueues=4\ntransport='mmio'\nring='packed'",
        )
        .unwrap();
        assert_eq!(flag, file);
        assert_eq!(
            (flag.transport, flag.ring),
            (TransportChoice::Mmio, RingChoice::Packed)
        );
        assert!(!flag.direct);
    }

    #[test]
    fn wrong_flags_say_what_is_allowed() {
        let error = |text| from_flag::<DiskPlan>(text, None).unwrap_err().to_string();
        assert!(
            error("path=x,format=raw,colour=red").contains("unknown field `colour`, expected one of `path`")
        );
        assert!(error("path=x").contains("missing field `format`"));
        assert!(error("path=x,format=qcow3").contains("expected one of `raw`"));
        assert!(error("path=x,format=raw,queues=70000").contains("at most 65535"));
        assert!(error("path=x,path=y,format=raw").contains("path is given twice"));
        assert!(error("path,format=raw").contains("path needs a value"));
    }

    #[test]
    fn short_forms() {
        let console: ConsolePlan = from_flag("file=/x,name=log", Some("to")).unwrap();
        assert_eq!(console.to, CharTarget::File("/x".into()));
        let same: ConsolePlan = from_flag("to=file=/x,name=log", Some("to")).unwrap();
        assert_eq!(console, same);
        let net: NetPlan = from_flag("user,mac=52:54:00:00:00:01", None).unwrap();
        assert_eq!(net.backend(), Some(NetBackend::User));
        assert_eq!(net.mac_bytes(), Ok(Some([0x52, 0x54, 0, 0, 0, 1])));
    }
}
