//! Debian packages: which are installed, and files out of ones that need not be.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::{process, progress::Work, project::Project};

/// Makes a command of apt-get that asks nothing.
pub fn apt_get(args: &[&str]) -> Command {
    let mut command = process::command("apt-get", args);
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command
}

/// Whether this process is root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Whether a package is installed.
pub fn is_installed(package: &str) -> Result<bool> {
    let mut query = process::command("dpkg-query", ["--show", "--showformat=${db:Status-Status}"]);
    query.arg(package).stderr(Stdio::null());
    let answer = query
        .output()
        .context("asking dpkg-query: this needs Debian 12 or a system derived from it")?;
    Ok(answer.status.success() && answer.stdout == b"installed")
}

/// The package file of a package, from the cache or downloaded into it. Needs no
/// root: nothing is installed. Once downloaded a version stays, so that what is
/// built from it does not change by itself.
pub fn package_file(project: &Project, package: &str) -> Result<PathBuf> {
    let downloads = project.cache_dir("downloads")?;
    if let Some(file) = find(&downloads, package)? {
        return Ok(file);
    }
    // In a folder of its own first: a download cut short is never taken for whole.
    let dir = project.temporary_dir("download")?;
    let mut work = Work::begin(format!("Downloading {package} from Debian"));
    if let Err(error) = download(package, dir.path(), &mut work) {
        if !is_root() {
            return Err(error.context(format!(
                "apt-get cannot download {package}; if its list of packages is missing, run: \
                 sudo apt-get update"
            )));
        }
        work.now("updating the list of packages");
        process::run_quietly(&mut apt_get(&["update"]), |line| work.now(line))?;
        download(package, dir.path(), &mut work)?;
    }
    let Some(file) = find(dir.path(), package)? else {
        bail!("apt-get download {package} has left no package file");
    };
    let kept = downloads.join(file.file_name().context("a package file without a name")?);
    fs::rename(&file, &kept).with_context(|| format!("moving to {}", kept.display()))?;
    work.done(&kept.display().to_string());
    Ok(kept)
}

/// Unpacks the files of a package into a folder.
pub fn unpack(package_file: &Path, into: &Path) -> Result<()> {
    process::run(
        process::command("dpkg-deb", ["--extract"])
            .arg(package_file)
            .arg(into),
    )
    .with_context(|| format!("unpacking {}", package_file.display()))
}

fn download(package: &str, into: &Path, work: &mut Work) -> Result<()> {
    let mut command = apt_get(&["download", package]);
    // As root apt would drop its privileges, and could then not write here.
    command
        .args(["-o", "APT::Sandbox::User="])
        .current_dir(into);
    process::run_quietly(&mut command, |line| work.now(line))
}

/// The newest file of a package in a folder, by name.
fn find(dir: &Path, package: &str) -> Result<Option<PathBuf>> {
    let prefix = format!("{package}_");
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with(&prefix) && name.ends_with(".deb") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files.pop())
}
