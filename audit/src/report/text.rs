use super::{QUESTIONS, evidence, subject};
use crate::judge::Finding;
use crate::model::Vm;

/// For a terminal: each machine, its devices, and the three answers.
pub fn lines(vms: &[Vm], findings: &[Finding]) -> String {
    let mut out = Vec::new();
    for vm in vms {
        out.push(title(vm));
        for device in &vm.devices {
            let details = if device.details.is_empty() {
                String::new()
            } else {
                format!("  ({})", device.details.join("; "))
            };
            out.push(format!(
                "  {:<12} {:<12} {:<12} {}{details}",
                device.name,
                device.model,
                device.class.name(),
                device.location
            ));
        }
        let of_vm: Vec<&Finding> = findings.iter().filter(|finding| finding.pid == vm.pid).collect();
        for (question, words) in QUESTIONS {
            let answers: Vec<&&Finding> = of_vm
                .iter()
                .filter(|finding| finding.question == question)
                .collect();
            if answers.is_empty() {
                continue;
            }
            out.push(format!("\n  {words}"));
            answers.into_iter().for_each(|finding| answer(finding, &mut out));
        }
        if !vm.not_seen.is_empty() {
            out.push("\n  Not seen:".to_owned());
            out.extend(vm.not_seen.iter().map(|text| format!("    {text}")));
        }
        out.push(String::new());
    }
    out.join("\n").trim_end().to_owned()
}

fn title(vm: &Vm) -> String {
    let exits = vm
        .kvm_per_second
        .get("exits")
        .map(|exits| format!(", {exits:.0} exits/s in all"));
    format!(
        "{} (process {}, {:?}), watched for {:.1} s{}",
        vm.name,
        vm.pid,
        vm.monitor,
        vm.watched_seconds,
        exits.unwrap_or_default()
    )
}

/// Columns of a line.
const WIDTH: usize = 100;
const INDENT: usize = 23;

fn answer(finding: &Finding, out: &mut Vec<String>) {
    out.push(format!("    {:<18} {}", subject(finding), finding.verdict));
    let evidence = evidence(&finding.evidence);
    let saves = finding.saves.as_deref().unwrap_or_default();
    for (title, text) in [
        ("because", evidence.as_str()),
        ("change", finding.change),
        ("saves", saves),
    ] {
        if !text.is_empty() {
            wrapped(&format!("{title}: {text}"), out);
        }
    }
}

/// Adds `text` behind the names, broken at words.
fn wrapped(text: &str, out: &mut Vec<String>) {
    let mut line = " ".repeat(INDENT);
    for word in text.split_whitespace() {
        if line.len() + 1 + word.len() > WIDTH && line.len() > INDENT {
            out.push(std::mem::replace(&mut line, " ".repeat(INDENT + 2)));
        }
        line.push(' ');
        line.push_str(word);
    }
    out.push(line);
}
