//! Service files for tests.

use std::fmt::Write as _;

/// A service of one web role, `web`, in guests of 128 MiB.
#[derive(Debug, Clone)]
pub struct ServiceFile {
    name: String,
    instances: u32,
    vcpus: u32,
    cpu_weight: u32,
    package: Option<String>,
    command: Vec<String>,
    environment: Vec<(String, String)>,
    probes: bool,
    more: String,
}

impl ServiceFile {
    /// One instance that serves HTTP, probed over HTTP.
    #[must_use]
    pub fn web(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            instances: 1,
            vcpus: 1,
            cpu_weight: 100,
            package: None,
            command: ["/bin/busybox", "httpd", "-f", "-p", "8080", "-h", "/etc"]
                .map(str::to_owned)
                .to_vec(),
            environment: Vec::new(),
            probes: true,
            more: String::new(),
        }
    }

    /// So many instances.
    #[must_use]
    pub fn instances(mut self, instances: u32) -> Self {
        self.instances = instances;
        self
    }

    /// Guests with so many virtual processors.
    #[must_use]
    pub fn vcpus(mut self, vcpus: u32) -> Self {
        self.vcpus = vcpus;
        self
    }

    /// Guests with so much weight where others want their processors too.
    #[must_use]
    pub fn cpu_weight(mut self, cpu_weight: u32) -> Self {
        self.cpu_weight = cpu_weight;
        self
    }

    /// With a package.
    #[must_use]
    pub fn package(mut self, package: &str) -> Self {
        self.package = Some(package.to_owned());
        self
    }

    /// With a shell script for a role, and no probes: ready while it runs.
    #[must_use]
    pub fn script(mut self, script: &str) -> Self {
        self.command = ["/bin/busybox", "sh", "-c", script]
            .map(str::to_owned)
            .to_vec();
        self.probes = false;
        self
    }

    /// With a variable in the role's environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// With these lines more in its role.
    #[must_use]
    pub fn with(mut self, lines: &str) -> Self {
        self.more.push_str(lines);
        self.more.push('\n');
        self
    }

    /// The file's text.
    #[must_use]
    pub fn toml(&self) -> String {
        let quote = |text: &String| serde_json::Value::from(text.as_str()).to_string();
        let command: Vec<_> = self.command.iter().map(quote).collect();
        let mut text = format!(
            r#"name = "{name}"

[sizes.tiny]
vcpus = {vcpus}
memory = "128MiB"
cpu_weight = {cpu_weight}

[[role]]
name = "web"
kind = "web"
size = "tiny"
instances = {instances}
image = "guest-os"
command = [{command}]
stop_grace = "2s"
startup_grace = "20s"
"#,
            name = self.name,
            vcpus = self.vcpus,
            cpu_weight = self.cpu_weight,
            instances = self.instances,
            command = command.join(", "),
        );
        if let Some(package) = &self.package {
            let _ = writeln!(text, "package = \"{package}\"");
        }
        let environment: Vec<_> = self
            .environment
            .iter()
            .map(|(name, value)| format!("{name} = {}", quote(value)))
            .collect();
        if !environment.is_empty() {
            let _ = writeln!(text, "environment = {{ {} }}", environment.join(", "));
        }
        text.push_str(&self.more);
        if self.probes {
            text.push_str(
                r#"
[role.liveness]
http = { port = 8080, path = "/passwd" }
period = "2s"
timeout = "4s"
failure_threshold = 2

[role.readiness]
tcp = { port = 8080 }
period = "1s"
timeout = "4s"
"#,
            );
        }
        text
    }
}
