use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use anyhow::Context;
use serde_json::{Value, json};
use treaty_storage::qcow2::{self, Snapshot};

use super::common::{Allowed, Kind, Link, Opening, Output, chain, resolve};
use super::create::compression_name;
use super::size::Size;
use crate::output;

/// Say what an image is: format, length, space, backing file, snapshots.
///
/// Without -f the format is guessed from the file's first bytes, which is said on standard error: whoever has written to a
/// raw image could have written any format's first bytes there.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  treaty img info disk.qcow2
  treaty img info --backing-chain --output=json -f qcow2 clone.qcow2")]
pub struct Args {
    /// Format.
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
    /// Its backing files too, as far as they go.
    #[arg(long)]
    backing_chain: bool,
    #[command(flatten)]
    output: Output,
    /// Even if somebody writes to it.
    #[arg(short = 'U', long)]
    force_share: bool,
    path: PathBuf,
}

pub fn main(args: &Args, allowed: Allowed) -> anyhow::Result<u8> {
    let kind = match &args.format {
        Some(name) => Kind::parse(name)?,
        None => {
            let kind = Kind::guess(&args.path)
                .with_context(|| format!("Could not open '{}'", args.path.display()))?;
            eprintln!(
                "treaty: the format of {} is a guess; -f {} makes it certain",
                args.path.display(),
                kind.name()
            );
            kind
        }
    };
    let opening = Opening {
        share: args.force_share,
        ..Opening::reading(&args.path, Some(kind.name()), allowed)
    };
    let links = if args.backing_chain {
        chain(&opening)?
    } else {
        vec![Link {
            path: args.path.clone(),
            kind,
        }]
    };
    let images = links
        .iter()
        .map(|link| Info::of(link, &opening))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let text = if args.output.is_json() {
        let mut values: Vec<Value> = images.iter().map(Info::as_json).collect();
        let value = match values.pop() {
            Some(value) if !args.backing_chain => value,
            last => values.into_iter().chain(last).collect(),
        };
        serde_json::to_string_pretty(&value)?
    } else {
        let texts: Vec<String> = images.iter().map(Info::as_text).collect();
        texts.join("\n\n")
    };
    output::print(&text)?;
    Ok(0)
}

/// What is said of one image.
struct Info {
    path: PathBuf,
    kind: Kind,
    /// Bytes of the disk, of the file, and of the space that the file has.
    len: u64,
    file_len: u64,
    space: u64,
    qcow2: Option<qcow2::Info>,
}

impl Info {
    fn of(link: &Link, opening: &Opening<'_>) -> anyhow::Result<Self> {
        let opening = Opening {
            path: &link.path,
            format: Some(link.kind.name()),
            alone: true,
            corrupt: true,
            // Of a raw image nothing is read.
            share: opening.share || link.kind == Kind::Raw,
            ..*opening
        };
        let (len, qcow2) = match link.kind {
            Kind::Raw => (opening.open()?.capabilities().len, None),
            Kind::Qcow2 => {
                let info = opening.open_qcow2()?.info()?;
                (info.size, Some(info))
            }
        };
        let metadata = std::fs::metadata(&link.path)?;
        Ok(Self {
            path: link.path.clone(),
            kind: link.kind,
            len,
            file_len: if metadata.is_file() { metadata.len() } else { len },
            space: metadata.blocks() * 512,
            qcow2,
        })
    }

    fn as_json(&self) -> Value {
        let name = self.path.display().to_string();
        let mut value = json!({
            "children": [{
                "name": "file",
                "info": {
                    "children": [],
                    "virtual-size": self.file_len,
                    "filename": name,
                    "format": "file",
                    "actual-size": self.space,
                    "format-specific": { "type": "file", "data": {} },
                    "dirty-flag": false,
                },
            }],
            "virtual-size": self.len,
            "filename": name,
            "format": self.kind.name(),
            "actual-size": self.space,
            "dirty-flag": self.qcow2.as_ref().is_some_and(|info| info.dirty),
        });
        if let (Some(info), Some(fields)) = (&self.qcow2, value.as_object_mut()) {
            fields.extend(self.qcow2_fields(info));
        }
        value
    }

    /// What a qcow2 image has beside what all have.
    fn qcow2_fields(&self, info: &qcow2::Info) -> serde_json::Map<String, Value> {
        let mut fields = serde_json::Map::new();
        fields.insert("cluster-size".into(), info.cluster_size.into());
        if let Some(name) = &info.backing {
            let full = resolve(&self.path, name).display().to_string();
            fields.insert("backing-filename".into(), name.clone().into());
            fields.insert("full-backing-filename".into(), full.into());
        }
        if let Some(format) = &info.backing_format {
            fields.insert("backing-filename-format".into(), format.clone().into());
        }
        if !info.snapshots.is_empty() {
            fields.insert(
                "snapshots".into(),
                info.snapshots.iter().map(snapshot_json).collect(),
            );
        }
        let specific: serde_json::Map<String, Value> = specific(info)
            .into_iter()
            .map(|(key, value)| (key.replace(' ', "-"), value))
            .collect();
        fields.insert(
            "format-specific".into(),
            json!({ "type": "qcow2", "data": specific }),
        );
        fields
    }

    fn as_text(&self) -> String {
        let name = self.path.display();
        let mut lines = vec![
            format!("image: {name}"),
            format!("file format: {}", self.kind.name()),
            format!("virtual size: {} ({} bytes)", Size(self.len), self.len),
            format!("disk size: {}", Size(self.space)),
        ];
        if let Some(info) = &self.qcow2 {
            self.qcow2_lines(info, &mut lines);
        }
        lines.extend([
            "Child node '/file':".into(),
            format!("    filename: {name}"),
            "    protocol type: file".into(),
            format!(
                "    file length: {} ({} bytes)",
                Size(self.file_len),
                self.file_len
            ),
            format!("    disk size: {}", Size(self.space)),
        ]);
        lines.join("\n")
    }

    fn qcow2_lines(&self, info: &qcow2::Info, lines: &mut Vec<String>) {
        if info.dirty {
            lines.push("cleanly shut down: no".into());
        }
        lines.push(format!("cluster_size: {}", info.cluster_size));
        if let Some(name) = &info.backing {
            let full = resolve(&self.path, name);
            let actual = if full.as_os_str() == name.as_str() {
                String::new()
            } else {
                format!(" (actual path: {})", full.display())
            };
            lines.push(format!("backing file: {name}{actual}"));
        }
        if let Some(format) = &info.backing_format {
            lines.push(format!("backing file format: {format}"));
        }
        if !info.snapshots.is_empty() {
            lines.push(format!(
                "Snapshot list:\n{}",
                super::snapshot::table(&info.snapshots)
            ));
        }
        lines.push("Format specific information:".into());
        for (key, value) in specific(info) {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            lines.push(format!("    {key}: {value}"));
        }
    }
}

/// What only qcow2 images are, in the order in which it is printed.
fn specific(info: &qcow2::Info) -> Vec<(String, Value)> {
    let mut found: Vec<(&str, Value)> = Vec::new();
    let is_new = info.version >= 3;
    found.push(("compat", if is_new { "1.1" } else { "0.10" }.into()));
    found.push(("compression type", compression_name(info.compression).into()));
    if is_new {
        found.push(("lazy refcounts", info.lazy_refcounts.into()));
    }
    found.push(("refcount bits", info.refcount_bits.into()));
    if let Some(name) = &info.data_file {
        found.push(("data file", name.clone().into()));
        found.push(("data file raw", info.data_file_raw.into()));
    }
    if is_new {
        found.push(("corrupt", info.corrupt.into()));
        found.push(("extended l2", info.extended_l2.into()));
    }
    found
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect()
}

fn snapshot_json(snapshot: &Snapshot) -> Value {
    const SECOND: u64 = 1_000_000_000;
    let mut value = json!({
        "id": snapshot.id,
        "name": snapshot.name,
        "vm-state-size": snapshot.state_bytes,
        "date-sec": snapshot.seconds,
        "date-nsec": snapshot.nanoseconds,
        "vm-clock-sec": snapshot.guest_clock_ns / SECOND,
        "vm-clock-nsec": snapshot.guest_clock_ns % SECOND,
    });
    if let Some(count) = snapshot.instructions() {
        value["icount"] = count.into();
    }
    value
}
