//! SHA-256 of files, and of the inputs of a build, by which the cache knows them.

use std::{
    fs::File,
    io::{self, BufReader},
    path::Path,
};

use anyhow::{Context, Result};
use sha2::{Digest as _, Sha256};

/// A digest being taken of several named things. The order counts.
pub struct Inputs(Sha256);

impl Inputs {
    /// Begins with what is to be made and the version of the recipe for it.
    pub fn new(recipe: &str) -> Self {
        let mut inputs = Self(Sha256::new());
        inputs.text("recipe", recipe);
        inputs
    }

    /// Adds a text under a name.
    pub fn text(&mut self, name: &str, text: &str) {
        // Lengths first, so that no two lists of inputs look alike.
        self.0.update(format!("{} {} ", name.len(), text.len()));
        self.0.update(name);
        self.0.update(text);
    }

    /// Adds a file under a name.
    pub fn file(&mut self, name: &str, path: &Path) -> Result<()> {
        let digest = of_file(path)?;
        self.text(name, &digest);
        Ok(())
    }

    /// The first 16 hexadecimal digits: enough to tell builds apart, short enough
    /// for paths.
    pub fn finish(self) -> String {
        hex(&self.0.finalize())[..16].to_owned()
    }
}

/// SHA-256 of a file, in hexadecimal.
pub fn of_file(path: &Path) -> Result<String> {
    let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let mut sum = HashWriter(Sha256::new());
    io::copy(&mut BufReader::with_capacity(1 << 20, file), &mut sum)
        .with_context(|| format!("reading {}", path.display()))?;
    Ok(hex(&sum.0.finalize()))
}

struct HashWriter(Sha256);

impl io::Write for HashWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_the_digest_that_sha256sum_says() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "abc").unwrap();
        assert_eq!(
            of_file(file.path()).unwrap(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }

    #[test]
    fn inputs_differ_when_text_moves_from_one_to_the_next() {
        let digest = |first: &str, second: &str| {
            let mut inputs = Inputs::new("test 1");
            inputs.text("a", first);
            inputs.text("a", second);
            inputs.finish()
        };
        assert_ne!(digest("xy", "z"), digest("x", "yz"));
        assert_eq!(digest("x", "y"), digest("x", "y"));
    }
}
