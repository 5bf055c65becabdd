//! `--disk FILE[,key=value|word]...`

use std::str::FromStr;

use fabric_vmm::config::{DiskConfig, DiskFormat};

/// A disk as it is written on the command line.
#[derive(Debug, Clone)]
pub struct DiskArg(pub DiskConfig);

impl FromStr for DiskArg {
    type Err = String;

    fn from_str(text: &str) -> Result<DiskArg, String> {
        let mut parts = text.split(',');
        let path = parts
            .next()
            .filter(|path| !path.is_empty())
            .ok_or("the file is missing")?;
        let mut disk = DiskConfig {
            path: path.into(),
            format: DiskFormat::Vhd,
            serial: String::new(),
            readonly: false,
            parents: Vec::new(),
            capacity_bytes: None,
            quota_bytes: None,
        };
        for part in parts {
            match part.split_once('=') {
                None if part == "readonly" => disk.readonly = true,
                Some(("serial", serial)) => serial.clone_into(&mut disk.serial),
                Some(("parent", parent)) => disk.parents.push(parent.into()),
                Some(("format", "vhd")) => disk.format = DiskFormat::Vhd,
                Some(("format", "raw")) => disk.format = DiskFormat::Raw,
                _ => {
                    return Err(format!(
                        "{part:?} is not known: use readonly, serial=ID, parent=FILE, \
                         format=vhd or format=raw"
                    ));
                }
            }
        }
        Ok(DiskArg(disk))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_a_file_and_words() {
        let disk: DiskArg = "os.vhd,serial=os,parent=a.vhd,parent=b.vhd"
            .parse()
            .unwrap();
        assert_eq!(disk.0.serial, "os");
        assert_eq!(disk.0.parents.len(), 2);
        let disk: DiskArg = "x.img,format=raw,readonly".parse().unwrap();
        assert!(disk.0.readonly && disk.0.format == DiskFormat::Raw);
    }

    #[test]
    fn an_unknown_word_is_refused_with_the_known_ones() {
        let error = "os.vhd,ro".parse::<DiskArg>().unwrap_err();
        assert!(error.contains("\"ro\"") && error.contains("readonly"));
        "".parse::<DiskArg>().unwrap_err();
        "os.vhd,format=qcow2".parse::<DiskArg>().unwrap_err();
    }
}
