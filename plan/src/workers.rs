use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{FlagError, from_flag};

/// Most microseconds that a worker looks on before it sleeps.
const MAX_POLL_US: u32 = 1_000_000;

/// What a worker thread does when its queues are empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PollChoice {
    /// It sleeps until a doorbell.
    Off,
    /// It looks at its queues for a while, and learns how long that is worth.
    Adaptive,
    /// It never sleeps.
    Always,
}

/// Numbers in a row, written `0:1:1`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NumberList(pub Vec<u16>);

impl FromStr for NumberList {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers: Result<Vec<u16>, _> = text.split(':').map(str::parse).collect();
        let wrong = |_| format!("{text:?} is not a list of numbers such as 0:1:1");
        Ok(Self(numbers.map_err(wrong)?))
    }
}

impl fmt::Display for NumberList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers: Vec<String> = self.0.iter().map(u16::to_string).collect();
        f.write_str(&numbers.join(":"))
    }
}

impl TryFrom<String> for NumberList {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<NumberList> for String {
    fn from(list: NumberList) -> Self {
        list.to_string()
    }
}

/// The threads that run one device's virtqueues.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct WorkersPlan {
    /// How many; as many as there are virtqueues if missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u16>,
    /// The CPU that each runs on, in turn; any if missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<NumberList>,
    /// Which of them runs each virtqueue; in turn if missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub map: Option<NumberList>,
    /// What they do when there is nothing to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub poll: Option<PollChoice>,
    /// The longest that an adaptive one looks on, in microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub poll_us: Option<u32>,
}

impl FromStr for WorkersPlan {
    type Err = FlagError;

    /// From a flag's text: `2,cpus=0:1`, `map=0:0:1`.
    fn from_str(text: &str) -> Result<Self, FlagError> {
        let counted = text.split(',').next().is_some_and(|first| !first.contains('='));
        from_flag(text, counted.then_some("count"))
    }
}

impl WorkersPlan {
    /// Refuses what cannot be, for a device with that many virtqueues.
    pub fn check(&self, queues: u16) -> Result<(), String> {
        if let Some(count) = self.count.filter(|count| *count == 0 || *count > queues) {
            return Err(format!(
                "workers: {count} is not in 1 to {queues}, the virtqueues"
            ));
        }
        if let Some(map) = &self.map {
            let count = self.count(queues);
            if map.0.len() != usize::from(queues) || map.0.iter().any(|&worker| worker >= count) {
                return Err(format!(
                    "worker-map: {map} does not name one worker below {count} for each of {queues} virtqueues"
                ));
            }
        }
        check_poll(self.poll, self.poll_us)
    }

    /// How many threads there are.
    pub fn count(&self, queues: u16) -> u16 {
        let of_map = self.map.as_ref().and_then(|map| map.0.iter().max());
        let of_map = of_map.map(|last| last.saturating_add(1).min(queues));
        self.count.or(of_map).unwrap_or(queues).max(1)
    }

    /// The thread that runs virtqueue `queue` of `queues`.
    pub fn worker_of(&self, queue: u16, queues: u16) -> u16 {
        let mapped = self
            .map
            .as_ref()
            .and_then(|map| map.0.get(usize::from(queue)).copied());
        mapped.unwrap_or(queue % self.count(queues))
    }

    /// The CPU that thread `worker` is kept on.
    pub fn cpu_of(&self, worker: u16) -> Option<u16> {
        let cpus = &self.cpus.as_ref()?.0;
        cpus.get(usize::from(worker) % cpus.len().max(1)).copied()
    }
}

pub(crate) fn check_poll(poll: Option<PollChoice>, poll_us: Option<u32>) -> Result<(), String> {
    match poll_us {
        Some(_) if matches!(poll, Some(PollChoice::Off | PollChoice::Always)) => {
            Err("poll-us: goes with poll=adaptive only".into())
        }
        Some(us) if us == 0 || us > MAX_POLL_US => Err(format!("poll-us: {us} is not in 1 to {MAX_POLL_US}")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workers(text: &str) -> WorkersPlan {
        text.parse().unwrap()
    }

    #[test]
    fn queues_go_to_workers_in_turn_or_as_the_map_says() {
        let of = |plan: &WorkersPlan| -> Vec<u16> { (0..4).map(|queue| plan.worker_of(queue, 4)).collect() };
        assert_eq!(of(&workers("")), [0, 1, 2, 3]);
        assert_eq!(of(&workers("2")), [0, 1, 0, 1]);
        let mapped = workers("map=0:0:0:1,cpus=3:5");
        assert_eq!((of(&mapped), mapped.count(4)), (vec![0, 0, 0, 1], 2));
        assert_eq!((mapped.cpu_of(0), mapped.cpu_of(1)), (Some(3), Some(5)));
        assert_eq!(
            workers("4,cpus=1").cpu_of(3),
            Some(1),
            "the list is gone through again"
        );
        assert_eq!(mapped.check(4), Ok(()));
    }

    #[test]
    fn refusals_name_the_field() {
        let refused = |text: &str| workers(text).check(2).unwrap_err();
        assert!(refused("3").starts_with("workers: 3 is not in 1 to 2"));
        assert!(refused("0").starts_with("workers:"));
        assert!(refused("map=0").starts_with("worker-map:"));
        assert!(refused("1,map=0:1").starts_with("worker-map:"));
        assert!(refused("map=0:9").starts_with("worker-map:"));
        assert!(refused("poll=always,poll-us=5").starts_with("poll-us: goes with"));
        assert!(refused("poll-us=0").starts_with("poll-us: 0 is not"));
        assert!("2,cpus=0-3".parse::<WorkersPlan>().is_err());
    }
}
