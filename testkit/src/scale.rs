/// How many rounds a long test does: `sample` in `cargo xtask test`, `full` in `cargo xtask soak`, which sets
/// `TREATY_SOAK=1`.
pub fn scale(sample: u64, full: u64) -> u64 {
    let soak = std::env::var_os("TREATY_SOAK").is_some_and(|value| value == "1");
    if soak { full } else { sample }
}
