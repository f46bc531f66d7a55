//! Timed figures, and which of them may be compared.
use anyhow::Result;

use crate::cores::{self, FAR_NS};
use crate::{Better, Case};

/// One figure, and how far apart the cores were around it: `None` if that changed.
pub struct Sample {
    figure: f64,
    far: Option<bool>,
}

impl Sample {
    /// Takes a figure between two looks at the cores.
    pub fn around(take: impl FnOnce() -> Result<f64>) -> Result<Self> {
        let before = cores::distance_ns() > FAR_NS;
        let figure = take()?;
        let after = cores::distance_ns() > FAR_NS;
        Ok(Self {
            figure,
            far: (before == after).then_some(before),
        })
    }
}

/// One case for each distance at which both sides, ours first, have samples.
pub fn cases(
    name: &str,
    unit: &'static str,
    better: Better,
    peer_name: &str,
    samples: &[Vec<Sample>; 2],
) -> Vec<Case> {
    let at = |side: &[Sample], far: bool| -> Vec<f64> {
        let here = side.iter().filter(|sample| sample.far == Some(far));
        here.map(|sample| sample.figure).collect()
    };
    let [ours, peer] = samples;
    let mut cases = Vec::new();
    for (far, bucket) in [(false, "near"), (true, "far")] {
        let (ours, peer) = (at(ours, far), at(peer, far));
        if !ours.is_empty() && !peer.is_empty() {
            let case = Case::new(name, unit, better, &ours, (peer_name, &peer));
            cases.push(case.with_bucket(bucket));
        }
    }
    if cases.is_empty() {
        let why = "the cores moved during every sample".to_owned();
        cases.push(Case::skipped(name, unit, better, peer_name, why));
    }
    cases
}
