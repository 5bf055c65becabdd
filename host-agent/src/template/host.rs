//! What all templates of a node have in common: its programs and its machine.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use super::{
    key::{Inputs, processor},
    record::FileId,
};
use crate::files;

/// This node, as far as templates depend on it.
#[derive(Debug)]
pub struct Host {
    vmm: Digested,
    kernel: Digested,
    cmdline: String,
    kvm_kind: String,
    processor: String,
    kernel_release: String,
}

impl Host {
    /// Looks at this machine. The programs are looked at when they are asked for.
    #[must_use]
    pub fn look(vmm: &Path, kernel: &Path, cmdline: &str, kvm_kind: &str) -> Self {
        let names = rustix::system::uname();
        let (release, version) = (names.release(), names.version());
        Self {
            vmm: Digested::new(vmm),
            kernel: Digested::new(kernel),
            cmdline: cmdline.to_owned(),
            kvm_kind: kvm_kind.to_owned(),
            processor: processor(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default()),
            kernel_release: format!(
                "{} {}",
                release.to_string_lossy(),
                version.to_string_lossy()
            ),
        }
    }

    /// What every template is made of here. Reads the programs, if they are new.
    ///
    /// # Errors
    ///
    /// Names the program that cannot be read.
    pub fn inputs(&self) -> Result<Inputs, (PathBuf, io::Error)> {
        Ok(Inputs {
            vmm: self.vmm.digest()?,
            kernel: self.kernel.digest()?,
            cmdline: self.cmdline.clone(),
            kvm_kind: self.kvm_kind.clone(),
            processor: self.processor.clone(),
            host_kernel: self.kernel_release.clone(),
            ..Inputs::default()
        })
    }
}

/// A file and its digest, which is taken again only when the file is another.
#[derive(Debug)]
struct Digested {
    path: PathBuf,
    known: Mutex<Option<(FileId, String)>>,
}

impl Digested {
    fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            known: Mutex::default(),
        }
    }

    fn digest(&self) -> Result<String, (PathBuf, io::Error)> {
        let take = || {
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            let id = FileId::of(&self.path)?;
            match &*known {
                Some((same, digest)) if *same == id => Ok(digest.clone()),
                _ => {
                    let digest = files::sha256(&self.path)?.to_string();
                    *known = Some((id, digest.clone()));
                    Ok(digest)
                }
            }
        };
        take().map_err(|error| (self.path.clone(), error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_is_replaced_makes_other_templates() {
        let place = tempfile::tempdir().unwrap();
        let (vmm, kernel) = (place.path().join("vmm"), place.path().join("kernel"));
        fs::write(&vmm, "one").unwrap();
        let host = Host::look(&vmm, &kernel, "", "hardware");
        let (missing, error) = host.inputs().unwrap_err();
        assert_eq!(
            (missing, error.kind()),
            (kernel.clone(), io::ErrorKind::NotFound)
        );

        fs::write(&kernel, "kernel").unwrap();
        let before = host.inputs().unwrap();
        assert_eq!(host.inputs().unwrap().key(), before.key());
        fs::remove_file(&vmm).unwrap();
        fs::write(&vmm, "other").unwrap();
        assert_ne!(host.inputs().unwrap().key(), before.key());
    }
}
