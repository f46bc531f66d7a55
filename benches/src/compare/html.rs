//! The comparison as one page that needs nothing else.

use std::fmt::Write;

use super::report::{Comparison, Figures, Row};

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;color:#1c1e21}\
h1{font-size:1.6rem;margin-bottom:.2rem}h2{font-size:1.2rem;margin-top:2.4rem}\
p.host{color:#5a6068;margin-top:0}ul.notes{background:#fff7e0;border-left:4px solid #d9a400;padding:.6rem 1.6rem}\
ul.errors{background:#fdeaea;border-left:4px solid #c0392b;padding:.6rem 1.6rem}\
div.wide{overflow-x:auto}table{border-collapse:collapse;font-size:13px;font-variant-numeric:tabular-nums}\
th,td{padding:.25rem .6rem;text-align:right;border-bottom:1px solid #e3e5e8;white-space:nowrap}\
th{background:#f4f5f7;font-weight:600}td.t,th.t{text-align:left}tr.q td{color:#6b7078}\
svg{max-width:100%;height:auto}svg text{font:12px system-ui,sans-serif;fill:#1c1e21}\
@media(prefers-color-scheme:dark){body{background:#16181b;color:#e4e6e9}p.host{color:#9aa0a8}th{background:#22262b}\
th,td{border-color:#30353b}tr.q td{color:#9aa0a8}svg text{fill:#e4e6e9}ul.notes{background:#332b10}ul.errors{background:#3b1a18}}";

const OURS: &str = "#2274a5";
const THEIRS: &str = "#d98032";
const LABEL: f64 = 250.0;
const PLOT: f64 = 520.0;
const BAR: f64 = 11.0;

impl Comparison {
    /// The page.
    pub fn html(&self) -> String {
        let host = &self.host;
        let peer = self.peer.as_deref().unwrap_or("no QEMU");
        let mut page = format!(
            "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>\
             <title>treaty compare</title><style>{STYLE}</style><h1>Emulated hardware, virtio, and what each costs</h1>\
             <p class=host>{}, {} cores, Linux {}; {}</p>",
            escape(&host.cpu),
            host.cores,
            escape(&host.kernel),
            escape(peer)
        );
        list(&mut page, "notes", &self.notes);
        list(&mut page, "errors", &self.errors);
        for (group, title) in [
            ("disk", "Disks: reads of 4 KiB from the host's page cache"),
            ("net", "Network cards: frames of 1400 bytes, sent to nowhere"),
        ] {
            let rows: Vec<&Row> = self
                .sorted()
                .into_iter()
                .filter(|row| row.group == group)
                .collect();
            let _ = write!(page, "<h2>{title}</h2>");
            if group == "disk" {
                let native = grouped(self.native_reads);
                let _ = write!(
                    page,
                    "<p>One thread of the host does {native} such reads a second by itself.</p>"
                );
            }
            page += &bars(
                "operations a second (each line is ten times the last)",
                &rows,
                true,
                |figures| Some(figures.ops_per_s),
            );
            page += &bars(
                "exits to the monitor for each operation",
                &rows,
                false,
                |figures| figures.exits_per_op,
            );
            page += &table(&rows);
        }
        page += "<p>An exit is the guest's processor leaving the guest for the monitor. A doorbell of a virtio device is an exit \
                 too, but a light one, which the kernel answers alone. CPU is the time of all threads of the monitor, the guest's \
                 own included: a guest that polls uses all of one. Every byte that was read or came back was compared.</p></html>\n";
        page
    }
}

fn list(page: &mut String, class: &str, lines: &[String]) {
    if lines.is_empty() {
        return;
    }
    let _ = write!(page, "<ul class={class}>");
    for line in lines {
        let _ = write!(page, "<li>{}", escape(line));
    }
    page.push_str("</ul>");
}

fn label(row: &Row) -> String {
    let ring = if row.ring == "none" { "" } else { &row.ring };
    let bus = if row.ring == "none" { "" } else { row.transport };
    let words = [row.device, bus, ring, row.mode.as_str()];
    let words: Vec<&str> = words.into_iter().filter(|word| !word.is_empty()).collect();
    format!("{} QD{}", words.join(" "), row.depth)
}

/// A plot of horizontal bars, a pair for each row. `log`: each grid line is ten times the one before.
fn bars(title: &str, rows: &[&Row], log: bool, value: impl Fn(&Figures) -> Option<f64>) -> String {
    let values: Vec<[Option<f64>; 2]> = rows
        .iter()
        .map(|row| [&row.treaty, &row.qemu].map(|figures| figures.as_ref().and_then(&value)))
        .collect();
    let highest = values.iter().flatten().flatten().copied().fold(0.0, f64::max);
    if highest <= 0.0 {
        return String::new();
    }
    let top = if log { highest.log10().ceil() } else { highest };
    // A logarithmic plot starts at ten operations a second.
    let place = |value: f64| match log {
        true => ((value.max(10.0).log10() - 1.0) / (top - 1.0)).clamp(0.0, 1.0),
        false => value / top,
    };
    let row_height = 2.0 * BAR + 8.0;
    let height = 46.0 + rows.len() as f64 * row_height;
    let width = LABEL + PLOT + 90.0;
    let mut svg = format!(
        "<svg viewBox='0 0 {width} {height}' width={width} role=img><text x=0 y=14 font-weight=600>{title}</text>\
         <rect x={LABEL} y=22 width=10 height=10 fill='{OURS}'/><text x={} y=31>Treaty</text>\
         <rect x={} y=22 width=10 height=10 fill='{THEIRS}'/><text x={} y=31>QEMU</text>",
        LABEL + 14.0,
        LABEL + 80.0,
        LABEL + 94.0
    );
    if log {
        for power in 1..=top as u32 {
            let x = LABEL + PLOT * place(10_f64.powi(power as i32));
            let _ = write!(
                svg,
                "<line x1={x:.1} x2={x:.1} y1=38 y2={height} stroke='#8888' stroke-width=.5 />"
            );
        }
    }
    for (index, (row, pair)) in rows.iter().zip(&values).enumerate() {
        let y = 42.0 + index as f64 * row_height;
        let _ = write!(
            svg,
            "<text x={} y={:.1} text-anchor=end>{}</text>",
            LABEL - 8.0,
            y + BAR + 4.0,
            escape(&label(row))
        );
        for (value, (offset, colour)) in pair.iter().zip([(0.0, OURS), (BAR + 1.0, THEIRS)]) {
            let Some(value) = value else { continue };
            let len = (PLOT * place(*value)).max(1.0);
            let text = if log {
                grouped(*value)
            } else {
                format!("{value:.3}")
            };
            let _ = write!(
                svg,
                "<rect x={LABEL} y={:.1} width={len:.1} height={BAR} fill='{colour}'/><text x={:.1} y={:.1}>{text}</text>",
                y + offset,
                LABEL + len + 5.0,
                y + offset + BAR - 1.0
            );
        }
    }
    svg + "</svg>"
}

fn table(rows: &[&Row]) -> String {
    let mut table = String::from(
        "<div class=wide><table><tr><th class=t>device<th class=t>bus<th class=t>ring<th class=t>waits by<th>depth<th class=t>in\
         <th>ops/s<th>slowest..fastest<th>share of native<th>p50 us<th>p99 us<th>exits/op<th>doorbells/op<th>interrupts/op<th>CPU us/op",
    );
    for row in rows {
        for (name, class, figures) in [("Treaty", "o", &row.treaty), ("QEMU", "q", &row.qemu)] {
            let Some(figures) = figures else { continue };
            let number = |value: Option<f64>, decimals: usize| {
                value.map_or("–".to_owned(), |value| format!("{value:.decimals$}"))
            };
            let native = figures
                .native_percent
                .map_or("–".to_owned(), |percent| format!("{percent:.1} %"));
            let _ = write!(
                table,
                "<tr class={class}><td class=t>{}<td class=t>{}<td class=t>{}<td class=t>{}<td>{}<td class=t>{name}<td>{}<td>{}..{}\
                 <td>{native}<td>{:.2}<td>{:.2}<td>{}<td>{:.3}<td>{:.3}<td>{}",
                row.device,
                row.transport,
                escape(&row.ring),
                escape(&row.mode),
                row.depth,
                grouped(figures.ops_per_s),
                grouped(figures.spread[0]),
                grouped(figures.spread[1]),
                figures.p50_us,
                figures.p99_us,
                number(figures.exits_per_op, 3),
                figures.doorbells_per_op,
                figures.interrupts_per_op,
                number(figures.cpu_us_per_op, 2),
            );
        }
    }
    table + "</table></div>"
}

/// A whole number with its thousands apart.
fn grouped(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    text
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable_and_text_is_text() {
        assert_eq!(grouped(1234567.4), "1\u{202f}234\u{202f}567");
        assert_eq!(grouped(12.0), "12");
        assert_eq!(escape("<a & b>"), "&lt;a &amp; b&gt;");
    }
}
