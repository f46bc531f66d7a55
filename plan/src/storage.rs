//! What a disk asks of its storage: cache mode, errors, limits.

use std::fmt;
use std::str::FromStr;

use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::{DiskFormat, DiskPlan, LockChoice};

const MAX_READ_AHEAD: u64 = 16 << 20;

/// How an image and the host's page cache go together, by QEMU's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CacheChoice {
    /// O_DIRECT; a flush makes durable.
    None,
    /// Page cache; a flush makes durable.
    Writeback,
    /// Page cache; every write is durable when it completes.
    Writethrough,
    /// O_DIRECT; every write is durable when it completes.
    Directsync,
    /// Page cache; nothing is ever made durable.
    Unsafe,
}

/// What happens when the host fails a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnError {
    /// The guest is told.
    #[default]
    Report,
    /// The request waits until somebody resumes the disk.
    Stop,
}

/// A number, written with or without a unit of 1024, 1024², 1024³: `1500`, `64K`, `100M`, `1G`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Amount(pub u64);

impl FromStr for Amount {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("{text:?} is not an amount: give a number, with K, M or G behind it if need be");
        let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
        let unit: u64 = match &text[digits.len()..] {
            "" => 1,
            "K" | "k" => 1 << 10,
            "M" | "m" => 1 << 20,
            "G" | "g" => 1 << 30,
            _ => return Err(wrong()),
        };
        let number: u64 = digits.parse().map_err(|_| wrong())?;
        number.checked_mul(unit).map(Self).ok_or_else(wrong)
    }
}

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl Visitor<'_> for Either {
            type Value = Amount;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an amount such as 1500 or 100M")
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<Amount, E> {
                Ok(Amount(number))
            }

            fn visit_i64<E: Error>(self, number: i64) -> Result<Amount, E> {
                u64::try_from(number).map(Amount).map_err(E::custom)
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Amount, E> {
                text.parse().map_err(E::custom)
            }
        }

        deserializer.deserialize_any(Either)
    }
}

/// Limits of a disk or a group of disks, in requests and bytes a second; 0 is none. Each has the rate over time and the
/// rate of a burst.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ThrottlePlan {
    /// Requests: all, reads, writes.
    pub iops: [(u64, u64); 3],
    /// Bytes: all, reads, writes.
    pub bps: [(u64, u64); 3],
}

impl DiskPlan {
    /// The cache mode: `direct` is another word for `cache=none`.
    pub fn cache_mode(&self) -> CacheChoice {
        match self.cache {
            Some(cache) => cache,
            None if self.direct => CacheChoice::None,
            None => CacheChoice::Writeback,
        }
    }

    /// Its limits; `None` if it has none.
    pub fn throttle(&self) -> Option<ThrottlePlan> {
        let pair = |rate: Option<Amount>, burst: Option<Amount>| {
            (rate.unwrap_or_default().0, burst.unwrap_or_default().0)
        };
        let plan = ThrottlePlan {
            iops: [
                pair(self.iops, self.iops_max),
                pair(self.iops_rd, self.iops_rd_max),
                pair(self.iops_wr, self.iops_wr_max),
            ],
            bps: [
                pair(self.bps, self.bps_max),
                pair(self.bps_rd, self.bps_rd_max),
                pair(self.bps_wr, self.bps_wr_max),
            ],
        };
        (plan != ThrottlePlan::default()).then_some(plan)
    }

    pub(crate) fn check_storage(&self) -> Result<(), String> {
        use CacheChoice::{Directsync, None as Direct};
        if self.direct && !matches!(self.cache, None | Some(Direct | Directsync)) {
            return Err("direct: that is cache=none; give one of them".into());
        }
        // Whatever else keeps tables in memory, which two programs that have it open would disagree on.
        let is_file = self.format == DiskFormat::Raw && !self.path.to_string_lossy().contains("://");
        if self.lock == LockChoice::Running && !is_file {
            return Err("lock: running is for raw files and block devices".into());
        }
        if let Some(Amount(bytes)) = self.read_ahead {
            if !self.readonly {
                return Err("read-ahead: what is read ahead would miss other writes; add readonly".into());
            }
            if !(4096..=MAX_READ_AHEAD).contains(&bytes) {
                return Err("read-ahead: 4K to 16M are allowed".into());
            }
        }
        let Some(plan) = self.throttle() else {
            return Ok(());
        };
        for (name, limits) in [("iops", plan.iops), ("bps", plan.bps)] {
            let [total, read, write] = limits;
            if total.0 > 0 && (read.0 > 0 || write.0 > 0) {
                return Err(format!(
                    "{name}: give either the total or {name}_rd and {name}_wr"
                ));
            }
            if limits
                .iter()
                .any(|&(rate, burst)| burst > 0 && burst < rate.max(1))
            {
                return Err(format!("{name}_max: a burst needs a rate, and is not below it"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::from_flag;

    fn disk(options: &str) -> DiskPlan {
        from_flag(&format!("path=d,format=raw,{options}"), None).unwrap()
    }

    #[test]
    fn cache_modes_have_qemus_names() {
        assert_eq!(disk("").cache_mode(), CacheChoice::Writeback);
        assert_eq!(disk("direct").cache_mode(), CacheChoice::None);
        assert_eq!(disk("cache=directsync").cache_mode(), CacheChoice::Directsync);
        assert!(disk("direct,cache=unsafe").check_storage().is_err());
        assert_eq!(disk("on-error=stop").on_error, OnError::Stop);
        assert_eq!(disk("readonly,read-ahead=1M").check_storage(), Ok(()));
        assert!(
            disk("read-ahead=1M")
                .check_storage()
                .unwrap_err()
                .contains("readonly")
        );
        assert!(
            disk("readonly,read-ahead=1G")
                .check_storage()
                .unwrap_err()
                .contains("16M")
        );
    }

    #[test]
    fn limits_have_qemus_names() {
        let plan = disk("iops=100,iops_max=1K,bps_rd=1M,group=g");
        assert_eq!(plan.check_storage(), Ok(()));
        let limits = plan.throttle().unwrap();
        assert_eq!(limits.iops[0], (100, 1024));
        assert_eq!(limits.bps[1], (1 << 20, 0));
        assert_eq!(disk("").throttle(), None);
        assert!(
            disk("iops=1,iops_rd=1")
                .check_storage()
                .unwrap_err()
                .contains("either")
        );
        assert!(
            disk("bps=100,bps_max=50")
                .check_storage()
                .unwrap_err()
                .contains("burst")
        );
        let error = from_flag::<DiskPlan>("path=d,format=raw,bps=1X", None)
            .unwrap_err()
            .to_string();
        assert!(error.contains("not an amount"), "{error}");
        let toml: DiskPlan = toml::from_str("path='d'\nformat='raw'\nbps=5\niops='2K'").unwrap();
        assert_eq!((toml.bps, toml.iops), (Some(Amount(5)), Some(Amount(2048))));
    }
}
