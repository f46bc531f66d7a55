use std::fmt;
use std::str::FromStr;

/// Bytes, written as qemu-img takes them: `512`, `64k`, `1.5G`, `0x1000`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

const UNITS: [(char, u32); 7] = [
    ('B', 0),
    ('K', 10),
    ('M', 20),
    ('G', 30),
    ('T', 40),
    ('P', 50),
    ('E', 60),
];

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("invalid size '{text}': give bytes, or a number with k, M, G, T, P or E (1.5G)");
        if let Some(digits) = text.strip_prefix("0x") {
            return u64::from_str_radix(digits, 16).map(Self).map_err(|_| wrong());
        }
        let upper = text.to_ascii_uppercase();
        let unit = UNITS
            .into_iter()
            .find_map(|(letter, shift)| Some((upper.strip_suffix(letter)?, shift)));
        let (number, shift) = unit.unwrap_or((&upper, 0));
        let (whole, part) = number.split_once('.').unwrap_or((number, ""));
        let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        // A fraction of a byte makes no sense.
        if whole.is_empty() || !digits(whole) || !digits(part) || shift == 0 && number.contains('.') {
            return Err(wrong());
        }
        let whole: u64 = whole.parse().map_err(|_| wrong())?;
        let part: f64 = format!("0.{part}0").parse().map_err(|_| wrong())?;
        let bytes = whole
            .checked_mul(1 << shift)
            .and_then(|bytes| bytes.checked_add((part * (1u64 << shift) as f64) as u64));
        bytes.map(Self).ok_or_else(wrong)
    }
}

impl fmt::Display for Size {
    /// For people: three digits and a unit, as qemu-img rounds.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        let mut value = self.0 as f64;
        let mut unit = 0;
        // 1000 of a unit are written in the next.
        while value >= 1000.0 && unit + 1 < NAMES.len() {
            value /= 1024.0;
            unit += 1;
        }
        let digits = if value >= 100.0 {
            0
        } else if value >= 10.0 {
            1
        } else if value >= 1.0 {
            2
        } else {
            3
        };
        let number = format!("{value:.digits$}");
        let number = if number.contains('.') {
            number.trim_end_matches('0').trim_end_matches('.')
        } else {
            &number
        };
        write!(f, "{number} {}", NAMES[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::Size;

    #[test]
    fn sizes_are_read_as_qemu_img_reads_them() {
        let parse = |text: &str| text.parse::<Size>().map(|size| size.0);
        assert_eq!(parse("0"), Ok(0));
        assert_eq!(parse("512"), Ok(512));
        assert_eq!(parse("512b"), Ok(512));
        assert_eq!(parse("64k"), Ok(65536));
        assert_eq!(parse("64K"), Ok(65536));
        assert_eq!(parse("1.5G"), Ok(3 << 29));
        assert_eq!(parse("0x1000"), Ok(4096));
        assert_eq!(parse("7E"), Ok(7 << 60));
        for wrong in [
            "",
            "k",
            "-1",
            "1Z",
            "1.5",
            "1,5G",
            ".5G",
            "16E",
            "99999999999999999999",
            "+1",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes_are_written_as_qemu_img_writes_them() {
        let show = |bytes: u64| Size(bytes).to_string();
        assert_eq!(show(0), "0 B");
        assert_eq!(show(512), "512 B");
        assert_eq!(show(1000), "0.977 KiB");
        assert_eq!(show(1023), "0.999 KiB");
        assert_eq!(show(200704), "196 KiB");
        assert_eq!(show(1507328), "1.44 MiB");
        assert_eq!(show(10485760), "10 MiB");
        assert_eq!(show(3 << 29), "1.5 GiB");
    }
}
