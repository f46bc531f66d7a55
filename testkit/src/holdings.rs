//! What this process holds, for tests that count what a peer left behind.

/// Open descriptors and mapped memfds.
pub fn descriptors_and_maps() -> (usize, usize) {
    let fds = std::fs::read_dir("/proc/self/fd").expect("procfs").count();
    let maps = std::fs::read_to_string("/proc/self/maps").expect("procfs");
    (fds, maps.lines().filter(|line| line.contains("memfd:")).count())
}

/// Bytes of memory in use, without what is shared.
pub fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").expect("procfs");
    let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.expect("RssAnon in kB") << 10
}
