//! From a plan to the words of `treaty run`.

use serde::Serialize;
use serde_json::{Map, Value};
use treaty_plan::{DiskPlan, MachineKind, MachinePlan, MemorySize, NetPlan, PollChoice, from_flag};

/// A plan that flags cannot say; a file can.
#[derive(Debug, thiserror::Error)]
#[error(
    "{0:?} has a comma: flags cannot say that; write the machine into a file for `treaty run --config`, or rename it"
)]
pub struct FlagsError(String);

/// The words behind `treaty` that make this plan.
pub fn run_flags(plan: &MachinePlan) -> Result<Vec<String>, FlagsError> {
    let default = MachinePlan::default();
    let mut words = vec!["run".to_owned()];
    let mut add = |flag: &str, value: String| words.extend([format!("--{flag}"), value]);
    if plan.machine == MachineKind::Pc {
        add("machine", "pc".to_owned());
    }
    if let Some(firmware) = &plan.firmware {
        add("firmware", firmware.display().to_string());
    }
    if let Some(order) = &plan.boot {
        add("boot", order.to_string());
    }
    if let Some(kernel) = &plan.kernel {
        add("kernel", kernel.display().to_string());
    }
    if let Some(initrd) = &plan.initrd {
        add("initrd", initrd.display().to_string());
    }
    if plan.cmdline != default.cmdline {
        add("cmdline", plan.cmdline.clone());
    }
    add("cpus", plan.cpus.to_string());
    add("memory", memory(plan.memory));
    if plan.serial != default.serial {
        add("serial", plan.serial.to_string());
    }
    if let Some(api) = &plan.api {
        add("api", api.display().to_string());
    }
    for disk in &plan.disks {
        let base = from_flag::<DiskPlan>("format=raw", None).ok();
        add("disk", text(disk, base.as_ref(), &["path", "format"])?);
    }
    for net in &plan.nets {
        let base = NetPlan {
            queues: 1,
            ..NetPlan::default()
        };
        add("net", text(net, Some(&base), &["tap", "user", "socket"])?);
    }
    for console in &plan.consoles {
        let base = from_flag::<treaty_plan::ConsolePlan>("to=none", None).ok();
        let pairs = text(console, base.as_ref(), &["to"])?;
        add("console", pairs.trim_start_matches("to=").to_owned());
    }
    for device in &plan.vhost_users {
        let base = from_flag::<treaty_plan::VhostUserPlan>("socket=,type=blk", None).ok();
        let pairs = text(device, base.as_ref(), &["socket", "type"])?;
        add("vhost-user", pairs.trim_start_matches("socket=").to_owned());
    }
    if let Some(poll) = plan.poll {
        add("poll", poll_text(poll, plan.poll_us));
    }
    if let Some(rng) = &plan.rng {
        let pairs = text(rng, Some(&treaty_plan::RngPlan::default()), &[])?;
        words.push(if pairs.is_empty() {
            "--rng".to_owned()
        } else {
            format!("--rng={pairs}")
        });
    }
    words.extend(plan.hugepages.then(|| "--hugepages".to_owned()));
    words.extend(plan.no_reboot.then(|| "--no-reboot".to_owned()));
    Ok(words)
}

fn memory(size: MemorySize) -> String {
    let mib = size.bytes() >> 20;
    if mib.is_multiple_of(1024) {
        format!("{}G", mib >> 10)
    } else {
        format!("{mib}M")
    }
}

fn poll_text(poll: PollChoice, us: Option<u32>) -> String {
    let name = match poll {
        PollChoice::Off => "off",
        PollChoice::Adaptive => "adaptive",
        PollChoice::Always => "always",
    };
    us.map_or_else(|| name.to_owned(), |us| format!("{name},us={us}"))
}

/// `key=value,..` of what differs from `base`; the keys of `always` come first, and are said even if they do not differ.
fn text<T: Serialize>(device: &T, base: Option<&T>, always: &[&str]) -> Result<String, FlagsError> {
    let fields = |device: &T| match serde_json::to_value(device) {
        Ok(Value::Object(fields)) => fields,
        _ => Map::new(),
    };
    let (mut given, base) = (fields(device), base.map(fields).unwrap_or_default());
    let mut items = Vec::new();
    let first = always
        .iter()
        .filter_map(|key| Some(((*key).to_owned(), given.remove(*key)?)));
    let first: Vec<(String, Value)> = first.collect();
    let rest = given
        .into_iter()
        .filter(|(key, value)| base.get(key) != Some(value));
    for (key, value) in first.into_iter().chain(rest) {
        let value = match value {
            Value::Bool(true) => {
                items.push(key);
                continue;
            }
            Value::Bool(false) | Value::Null => continue,
            Value::String(text) if text.contains(',') => return Err(FlagsError(text)),
            Value::String(text) => text,
            other => other.to_string(),
        };
        items.push(format!("{key}={value}"));
    }
    Ok(items.join(","))
}
