//! Compiles the `.proto` files in-process: no `protoc` is needed on the machine.

use std::{env, error::Error, fs, path::Path};

use prost::Message as _;

const FILES: [&str; 4] = [
    "fabric/guest/v1/guest.proto",
    "fabric/node/v1/node.proto",
    "fabric/v1/fabric.proto",
    "fabric/v1/trust.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    fs::write(
        Path::new(&env::var("OUT_DIR")?).join("descriptors.bin"),
        descriptors.encode_to_vec(),
    )?;
    tonic_prost_build::configure()
        .bytes(".")
        .btree_map(".")
        .compile_fds(descriptors)?;
    Ok(())
}
