use serde::{Deserialize, Serialize};
use treaty_telemetry::Rule;

/// Which requests are timed. Counters count always.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TelemetryChoice {
    /// A sample of them: at most one per cent of a queue's work.
    #[default]
    On,
    /// None.
    Off,
    /// One of every burst, whatever it costs.
    Dense,
}

impl std::str::FromStr for TelemetryChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "on" => Ok(Self::On),
            "off" => Ok(Self::Off),
            "dense" => Ok(Self::Dense),
            _ => Err(format!("{text:?} is not on, off or dense")),
        }
    }
}

impl TelemetryChoice {
    /// As a queue wants it.
    pub fn rule(self) -> Rule {
        match self {
            Self::On => Rule::Sampled,
            Self::Off => Rule::Off,
            Self::Dense => Rule::EveryBurst,
        }
    }
}
