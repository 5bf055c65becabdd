//! Lays the static guest agent out for a quick start.
//!
//! A guest reads its programs from disk as it touches them, 128 KiB around each
//! page, and on a KVM that interprets guest kernel code each such read costs many
//! milliseconds. glibc's functions that run before `main` and in every allocation
//! lie scattered over 800 KiB; put side by side, they are two reads instead of a
//! dozen. A name in `hot-symbols.txt` that a glibc does not have is passed over.
//!
//! The list was made with `valgrind --tool=callgrind` on the static program up to
//! its hello, C functions alone: Rust's symbols change with every build.

use std::{env, path::Path};

const LIST: &str = "hot-symbols.txt";

fn main() {
    println!("cargo:rerun-if-changed={LIST}");
    let features = env::var("CARGO_CFG_TARGET_FEATURE").unwrap_or_default();
    let is_static = features.split(',').any(|feature| feature == "crt-static");
    let Ok(directory) = env::var("CARGO_MANIFEST_DIR") else {
        return;
    };
    if is_static {
        let list = Path::new(&directory).join(LIST);
        // Of lld, which Rust's toolchain for this target brings and uses.
        println!("cargo:rustc-link-arg-bins=-Wl,--no-warn-symbol-ordering");
        println!(
            "cargo:rustc-link-arg-bins=-Wl,--symbol-ordering-file={}",
            list.display()
        );
    }
}
