/// A switch that is on.
pub(super) fn is_on(text: &str) -> bool {
    ["on", "yes", "true", "y"].contains(&text)
}

/// A size in bytes; without a unit it is in `unit` bytes.
pub(super) fn size(text: &str, unit: u64) -> Option<u64> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let unit = match text.get(digits.len()..)?.to_ascii_lowercase().as_str() {
        "" => unit,
        "b" => 1,
        "k" => 1 << 10,
        "m" => 1 << 20,
        "g" => 1 << 30,
        "t" => 1 << 40,
        _ => return None,
    };
    match digits.split_once('.') {
        None => digits.parse::<u64>().ok()?.checked_mul(unit),
        // 1.5G
        Some((whole, part)) if part.len() <= 6 => {
            let scale = 10_u64.pow(u32::try_from(part.len()).ok()?);
            let whole = whole.parse::<u64>().ok()?.checked_mul(unit)?;
            let part = part.parse::<u64>().ok()?.checked_mul(unit)?;
            whole.checked_add(part / scale)
        }
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(size("4096", 1 << 20), Some(4 << 30));
        assert_eq!(size("4G", 1 << 20), Some(4 << 30));
        assert_eq!(size("1.5g", 1), Some(3 << 29));
        assert_eq!(size("64k", 1), Some(65536));
        assert_eq!(size("x", 1), None);
        assert_eq!(size("99999999999T", 1), None);
    }
}
