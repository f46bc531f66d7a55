//! The rules. A row applies to a device or a queue if all its conditions hold; what was not measured holds for nothing. Of
//! one question the first row that applies is the verdict, so the order is part of the rules.

use serde::Serialize;

use crate::model::Measure;

/// Which of the three it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Question {
    /// Is this device emulated still, and does that matter?
    Devices,
    /// Who keeps this queue from doing more?
    Queues,
    /// Does this device have to be passed through?
    Passthrough,
}

/// Something that a measure must be.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Is {
    /// At least this.
    AtLeast(Measure, f64),
    /// Less than this.
    Below(Measure, f64),
}

/// A row.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Rule {
    /// A name that scripts may rely on.
    pub id: &'static str,
    /// What it answers.
    pub question: Question,
    /// What it says.
    pub verdict: &'static str,
    /// When.
    pub when: &'static [Is],
    /// What to change; empty if nothing.
    pub change: &'static str,
    /// Why the conditions mean that.
    pub reason: &'static str,
}

use Is::{AtLeast, Below};
use Measure::{
    BackEnd, Backpressure, Bound, Cpus, Depth, Disk, DoneUs, Empty, Emulated, Exits, Full, Interrupts, Intx,
    Legacy, Net, Passthrough as Passed, Polled, Queues, Rate, Removable, ShareDone, ShareFetched, ShareModel,
    Throttled, Timed, Total, Virtio, Watched,
};
use Question::{Devices, Passthrough, Queues as Saturation};

/// From here on a device is hot: below it, even 30 exits a request are under 1 % of a processor.
pub const HOT: f64 = 50.0;
/// From here on a limit or a full ring is what a user would notice.
const NOTICED: f64 = 0.10;
/// More than half of a request's time makes somebody the one to look at.
const MOST: f64 = 0.50;

/// All of them.
pub const RULES: &[Rule] = &[
    Rule {
        id: "emulated-disk-hot",
        question: Devices,
        verdict: "emulated, hot: move it to virtio-blk",
        when: &[AtLeast(Emulated, 1.0), AtLeast(Disk, 1.0), AtLeast(Rate, HOT)],
        change: "connect the same image by virtio: if=virtio (treaty --disk ..,if=virtio; QEMU -drive ..,if=virtio); the guest needs \
                 virtio_blk in its initramfs, and finds its root by UUID or as /dev/vda",
        reason: "an IDE request takes about 20 register accesses, each an exit to the monitor; virtio-blk takes one doorbell that \
                 the kernel handles, and one interrupt",
    },
    Rule {
        id: "emulated-net-hot",
        question: Devices,
        verdict: "emulated, hot: move it to virtio-net",
        when: &[AtLeast(Emulated, 1.0), AtLeast(Net, 1.0), AtLeast(Rate, HOT)],
        change: "give the card the virtio model with the same MAC address (treaty --net ..,mac=..; QEMU virtio-net-pci)",
        reason: "an emulated card has no offloads that pass large packets whole, and its interrupt cause is a register that the guest \
                 must read: an exit each time",
    },
    Rule {
        id: "emulated-exits",
        question: Devices,
        verdict: "emulated, hot: its registers cost exits",
        when: &[AtLeast(Emulated, 1.0), AtLeast(Exits, 500.0)],
        change: "use the virtio device of its kind if there is one; otherwise look in the guest for what polls it",
        reason: "each access to a register is an exit to the monitor, 2 to 30 microseconds in which the vCPU stands; 500 of them a \
                 second are the first per cent of a processor",
    },
    Rule {
        id: "emulated-unused",
        question: Devices,
        verdict: "emulated, unused",
        when: &[AtLeast(Emulated, 1.0), Below(Total, 1.0)],
        change: "leave it out of the machine",
        reason: "a device that nobody has used since the start is attack surface only",
    },
    Rule {
        id: "emulated-boot-only",
        question: Devices,
        verdict: "emulated, boot-only: leave it",
        when: &[AtLeast(Emulated, 1.0), AtLeast(Total, 1.0), Below(Rate, 1.0)],
        change: "",
        reason: "it was used, and is not any more: moving it would save nothing while the guest runs",
    },
    Rule {
        id: "emulated-warm",
        question: Devices,
        verdict: "emulated, seldom used: move it when convenient",
        when: &[AtLeast(Emulated, 1.0), AtLeast(Rate, 1.0)],
        change: "use virtio when the machine is changed for another reason",
        reason: "below 50 requests a second the exits are under 1 % of a processor",
    },
    Rule {
        id: "emulated-quiet",
        question: Devices,
        verdict: "emulated, its registers are quiet: move it when convenient",
        when: &[AtLeast(Emulated, 1.0), Below(Exits, 500.0)],
        change: "use virtio when the machine is changed for another reason; leave the device out if nobody needs it",
        reason: "below 500 exits a second its registers cost under 1 % of a processor",
    },
    Rule {
        id: "emulated-disk-not-measured",
        question: Devices,
        verdict: "emulated, not measured: consider virtio-blk",
        when: &[AtLeast(Emulated, 1.0), AtLeast(Disk, 1.0)],
        change: "if it is used, connect the image by virtio: if=virtio; see below what could not be read",
        reason: "how often it is used could not be read, what it is could",
    },
    Rule {
        id: "emulated-net-not-measured",
        question: Devices,
        verdict: "emulated, not measured: consider virtio-net",
        when: &[AtLeast(Emulated, 1.0), AtLeast(Net, 1.0)],
        change: "if it is used, give the card the virtio model with the same MAC address; see below what could not be read",
        reason: "how often it is used could not be read, what it is could",
    },
    Rule {
        id: "emulated-not-measured",
        question: Devices,
        verdict: "emulated, not measured",
        when: &[AtLeast(Emulated, 1.0)],
        change: "",
        reason: "what it is is known, how often it is used is not",
    },
    Rule {
        id: "virtio-no-driver",
        question: Devices,
        verdict: "virtio, no driver",
        when: &[AtLeast(Virtio, 1.0), Below(Bound, 1.0)],
        change: "load the driver in the guest, or leave the device out",
        reason: "DRIVER_OK was never set",
    },
    Rule {
        id: "virtio-legacy",
        question: Devices,
        verdict: "virtio, legacy interface",
        when: &[AtLeast(Virtio, 1.0), AtLeast(Legacy, 1.0)],
        change: "use a driver for virtio 1.0 (Linux 4.0 and later), and disable-legacy=on in QEMU",
        reason: "a legacy driver has no packed ring, no queue reset, and rings only in the first 16 TiB of memory",
    },
    Rule {
        id: "virtio-intx",
        question: Devices,
        verdict: "virtio, interrupts by a pin",
        when: &[AtLeast(Virtio, 1.0), AtLeast(Intx, 1.0), AtLeast(Rate, HOT)],
        change: "let the driver use MSI-X (vectors not 0 in QEMU; no pci=nomsi in the guest)",
        reason: "the handler of a pin reads a register to acknowledge: an exit for each interrupt, and queues share it",
    },
    Rule {
        id: "virtio-one-queue",
        question: Devices,
        verdict: "virtio, one queue for many vCPUs",
        when: &[
            AtLeast(Virtio, 1.0),
            AtLeast(Cpus, 2.0),
            Below(Queues, 2.0),
            AtLeast(Rate, 20_000.0),
        ],
        change: "give it a queue for each vCPU (queues=N; QEMU num-queues=N, or queues=N with mq=on)",
        reason: "vCPUs take turns with one lock in the driver, and one thread does all the work; at 20000 requests a second \
                 both show",
    },
    Rule {
        id: "virtio-good",
        question: Devices,
        verdict: "virtio",
        when: &[AtLeast(Virtio, 1.0)],
        change: "",
        reason: "nothing to move",
    },
    Rule {
        id: "passthrough",
        question: Devices,
        verdict: "passthrough",
        when: &[AtLeast(Passed, 1.0)],
        change: "",
        reason: "the guest drives the host's hardware itself",
    },
    Rule {
        id: "queue-idle",
        question: Saturation,
        verdict: "not saturated: idle",
        when: &[Below(Rate, 10.0), Below(Throttled, NOTICED)],
        change: "",
        reason: "under 10 requests a second say nothing about a limit",
    },
    Rule {
        id: "throttle",
        question: Saturation,
        verdict: "saturated by its throttle",
        when: &[AtLeast(Throttled, NOTICED)],
        change: "raise iops= or bps= of the disk (or of its group), or accept that the limit is what it was set for",
        reason: "a limit that the operator set held requests back for a tenth of the time or more; whatever else is slow is hidden behind it",
    },
    Rule {
        id: "back-end-room",
        question: Saturation,
        verdict: "saturated by its back-end",
        when: &[AtLeast(Backpressure, NOTICED), AtLeast(Net, 1.0)],
        change: "look at who takes the packets: the bridge, the tap's queue length (ip link set TAP txqueuelen N), the process behind the socket",
        reason: "the worker stopped taking packets because the other side had no room, in a tenth of its looks or more",
    },
    Rule {
        id: "worker-late",
        question: Saturation,
        verdict: "saturated by its worker",
        when: &[AtLeast(ShareFetched, MOST), Below(Empty, MOST)],
        change: "give the queue a worker of its own (workers=, worker-map=), and a processor for it (cpus=)",
        reason: "requests lie in the ring for most of their time, while the thread that should take them does something else",
    },
    Rule {
        id: "worker-busy",
        question: Saturation,
        verdict: "saturated by its worker",
        when: &[AtLeast(ShareModel, MOST), Below(Empty, MOST)],
        change: "more queues with a worker each (queues=N, workers=N), so that another processor helps; cache=none if the worker copies \
                 from the page cache",
        reason: "requests spend most of their time in the thread that handles them, not behind it: a second thread would share the work",
    },
    Rule {
        id: "back-end-net",
        question: Saturation,
        verdict: "saturated by its back-end",
        when: &[AtLeast(ShareDone, MOST), AtLeast(Net, 1.0), Below(Empty, MOST)],
        change: "use more queue pairs (queues=N), or a faster way out than a process of user space: tap, vhost",
        reason: "packets spend most of their time behind the device",
    },
    Rule {
        id: "back-end-process",
        question: Saturation,
        verdict: "saturated by its back-end",
        when: &[
            AtLeast(ShareDone, MOST),
            AtLeast(BackEnd, 1.0),
            Below(Empty, MOST),
        ],
        change: "audit the process that runs the device, by its own socket",
        reason: "requests spend most of their time in another process",
    },
    Rule {
        id: "host-device",
        question: Saturation,
        verdict: "saturated by the host's device",
        when: &[
            AtLeast(ShareDone, MOST),
            AtLeast(DoneUs, 2000.0),
            Below(Empty, MOST),
        ],
        change: "move the image to a faster device or a less busy one (iostat -x); cache=writeback if its promise is enough",
        reason: "requests spend most of their time at the host's storage, and 2 ms or more each: longer than a solid-state disk that \
                 is not overloaded takes",
    },
    Rule {
        id: "guest-depth",
        question: Saturation,
        verdict: "limited by the guest: one request at a time",
        when: &[Below(Depth, 2.0), AtLeast(ShareDone, MOST), Below(Empty, 0.9)],
        change: "keep more requests in flight in the guest (iodepth, more threads, read-ahead)",
        reason: "the host answers quickly and waits for the next request: the rate is one over the latency, and doubles with the depth",
    },
    Rule {
        id: "ring-small",
        question: Saturation,
        verdict: "saturated: the ring is full",
        when: &[AtLeast(Full, NOTICED)],
        change: "a larger ring where the driver lets one choose (ethtool -G, QEMU queue-size=), or more queues",
        reason: "the driver found no room for a tenth of the time or more, and no stage behind it explains it",
    },
    Rule {
        id: "host-device-deep",
        question: Saturation,
        verdict: "saturated by the host's device",
        when: &[AtLeast(ShareDone, MOST), AtLeast(Depth, 2.0), Below(Empty, 0.2)],
        change: "the device is at its limit with this depth: spread the load over more images on other devices, or move to a faster one",
        reason: "several requests are always in flight, and spend most of their time at the host's storage",
    },
    Rule {
        id: "guest-driver",
        question: Saturation,
        verdict: "not saturated: waits for the guest",
        when: &[AtLeast(Empty, MOST)],
        change: "",
        reason: "for half of the time or more nothing was in flight: the guest could have asked for more",
    },
    Rule {
        id: "queue-balanced",
        question: Saturation,
        verdict: "busy, no single cause",
        when: &[AtLeast(Timed, 1.0)],
        change: "watch longer (--seconds), or look at the stages in `treaty top`",
        reason: "no stage has more than half of the time, and nothing holds requests back",
    },
    Rule {
        id: "queue-not-measured",
        question: Saturation,
        verdict: "not enough evidence",
        when: &[AtLeast(Rate, 10.0)],
        change: "run the device under Treaty (treaty qemu, treaty serve), whose queues time their stages; not with --telemetry off",
        reason: "requests are counted here, and not timed: who they wait for cannot be said",
    },
    Rule {
        id: "passthrough-idle",
        question: Passthrough,
        verdict: "not needed",
        when: &[AtLeast(Passed, 1.0), Below(Interrupts, 1000.0)],
        change: "a virtio device would do, and give the machine back its live migration, snapshots and memory overcommit",
        reason: "below 1000 interrupts a second from the device, virtio's two notifications for each of them are under 1 % of a processor",
    },
    Rule {
        id: "passthrough-busy",
        question: Passthrough,
        verdict: "not enough evidence",
        when: &[AtLeast(Passed, 1.0)],
        change: "run the same load over virtio and audit that: only there are the stages seen",
        reason: "a device that is passed through is busy, or could not be counted; how virtio would do cannot be seen in it",
    },
    Rule {
        id: "passthrough-cold",
        question: Passthrough,
        verdict: "not needed",
        when: &[Below(Rate, 1000.0), AtLeast(Watched, 1.0)],
        change: "",
        reason: "below 1000 requests a second all that passthrough could remove is under 5 % of a processor, and it costs migration, \
                 snapshots and overcommit",
    },
    Rule {
        id: "passthrough-unknown",
        question: Passthrough,
        verdict: "not enough evidence",
        when: &[Below(Timed, 200.0)],
        change: "watch it under load, longer (--seconds), under Treaty, not with --telemetry off",
        reason: "fewer than 200 timed requests do not say what share of the time is virtio's",
    },
    Rule {
        id: "passthrough-throttled",
        question: Passthrough,
        verdict: "not needed",
        when: &[AtLeast(Throttled, NOTICED)],
        change: "",
        reason: "a limit that the operator set is what holds it: faster hardware would be held as well",
    },
    Rule {
        id: "passthrough-back-end",
        question: Passthrough,
        verdict: "not needed",
        when: &[Below(Removable, 0.30)],
        change: "",
        reason: "the back-end has 70 % of the time or more, which passthrough keeps; it costs migration, snapshots and overcommit",
    },
    Rule {
        id: "passthrough-poll-first",
        question: Passthrough,
        verdict: "not needed yet: poll first",
        when: &[AtLeast(Removable, 0.30), Below(Polled, MOST)],
        change: "poll=adaptive for the device (and more queues) removes doorbells and most of the waiting; audit again",
        reason: "the time that is not the back-end's is still spent on doorbells and waking, which a polling worker removes without \
                 giving up migration",
    },
    Rule {
        id: "passthrough-spare",
        question: Passthrough,
        verdict: "not needed: the worker has time left",
        when: &[AtLeast(Removable, 0.30), AtLeast(Empty, 0.20)],
        change: "",
        reason: "nothing was in flight for a fifth of the time or more: the way through virtio is not what limits the guest",
    },
    Rule {
        id: "passthrough-needed",
        question: Passthrough,
        verdict: "needed",
        when: &[
            AtLeast(Removable, MOST),
            AtLeast(Polled, MOST),
            Below(Empty, 0.20),
            AtLeast(Rate, 50_000.0),
        ],
        change: "pass a function of the device through (SR-IOV where it has it); the machine loses live migration, snapshots and memory \
                 overcommit",
        reason: "the worker polls and is never idle, and more than half of each request's time is neither the guest's nor the \
                 device's: only a way without the host's processor is shorter",
    },
    Rule {
        id: "passthrough-open",
        question: Passthrough,
        verdict: "not enough evidence",
        when: &[AtLeast(Rate, 1000.0)],
        change: "audit it under the load that matters, with a polling worker",
        reason: "the share that passthrough would remove is between clear and negligible",
    },
];

/// Words for a condition.
pub fn condition(is: &Is) -> String {
    match *is {
        Is::AtLeast(measure, bound) => format!("{} >= {bound}", measure.label()),
        Is::Below(measure, bound) => format!("{} < {bound}", measure.label()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_has_a_name_of_its_own_conditions_and_a_reason() {
        for (index, rule) in RULES.iter().enumerate() {
            assert!(!rule.when.is_empty() && rule.reason.len() > 10, "{}", rule.id);
            assert!(
                RULES.iter().skip(index + 1).all(|other| other.id != rule.id),
                "{} twice",
                rule.id
            );
        }
    }
}
