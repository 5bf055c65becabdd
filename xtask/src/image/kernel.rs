//! The guest kernel: Debian's Linux 6.1 source, unpatched, with our configuration.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use anyhow::{Context, Result, bail};

use super::cache;
use crate::{apt, digest::Inputs, process, progress::Work, project::Project};

/// Debian's package with the source.
const PACKAGE: &str = "linux-source-6.1";

/// Changes with anything below that makes another kernel of the same inputs.
const RECIPE: &str = "kernel 1";

/// GCC would inline string operations as `rep` instructions; an interpreting KVM
/// carries those out element by element.
const FLAGS: &str = "KCFLAGS=-mstringop-strategy=libcall";

/// The same inputs make the same kernel, byte for byte.
const REPRODUCIBLE: [(&str, &str); 4] = [
    ("KBUILD_BUILD_TIMESTAMP", "1970-01-01 00:00:00 UTC"),
    ("KBUILD_BUILD_USER", "fabric"),
    ("KBUILD_BUILD_HOST", "fabric"),
    ("KBUILD_BUILD_VERSION", "1"),
];

/// The kernel, from the cache or built now.
pub fn ensure(project: &Project) -> Result<PathBuf> {
    let config = project.root.join("images/kernel/lean.config");
    let source = apt::package_file(project, PACKAGE)?;
    let mut inputs = Inputs::new(RECIPE);
    inputs.file("source", &source)?;
    inputs.file("configuration", &config)?;
    let digest = inputs.finish();
    if let Some(vmlinux) = cache::lookup(project, "kernel", &digest, "vmlinux")? {
        eprintln!("Guest kernel: in the cache, nothing to do");
        return Ok(vmlinux);
    }
    let build = Build {
        dir: project.temporary_dir("kernel")?,
        config,
    };
    build.unpack(&source)?;
    build.configure()?;
    build.compile()?;
    let made = build.finish()?;
    Ok(cache::keep(project, "kernel", &digest, &made)?.join("vmlinux"))
}

/// A build in a folder that vanishes with it.
struct Build {
    dir: tempfile::TempDir,
    config: PathBuf,
}

impl Build {
    fn source(&self) -> PathBuf {
        self.dir.path().join("source")
    }

    fn objects(&self) -> PathBuf {
        self.dir.path().join("objects")
    }

    fn unpack(&self, package: &Path) -> Result<()> {
        let mut work = Work::begin("Unpacking the kernel's source");
        let unpacked = self.dir.path().join("package");
        apt::unpack(package, &unpacked)?;
        let archive = unpacked.join(format!("usr/src/{PACKAGE}.tar.xz"));
        fs::create_dir(self.source()).context("making the source folder")?;
        fs::create_dir(self.objects()).context("making the object folder")?;
        let mut tar = process::command("tar", ["--strip-components=1", "--extract", "--file"]);
        tar.arg(archive).arg("--directory").arg(self.source());
        process::run_quietly(&mut tar, |line| work.now(line))?;
        fs::remove_dir_all(&unpacked).context("removing the unpacked package")?;
        work.done("done");
        Ok(())
    }

    fn make(&self, args: &[&str]) -> Command {
        let mut make = process::command("make", args);
        make.arg("-C")
            .arg(self.source())
            .arg(format!("O={}", self.objects().display()));
        make.envs(REPRODUCIBLE);
        // What a cargo or a make above us has set is not meant for this build.
        for name in ["MAKEFLAGS", "MFLAGS", "MAKELEVEL", "CARGO_MAKEFLAGS"] {
            make.env_remove(name);
        }
        make
    }

    fn configure(&self) -> Result<()> {
        let mut make = self.make(&["allnoconfig"]);
        make.arg(format!("KCONFIG_ALLCONFIG={}", self.config.display()));
        process::run_quietly(&mut make, |_| ()).context("configuring the kernel")?;
        let read =
            |path: &Path| fs::read_to_string(path).with_context(|| path.display().to_string());
        let (wanted, result) = (read(&self.config)?, read(&self.objects().join(".config"))?);
        let dropped = dropped(&wanted, &result);
        if !dropped.is_empty() {
            bail!(
                "kconfig has not taken over every line of {}; something that these depend on is \
                 off or absent:\n  {}",
                self.config.display(),
                dropped.join("\n  ")
            );
        }
        Ok(())
    }

    fn compile(&self) -> Result<()> {
        let mut work = Work::begin("Building the guest kernel");
        let jobs = thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let mut compiled = 0;
        let mut make = self.make(&["vmlinux", FLAGS, &format!("-j{jobs}")]);
        process::run_quietly(&mut make, |line| {
            // "  CC      kernel/fork.o"
            if let Some((step, file)) = line.trim_start().split_once(' ') {
                compiled += usize::from(matches!(step, "CC" | "AS"));
                work.now(format!("{compiled} files compiled, {step} {}", file.trim()));
            }
        })?;
        work.done(&format!("{compiled} files compiled"));
        Ok(())
    }

    /// Leaves a folder with the kernel and the configuration it was built by.
    fn finish(&self) -> Result<PathBuf> {
        let made = self.dir.path().join("made");
        fs::create_dir(&made).context("making the folder of the result")?;
        let vmlinux = made.join("vmlinux");
        let mut objcopy = process::command("objcopy", ["--strip-debug"]);
        process::run(objcopy.arg(self.objects().join("vmlinux")).arg(&vmlinux))?;
        fs::copy(self.objects().join(".config"), made.join("config"))
            .context("keeping the configuration")?;
        fs::File::open(&vmlinux)
            .and_then(|file| file.sync_all())
            .context("syncing the kernel")?;
        Ok(made)
    }
}

/// The lines of a wanted configuration that a resulting one does not have.
fn dropped<'a>(wanted: &'a str, result: &str) -> Vec<&'a str> {
    let result: std::collections::BTreeSet<&str> = result.lines().collect();
    let is_there = |line: &str| match line.strip_suffix("=n") {
        Some(option) => !result
            .iter()
            .any(|set| set.starts_with(&format!("{option}="))),
        None => result.contains(line),
    };
    wanted
        .lines()
        .filter(|line| line.starts_with("CONFIG_") && !is_there(line))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_that_kconfig_dropped_is_named() {
        let wanted = "# comment\nCONFIG_A=y\nCONFIG_B=14\nCONFIG_C=n\nCONFIG_D=y\n";
        let result = "CONFIG_A=y\nCONFIG_B=15\n# CONFIG_C is not set\n# CONFIG_D is not set\n";
        assert_eq!(dropped(wanted, result), ["CONFIG_B=14", "CONFIG_D=y"]);
    }

    #[test]
    fn an_option_that_is_on_against_our_wish_is_named() {
        assert_eq!(dropped("CONFIG_C=n\n", "CONFIG_C=y\n"), ["CONFIG_C=n"]);
        assert!(dropped("CONFIG_C=n\n", "CONFIG_CC=y\n").is_empty());
    }
}
