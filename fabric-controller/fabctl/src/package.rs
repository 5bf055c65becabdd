//! Making a package: a directory's files in an ext4 file system in a dynamic VHD.
//!
//! Needs no root: mke2fs fills the file system from the directory, and debugfs
//! then gives every file root as its owner, fixed times and readable modes. The
//! same files give the same package, byte for byte, whoever makes it and when.

use std::{
    env,
    ffi::OsString,
    fmt::Write as _,
    fs,
    io::Read as _,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Stdio},
};

use serde_json::json;
use sha2::{Digest as _, Sha256};
use vhd::{ConvertOptions, Identity, Raw, Target, format::TimeStamp};

use crate::{
    cli::{Build, Format},
    error::{Failure, Result},
    show::{self, words},
};

/// Bytes in a block of the file system.
const BLOCK: u64 = 4096;
/// Bytes in an inode, and in the unit that sizes are rounded up to.
const INODE: u64 = 256;
const MIB: u64 = 1 << 20;
/// Smallest and biggest file system.
const SIZES: std::ops::RangeInclusive<u64> = 4 * MIB..=64 * 1024 * MIB;
/// Inodes that a file system has for itself, and a few to spare.
const OWN_INODES: u64 = 32;
/// Id and hash seed of every package's file system: it is never mounted beside
/// another by its id.
const UUID: &str = "5f0c8c22-6f1e-4f0b-9d3e-2a6d1b7c9e10";
/// Time of everything in a package, in seconds after 1970.
const TIME: &str = "1";

/// A file, directory or link that goes in.
struct Entry {
    /// Path in the package, with a leading slash.
    path: String,
    /// Mode, with the file's type.
    mode: u32,
    /// Bytes that it needs, in whole blocks.
    bytes: u64,
}

/// `fabctl package build`
pub fn build(settings: &Build, format: Format) -> Result<()> {
    let directory = &settings.directory;
    let entries = entries(directory)?;
    let size = size(settings.size.map(|size| size.as_u64()), &entries)?;
    let out = &settings.out;
    let beside = match out.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let scratch = tempfile::Builder::new()
        .prefix(".fabctl-")
        .tempdir_in(beside);
    let scratch = scratch.map_err(Failure::file("write in", beside))?;
    let raw = scratch.path().join("raw");
    let made = scratch.path().join("vhd");
    make_file_system(directory, &raw, size, entries.len() as u64)?;
    make_uniform(&raw, scratch.path(), &entries)?;
    wrap(&raw, &made)?;
    fs::set_permissions(&made, fs::Permissions::from_mode(0o644))
        .map_err(Failure::file("write", &made))?;
    fs::rename(&made, out).map_err(Failure::file("write", out))?;
    let length = fs::metadata(out).map_err(Failure::file("read", out))?.len();
    match format {
        Format::Table => show::print_line(&format!(
            "{}: {} files, {}, a disk of {}",
            out.display(),
            entries.len(),
            words::bytes(length),
            words::bytes(size)
        )),
        Format::Json => show::print_json(&json!({
            "file": out,
            "files": entries.len(),
            "size_bytes": length,
            "virtual_bytes": size,
        })),
    }
}

/// Everything in a directory, by path.
fn entries(directory: &Path) -> Result<Vec<Entry>> {
    let mut found = Vec::new();
    let mut open = vec![directory.to_owned()];
    while let Some(current) = open.pop() {
        for entry in fs::read_dir(&current).map_err(Failure::file("read", &current))? {
            let path = entry.map_err(Failure::file("read", &current))?.path();
            let metadata = fs::symlink_metadata(&path).map_err(Failure::file("read", &path))?;
            let kind = metadata.file_type();
            let permissions = readable(metadata.permissions().mode());
            let (mode, bytes) = if kind.is_dir() {
                open.push(path.clone());
                (0o040_000 | permissions, BLOCK)
            } else if kind.is_symlink() {
                (0o120_777, BLOCK)
            } else if kind.is_file() {
                (
                    0o100_000 | permissions,
                    metadata.len().next_multiple_of(BLOCK),
                )
            } else {
                return Err(Failure::Input(format!(
                    "{} is neither a file, a directory nor a link; nothing else can be in a package",
                    path.display()
                )));
            };
            found.push(Entry {
                path: name_inside(directory, &path)?,
                mode,
                bytes,
            });
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

/// The role's user is nobody's friend: everyone may read, and run what someone
/// may run; nobody gains anything from a bit for another user.
const fn readable(mode: u32) -> u32 {
    let run = if mode & 0o111 == 0 { 0 } else { 0o111 };
    (mode & 0o755) | 0o444 | run
}

/// The path in the package. debugfs is told it in quotes, in which only a few
/// characters cannot be.
fn name_inside(directory: &Path, path: &Path) -> Result<String> {
    let inside = path.strip_prefix(directory).unwrap_or(path);
    match inside.to_str() {
        Some(text) if !text.contains(|char: char| char.is_control() || char == '"') => {
            Ok(format!("/{text}"))
        }
        _ => Err(Failure::Input(format!(
            "{}: a name in a package is UTF-8 without quotes and control characters",
            path.display()
        ))),
    }
}

/// The size asked for, or what the entries need with some room.
fn size(asked: Option<u64>, entries: &[Entry]) -> Result<u64> {
    let files: u64 = entries.iter().map(|entry| entry.bytes + INODE).sum();
    let needed = (files + files / 16 + 2 * MIB)
        .next_multiple_of(MIB)
        .max(*SIZES.start());
    let size = asked.unwrap_or(needed);
    if !SIZES.contains(&size) || !size.is_multiple_of(BLOCK) {
        return Err(Failure::Input(format!(
            "size {size}: a package has {} to {} bytes, in whole blocks of {BLOCK}",
            SIZES.start(),
            SIZES.end()
        )));
    }
    if size < files {
        return Err(Failure::Input(format!(
            "size {size}: the files need {files} bytes; leave --size out for what fits"
        )));
    }
    Ok(size)
}

/// Runs one of e2fsprogs; they are in a directory that users often do not have
/// in their path.
fn e2fsprogs(program: &'static str) -> Command {
    let mut path = env::var_os("PATH").unwrap_or_default();
    path.push(OsString::from(":/usr/sbin:/sbin"));
    let mut command = Command::new(program);
    command
        .env("PATH", path)
        .env("E2FSPROGS_FAKE_TIME", TIME)
        .env("SOURCE_DATE_EPOCH", TIME)
        .env("LC_ALL", "C")
        .stdin(Stdio::null());
    command
}

/// Runs it and answers what it said on standard error.
fn run(program: &'static str, command: &mut Command) -> Result<String> {
    let done = command
        .output()
        .map_err(|source| Failure::Program { program, source })?;
    let said = String::from_utf8_lossy(&done.stderr).trim().to_owned();
    if !done.status.success() {
        return Err(Failure::ProgramFailed { program, said });
    }
    Ok(said)
}

fn make_file_system(directory: &Path, raw: &Path, size: u64, entries: u64) -> Result<()> {
    let file = fs::File::create(raw).map_err(Failure::file("write", raw))?;
    file.set_len(size).map_err(Failure::file("write", raw))?;
    let features =
        format!("hash_seed={UUID},root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0,nodiscard");
    let mut command = e2fsprogs("mke2fs");
    command
        .args([
            "-q", "-F", "-t", "ext4", "-m", "0", "-L", "package", "-U", UUID,
        ])
        .args(["-b", &BLOCK.to_string(), "-I", &INODE.to_string()])
        .args(["-N", &(entries + OWN_INODES).to_string()])
        // Read-only, and known by its digest: neither journal nor checksums, which cost
        // every guest that mounts it time.
        .args(["-O", "^has_journal,^resize_inode,^metadata_csum"])
        .args(["-E", &features, "-d"])
        .arg(directory)
        .arg(raw);
    run("mke2fs", &mut command).map(drop)
}

/// Gives every file the same owner and times, and a mode that does not depend
/// on who made it.
fn make_uniform(raw: &Path, scratch: &Path, entries: &[Entry]) -> Result<()> {
    let mut script = String::new();
    for Entry { path, mode, .. } in entries {
        let fields = [
            ("uid", "0"),
            ("gid", "0"),
            ("atime", TIME),
            ("ctime", TIME),
            ("mtime", TIME),
        ];
        for (field, value) in fields
            .into_iter()
            .chain([("mode", format!("0{mode:o}").as_str())])
        {
            // Writing to a String does not fail.
            let at = if field.ends_with("time") { "@" } else { "" };
            let _ = writeln!(script, "set_inode_field \"{path}\" {field} {at}{value}");
        }
    }
    let file = scratch.join("script");
    fs::write(&file, script).map_err(Failure::file("write", &file))?;
    let said = run(
        "debugfs",
        e2fsprogs("debugfs").arg("-w").arg("-f").arg(&file).arg(raw),
    )?;
    // It says its version, and goes on after whatever else it has to say.
    let problems: Vec<_> = said
        .lines()
        .filter(|line| !line.starts_with("debugfs "))
        .collect();
    if problems.is_empty() {
        return Ok(());
    }
    Err(Failure::ProgramFailed {
        program: "debugfs",
        said: problems.join("; "),
    })
}

/// Wraps the file system into a VHD whose id comes from its content.
fn wrap(raw: &Path, made: &Path) -> Result<()> {
    let unique_id = uuid::Builder::from_custom_bytes(content_id(raw)?).into_uuid();
    let options = ConvertOptions {
        identity: Identity {
            unique_id,
            time_stamp: TimeStamp(0),
        },
        ..ConvertOptions::new(Target::Dynamic)
    };
    let source = Raw::open(raw, true).map_err(Failure::Vhd)?;
    vhd::convert(&source, made, &options, &mut |_| {}).map_err(Failure::Vhd)?;
    Ok(())
}

fn content_id(raw: &Path) -> Result<[u8; 16]> {
    let mut file = fs::File::open(raw).map_err(Failure::file("read", raw))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let count = file.read(&mut buffer).map_err(Failure::file("read", raw))?;
        if count == 0 {
            break;
        }
        hasher.update(buffer.get(..count).unwrap_or_default());
    }
    let mut id = [0; 16];
    id.copy_from_slice(hasher.finalize().get(..16).unwrap_or(&[0; 16]));
    Ok(id)
}

#[cfg(test)]
mod tests {
    use std::{thread, time::Duration};

    use super::*;

    fn tree(order: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sub dir")).unwrap();
        for name in order {
            fs::write(dir.path().join(name), format!("content of {name}")).unwrap();
        }
        std::os::unix::fs::symlink("a", dir.path().join("link")).unwrap();
        dir
    }

    fn build_from(directory: &Path, out: &Path) -> Vec<u8> {
        let settings = Build {
            directory: directory.into(),
            out: out.into(),
            size: None,
        };
        build(&settings, Format::Table).unwrap();
        fs::read(out).unwrap()
    }

    #[test]
    fn the_same_files_give_the_same_package() {
        let out = tempfile::tempdir().unwrap();
        let one = tree(&["a", "b", "sub dir/c"]);
        let first = build_from(one.path(), &out.path().join("1.vhd"));
        // Later, in another order, with another mode that means the same.
        thread::sleep(Duration::from_millis(1100));
        let other = tree(&["sub dir/c", "b", "a"]);
        fs::set_permissions(other.path().join("b"), fs::Permissions::from_mode(0o600)).unwrap();
        let second = build_from(other.path(), &out.path().join("2.vhd"));
        assert!(first == second, "the packages differ");
        assert_eq!(
            fs::read_dir(out.path()).unwrap().count(),
            2,
            "something was left behind"
        );
    }

    #[test]
    fn everyone_may_read_and_run_what_someone_may_run() {
        assert_eq!(readable(0o600), 0o644);
        assert_eq!(readable(0o4750), 0o755);
        assert_eq!(readable(0o400), 0o444);
    }

    #[test]
    fn a_size_that_does_not_do_is_refused() {
        let entries = [Entry {
            path: "/a".to_owned(),
            mode: 0,
            bytes: 8 * MIB,
        }];
        assert!(
            size(Some(4 * MIB), &entries)
                .unwrap_err()
                .to_string()
                .contains("the files need")
        );
        assert!(size(Some(1), &[]).is_err());
        assert!(size(Some(4 * MIB + 1), &[]).is_err());
        assert_eq!(size(None, &[]).unwrap(), 4 * MIB);
        assert_eq!(size(None, &entries).unwrap(), 11 * MIB);
    }

    #[test]
    fn a_name_that_cannot_be_told_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a\"b"), "").unwrap();
        let error = entries(dir.path()).err().unwrap().to_string();
        assert!(error.contains("without quotes"), "{error}");
    }
}
