//! The initial RAM disk of a guest that is nothing but the other end of the VMBus:
//! one program, in the kernel's archive format (`newc`,
//! Documentation/driver-api/early-userspace/buffer-format.rst).

use std::{fs, path::PathBuf};

use anyhow::{Context, Result};

use crate::{build, project::Project};

const FILE: &str = "bus-peer.cpio";
/// A regular file that can be executed.
const PROGRAM: u32 = 0o100_755;

/// Where it is, built or not.
pub fn path(project: &Project) -> PathBuf {
    project.target.join(FILE)
}

/// Builds the program, and the archive.
pub fn ensure(project: &Project) -> Result<PathBuf> {
    build::guest_programs(project)?;
    let program = project.guest_program("bus-peer");
    let contents = fs::read(&program).with_context(|| format!("reading {}", program.display()))?;
    let path = path(project);
    fs::write(&path, archive(&contents)).with_context(|| format!("writing {}", path.display()))?;
    Ok(path)
}

/// An archive with one program, which the kernel starts.
fn archive(program: &[u8]) -> Vec<u8> {
    let mut archive = Vec::with_capacity(program.len() + 512);
    add(&mut archive, "init", PROGRAM, program);
    add(&mut archive, "TRAILER!!!", 0, &[]);
    archive
}

fn add(archive: &mut Vec<u8>, name: &str, mode: u32, contents: &[u8]) {
    let (name_size, size) = (name.len() + 1, contents.len());
    // Inode, mode, owner, group, links, time, size, device and special device by
    // major and minor, length of the name, checksum: of no interest but for these.
    let fields = [1, mode as usize, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
    archive.extend(b"070701");
    for field in fields {
        archive.extend(format!("{field:08X}").bytes());
    }
    archive.extend(name.bytes().chain([0]));
    pad(archive);
    archive.extend(contents);
    pad(archive);
}

/// Names and contents end at multiples of four bytes.
fn pad(archive: &mut Vec<u8>) {
    archive.resize(archive.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_headers_names_and_contents_at_multiples_of_four() {
        let archive = archive(b"hello");
        let text = String::from_utf8(archive.clone()).unwrap();
        assert!(text.starts_with("07070100000001000081ED"), "{text}");
        let header = 6 + 13 * 8;
        assert_eq!(&archive[header..header + 5], b"init\0");
        let contents = (header + 5).next_multiple_of(4);
        assert_eq!(&archive[contents..contents + 5], b"hello");
        let trailer = (contents + 5).next_multiple_of(4);
        assert!(text[trailer..].starts_with("070701"));
        assert!(text[trailer + header..].starts_with("TRAILER!!!\0"));
        assert_eq!(archive.len() % 4, 0);
    }
}
