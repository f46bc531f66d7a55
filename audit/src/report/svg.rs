//! Plots, drawn by hand: bars that stand for themselves without scripts.

use std::fmt::Write as _;

/// Colours of stages, for eyes that see few: blue, orange, green, vermilion, purple.
pub(super) const COLOURS: [&str; 5] = ["#56b4e9", "#e69f00", "#009e73", "#d55e00", "#cc79a7"];

const WIDTH: f64 = 640.0;
const BAR: f64 = 22.0;
const LABEL: f64 = 170.0;

/// Text that may stand in a page.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::new();
    for letter in text.chars() {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            letter => out.push(letter),
        }
    }
    out
}

/// Rows of bars made of parts: name, parts. The parts of all rows have one scale, and are written with `unit`.
pub(super) fn stacked(rows: &[(String, Vec<f64>)], unit: &str) -> String {
    let sums: Vec<f64> = rows.iter().map(|(_, parts)| parts.iter().sum()).collect();
    let most = sums.iter().copied().fold(0.0, f64::max);
    if most <= 0.0 {
        return String::new();
    }
    let height = (rows.len() as f64).mul_add(BAR + 6.0, 6.0);
    let mut svg = format!(r#"<svg viewBox="0 0 {WIDTH} {height}" role="img">"#);
    let room = WIDTH - LABEL - 110.0;
    for (index, ((name, parts), sum)) in rows.iter().zip(&sums).enumerate() {
        let top = (index as f64).mul_add(BAR + 6.0, 6.0);
        let middle = top + BAR * 0.7;
        let _ = write!(
            svg,
            r#"<text x="{}" y="{middle}" text-anchor="end">{}</text>"#,
            LABEL - 8.0,
            escape(name)
        );
        let mut left = LABEL;
        for (part, colour) in parts.iter().zip(COLOURS.iter().cycle()) {
            let width = part / most * room;
            let _ = write!(
                svg,
                r#"<rect x="{left:.1}" y="{top:.1}" width="{width:.1}" height="{BAR}" fill="{colour}"/>"#
            );
            left += width;
        }
        let _ = write!(
            svg,
            r#"<text x="{:.1}" y="{middle}">{} {unit}</text>"#,
            left + 6.0,
            figure(*sum)
        );
    }
    svg + "</svg>"
}

/// A histogram over a logarithmic axis: largest value of a bucket in nanoseconds, and count.
pub(super) fn histogram(buckets: &[(u64, u64)]) -> String {
    let most = buckets.iter().map(|(_, count)| *count).max().unwrap_or(0);
    let (Some((first, _)), Some((last, _))) = (buckets.first(), buckets.last()) else {
        return String::new();
    };
    let (low, high) = ((*first as f64).max(1.0).log10(), (*last as f64).max(2.0).log10());
    let (low, high) = (low.floor(), high.ceil().max(low.floor() + 1.0));
    let at = |ns: f64| 20.0 + (ns.max(1.0).log10() - low) / (high - low) * (WIDTH - 40.0);
    let mut svg = format!(r#"<svg viewBox="0 0 {WIDTH} 130" role="img">"#);
    for (upper, count) in buckets {
        let (right, left) = (at(*upper as f64), at(*upper as f64 / 1.125));
        let height = *count as f64 / most as f64 * 96.0;
        let _ = write!(
            svg,
            r#"<rect x="{left:.1}" y="{:.1}" width="{:.1}" height="{height:.1}" fill="{}"/>"#,
            100.0 - height,
            (right - left).max(1.0),
            COLOURS[0]
        );
    }
    let mut decade = low;
    while decade <= high {
        let _ = write!(
            svg,
            r#"<text x="{:.1}" y="118" text-anchor="middle">{}</text>"#,
            at(10_f64.powf(decade)),
            duration(10_f64.powf(decade))
        );
        decade += 1.0;
    }
    svg + "</svg>"
}

fn figure(value: f64) -> String {
    if value >= 100.0 || value.fract() == 0.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.2}")
    }
}

fn duration(ns: f64) -> String {
    match ns {
        ns if ns < 1e3 => format!("{ns:.0} ns"),
        ns if ns < 1e6 => format!("{:.0} us", ns / 1e3),
        ns if ns < 1e9 => format!("{:.0} ms", ns / 1e6),
        ns => format!("{:.0} s", ns / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_break_out_of_the_page() {
        let svg = stacked(&[("<script>\"&".into(), vec![1.0, 2.0])], "us");
        assert!(svg.contains("&lt;script&gt;&quot;&amp;") && !svg.contains("<script>"));
        assert_eq!(stacked(&[("x".into(), vec![0.0])], "us"), "");
        assert_eq!(histogram(&[]), "");
        let one = histogram(&[(1000, 5)]);
        assert!(
            one.contains("1 us") && !one.contains("NaN") && !one.contains("inf"),
            "{one}"
        );
    }
}
