//! Lines of OS images: `guest-os/1` is the line of `guest-os/1.0`, `guest-os/1.1`,
//! `guest-os/1.1.3` and so on, by number and not by letter.

/// The version of an image in a line, to be compared; `None` if it is not of that line.
#[must_use]
pub fn version_of(line: &str, image: &str) -> Option<Vec<u64>> {
    let numbers = image.strip_prefix(line)?.strip_prefix('.')?;
    numbers
        .split('.')
        .map(|number| number.parse().ok())
        .collect()
}

/// The newest of these images that is of the line.
#[must_use]
pub fn newest<'a>(line: &str, images: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let versions = images.filter_map(|image| Some((version_of(line, image)?, image)));
    versions.max().map(|(_, image)| image)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_is_the_greatest_by_number() {
        let images = [
            "guest-os/1.9",
            "guest-os/1.10",
            "guest-os/1.10.1",
            "guest-os/11.0",
        ];
        let newest = |line| newest(line, images.into_iter());
        assert_eq!(newest("guest-os/1"), Some("guest-os/1.10.1"));
        assert_eq!(newest("guest-os/1.10"), Some("guest-os/1.10.1"));
        assert_eq!(newest("guest-os/2"), None);
        assert_eq!(version_of("guest-os/1", "guest-os/1.beta"), None);
        assert_eq!(version_of("guest-os/1", "guest-os/1"), None);
    }
}
