use serde::Serialize;

/// Which way a figure should go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    /// Fewer is better: instructions, time.
    Lower,
    /// More is better: throughput.
    Higher,
}

/// One figure of ours beside one of a peer's.
#[derive(Clone, Debug, Serialize)]
pub struct Case {
    /// What was done.
    pub name: String,
    /// Of both figures.
    pub unit: &'static str,
    /// Ours: the median if there are several samples.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ours: Option<f64>,
    /// The peer's, measured in the same run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer: Option<f64>,
    /// Which peer, with its version; or why there is none.
    pub peer_name: String,
    /// How many times better ours is; above 1 is ahead, whichever way is better.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio: Option<f64>,
    /// Which way is better.
    pub better: Better,
    /// Lowest and highest sample of ours.
    pub spread: Vec<f64>,
    /// How far apart the two cores were: `near` or `far`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bucket: Option<&'static str>,
    /// What ours has to reach.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bar: Option<f64>,
    /// Why there is no figure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skipped: Option<String>,
}

impl Case {
    /// From samples of both sides; a side without samples has no figure.
    pub fn new(name: &str, unit: &'static str, better: Better, ours: &[f64], peer: (&str, &[f64])) -> Self {
        let (our_median, peer_median) = (median(ours), median(peer.1));
        let ratio = our_median.zip(peer_median).map(|(ours, peer)| match better {
            Better::Lower => peer / ours,
            Better::Higher => ours / peer,
        });
        let round = |value: f64| (value * 100.0).round() / 100.0;
        let lowest = ours.iter().copied().reduce(f64::min);
        let highest = ours.iter().copied().reduce(f64::max);
        Self {
            name: name.to_owned(),
            unit,
            ours: our_median.map(round),
            peer: peer_median.map(round),
            peer_name: peer.0.to_owned(),
            ratio: ratio.map(round),
            better,
            spread: lowest.into_iter().chain(highest).map(round).collect(),
            bucket: None,
            bar: None,
            skipped: None,
        }
    }

    /// A case that cannot run here.
    pub fn skipped(name: &str, unit: &'static str, better: Better, peer_name: &str, why: String) -> Self {
        Self {
            skipped: Some(why),
            ..Self::new(name, unit, better, &[], (peer_name, &[]))
        }
    }

    /// Sets what ours has to reach.
    pub fn with_bar(self, bar: Option<f64>) -> Self {
        Self { bar, ..self }
    }

    /// Says how far apart the cores were.
    pub fn with_bucket(self, bucket: &'static str) -> Self {
        Self {
            bucket: Some(bucket),
            ..self
        }
    }

    /// False if there is a bar and a figure that does not reach it.
    pub fn meets_bar(&self) -> bool {
        match (self.bar, self.ours, self.better) {
            (Some(bar), Some(ours), Better::Lower) => ours <= bar,
            (Some(bar), Some(ours), Better::Higher) => ours >= bar,
            _ => true,
        }
    }
}

/// The middle sample.
pub fn median(samples: &[f64]) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied()
}

/// The machine that the figures were taken on.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Host {
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    pub(crate) kernel: String,
}

impl Host {
    pub(crate) fn read() -> Self {
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name"));
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self {
            cpu: model
                .unwrap_or("unknown")
                .trim_start_matches([' ', '\t', ':'])
                .to_owned(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            kernel: kernel.trim().to_owned(),
        }
    }
}

/// All cases of one benchmark.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    bench: &'static str,
    host: Host,
    cases: Vec<Case>,
}

impl Report {
    /// A report of the benchmark `bench`.
    pub fn new(bench: &'static str, cases: Vec<Case>) -> Self {
        let host = Host::read();
        Self { bench, host, cases }
    }

    /// The cases.
    pub fn cases(&self) -> &[Case] {
        &self.cases
    }

    /// One JSON object on one line.
    pub fn json(&self) -> serde_json::Result<String> {
        serde_json::to_string(self)
    }

    /// A table for people.
    pub fn table(&self) -> String {
        let host = &self.host;
        let mut text = format!(
            "{}: {}, {} cores, Linux {}\n",
            self.bench, host.cpu, host.cores, host.kernel
        );
        text += &format!(
            "{:<34} {:>9} {:>9} {:>6} {:>7}  {:<17} {:<12} {}\n",
            "case", "ours", "peer", "ratio", "bar", "spread", "unit", "peer"
        );
        let number = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.1}"));
        for case in &self.cases {
            if let Some(why) = &case.skipped {
                text += &format!("{:<34} skipped: {why}\n", case.name);
                continue;
            }
            let spread: Vec<String> = case.spread.iter().map(|value| format!("{value:.1}")).collect();
            text += &format!(
                "{:<34} {:>9} {:>9} {:>6} {:>7}  {:<17} {:<12} {}{}\n",
                [&case.name, case.bucket.unwrap_or_default()].join(" "),
                number(case.ours),
                number(case.peer),
                number(case.ratio),
                number(case.bar),
                spread.join(" .. "),
                case.unit,
                case.peer_name,
                if case.meets_bar() { "" } else { "  MISSES ITS BAR" },
            );
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What reads reports relies on these names.
    #[test]
    fn the_shape_of_a_report() {
        let case = Case::new(
            "a",
            "kIOPS",
            Better::Higher,
            &[3.0, 1.0, 2.0],
            ("peer 1.2", &[4.0]),
        );
        let skipped = Case::skipped("b", "us", Better::Lower, "peer 1.2", "no peer".to_owned());
        let json = Report::new("x", vec![case.with_bucket("near"), skipped])
            .json()
            .unwrap();
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(value["bench"], "x");
        assert!(value["host"]["cores"].as_u64() > Some(0));
        let cases = serde_json::json!([
            {"name": "a", "unit": "kIOPS", "ours": 2.0, "peer": 4.0, "peer_name": "peer 1.2", "ratio": 0.5,
             "better": "higher", "spread": [1.0, 3.0], "bucket": "near"},
            {"name": "b", "unit": "us", "peer_name": "peer 1.2", "better": "lower", "spread": [], "skipped": "no peer"},
        ]);
        assert_eq!(value["cases"], cases);
    }

    #[test]
    fn the_ratio_says_how_many_times_better_whichever_way_that_is() {
        let ratio = |better| Case::new("a", "", better, &[2.0], ("", &[8.0])).ratio;
        assert_eq!(
            (ratio(Better::Lower), ratio(Better::Higher)),
            (Some(4.0), Some(0.25))
        );
    }
}
