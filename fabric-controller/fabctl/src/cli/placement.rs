//! Where instances go.

use std::{path::PathBuf, str::FromStr};

use clap::Args;
use fabric_proto::label::{label, resource};

use super::Architecture;

/// Settings of `explain`.
#[derive(Debug, Args)]
#[command(
    after_help = "For each node it says why the instance is or is not there, and for an instance\n\
without a node what would make it fit. The nodes are asked as if it were placed now.\n\
Examples:\n  fabctl explain shop-web-0\n  fabctl explain shop-web-0 --output json"
)]
pub struct Explain {
    /// Its id, such as shop-web-0.
    pub id: String,
}

/// Settings of `simulate`.
#[derive(Debug, Args)]
#[command(
    after_help = "All that is given happens together, in thought, to the machines and instances that\n\
are there now.\n\
Examples:\n  fabctl simulate --kill-node n1\n  fabctl simulate --kill-domain rack-2\n  \
fabctl simulate --add-nodes 4 --shape 16x64GiB --apply service.toml\n  \
fabctl simulate --add-nodes 1 --shape 64x256GiB --label disk=nvme --resource gpu=4",
    group(clap::ArgGroup::new("what").required(true).multiple(true)
        .args(["kill_node", "kill_domain", "add_nodes", "apply"]))
)]
pub struct Simulate {
    /// This node dies; can be given several times.
    #[arg(long, value_name = "NODE")]
    pub kill_node: Vec<String>,
    /// All nodes of this fault domain die; can be given several times.
    #[arg(long, value_name = "DOMAIN")]
    pub kill_domain: Vec<String>,
    /// So many nodes come.
    #[arg(long, value_name = "N", default_value_t = 0, requires = "shape")]
    pub add_nodes: u32,
    /// What each of them has: processors and memory, such as 16x64GiB.
    #[arg(long, value_name = "CPUSxMEMORY", requires = "add_nodes")]
    pub shape: Option<Shape>,
    /// Their processors [default: x86_64].
    #[arg(long, value_enum, requires = "add_nodes")]
    pub architecture: Option<Architecture>,
    /// Disk for guests of each of them, such as 2TiB; without, enough for all.
    #[arg(long, value_name = "SIZE", requires = "add_nodes")]
    pub disk: Option<bytesize::ByteSize>,
    /// A label of theirs; can be given several times.
    #[arg(long = "label", value_name = "KEY=VALUE", requires = "add_nodes", value_parser = label)]
    pub labels: Vec<(String, String)>,
    /// So many resources of your own kind each, such as GPUs; can be given several times.
    #[arg(long = "resource", value_name = "NAME=COUNT", requires = "add_nodes", value_parser = resource)]
    pub resources: Vec<(String, u64)>,
    /// Their fault domain; without, each is one of its own.
    #[arg(long, value_name = "DOMAIN", requires = "add_nodes")]
    pub domain: Option<String>,
    /// This service file is applied; - is standard input.
    #[arg(long, value_name = "FILE")]
    pub apply: Option<PathBuf>,
}

/// Processors and memory of a machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Shape {
    /// Logical processors.
    pub cpus: u32,
    /// Memory, in bytes.
    pub memory_bytes: u64,
}

impl FromStr for Shape {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not CPUSxMEMORY, such as 16x64GiB");
        let (cpus, memory) = text.split_once('x').ok_or_else(wrong)?;
        let memory: bytesize::ByteSize = memory.parse().map_err(|_| wrong())?;
        Ok(Self {
            cpus: cpus.parse().map_err(|_| wrong())?,
            memory_bytes: memory.as_u64(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shape_is_processors_and_memory() {
        let shape = Shape {
            cpus: 16,
            memory_bytes: 64 << 30,
        };
        assert_eq!("16x64GiB".parse(), Ok(shape));
        for wrong in ["", "16", "x", "16x", "x64GiB", "-1x1GiB"] {
            assert!(Shape::from_str(wrong).is_err(), "{wrong}");
        }
    }
}
