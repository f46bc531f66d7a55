//! Which crate may depend on which: the arrows that must never exist.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result, bail};

/// The crates of the workspace, and what each needs outside its tests.
#[derive(Debug, Default)]
struct Graph {
    /// Direct dependencies, from the workspace and from outside.
    direct: BTreeMap<String, BTreeSet<String>>,
}

/// A rule: who, and what must not be among the things it reaches.
struct Rule {
    why: &'static str,
    who: fn(&str) -> bool,
    never: fn(&str) -> bool,
}

const RULES: [Rule; 8] = [
    Rule {
        why: "a device cannot tell where it runs",
        who: |name| name.starts_with("treaty-device-"),
        never: |name| {
            [
                "treaty-virtio-transport",
                "treaty-virtio-driver",
                "treaty-pci",
                "treaty-bus",
            ]
            .contains(&name)
                || is_monitor(name)
        },
    },
    Rule {
        why: "storage knows nothing of virtio",
        who: |name| ["treaty-storage", "treaty-nbd", "treaty-http", "treaty-stream"].contains(&name),
        never: is_virtio,
    },
    Rule {
        why: "net knows nothing of virtio but the header on the wire, which is in treaty-virtio-spec",
        who: |name| name == "treaty-net",
        never: |name| is_virtio(name) && name != "treaty-virtio-spec",
    },
    Rule {
        why: "the hypervisor knows nothing of virtio; only the monitor sees both",
        who: |name| !["treaty-vmm", "treaty"].contains(&name) && !is_outside_production(name),
        never: |name| name == "treaty-kvm",
    },
    Rule {
        why: "the hypervisor knows nothing of virtio",
        who: |name| name == "treaty-kvm",
        never: is_virtio,
    },
    Rule {
        why: "production code never depends on the test kit",
        who: |name| !is_outside_production(name) && name != "treaty",
        never: is_outside_production,
    },
    Rule {
        why: "the program has `treaty bench`, and no more of what is not production",
        who: |name| name == "treaty",
        never: |name| is_outside_production(name) && !["treaty-benches", "treaty-lab"].contains(&name),
    },
    Rule {
        why: "no ambient async runtime",
        who: |name| name.starts_with("treaty"),
        never: |name| ["tokio", "async-std", "smol"].contains(&name),
    },
];

/// What each of these crates may depend on directly; anything else is refused.
const ALLOWED: [(&str, &[&str]); 3] = [
    ("treaty-virtio-spec", &["bitflags", "zerocopy"]),
    ("treaty-virtio-ring", &["treaty-virtio-spec"]),
    (
        "treaty-virtio-driver",
        &[
            "treaty-virtio-ring",
            "treaty-virtio-spec",
            "thiserror",
            "zerocopy",
        ],
    ),
];

/// The floor of `base/`: no knowledge of virtual machines, so nothing of ours from above.
const BASE: [&str; 6] = [
    "treaty-buffers",
    "treaty-chardev",
    "treaty-listen",
    "treaty-telemetry",
    "treaty-metrics",
    "treaty-worker",
];

fn is_virtio(name: &str) -> bool {
    name.starts_with("treaty-virtio-") || name.starts_with("treaty-device-")
}

fn is_monitor(name: &str) -> bool {
    name.starts_with("treaty-vhost-") || ["treaty-kvm", "treaty-vmm", "treaty-vfio", "treaty"].contains(&name)
}

fn is_outside_production(name: &str) -> bool {
    [
        "treaty-testkit",
        "treaty-tests",
        "treaty-benches",
        "treaty-lab",
        "xtask",
    ]
    .contains(&name)
}

/// Checks the workspace in `root`; returns one line for each forbidden arrow.
pub fn check(root: &Path) -> Result<Vec<String>> {
    Ok(Graph::of_workspace(root)?.problems())
}

impl Graph {
    fn of_workspace(root: &Path) -> Result<Self> {
        let mut command = crate::cargo::command();
        command
            .current_dir(root)
            .args(["metadata", "--format-version", "1", "--no-deps", "--offline"]);
        let output = command.output().context("cannot start cargo")?;
        if !output.status.success() {
            bail!(
                "cargo metadata failed: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Self::of_metadata(&serde_json::from_slice(&output.stdout)?).context("cargo metadata has another form")
    }

    fn of_metadata(metadata: &serde_json::Value) -> Option<Self> {
        let mut graph = Self::default();
        for package in metadata["packages"].as_array()? {
            let mut needs = BTreeSet::new();
            for dependency in package["dependencies"].as_array()? {
                if dependency["kind"].as_str() != Some("dev") {
                    needs.insert(dependency["name"].as_str()?.to_owned());
                }
            }
            graph.direct.insert(package["name"].as_str()?.to_owned(), needs);
        }
        Some(graph)
    }

    /// All that `name` reaches, each with the crate through which it was first reached.
    fn reached(&self, name: &str) -> BTreeMap<String, String> {
        let mut reached = BTreeMap::new();
        let mut pending = vec![name.to_owned()];
        while let Some(from) = pending.pop() {
            for to in self.direct.get(&from).into_iter().flatten() {
                if !reached.contains_key(to) {
                    reached.insert(to.clone(), from.clone());
                    pending.push(to.clone());
                }
            }
        }
        reached
    }

    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for (name, direct) in &self.direct {
            let reached = self.reached(name);
            for rule in RULES.iter().filter(|rule| (rule.who)(name)) {
                for (to, through) in reached.iter().filter(|(to, _)| (rule.never)(to)) {
                    let through = if through == name {
                        String::new()
                    } else {
                        format!(" through {through}")
                    };
                    problems.push(format!("layers: {name} depends on {to}{through}: {}", rule.why));
                }
            }
            if let Some((_, allowed)) = ALLOWED.iter().find(|(who, _)| who == name) {
                for to in direct.iter().filter(|to| !allowed.contains(&to.as_str())) {
                    problems.push(format!(
                        "layers: {name} depends on {to}: it may use only {allowed:?}"
                    ));
                }
            }
            if BASE.contains(&name.as_str()) {
                for to in direct
                    .iter()
                    .filter(|to| to.starts_with("treaty") && !BASE.contains(&to.as_str()))
                {
                    problems.push(format!(
                        "layers: {name} depends on {to}: base/ is the lowest floor"
                    ));
                }
            }
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(arrows: &[(&str, &[&str])]) -> Graph {
        let direct = arrows.iter().map(|(from, to)| {
            let to = to.iter().map(|name| (*name).to_owned()).collect();
            ((*from).to_owned(), to)
        });
        Graph {
            direct: direct.collect(),
        }
    }

    #[test]
    fn each_forbidden_arrow_is_found() {
        for arrows in [
            graph(&[("treaty-device-blk", &["treaty-pci"])]),
            graph(&[("treaty-storage", &["treaty-virtio-spec"])]),
            graph(&[("treaty-net", &["treaty-virtio-ring"])]),
            graph(&[("treaty-kvm", &["treaty-virtio-spec"])]),
            graph(&[("treaty-virtio-device", &["treaty-kvm"])]),
            graph(&[("treaty-device-rng", &["treaty-testkit"])]),
            graph(&[("treaty-virtio-ring", &["libc"])]),
            graph(&[("treaty-worker", &["treaty-memory"])]),
            graph(&[("treaty-vmm", &["tokio"])]),
            graph(&[
                ("treaty", &["treaty-benches"]),
                ("treaty-benches", &["treaty-testkit"]),
            ]),
        ] {
            assert_eq!(arrows.problems().len(), 1, "{arrows:?}");
        }
    }

    #[test]
    fn an_arrow_through_another_crate_is_found_and_named() {
        let arrows = graph(&[
            ("treaty-device-net", &["treaty-net"]),
            ("treaty-net", &["treaty-bus"]),
        ]);
        let problems = arrows.problems();
        assert_eq!(problems.len(), 1);
        assert!(problems[0].contains("through treaty-net"), "{problems:?}");
    }

    #[test]
    fn what_tests_need_is_no_arrow() {
        let text = r#"{"packages":[{"name":"treaty-device-blk","dependencies":[
            {"name":"treaty-testkit","kind":"dev"},{"name":"treaty-storage","kind":null}]}]}"#;
        let graph = Graph::of_metadata(&serde_json::from_str(text).unwrap()).unwrap();
        assert_eq!(graph.problems(), Vec::<String>::new());
        assert!(graph.direct["treaty-device-blk"].contains("treaty-storage"));
    }
}
