//! What the demo and the benchmark run: one web role in one small guest.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::Path,
};

use anyhow::{Context, Result, ensure};

use crate::{fabric::Fabric, project::Project};

/// The service's name.
pub const SERVICE: &str = "demo";
/// The id of its only instance, or its first.
pub const INSTANCE: &str = "demo-web-0";

const FILE: &str = include_str!("demo.toml");

/// What is said in it of the package, and what instead where there is none: the program is
/// the image's own.
const WITHOUT_PACKAGE: [(&str, &str); 3] = [
    ("package = \"hello-web\"\n", ""),
    (
        r#"command = ["/role/web/hello-web"]"#,
        r#"command = ["/bin/busybox", "httpd", "-f", "-p", "8080", "-h", "/etc"]"#,
    ),
    (r#"path = "/" }"#, r#"path = "/passwd" }"#),
];

/// Size of the guest.
#[derive(Debug, Clone, clap::Args)]
pub struct Size {
    /// Virtual processors of the guest
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=8))]
    pub vcpus: u32,
    /// Memory of the guest
    #[arg(long, default_value = "128MiB")]
    pub memory: String,
}

impl Size {
    /// The service file with guests of this size.
    pub fn set_in(&self, file: &str) -> Result<String> {
        let vcpus = format!("vcpus = {}", self.vcpus);
        replace_all(file, &[("vcpus = 1", &vcpus), ("128MiB", &self.memory)])
    }
}

/// Uploads the guest OS image and the role's package.
pub fn upload(project: &Project, fabric: &Fabric, guest_os: &Path) -> Result<()> {
    fabric.fabctl(&["image", "upload", "guest-os", utf8(guest_os)?])?;
    let program = fs::read(project.guest_program("hello-web"))
        .context("reading the role's program; if it is not there, leave out --no-build")?;
    upload_package(fabric, "hello-web", &program)
}

/// Uploads a package with nothing but a program, which is called hello-web in it.
pub fn upload_package(fabric: &Fabric, name: &str, program: &[u8]) -> Result<()> {
    let contents = fabric.dir().join(name);
    fs::create_dir(&contents).context("making the folder of the package")?;
    let file = contents.join("hello-web");
    fs::write(&file, program).context("writing the role's program")?;
    fs::set_permissions(&file, Permissions::from_mode(0o755))
        .context("making the role's program executable")?;
    let package = contents.with_extension("vhd");
    let (contents, package) = (utf8(&contents)?, utf8(&package)?);
    fabric.fabctl(&["package", "build", contents, "-o", package])?;
    fabric.fabctl(&["package", "upload", name, package])?;
    Ok(())
}

fn utf8(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is not UTF-8")
}

/// Applies the service with one instance.
pub fn apply(fabric: &Fabric, size: &Size) -> Result<()> {
    apply_many(fabric, size, 1)
}

/// The same, with a role that is ready already in the template that it is copied from.
pub fn apply_warm(fabric: &Fabric, size: &Size) -> Result<()> {
    let warm = "user = 1000\nwarm_start = true";
    apply_text(fabric, size, &FILE.replace("user = 1000", warm))
}

/// The same, with a role that has no package.
pub fn apply_without_package(fabric: &Fabric, size: &Size) -> Result<()> {
    apply_text(fabric, size, &without_package()?)
}

fn without_package() -> Result<String> {
    replace_all(FILE, &WITHOUT_PACKAGE)
}

/// Applies the service with so many instances.
pub fn apply_many(fabric: &Fabric, size: &Size, instances: u32) -> Result<()> {
    let many = format!("instances = {instances}");
    apply_text(fabric, size, &FILE.replace("instances = 1", &many))
}

fn apply_text(fabric: &Fabric, size: &Size, text: &str) -> Result<()> {
    let definition = size.set_in(text)?;
    apply_file(fabric, &definition, &[])
}

/// A service file with other words in it, each of which must be there to be replaced.
fn replace_all(file: &str, words: &[(&str, &str)]) -> Result<String> {
    let mut file = file.to_owned();
    for (there, instead) in words {
        ensure!(file.contains(there), "the service file has no {there:?}");
        file = file.replace(there, instead);
    }
    Ok(file)
}

/// Applies a service file.
pub fn apply_file(fabric: &Fabric, definition: &str, more: &[&str]) -> Result<()> {
    let file = fabric.dir().join("demo.toml");
    fs::write(&file, definition).context("writing the service file")?;
    let apply = ["service", "apply", "--file", utf8(&file)?];
    fabric.fabctl(&[&apply, more].concat())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_without_a_package_is_the_same_but_for_that() {
        let size = Size {
            vcpus: 2,
            memory: "256MiB".to_owned(),
        };
        let file = size.set_in(&without_package().unwrap()).unwrap();
        assert!(!file.contains("hello-web"), "{file}");
        assert!(
            file.contains("vcpus = 2") && file.contains("256MiB"),
            "{file}"
        );
        assert!(file.contains("name = \"demo\"\n"), "{file}");
    }
}
