//! `x-query-virtio*`: what drivers have made of virtio devices.

use serde_json::{Value, json};

use super::devices::Known;
use super::qmp::{Qmp, QmpError};
use crate::model::{Class, Measure, Queue};

/// A device has this many queues at most.
const MAX_QUEUES: u64 = 64;

/// Asks for each device's status and queues.
pub(super) fn ask(qmp: &mut Qmp, known: &mut [Known]) -> Result<(), QmpError> {
    let answer = qmp.run("x-query-virtio", &json!({}))?;
    for device in answer.as_array().into_iter().flatten() {
        let (Some(path), Some(name)) = (device["path"].as_str(), device["name"].as_str()) else {
            continue;
        };
        let Some(entry) = find(known, path, name) else {
            continue;
        };
        let status = qmp.run("x-query-virtio-status", &json!({ "path": path }))?;
        driver(&status, entry);
        let count = status["num-vqs"].as_u64().unwrap_or(0).min(MAX_QUEUES);
        for index in 0..count {
            let arguments = json!({ "path": path, "queue": index });
            // Queues that do not exist are refused.
            if let Ok(queue) = qmp.run("x-query-virtio-queue-status", &arguments) {
                add_queue(&queue, index, entry);
            }
        }
        entry.path = path.to_owned();
        let active = entry.device.queues.len();
        entry.device.set(Measure::Queues, active as f64);
    }
    Ok(())
}

/// Asks how far each queue is now, and makes rates of that. The index has 16 bits: after 65536 requests it begins again, so
/// that the rate is the least that it can be.
pub(super) fn ask_again(qmp: &mut Qmp, known: &mut [Known], seconds: f64) -> Result<(), QmpError> {
    for entry in known.iter_mut().filter(|known| !known.path.is_empty()) {
        for (index, then) in &entry.used {
            let arguments = json!({ "path": entry.path, "queue": index });
            let status = qmp.run("x-query-virtio-queue-status", &arguments)?;
            let queue = entry.device.queues.iter_mut().find(|queue| queue.index == *index);
            if let (Some(queue), Some(now), Some(then)) = (queue, used(&status), then) {
                let rate = f64::from(now.wrapping_sub(*then)) / seconds.max(0.001);
                queue.facts.insert(Measure::Rate, rate);
            }
        }
    }
    Ok(())
}

fn used(status: &Value) -> Option<u16> {
    u16::try_from(status["used-idx"].as_u64()?).ok()
}

/// `/machine/peripheral/ID/virtio-backend`, or the first of its kind that has no id.
fn find<'a>(known: &'a mut [Known], path: &str, name: &str) -> Option<&'a mut Known> {
    let by_id = |known: &Known| !known.id.is_empty() && path.split('/').any(|part| part == known.id);
    let by_kind = |known: &Known| {
        let asked = known.device.facts.contains_key(&Measure::Bound);
        known.device.class == Class::Virtio && known.device.model == name && known.id.is_empty() && !asked
    };
    let at = known
        .iter()
        .position(by_id)
        .or_else(|| known.iter().position(by_kind));
    at.and_then(|at| known.get_mut(at))
}

fn driver(status: &Value, entry: &mut Known) {
    let (state, features) = (status["status"].to_string(), status["guest-features"].to_string());
    let flag = |on: bool| f64::from(u8::from(on));
    let bound = state.contains("DRIVER_OK");
    entry.device.set(Measure::Bound, flag(bound));
    if !bound {
        return;
    }
    let modern = features.contains("VIRTIO_F_VERSION_1");
    entry.device.set(Measure::Legacy, flag(!modern));
    let words = [
        if modern {
            "driver: virtio 1"
        } else {
            "driver: legacy"
        },
        if features.contains("VIRTIO_F_RING_PACKED") {
            "ring: packed"
        } else {
            "ring: split"
        },
    ];
    entry.device.details.extend(words.map(str::to_owned));
    if status["vhost-dev"].is_object() || status["vhost-started"].as_bool() == Some(true) {
        entry.device.details.push("vhost moves its data".into());
        entry.device.set(Measure::BackEnd, 1.0);
    }
}

fn add_queue(status: &Value, index: u64, entry: &mut Known) {
    // One that the driver has not set up has no address.
    if status["vring-desc"].as_u64().unwrap_or(0) == 0 {
        return;
    }
    let index = u16::try_from(index).unwrap_or(u16::MAX);
    entry.used.push((index, used(status)));
    entry.device.queues.push(Queue {
        index,
        name: format!("{} entries", status["vring-num"]),
        facts: entry.device.facts.clone(),
        stages: Vec::new(),
        latencies: Vec::new(),
    });
}
