//! Everything around KVM: asynchronous I/O, networks, passthrough, memory.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::Path;

use super::Check;

/// All host checks, in the order in which they are shown.
pub(super) fn checks() -> Vec<Check> {
    vec![
        io_uring(),
        tap(),
        passt(),
        vhost("vhost-net", "/dev/vhost-net", "vhost_net"),
        vhost("vhost-vsock", "/dev/vhost-vsock", "vhost_vsock"),
        vhost_scsi(),
        vfio(),
        iommu_groups(),
        hugepages(),
        transparent_hugepages(),
    ]
}

fn io_uring() -> Check {
    const NAME: &str = "io_uring";
    match io_uring::IoUring::new(8) {
        Ok(_) => Check::ok(NAME, "works"),
        Err(error) => {
            let disabled = read("/proc/sys/kernel/io_uring_disabled").is_some_and(|value| value != "0");
            let advice = if disabled {
                "allow it with `sysctl kernel.io_uring_disabled=0`; until then Treaty uses epoll and threads"
            } else {
                "Treaty uses epoll and threads instead; containers often block it by seccomp"
            };
            Check::limited(NAME, error.to_string(), advice)
        }
    }
}

fn tap() -> Check {
    const NAME: &str = "tap";
    match OpenOptions::new().read(true).write(true).open("/dev/net/tun") {
        Ok(_) if has_capability(CAP_NET_ADMIN) => Check::ok(NAME, "taps can be made and opened"),
        Ok(_) => Check::limited(
            NAME,
            "/dev/net/tun opens, but this user may not make taps",
            "have one made: `sudo ip tuntap add NAME mode tap user $USER multi_queue vnet_hdr`; or use `--net user`",
        ),
        Err(error) => Check::missing(NAME, format!("/dev/net/tun: {error}"), tun_advice(&error)),
    }
}

fn tun_advice(error: &io::Error) -> &'static str {
    if error.kind() == io::ErrorKind::NotFound {
        "load it with `sudo modprobe tun`; `--net user` works without"
    } else {
        "run with permission to /dev/net/tun, or use `--net user`"
    }
}

fn passt() -> Check {
    const NAME: &str = "passt";
    match in_path("passt") {
        Some(path) => Check::ok(NAME, path),
        None => Check::missing(
            NAME,
            "not installed",
            "`apt install passt` gives guests a network without root (`--net user`)",
        ),
    }
}

fn vhost(name: &'static str, device: &str, module: &str) -> Check {
    match OpenOptions::new().read(true).write(true).open(device) {
        Ok(_) => Check::ok(name, format!("{device} opens")),
        Err(error) => Check::missing(
            name,
            format!("{device}: {error}"),
            format!("`sudo modprobe {module}`, or permission to {device}"),
        ),
    }
}

fn vhost_scsi() -> Check {
    const NAME: &str = "vhost-scsi";
    if Path::new("/sys/kernel/config/target/vhost").exists() {
        Check::ok(NAME, "the target is configured")
    } else {
        vhost(NAME, "/dev/vhost-scsi", "vhost_scsi")
    }
}

fn vfio() -> Check {
    const NAME: &str = "vfio";
    if File::open("/dev/vfio/vfio").is_ok() {
        let iommufd = if Path::new("/dev/iommu").exists() {
            " and iommufd"
        } else {
            ""
        };
        Check::ok(NAME, format!("type 1 containers{iommufd}"))
    } else {
        Check::missing(
            NAME,
            "/dev/vfio/vfio does not open",
            "`sudo modprobe vfio-pci`; needs an IOMMU",
        )
    }
}

fn iommu_groups() -> Check {
    const NAME: &str = "iommu";
    let groups = fs::read_dir("/sys/kernel/iommu_groups").map_or(0, Iterator::count);
    if groups > 0 {
        Check::ok(NAME, format!("{groups} groups"))
    } else {
        let advice =
            "for passthrough, turn VT-d or AMD-Vi on in the firmware and boot with `intel_iommu=on` (Intel)";
        Check::missing(NAME, "no IOMMU groups", advice)
    }
}

fn hugepages() -> Check {
    const NAME: &str = "hugepages";
    let mut found = Vec::new();
    for entry in fs::read_dir("/sys/kernel/mm/hugepages")
        .into_iter()
        .flatten()
        .flatten()
    {
        let size = entry.file_name().to_string_lossy().replace("hugepages-", "");
        let count = |what: &str| {
            read(entry.path().join(what))
                .and_then(|value| value.parse::<u64>().ok())
                .unwrap_or(0)
        };
        let (total, free) = (count("nr_hugepages"), count("free_hugepages"));
        if total > 0 {
            found.push(format!("{size}: {free} of {total} free"));
        }
    }
    if found.is_empty() {
        let advice = "for `--hugepages`: `sudo sysctl vm.nr_hugepages=N` (N pages of 2 MiB)";
        Check::missing(NAME, "none reserved", advice)
    } else {
        Check::ok(NAME, found.join(", "))
    }
}

fn transparent_hugepages() -> Check {
    const NAME: &str = "thp";
    let chosen = |path: &str| {
        let text = read(path)?;
        let word = text.split_whitespace().find(|word| word.starts_with('['))?;
        Some(word.trim_matches(['[', ']']).to_string())
    };
    match chosen("/sys/kernel/mm/transparent_hugepage/shmem_enabled") {
        Some(mode) if mode != "never" && mode != "deny" => Check::ok(NAME, format!("shared memory: {mode}")),
        Some(mode) => Check::limited(
            NAME,
            format!("shared memory: {mode}"),
            "guest memory takes fewer page faults after `echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled`",
        ),
        None => Check::missing(
            NAME,
            "this kernel has no transparent huge pages",
            "use `--hugepages` for large guests",
        ),
    }
}

const CAP_NET_ADMIN: u32 = 12;

fn has_capability(bit: u32) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let mask = line
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0);
    mask >> bit & 1 == 1
}

fn in_path(program: &str) -> Option<String> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
        .map(|file| file.display().to_string())
}

fn read(path: impl AsRef<Path>) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_string())
}

#[cfg(test)]
mod tests {
    use super::super::{Status, examine};

    #[test]
    fn every_problem_comes_with_advice_and_every_check_has_its_own_name() {
        let report = examine();
        let mut names: Vec<_> = report.checks.iter().map(|check| check.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), report.checks.len());
        for check in &report.checks {
            assert!(!check.found.is_empty(), "{check:?}");
            assert_eq!(check.status == Status::Ok, check.advice.is_none(), "{check:?}");
        }
    }
}
