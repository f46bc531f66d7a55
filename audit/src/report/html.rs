use std::fmt::Write as _;

use super::svg::{self, COLOURS, escape};
use super::{QUESTIONS, evidence, subject};
use crate::judge::Finding;
use crate::model::{Device, Measure, Vm};
use crate::rules::{Question, RULES, condition};

const STYLE: &str = "body{font:15px/1.45 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1b1f24}\
h1{font-size:1.6rem}h2{margin-top:2.2rem;border-bottom:1px solid #d0d7de}h3{margin:1.4rem 0 .4rem}\
table{border-collapse:collapse;width:100%;margin:.5rem 0}th,td{text-align:left;vertical-align:top;padding:.35rem .6rem;\
border-bottom:1px solid #e4e8ec}th{background:#f6f8fa}.act{color:#9a3b00;font-weight:600}.fine{color:#1a6b3a;font-weight:600}\
.small{color:#57606a;font-size:.88rem}svg{width:100%;max-width:640px;font-size:12px}.key span{display:inline-block;margin-right:1rem}\
.key i{display:inline-block;width:.8em;height:.8em;margin-right:.3em}@media print{body{margin:0}}";

/// One page that needs nothing else: no scripts, no links to other hosts.
pub fn page(vms: &[Vm], findings: &[Finding], when: &str) -> String {
    let mut out = format!(
        "<!DOCTYPE html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>Treaty audit</title><style>{STYLE}</style></head><body><h1>Treaty audit</h1><p class=\"small\">{}; {} machines</p>",
        escape(when),
        vms.len()
    );
    for vm in vms {
        machine(vm, findings, &mut out);
    }
    rules(findings, &mut out);
    out + "</body></html>\n"
}

fn machine(vm: &Vm, findings: &[Finding], out: &mut String) {
    let _ = write!(
        out,
        "<h2>{}</h2><p class=\"small\">{:?}, process {}, {} vCPUs, watched for {:.1} s</p>",
        escape(&vm.name),
        vm.monitor,
        vm.pid,
        vm.cpus,
        vm.watched_seconds
    );
    out.push_str("<table><tr><th>device</th><th>what</th><th>class</th><th>where</th><th></th></tr>");
    for device in &vm.devices {
        let _ = write!(
            out,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td class=\"small\">{}</td></tr>",
            escape(&device.name),
            escape(&device.model),
            device.class.name(),
            escape(&device.location),
            escape(&device.details.join("; "))
        );
    }
    out.push_str("</table>");
    for (question, words) in QUESTIONS {
        let of = |finding: &&Finding| finding.pid == vm.pid && finding.question == question;
        let answers: Vec<&Finding> = findings.iter().filter(of).collect();
        if answers.is_empty() {
            continue;
        }
        let _ = write!(out, "<h3>{words}</h3>");
        plots(question, vm, out);
        table(&answers, out);
    }
    if !vm.not_seen.is_empty() {
        out.push_str("<h3>Not seen</h3><ul>");
        vm.not_seen.iter().for_each(|text| {
            let _ = write!(out, "<li>{}</li>", escape(text));
        });
        out.push_str("</ul>");
    }
}

fn table(answers: &[&Finding], out: &mut String) {
    out.push_str("<table><tr><th></th><th>verdict</th><th>because</th><th>change</th></tr>");
    for finding in answers {
        let class = if finding.change.is_empty() { "fine" } else { "act" };
        let saves = finding
            .saves
            .as_deref()
            .map(|text| format!("<br>saves {}", escape(text)));
        let _ = write!(
            out,
            "<tr><td>{}</td><td class=\"{class}\">{}</td><td>{}</td><td>{}{}</td></tr>",
            escape(&subject(finding)),
            escape(finding.verdict),
            escape(&evidence(&finding.evidence)),
            escape(finding.change),
            saves.unwrap_or_default()
        );
    }
    out.push_str("</table>");
}

fn plots(question: Question, vm: &Vm, out: &mut String) {
    match question {
        Question::Devices => {
            let exits = |device: &Device| {
                let exits = *device.facts.get(&Measure::Exits)?;
                Some((format!("{} ({})", device.name, device.model), vec![exits]))
            };
            let rows: Vec<_> = vm.devices.iter().filter_map(exits).collect();
            titled("Exits to the monitor, a second", &svg::stacked(&rows, "/s"), out);
        }
        Question::Queues => queues(vm, out),
        Question::Passthrough => {
            let rows: Vec<_> = vm.devices.iter().filter_map(removable).collect();
            let plot = svg::stacked(&rows, "%");
            if !plot.is_empty() {
                key(
                    &[
                        "virtio's part: what passthrough would remove",
                        "the back-end's part, which stays",
                    ],
                    out,
                );
            }
            titled("A request's time, in per cent", &plot, out);
        }
    }
}

fn removable(device: &Device) -> Option<(String, Vec<f64>)> {
    let share = *device.facts.get(&Measure::Removable)?;
    Some((device.name.clone(), vec![share * 100.0, (1.0 - share) * 100.0]))
}

fn queues(vm: &Vm, out: &mut String) {
    let all = || {
        vm.devices
            .iter()
            .flat_map(|device| device.queues.iter().map(move |queue| (device, queue)))
    };
    let stages = all().filter(|(_, queue)| queue.stages.iter().any(|(_, ns)| *ns > 0));
    let rows: Vec<_> = stages
        .map(|(device, queue)| {
            let parts = queue.stages.iter().map(|(_, ns)| *ns as f64 / 1e3).collect();
            (format!("{} queue {}", device.name, queue.index), parts)
        })
        .collect();
    let plot = svg::stacked(&rows, "us");
    if !plot.is_empty() {
        key(
            &[
                "waits for the worker",
                "to the back-end",
                "at the back-end",
                "way back",
                "interrupt",
            ],
            out,
        );
    }
    titled("Where a request's time goes, mean", &plot, out);
    for (device, queue) in all().filter(|(_, queue)| !queue.latencies.is_empty()) {
        let title = format!("How long requests of {} queue {} take", device.name, queue.index);
        titled(&title, &svg::histogram(&queue.latencies), out);
    }
}

fn titled(title: &str, plot: &str, out: &mut String) {
    if !plot.is_empty() {
        let _ = write!(out, "<p class=\"small\">{}</p>{plot}", escape(title));
    }
}

fn key(names: &[&str], out: &mut String) {
    out.push_str("<p class=\"key small\">");
    for (name, colour) in names.iter().zip(COLOURS) {
        let _ = write!(
            out,
            "<span><i style=\"background:{colour}\"></i>{}</span>",
            escape(name)
        );
    }
    out.push_str("</p>");
}

/// The rules that gave an answer, with their reasons.
fn rules(findings: &[Finding], out: &mut String) {
    out.push_str("<h2>Why</h2><table><tr><th>verdict</th><th>when</th><th>because</th></tr>");
    for rule in RULES
        .iter()
        .filter(|rule| findings.iter().any(|finding| finding.rule == rule.id))
    {
        let when: Vec<String> = rule.when.iter().map(condition).collect();
        let _ = write!(
            out,
            "<tr><td>{}<br><span class=\"small\">{}</span></td><td class=\"small\">{}</td><td>{}</td></tr>",
            escape(rule.verdict),
            rule.id,
            escape(&when.join(", ")),
            escape(rule.reason)
        );
    }
    out.push_str("</table>");
}
