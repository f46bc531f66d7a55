use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use treaty_storage::qcow2::{Compression, CreateOptions, Preallocation, Qcow2Image};
use treaty_storage::{Format, RawSpace, create_raw};

use super::common::{Allowed, Kind, Opening, resolve};
use super::options::Options;
use crate::output;

/// Make a new disk image.
///
/// With -b the new image is a linked clone: it reads what the backing file has, and keeps only what is written to it. The
/// backing file must not change from then on.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  treaty img create -f raw disk.raw 20G
  treaty img create -f qcow2 -o cluster_size=128k,preallocation=metadata disk.qcow2 20G
  treaty img create -f qcow2 -b base.qcow2 -F qcow2 clone.qcow2")]
pub struct Args {
    /// Format: raw or qcow2.
    #[arg(short, long, default_value = "raw", value_name = "FORMAT")]
    format: String,
    /// Options of the format (-o help lists them).
    #[arg(short, value_name = "KEY=VALUE,...")]
    options: Vec<String>,
    /// Backing file, by a path from the new image's folder.
    #[arg(short, long, value_name = "PATH")]
    backing: Option<PathBuf>,
    /// The backing file's format.
    #[arg(short = 'F', long, value_name = "FORMAT")]
    backing_format: Option<String>,
    /// Do not look at the backing file.
    #[arg(short, long)]
    unsafe_backing: bool,
    /// Say nothing.
    #[arg(short, long)]
    quiet: bool,
    /// The new image.
    path: PathBuf,
    /// Its length: bytes, or with k, M, G, T (1.5G). A clone has its backing file's length.
    size: Option<String>,
}

pub fn main(args: &Args, allowed: Allowed) -> anyhow::Result<u8> {
    let kind = Kind::parse(&args.format)?;
    let mut options = Options::parse(&args.options)?;
    if options.asks_for_help() {
        output::print(help(kind))?;
        return Ok(0);
    }
    if let Some(backing) = &args.backing {
        options.set("backing_file", backing.display().to_string());
    }
    if let Some(format) = &args.backing_format {
        options.set("backing_fmt", format.clone());
    }
    if let Some(size) = &args.size {
        options.set("size", size.clone());
    }
    let looked_at = (!args.unsafe_backing).then_some(allowed);
    let made = New::plan(kind, options, &args.path, looked_at)?;
    if !args.quiet {
        output::print(&made.describe(&args.path))?;
    }
    made.make(&args.path)
        .with_context(|| format!("{}: could not be created", args.path.display()))?;
    Ok(0)
}

/// The options of a format.
pub fn help(kind: Kind) -> &'static str {
    match kind {
        Kind::Raw => {
            "Supported raw options:
  preallocation=<off|falloc|full>  - space from the start: none, allocated, or written with zeroes
  size=<size>                      - length of the disk"
        }
        Kind::Qcow2 => {
            "Supported qcow2 options:
  backing_file=<path>              - file that has what is not written here
  backing_fmt=<format>             - its format
  cluster_size=<size>              - 512 to 2M
  compat=<0.10|1.1>                - version 2 or 3 of the format
  compression_type=<zlib|zstd>     - of compressed clusters
  data_file=<path>                 - file for the guest's data
  data_file_raw=<on|off>           - that file alone is a raw image
  extended_l2=<on|off>             - clusters have 32 parts
  lazy_refcounts=<on|off>          - reference counts are written late
  preallocation=<off|metadata|falloc|full> - what has space from the start
  refcount_bits=<number>           - width of a reference count: 1 to 64
  size=<size>                      - length of the disk"
        }
    }
}

/// An image that is to be made.
pub enum New {
    Raw { size: u64, preallocation: String },
    Qcow2(Box<CreateOptions>),
}

impl New {
    /// Reads what the options say. A backing file is looked at if it is said what may be.
    pub fn plan(
        kind: Kind,
        mut options: Options,
        path: &Path,
        looked_at: Option<Allowed>,
    ) -> anyhow::Result<Self> {
        let shown = path.display();
        let plan = match kind {
            Kind::Raw => {
                if options.take("backing_file").is_some() {
                    bail!("{shown}: Backing file not supported for file format 'raw'");
                }
                let Some(size) = options.take_size("size")? else {
                    bail!("{shown}: Image creation needs a size parameter");
                };
                Self::Raw {
                    size,
                    preallocation: options.take("preallocation").unwrap_or_else(|| "off".into()),
                }
            }
            Kind::Qcow2 => Self::Qcow2(Box::new(qcow2(&mut options, path, looked_at)?)),
        };
        options.finish().with_context(|| shown.to_string())?;
        Ok(plan)
    }

    /// True if it has space from the start.
    pub fn is_preallocated(&self) -> bool {
        matches!(self, Self::Qcow2(plan) if plan.preallocation != Preallocation::Off)
    }

    fn describe(&self, path: &Path) -> String {
        let mut line = format!("Formatting '{}', fmt=", path.display());
        match self {
            Self::Raw { size, preallocation } => {
                line += &format!("raw size={size}");
                if preallocation != "off" {
                    line += &format!(" preallocation={preallocation}");
                }
            }
            Self::Qcow2(plan) => describe(&mut line, plan),
        }
        line
    }

    /// Makes it.
    pub fn make(&self, path: &Path) -> anyhow::Result<()> {
        match self {
            Self::Raw { size, preallocation } => {
                create_raw(path, size.next_multiple_of(512), space(preallocation)?)?;
            }
            Self::Qcow2(plan) => Qcow2Image::create(plan)?,
        }
        Ok(())
    }
}

fn describe(line: &mut String, plan: &CreateOptions) {
    let switch = |on| if on { "on" } else { "off" };
    let mut add = |key: &str, value: &str| {
        *line += &format!(" {key}={value}");
    };
    add("cluster_size", &plan.cluster_size.to_string());
    add("extended_l2", switch(plan.extended_l2));
    match plan.preallocation {
        Preallocation::Off => {}
        Preallocation::Metadata => add("preallocation", "metadata"),
        Preallocation::Falloc => add("preallocation", "falloc"),
        Preallocation::Full => add("preallocation", "full"),
    }
    add("compression_type", compression_name(plan.compression));
    add("size", &plan.size.unwrap_or(0).to_string());
    if plan.version == 2 {
        add("compat", "0.10");
    }
    if let Some(name) = &plan.data_file {
        add("data_file", name);
    }
    if let Some((name, format)) = &plan.backing {
        let format = match format {
            Format::Raw => "raw",
            Format::Qcow2 => "qcow2",
        };
        add("backing_file", name);
        add("backing_fmt", format);
    }
    add("lazy_refcounts", switch(plan.lazy_refcounts));
    add("refcount_bits", &plan.refcount_bits.to_string());
    // The format's name comes first.
    *line = line.replacen("fmt=", "fmt=qcow2", 1);
}

/// What compresses clusters.
pub fn compression_name(compression: Compression) -> &'static str {
    match compression {
        Compression::Zlib => "zlib",
        Compression::Zstd => "zstd",
    }
}

/// What the options say of a qcow2 image.
fn qcow2(options: &mut Options, path: &Path, looked_at: Option<Allowed>) -> anyhow::Result<CreateOptions> {
    let shown = path.display();
    let usual = CreateOptions::new(path, options.take_size("size")?);
    let version = match options.take("compat").as_deref() {
        None | Some("1.1" | "v3") => 3,
        Some("0.10" | "v2") => 2,
        Some(other) => bail!("{shown}: Invalid compatibility level '{other}': there are 0.10 and 1.1"),
    };
    let compression = match options.take("compression_type").as_deref() {
        None | Some("zlib") => Compression::Zlib,
        Some("zstd") => Compression::Zstd,
        Some(other) => bail!("{shown}: compression_type={other}: there are zlib and zstd"),
    };
    let refcount_bits = options.take_size("refcount_bits")?.unwrap_or(16);
    let mut plan = CreateOptions {
        version,
        compression,
        cluster_size: options.take_size("cluster_size")?.unwrap_or(usual.cluster_size),
        refcount_bits: u32::try_from(refcount_bits).unwrap_or(u32::MAX),
        extended_l2: options.take_switch("extended_l2")?.unwrap_or(false),
        lazy_refcounts: options.take_switch("lazy_refcounts")?.unwrap_or(false),
        data_file: options.take("data_file"),
        data_file_raw: options.take_switch("data_file_raw")?.unwrap_or(false),
        preallocation: preallocation(&options.take("preallocation").unwrap_or_else(|| "off".into()))?,
        ..usual
    };
    let format = options.take("backing_fmt");
    if let Some(name) = options.take("backing_file").filter(|name| !name.is_empty()) {
        let Some(format) = format else {
            bail!("{shown}: Backing file specified without backing format (-F)");
        };
        let kind = Kind::parse(&format)?;
        if let Some(allowed) = looked_at {
            let file = resolve(path, &name);
            let backing = Opening::reading(&file, Some(&format), allowed)
                .open()
                .with_context(|| format!("{shown}: Could not open backing image"))?;
            plan.size = plan.size.or(Some(backing.capabilities().len));
        }
        plan.backing = Some((name, kind.format()));
    }
    if plan.size.is_none() {
        bail!("{shown}: Image creation needs a size parameter");
    }
    Ok(plan)
}

/// A preallocation mode of qcow2 images.
pub fn preallocation(name: &str) -> anyhow::Result<Preallocation> {
    match name {
        "off" => Ok(Preallocation::Off),
        "metadata" => Ok(Preallocation::Metadata),
        "falloc" => Ok(Preallocation::Falloc),
        "full" => Ok(Preallocation::Full),
        _ => bail!("preallocation={name}: a qcow2 image has off, metadata, falloc and full"),
    }
}

/// A preallocation mode of raw images.
pub fn space(name: &str) -> anyhow::Result<RawSpace> {
    match name {
        "off" => Ok(RawSpace::Sparse),
        "falloc" => Ok(RawSpace::Allocated),
        "full" => Ok(RawSpace::Written),
        _ => bail!("preallocation={name}: a raw image has off, falloc and full"),
    }
}
