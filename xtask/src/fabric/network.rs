//! Machines of a cluster, as far as the network goes: a network namespace for the
//! controller and one for each node, each node with a link of its own to the
//! controller's. Dropped, all of it is gone.
//!
//! ```text
//!  node-1 ── 10.77.1.2/30 ═══ 10.77.1.1 ┐
//!  node-2 ── 10.77.2.2/30 ═══ 10.77.2.1 ┼─ hub, where the controller is: 10.77.0.1
//!  node-3 ── 10.77.3.2/30 ═══ 10.77.3.1 ┘
//! ```
//!
//! Nothing of it is seen in the machine's own network.

use std::{
    path::PathBuf,
    process::{self, Command},
};

use anyhow::{Context as _, Result, ensure};

use crate::{apt, process::command};

/// The controller's address.
pub const HUB: &str = "10.77.0.1";

/// The namespaces of one run.
pub struct Network {
    /// What their names begin with.
    prefix: String,
    /// Those that have been made.
    spaces: Vec<String>,
}

impl Network {
    /// Makes the hub and so many nodes, from 1 on.
    pub fn make(nodes: u8) -> Result<Self> {
        ensure!(
            apt::is_root(),
            "machines with a network of their own need network namespaces, and these need root: \
             run it as root, or without --nodes"
        );
        let mut network = Self {
            prefix: format!("fabric-{}", process::id()),
            spaces: Vec::new(),
        };
        network.add_space("hub")?;
        network.ip("hub", &["addr", "add", &format!("{HUB}/32"), "dev", "lo"])?;
        for node in 1..=nodes {
            network.add_node(node)?;
        }
        Ok(network)
    }

    fn add_space(&mut self, name: &str) -> Result<()> {
        let space = format!("{}-{name}", self.prefix);
        run(&["netns", "add", &space])?;
        self.spaces.push(space);
        self.ip(name, &["link", "set", "lo", "up"])
    }

    fn add_node(&mut self, node: u8) -> Result<()> {
        let name = node_name(node);
        self.add_space(&name)?;
        let space = self.space(&name);
        let link = ["link", "add", &name, "type", "veth", "peer", "name"];
        let peer = ["uplink", "netns", &space];
        self.ip("hub", &[&link[..], &peer[..]].concat())?;
        let (near, far) = (format!("10.77.{node}.1"), format!("10.77.{node}.2"));
        self.ip("hub", &["addr", "add", &format!("{near}/30"), "dev", &name])?;
        self.ip("hub", &["link", "set", &name, "up"])?;
        self.ip(
            &name,
            &["addr", "add", &format!("{far}/30"), "dev", "uplink"],
        )?;
        self.ip(&name, &["link", "set", "uplink", "up"])?;
        self.ip(&name, &["route", "add", HUB, "via", &near])
    }

    /// Cuts a node off, or mends its link.
    pub fn cut(&self, node: u8, cut: bool) -> Result<()> {
        let state = if cut { "down" } else { "up" };
        self.ip("hub", &["link", "set", &node_name(node), state])
    }

    /// How a program is started where the controller is.
    pub fn in_hub(&self, program: PathBuf) -> Command {
        self.inside("hub", program)
    }

    /// How a program is started on a node.
    pub fn on_node(&self, node: u8, program: PathBuf) -> Command {
        self.inside(&node_name(node), program)
    }

    /// nsenter(1) becomes the program, and changes the network alone: `ip netns exec`
    /// would take the control groups out of its sight.
    fn inside(&self, name: &str, program: PathBuf) -> Command {
        let net = format!("--net=/run/netns/{}", self.space(name));
        let mut command = command("nsenter", [net]);
        command.arg("--").arg(program);
        command
    }

    fn space(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    fn ip(&self, name: &str, args: &[&str]) -> Result<()> {
        run(&[&["-n", &self.space(name)], args].concat())
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for space in &self.spaces {
            // Its links go with it.
            if let Err(error) = remove(space) {
                eprintln!("could not remove network namespace {space}: {error:#}");
            }
        }
    }
}

/// A node's name.
pub fn node_name(node: u8) -> String {
    format!("node-{node}")
}

/// Not ended by Ctrl-C, as everything else is: it cleans up.
fn remove(space: &str) -> Result<()> {
    let status = command("ip", ["netns", "del", space])
        .status()
        .context("starting ip")?;
    ensure!(status.success(), "ip netns del failed: {status}");
    Ok(())
}

fn run(args: &[&str]) -> Result<()> {
    crate::process::run_quietly(&mut command("ip", args), |_| ())
        .with_context(|| format!("ip {}", args.join(" ")))
}
