//! The cache of built images: `KIND/DIGEST/FILE`, and `KIND/current` to the last
//! one used.
//!
//! An entry is complete or not there: it is made in a temporary folder and renamed.

use std::{
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    time::SystemTime,
};

use anyhow::{Context, Result};
use bytesize::ByteSize;
use serde::Serialize;

use crate::{project::Project, table::table};

/// What is kept, and the file in each entry.
pub const KINDS: [(&str, &str); 2] = [("kernel", "vmlinux"), ("guest-os", "guest-os.vhd")];

/// A finished file, if the cache has it. It becomes the current one.
pub fn lookup(project: &Project, kind: &str, digest: &str, file: &str) -> Result<Option<PathBuf>> {
    let path = project.cache_dir(kind)?.join(digest).join(file);
    if !path.is_file() {
        return Ok(None);
    }
    make_current(project, kind, digest)?;
    Ok(Some(path))
}

/// Moves a finished folder into the cache and makes it the current one.
pub fn keep(project: &Project, kind: &str, digest: &str, made: &Path) -> Result<PathBuf> {
    let entry = project.cache_dir(kind)?.join(digest);
    match fs::rename(made, &entry) {
        // Another task was faster; what it has made is the same.
        Err(error) if matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty) => {
            fs::remove_dir_all(made).with_context(|| format!("removing {}", made.display()))?;
        }
        result => {
            result.with_context(|| format!("moving to {}", entry.display()))?;
        }
    }
    make_current(project, kind, digest)?;
    Ok(entry)
}

fn make_current(project: &Project, kind: &str, digest: &str) -> Result<()> {
    let link = project.cache_dir(kind)?.join("current");
    if fs::read_link(&link).is_ok_and(|target| target == Path::new(digest)) {
        return Ok(());
    }
    let new = link.with_file_name(format!("current-{}", std::process::id()));
    symlink(digest, &new)
        .and_then(|()| fs::rename(&new, &link))
        .with_context(|| format!("pointing {} to {digest}", link.display()))
}

/// One entry of the cache.
#[derive(Debug, Serialize)]
struct Entry {
    kind: &'static str,
    digest: String,
    current: bool,
    size_bytes: u64,
    age_hours: u64,
    path: PathBuf,
}

/// Prints what is in the cache.
pub fn list(project: &Project, json: bool) -> Result<()> {
    let entries = entries(project)?;
    if json {
        println!("{}", serde_json::to_string(&entries)?);
        return Ok(());
    }
    let rows = entries
        .into_iter()
        .map(|entry| {
            [
                entry.kind.to_owned(),
                entry.digest,
                if entry.current { "yes" } else { "" }.to_owned(),
                ByteSize(entry.size_bytes).to_string(),
                entry.path.display().to_string(),
            ]
        })
        .collect();
    println!(
        "{}",
        table(["kind", "digest", "current", "size", "path"], rows, false)
    );
    Ok(())
}

/// Removes what is not current; with `all` everything, downloads included.
pub fn clean(project: &Project, all: bool) -> Result<()> {
    let mut removed = Vec::new();
    for entry in entries(project)? {
        if all || !entry.current {
            removed.extend(entry.path.parent().map(Path::to_owned));
        }
    }
    removed.push(project.cache.join("tmp"));
    if all {
        removed.push(project.cache.join("downloads"));
        removed.extend(KINDS.iter().map(|(kind, _)| project.cache.join(kind)));
    }
    for dir in removed {
        match fs::remove_dir_all(&dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            result => {
                result.with_context(|| format!("removing {}", dir.display()))?;
                println!("removed {}", dir.display());
            }
        }
    }
    Ok(())
}

fn entries(project: &Project) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for (kind, file) in KINDS {
        let dir = project.cache_dir(kind)?;
        let current = fs::read_link(dir.join("current")).unwrap_or_default();
        for entry in fs::read_dir(&dir).with_context(|| format!("reading {}", dir.display()))? {
            let name = entry?.file_name();
            let path = dir.join(&name).join(file);
            let Ok(metadata) = path.metadata() else {
                continue;
            };
            if name == "current" {
                continue;
            }
            let age = metadata
                .modified()
                .ok()
                .and_then(|time| SystemTime::now().duration_since(time).ok());
            entries.push(Entry {
                kind,
                current: current.as_os_str() == name,
                digest: name.to_string_lossy().into_owned(),
                size_bytes: metadata.len(),
                age_hours: age.unwrap_or_default().as_secs() / 3600,
                path,
            });
        }
    }
    entries.sort_by(|a, b| (a.kind, !a.current, &a.digest).cmp(&(b.kind, !b.current, &b.digest)));
    Ok(entries)
}
