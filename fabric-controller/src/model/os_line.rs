//! Lines of OS images: `guest-os/1` is the line of `guest-os/1.0`, `guest-os/1.1`,
//! `guest-os/1.1.3` and so on, by number and not by letter.

use super::{architecture::Architecture, blob::BlobRecord};

/// The version of an image in a line, to be compared; `None` if it is not of that line.
#[must_use]
pub fn version_of(line: &str, image: &str) -> Option<Vec<u64>> {
    let numbers = image.strip_prefix(line)?.strip_prefix('.')?;
    numbers
        .split('.')
        .map(|number| number.parse().ok())
        .collect()
}

/// The newest of these images that is of the line, and for these processors if they are
/// given.
#[must_use]
pub fn newest<'a>(
    line: &str,
    architecture: Option<Architecture>,
    images: impl Iterator<Item = &'a BlobRecord>,
) -> Option<&'a BlobRecord> {
    let will_do = |image: &&BlobRecord| architecture.is_none_or(|one| one == image.architecture);
    let version = |image: &'a BlobRecord| Some((version_of(line, image.name.as_str())?, image));
    let versions = images.filter(will_do).filter_map(version);
    let newest = versions.max_by(|(one, _), (other, _)| one.cmp(other));
    newest.map(|(_, image)| image)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::blob::tests::image;

    #[test]
    fn the_newest_is_the_greatest_by_number() {
        let images = [
            "guest-os/1.9",
            "guest-os/1.10",
            "guest-os/1.10.1",
            "guest-os/11.0",
        ]
        .map(|name| image(name, 1));
        let newest = |line| newest(line, None, images.iter()).map(|one| one.name.as_str());
        assert_eq!(newest("guest-os/1"), Some("guest-os/1.10.1"));
        assert_eq!(newest("guest-os/1.10"), Some("guest-os/1.10.1"));
        assert_eq!(newest("guest-os/2"), None);
        assert_eq!(version_of("guest-os/1", "guest-os/1.beta"), None);
        assert_eq!(version_of("guest-os/1", "guest-os/1"), None);
    }

    #[test]
    fn the_newest_for_some_processors_is_another() {
        let mut images =
            ["guest-os/1.0", "guest-os/1.1", "guest-os/1.2"].map(|name| image(name, 1));
        images[2].architecture = Architecture::Aarch64;
        let newest = |architecture| {
            let newest = newest("guest-os/1", architecture, images.iter());
            newest.map(|one| one.name.as_str())
        };
        assert_eq!(newest(None), Some("guest-os/1.2"));
        assert_eq!(newest(Some(Architecture::Aarch64)), Some("guest-os/1.2"));
        assert_eq!(newest(Some(Architecture::X86_64)), Some("guest-os/1.1"));
    }
}
