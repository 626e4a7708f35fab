//! Files of the tree, each read once for all that looks through them.

use anyhow::{Context, Result};
use std::path::Path;

/// One file. Its name is its path from the tree's root, with slashes.
pub(crate) struct Source {
    pub(crate) name: String,
    pub(crate) text: String,
}

impl Source {
    /// Reads the file at a path below `root`.
    pub(crate) fn read(root: &Path, path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Self { name: path.strip_prefix(root).unwrap_or(path).display().to_string(), text })
    }
}

/// All Rust sources below `root`, but for what builds left there.
pub(crate) fn all(root: &Path) -> Result<Vec<Source>> {
    let mut sources = Vec::new();
    find(root, root, &mut sources)?;
    sources.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok(sources)
}

fn find(root: &Path, directory: &Path, sources: &mut Vec<Source>) -> Result<()> {
    let entries = std::fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            find(root, &path, sources)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            sources.push(Source::read(root, &path)?);
        }
    }
    Ok(())
}
