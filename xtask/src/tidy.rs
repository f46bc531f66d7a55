//! `cargo xtask tidy`: the rules of STYLE.md that neither rustfmt nor clippy knows.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::layers;

/// Lines of a source file, at most.
const FILE_LINES: usize = 600;
/// Lines of a function, at most; clippy counts, with this number in `clippy.toml`.
const FUNCTION_LINES: usize = 70;

/// Folders in which a guest's bytes are handled: code there may not panic, and clippy sees to it.
const GUEST_REACHABLE: [&str; 4] = ["virtio/", "devices/", "platform/", "vhost/"];

/// A file of the tree.
struct Source {
    /// Relative to the root, with `/`.
    path: String,
    text: String,
}

/// Checks the tree under `root`; returns one line for each thing that is wrong.
pub fn check(root: &Path) -> Result<Vec<String>> {
    let sources = sources(root)?;
    let mut problems = Vec::new();
    for source in &sources {
        file(source, &mut problems);
        if source.path.ends_with("/src/lib.rs") || source.path.ends_with("/src/main.rs") {
            crate_root(source, &sources, &mut problems);
        }
    }
    let clippy = fs::read_to_string(root.join("clippy.toml")).context("no clippy.toml")?;
    if !clippy.contains(&format!("too-many-lines-threshold = {FUNCTION_LINES}")) {
        problems.push(format!(
            "clippy.toml: functions may have {FUNCTION_LINES} lines; it says otherwise"
        ));
    }
    problems.extend(layers::check(root)?);
    problems.sort();
    Ok(problems)
}

fn file(source: &Source, problems: &mut Vec<String>) {
    let path = &source.path;
    let rust = path.ends_with(".rs");
    let lines = source.text.lines().count();
    if rust && lines > FILE_LINES {
        problems.push(format!("{path}: {lines} lines; a file has at most {FILE_LINES}"));
    }
    for (index, line) in source.text.lines().enumerate() {
        let at = format!("{path}:{}", index + 1);
        for marker in markers() {
            if has_word(line, &marker) {
                problems.push(format!("{at}: {marker} left behind"));
            }
        }
        if rust && line.contains(concat!("#[", "ignore")) {
            problems.push(format!(
                "{at}: a test is ignored; let it say why it cannot run instead"
            ));
        }
        if rust && let Some(wrong) = wrong_reference(line) {
            problems.push(format!("{at}: {wrong:?}: write `virtio 1.3 \u{a7}2.8`"));
        }
        if line.ends_with(' ') || line.ends_with('\t') {
            problems.push(format!("{at}: blanks at the end of the line"));
        }
    }
    if !source.text.is_empty() && !source.text.ends_with('\n') {
        problems.push(format!("{path}: no newline at the end"));
    }
}

/// Words that promise work for later. Put together here so that this file does not hold them.
fn markers() -> [String; 6] {
    [
        ("TO", "DO"),
        ("FIX", "ME"),
        ("XX", "X"),
        ("HA", "CK"),
        ("todo", "!("),
        ("unimplemented", "!("),
    ]
    .map(|(a, b)| format!("{a}{b}"))
}

fn has_word(line: &str, word: &str) -> bool {
    let inside = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    line.match_indices(word).any(|(at, _)| {
        let (before, after) = (
            line[..at].chars().next_back(),
            line[at + word.len()..].chars().next(),
        );
        !inside(before) && !inside(after)
    })
}

/// Finds a reference to the virtio specification that is not of the one form. Other documents are named, with their
/// version, before the section sign.
fn wrong_reference(line: &str) -> Option<String> {
    let lower = line.to_lowercase();
    for (at, _) in lower.match_indices("virtio 1.") {
        let rest = lower.get(at..)?;
        if rest.contains('\u{a7}') && !is_reference(rest) {
            return Some(rest.chars().take(24).collect());
        }
    }
    for (at, sign) in line.match_indices('\u{a7}') {
        // After the version of the document, or one of several sections: "2.7, 2.8", "2.6 to 2.8".
        let before = line[..at].trim_end();
        let joined = [",", " to", " and"]
            .iter()
            .find_map(|joint| before.strip_suffix(joint));
        let named = joined.unwrap_or(before).ends_with(|c: char| c.is_ascii_digit());
        let digit = line[at + sign.len()..].starts_with(|c: char| c.is_ascii_digit());
        if !named || !digit {
            return Some(line[at..].chars().take(16).collect());
        }
    }
    None
}

fn is_reference(text: &str) -> bool {
    let rest = text.strip_prefix("virtio 1.3 \u{a7}");
    rest.is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
}

/// The first lines of a crate say what it owns and what it must not know.
fn crate_root(source: &Source, all: &[Source], problems: &mut Vec<String>) {
    let path = &source.path;
    let beside = path.replace("/main.rs", "/lib.rs");
    if path.ends_with("/main.rs") && all.iter().any(|other| other.path == beside) {
        return;
    }
    let head: Vec<&str> = source
        .text
        .lines()
        .take_while(|line| line.starts_with("//!"))
        .collect();
    let head = head.join("\n").to_lowercase();
    if !head.contains("own") || !head.contains("must not know") {
        problems.push(format!(
            "{path}: begins without `//!` lines with \"Owns:\" and \"Must not know:\""
        ));
    }
    let reachable = GUEST_REACHABLE.iter().any(|folder| path.starts_with(folder));
    if reachable && path.ends_with("/lib.rs") {
        for lint in ["unwrap_used", "expect_used", "indexing_slicing", "panic"] {
            if !source.text.contains(&format!("clippy::{lint}")) && path != "virtio/spec/src/lib.rs" {
                problems.push(format!(
                    "{path}: a guest reaches this crate and clippy::{lint} is not denied in it"
                ));
            }
        }
    }
}

fn sources(root: &Path) -> Result<Vec<Source>> {
    let mut found = Vec::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(dir) = pending.pop() {
        let listed =
            fs::read_dir(root.join(&dir)).with_context(|| format!("cannot read {}", dir.display()))?;
        for entry in listed {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = dir.join(&name);
            if entry.file_type()?.is_dir() {
                let skip = name.starts_with("target") || name == "corpus" || name == "artifacts";
                if !skip && (!name.starts_with('.') || name == ".ci") {
                    pending.push(path);
                }
            } else if checked(&name) {
                let text = fs::read_to_string(root.join(&path))
                    .with_context(|| format!("cannot read {}", path.display()))?;
                found.push(Source {
                    path: path.to_string_lossy().replace('\\', "/"),
                    text,
                });
            }
        }
    }
    Ok(found)
}

/// The kinds of file that people write.
fn checked(name: &str) -> bool {
    ["rs", "toml", "md", "sh", "s", "ld", "json"]
        .iter()
        .any(|ext| name.ends_with(&format!(".{ext}")))
        && !name.starts_with("Cargo.lock")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_is_tidy() {
        let problems = check(&treaty_lab::workspace_root()).unwrap();
        assert!(problems.is_empty(), "\n{}", problems.join("\n"));
    }

    fn problems_of(path: &str, text: &str) -> Vec<String> {
        let source = Source {
            path: path.into(),
            text: text.into(),
        };
        let mut problems = Vec::new();
        file(&source, &mut problems);
        if path.ends_with("lib.rs") {
            crate_root(&source, &[], &mut problems);
        }
        problems
    }

    #[test]
    fn references_to_the_specification_have_one_form() {
        for good in [
            "// virtio 1.3 \u{a7}2.8.10.1\n",
            "// PCI Local Bus 3.0 \u{a7}6.8.2\n",
            "//! OASIS virtio 1.3, with 1.4 drafts\n",
            "/// virtio 1.3 \u{a7}2.7, \u{a7}2.8 to \u{a7}2.9\n",
        ] {
            assert_eq!(problems_of("a.rs", good), Vec::<String>::new(), "{good}");
        }
        for bad in [
            "// virtio 1.2 \u{a7}2.8\n",
            "// Virtio 1.3, \u{a7}2\n",
            "// see \u{a7}2.8\n",
            "// virtio 1.3 \u{a7} 2\n",
        ] {
            assert_eq!(problems_of("a.rs", bad).len(), 1, "{bad}");
        }
    }

    #[test]
    fn markers_long_files_and_ignored_tests_are_found() {
        let marker = markers()[0].clone();
        assert_eq!(problems_of("a.rs", &format!("// {marker}: later\n")).len(), 1);
        assert_eq!(
            problems_of("a.rs", &format!("let {marker}_LIST = 1;\n")).len(),
            0,
            "part of a name"
        );
        assert_eq!(problems_of("a.rs", &"\n".repeat(FILE_LINES + 1)).len(), 1);
        assert_eq!(problems_of("a.rs", concat!("#[", "ignore]\n")).len(), 1);
        assert_eq!(problems_of("a.md", "blank \nno end").len(), 2);
    }

    #[test]
    fn a_crate_says_what_it_owns_and_does_not_panic_on_a_guest() {
        assert_eq!(
            problems_of("net/src/lib.rs", "//! Owns: x.\n//! Must not know: y.\n").len(),
            0
        );
        assert_eq!(problems_of("net/src/lib.rs", "//! Something.\n").len(), 1);
        assert_eq!(
            problems_of("devices/blk/src/lib.rs", "//! Owns: x.\n//! Must not know: y.\n").len(),
            4
        );
    }
}
