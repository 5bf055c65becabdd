//! Programs of others. A test that needs one that is missing says so and
//! passes, unless `FABRIC_REQUIRE_TOOLS=1`.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// Whether the program is there; otherwise says that the test was skipped.
pub fn have(program: &str, package: &str) -> bool {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&paths).any(|folder| folder.join(program).is_file());
    found
        || skip(&format!(
            "{program} is not installed (Debian package {package})"
        ))
}

/// Says that a test was skipped and why; fails where nothing may be skipped.
pub fn skip(why: &str) -> bool {
    let required = std::env::var("FABRIC_REQUIRE_TOOLS").is_ok_and(|value| value == "1");
    assert!(
        !required,
        "{why}, and FABRIC_REQUIRE_TOOLS=1 forbids to skip"
    );
    eprintln!("skipped: {why}");
    false
}

/// Runs a program to its successful end and returns its standard output.
pub fn run(program: &str, args: &[&dyn AsRef<OsStr>]) -> String {
    let output = Command::new(program)
        .args(args.iter().map(AsRef::as_ref))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{program} failed: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// A chain mounted by `vhdimount`, for as long as this lives.
pub struct Mounted {
    folder: tempfile::TempDir,
}

impl Mounted {
    /// Mounts an image, whose parents must be where its locators say; `None`,
    /// and says why, where that cannot be done.
    pub fn new(image: &Path) -> Option<Self> {
        if !have("vhdimount", "libvhdi-utils") {
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new("vhdimount");
        let output = command.arg(image).arg(folder.path()).output().unwrap();
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            let no_fuse = said.contains("fuse") || !Path::new("/dev/fuse").exists();
            assert!(no_fuse, "vhdimount refused {}: {said}", image.display());
            skip(&format!("vhdimount cannot use FUSE here: {said}"));
            return None;
        }
        let mounted = Self { folder };
        // It serves from the background; the first listing waits for it.
        let deadline = Instant::now() + Duration::from_secs(10);
        while mounted.last().is_none() {
            assert!(Instant::now() < deadline, "vhdimount showed no disk");
            std::thread::yield_now();
        }
        Some(mounted)
    }

    /// The disk as the file that shows it: of a chain, libvhdi shows one file
    /// for each disk, the child last.
    pub fn disk(&self) -> PathBuf {
        self.last().unwrap()
    }

    fn last(&self) -> Option<PathBuf> {
        let entries = self.folder.path().read_dir().ok()?;
        entries.filter_map(|entry| Some(entry.ok()?.path())).max()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // What there is depends on the version of FUSE, and on being root.
        let ways: [&[&str]; 3] = [&["fusermount", "-u"], &["fusermount3", "-u"], &["umount"]];
        for way in ways {
            let unmount = Command::new(way[0])
                .args(&way[1..])
                .arg(self.folder.path())
                .output();
            if unmount.is_ok_and(|output| output.status.success()) {
                return;
            }
        }
        eprintln!("could not unmount {}", self.folder.path().display());
    }
}
