//! Debian packages without installing them: a private apt configuration with its own lists, state and archive.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::exec;

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Where the machine gets Debian packages from.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mirror {
    main: String,
    security: String,
}

/// A private apt that sees bookworm and trixie, and believes that nothing is installed.
#[derive(Debug)]
pub struct Apt {
    dir: PathBuf,
}

impl Apt {
    /// Prepares the configuration in `dir`; fetches nothing yet.
    pub fn new(dir: &Path) -> Result<Self> {
        for sub in ["lists/partial", "cache", "state", "archives/partial"] {
            fs::create_dir_all(dir.join(sub))?;
        }
        fs::write(dir.join("status"), "")?;
        let mirror = Mirror::of_this_machine()?;
        fs::write(dir.join("sources.list"), mirror.sources())?;
        Ok(Self {
            dir: dir.to_path_buf(),
        })
    }

    /// Fetches the package lists.
    pub fn update(&self) -> Result<()> {
        exec::run(self.command("apt-get").arg("update")).context("could not fetch Debian's package lists")?;
        Ok(())
    }

    /// Fetches `packages` of `suite` with all that they depend on; returns the files.
    pub fn fetch_closure(&self, suite: &str, packages: &[&str], into: &Path) -> Result<Vec<PathBuf>> {
        fs::create_dir_all(into.join("partial"))?;
        let mut command = self.command("apt-get");
        command.args(["-y", "--download-only", "-t", suite, "-o"]);
        command.arg(format!("Dir::Cache::archives={}", into.display()));
        exec::run(command.arg("install").args(packages))
            .with_context(|| format!("could not fetch {}", packages.join(" ")))?;
        debs(into)
    }

    /// Fetches one package, without what it depends on.
    pub fn fetch_one(&self, package: &str, into: &Path) -> Result<PathBuf> {
        fs::create_dir_all(into)?;
        exec::run(
            self.command("apt-get")
                .arg("download")
                .arg(package)
                .current_dir(into),
        )
        .with_context(|| format!("could not fetch {package}"))?;
        let prefix = format!("{package}_");
        debs(into)?
            .into_iter()
            .find(|path| {
                path.file_name()
                    .is_some_and(|n| n.to_string_lossy().starts_with(&prefix))
            })
            .with_context(|| format!("apt-get download left no file for {package}"))
    }

    /// The package that the newest `linux-image-amd64` whose version starts with `series` stands for.
    pub fn kernel_package(&self, series: &str) -> Result<String> {
        let text = exec::run(self.command("apt-cache").args(["show", "linux-image-amd64"]))?;
        kernel_of_listing(&text, series)
            .with_context(|| format!("this machine's Debian mirror has no linux-image-amd64 {series}x"))
    }

    fn command(&self, program: &str) -> Command {
        let dir = self.dir.display();
        let mut command = Command::new(program);
        command.arg("-qq");
        for option in [
            format!("Dir::Etc::SourceList={dir}/sources.list"),
            "Dir::Etc::SourceParts=/dev/null".into(),
            "Dir::Etc::Preferences=/dev/null".into(),
            "Dir::Etc::PreferencesParts=/dev/null".into(),
            format!("Dir::State={dir}/state"),
            format!("Dir::State::Lists={dir}/lists"),
            format!("Dir::State::status={dir}/status"),
            format!("Dir::Cache={dir}/cache"),
            "APT::Sandbox::User=root".into(),
            "APT::Architecture=amd64".into(),
            "APT::Install-Recommends=0".into(),
            "Acquire::Languages=none".into(),
            "Acquire::Retries=3".into(),
        ] {
            command.args(["-o", &option]);
        }
        command
    }
}

/// Unpacks a package into `into`, without running its scripts.
pub fn unpack(deb: &Path, into: &Path) -> Result<()> {
    fs::create_dir_all(into)?;
    exec::run(Command::new("dpkg-deb").arg("-x").arg(deb).arg(into))?;
    Ok(())
}

fn debs(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "deb") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Picks the kernel package out of what `apt-cache show linux-image-amd64` says: newest version first.
fn kernel_of_listing(text: &str, series: &str) -> Option<String> {
    text.split("\n\n").find_map(|stanza| {
        let field = |name: &str| stanza.lines().find_map(|l| l.strip_prefix(name)).map(str::trim);
        if !field("Version:")?.starts_with(series) {
            return None;
        }
        let depends = field("Depends:")?;
        depends
            .split(',')
            .map(|item| item.split_whitespace().next().unwrap_or_default())
            .find(|package| package.starts_with("linux-image-"))
            .map(str::to_owned)
    })
}

impl Mirror {
    fn of_this_machine() -> Result<Self> {
        let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
        if let Ok(entries) = fs::read_dir("/etc/apt/sources.list.d") {
            files.extend(entries.flatten().map(|entry| entry.path()));
        }
        files.sort();
        let mut pairs = Vec::new();
        for file in files {
            let Ok(text) = fs::read_to_string(&file) else {
                continue;
            };
            match file.extension().and_then(|e| e.to_str()) {
                Some("sources") => pairs.extend(deb822_pairs(&text)),
                Some("list") => pairs.extend(one_line_pairs(&text)),
                _ => {}
            }
        }
        match Self::choose(&pairs) {
            Some(mirror) => Ok(mirror),
            None => bail!("no Debian mirror in /etc/apt: the lab needs one that has bookworm and trixie"),
        }
    }

    /// Chooses from pairs of address and suite.
    fn choose(pairs: &[(String, String)]) -> Option<Self> {
        let known = [
            "bookworm",
            "trixie",
            "forky",
            "sid",
            "stable",
            "oldstable",
            "testing",
            "unstable",
        ];
        let trim = |uri: &String| uri.trim_end_matches('/').to_owned();
        let main = pairs
            .iter()
            .find(|(_, suite)| known.contains(&suite.as_str()))
            .map(|(uri, _)| trim(uri))?;
        let security = pairs
            .iter()
            .find(|(_, suite)| {
                suite
                    .strip_suffix("-security")
                    .is_some_and(|s| known.contains(&s))
            })
            .map(|(uri, _)| trim(uri));
        let security = security.unwrap_or_else(|| format!("{main}-security"));
        Some(Self { main, security })
    }

    fn sources(&self) -> String {
        let signed = format!("[signed-by={KEYRING}]");
        let mut text = String::new();
        for suite in ["trixie", "bookworm"] {
            text += &format!("deb {signed} {} {suite} main\n", self.main);
            text += &format!("deb {signed} {} {suite}-security main\n", self.security);
        }
        text
    }
}

fn deb822_pairs(text: &str) -> Vec<(String, String)> {
    let mut pairs = Vec::new();
    for stanza in text.split("\n\n") {
        let field = |name: &str| {
            let value = stanza
                .lines()
                .find_map(|l| l.strip_prefix(name))
                .unwrap_or_default();
            value.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
        };
        if field("Enabled:").first().is_some_and(|v| v == "no") {
            continue;
        }
        for uri in field("URIs:") {
            for suite in field("Suites:") {
                pairs.push((uri.clone(), suite));
            }
        }
    }
    pairs
}

fn one_line_pairs(text: &str) -> Vec<(String, String)> {
    let lines = text.lines().filter_map(|line| line.trim().strip_prefix("deb "));
    lines
        .filter_map(|line| {
            let line = match line.trim_start().strip_prefix('[') {
                Some(rest) => rest.split_once(']')?.1,
                None => line,
            };
            let mut words = line.split_whitespace();
            Some((words.next()?.to_owned(), words.next()?.to_owned()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_found_in_both_forms_of_source_file() {
        let new = "Types: deb\nURIs: http://m.example/debian/\nSuites: bookworm bookworm-updates\n\n\
                   Types: deb\nURIs: http://s.example/debian-security\nSuites: bookworm-security\n";
        let mirror = Mirror::choose(&deb822_pairs(new)).unwrap();
        assert_eq!(mirror.main, "http://m.example/debian");
        assert_eq!(mirror.security, "http://s.example/debian-security");

        let old = "# deb http://no.example/debian bookworm main\n\
                   deb [signed-by=/k arch=amd64] http://m.example/debian trixie main\n";
        let mirror = Mirror::choose(&one_line_pairs(old)).unwrap();
        assert_eq!(mirror.main, "http://m.example/debian");
        assert_eq!(mirror.security, "http://m.example/debian-security");
    }

    #[test]
    fn a_foreign_or_disabled_source_is_not_taken_for_debian() {
        let foreign = one_line_pairs("deb https://x.example/apt cloud-sdk-bookworm main\n");
        assert_eq!(Mirror::choose(&foreign), None);
        let off = deb822_pairs("Enabled: no\nURIs: http://m.example/debian\nSuites: trixie\n");
        assert_eq!(Mirror::choose(&off), None);
    }

    #[test]
    fn the_kernel_of_a_series_is_the_first_listed() {
        let text = "Package: linux-image-amd64\nVersion: 6.12.5-1\nDepends: linux-image-6.12.5-amd64 (= 6.12.5-1)\n\n\
                    Package: linux-image-amd64\nVersion: 6.1.9-1\nDepends: linux-image-6.1.0-9-amd64\n\n\
                    Package: linux-image-amd64\nVersion: 6.1.8-1\nDepends: linux-image-6.1.0-8-amd64\n";
        assert_eq!(
            kernel_of_listing(text, "6.1.").unwrap(),
            "linux-image-6.1.0-9-amd64"
        );
        assert_eq!(
            kernel_of_listing(text, "6.12.").unwrap(),
            "linux-image-6.12.5-amd64"
        );
        assert_eq!(kernel_of_listing(text, "6.6."), None);
    }
}
