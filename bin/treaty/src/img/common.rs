use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use treaty_nbd::NbdStore;
use treaty_storage::qcow2::{Backing, Qcow2Image, Qcow2Options};
use treaty_storage::{BlockImage, CacheMode, Format, LockTime, OpenOptions, Stores};

/// An image format as the command line names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Raw,
    Qcow2,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }

    pub fn parse(name: &str) -> anyhow::Result<Self> {
        match name {
            "raw" => Ok(Self::Raw),
            "qcow2" => Ok(Self::Qcow2),
            _ => bail!("Unknown file format '{name}'; there are raw and qcow2"),
        }
    }

    pub fn format(self) -> Format {
        match self {
            Self::Raw => Format::Raw,
            Self::Qcow2 => Format::Qcow2,
        }
    }

    /// What a file looks like. For messages, and for `info`.
    pub fn guess(path: &Path) -> std::io::Result<Self> {
        use std::io::Read;
        let mut magic = Vec::new();
        std::fs::File::open(path)?.take(4).read_to_end(&mut magic)?;
        Ok(if magic == *b"QFI\xfb" {
            Self::Qcow2
        } else {
            Self::Raw
        })
    }
}

/// How `--output` prints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum OutputFormat {
    #[default]
    Human,
    Json,
}

#[derive(clap::Args)]
pub struct Output {
    /// For people or for programs.
    #[arg(long, value_enum, default_value_t, value_name = "HOW")]
    output: OutputFormat,
    /// The same as --output=json.
    #[arg(long)]
    json: bool,
}

impl Output {
    pub fn is_json(&self) -> bool {
        self.json || self.output == OutputFormat::Json
    }
}

/// How the host's page cache is used, by QEMU's names.
pub fn cache_mode(name: &str) -> anyhow::Result<CacheMode> {
    name.parse()
        .map_err(|reason| anyhow::anyhow!("Invalid cache mode '{name}': {reason}"))
}

/// Which files an image may name as its backing or data file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Allowed {
    /// Any: the user trusts the image.
    #[default]
    Any,
    /// Those in the image's folder, and below it.
    Folder,
    /// None.
    None,
}

impl Allowed {
    fn backing(self) -> Backing {
        match self {
            Self::Any => Backing::Any,
            Self::Folder => Backing::Tree,
            Self::None => Backing::Refused,
        }
    }
}

/// What is opened and how.
pub struct Opening<'a> {
    pub path: &'a Path,
    /// As the user named it.
    pub format: Option<&'a str>,
    pub allowed: Allowed,
    pub writable: bool,
    pub cache: &'a str,
    /// Whatever others do with it.
    pub share: bool,
    /// Without what is below it.
    pub alone: bool,
    /// Even if it is marked as corrupt.
    pub corrupt: bool,
    /// Bytes of memory for the tables of a qcow2 image, if they are not the usual ones.
    pub tables: Option<u64>,
}

impl<'a> Opening<'a> {
    /// For reading.
    pub fn reading(path: &'a Path, format: Option<&'a str>, allowed: Allowed) -> Self {
        Self {
            path,
            format,
            allowed,
            writable: false,
            cache: "writeback",
            share: false,
            alone: false,
            corrupt: false,
            tables: None,
        }
    }

    /// The format, if it was named.
    pub fn kind(&self) -> anyhow::Result<Kind> {
        self.kind_by("-f")
    }

    fn kind_by(&self, option: &str) -> anyhow::Result<Kind> {
        let shown = self.path.display();
        let could_not = || format!("Could not open '{shown}'");
        if let Some(name) = self.format {
            return Kind::parse(name).with_context(could_not);
        }
        let guess = Kind::guess(self.path).with_context(could_not)?;
        bail!(
            "'{shown}': name its format ({option} {}, from the looks of it)",
            guess.name()
        )
    }

    fn options(&self, kind: Kind) -> anyhow::Result<OpenOptions> {
        let usual = Qcow2Options::default();
        Ok(OpenOptions {
            format: kind.format(),
            read_only: !self.writable,
            cache: cache_mode(self.cache)?,
            stores: Stores::new(vec![Arc::new(NbdStore)]),
            lock: if self.share {
                LockTime::Never
            } else {
                LockTime::Held
            },
            qcow2: Qcow2Options {
                backing: self.allowed.backing(),
                alone: self.alone,
                corrupt: self.corrupt,
                cache_bytes: self.tables.unwrap_or(usual.cache_bytes),
            },
            ..OpenOptions::raw(self.path)
        })
    }

    /// Opens an image of any format.
    pub fn open(&self) -> anyhow::Result<Arc<dyn BlockImage>> {
        self.open_by("-f")
    }

    /// As [`open`](Self::open); the format is named by `option`.
    pub fn open_by(&self, option: &str) -> anyhow::Result<Arc<dyn BlockImage>> {
        let options = self.options(self.kind_by(option)?)?;
        treaty_storage::open(&options).with_context(|| format!("Could not open '{}'", self.path.display()))
    }

    /// Opens an image as it was when an internal snapshot was made.
    pub fn open_snapshot(&self, snapshot: &str) -> anyhow::Result<Arc<dyn BlockImage>> {
        if self.kind()? == Kind::Raw {
            bail!("'{}': raw images have no internal snapshots", self.path.display());
        }
        let options = self.options(Kind::Qcow2)?;
        let named = ["snapshot.id=", "snapshot.name="];
        let snapshot = named
            .iter()
            .find_map(|key| snapshot.strip_prefix(key))
            .unwrap_or(snapshot);
        let image = Qcow2Image::open_snapshot(&options, snapshot);
        let image = image.with_context(|| {
            format!(
                "Failed to load snapshot '{snapshot}' of '{}'",
                self.path.display()
            )
        })?;
        Ok(Arc::new(image))
    }

    /// Opens an image for what only qcow2 images can do.
    pub fn open_qcow2(&self) -> anyhow::Result<Qcow2Image> {
        let options = self.options(Kind::Qcow2)?;
        Qcow2Image::open(&options).with_context(|| format!("Could not open '{}'", self.path.display()))
    }
}

/// A file of a chain of images.
#[derive(Clone, Debug)]
pub struct Link {
    pub path: PathBuf,
    pub kind: Kind,
}

/// An image and its backing files, as far as they go.
pub fn chain(opening: &Opening<'_>) -> anyhow::Result<Vec<Link>> {
    const MOST: usize = 1000;
    let mut links: Vec<Link> = Vec::new();
    let mut next = Some((opening.path.to_owned(), opening.kind()?));
    while let Some((path, kind)) = next.take() {
        if links.len() >= MOST {
            bail!("'{}' has more than {MOST} backing files", opening.path.display());
        }
        if kind == Kind::Qcow2 {
            let info = Opening {
                path: &path,
                format: Some("qcow2"),
                alone: true,
                writable: false,
                ..*opening
            }
            .open_qcow2()?
            .info()?;
            if let Some(name) = &info.backing {
                let Some(format) = &info.backing_format else {
                    bail!(
                        "'{}' does not say which format its backing file has",
                        path.display()
                    );
                };
                next = Some((resolve(&path, name), Kind::parse(format)?));
            }
        }
        links.push(Link { path, kind });
    }
    Ok(links)
}

/// The path of a file that `image` names.
pub fn resolve(image: &Path, name: &str) -> PathBuf {
    let name = name.strip_prefix("file:").unwrap_or(name);
    match image.parent() {
        Some(folder) => folder.join(name),
        None => PathBuf::from(name),
    }
}
