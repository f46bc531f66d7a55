//! How it is told: lines for a terminal, JSON for programs, a page to mail.

mod html;
mod svg;
mod text;

pub use html::page;
pub use text::lines;

use serde_json::{Value, json};

use crate::judge::Finding;
use crate::model::{Facts, Vm};
use crate::rules::Question;

/// The questions, in order.
pub(crate) const QUESTIONS: [(Question, &str); 3] = [
    (Question::Devices, "Which devices are emulated still?"),
    (Question::Queues, "Where do queues saturate?"),
    (Question::Passthrough, "Which cases need passthrough?"),
];

/// Everything, as one document.
pub fn json(vms: &[Vm], findings: &[Finding]) -> Value {
    json!({ "version": 1, "machines": vms, "findings": findings })
}

/// The measures as words.
pub(crate) fn evidence(facts: &Facts) -> String {
    let words: Vec<String> = facts
        .iter()
        .map(|(measure, value)| measure.text(*value))
        .collect();
    words.join(", ")
}

/// Who a finding is about: `disk0`, `disk0 queue 1`.
pub(crate) fn subject(finding: &Finding) -> String {
    match finding.queue {
        Some(queue) => format!("{} queue {queue}", finding.device),
        None => finding.device.clone(),
    }
}
