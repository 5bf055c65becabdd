//! The program's commands about who is who, as an administrator gives them.

use std::{
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Child, Command, Output, Stdio},
};

use fabric_trust::{context::Contexts, token::JoinToken};

use crate::framework::*;

/// The program, with a home of its own.
fn program(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fabric-controller"));
    command
        .env("FABCTL_CONFIG", dir.join("config.toml"))
        .env("FABRIC_CONTROLLER_DATA", dir.join("d"))
        .current_dir(dir);
    command
}

fn run(dir: &Path, arguments: &[&str]) -> Output {
    program(dir).args(arguments).output().unwrap()
}

/// What it prints when all is well.
fn printed(dir: &Path, arguments: &[&str]) -> String {
    let output = run(dir, arguments);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{arguments:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

/// What it says when something is not.
fn refused(dir: &Path, arguments: &[&str]) -> String {
    let output = run(dir, arguments);
    assert!(!output.status.success(), "{arguments:?} was done");
    String::from_utf8(output.stderr).unwrap()
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

struct Serving(Child);

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn free_port() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}

fn serve(dir: &Path, at: SocketAddr) -> Serving {
    let mut command = program(dir);
    command.args(["serve", "--listen", &at.to_string()]);
    Serving(command.stderr(Stdio::null()).spawn().unwrap())
}

#[tokio::test]
async fn from_init_to_a_reader_who_is_revoked() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    let at = free_port();
    let said = printed(dir, &["init", "--server", &at.to_string()]);
    assert!(said.contains("fingerprint: sha256:"), "{said}");
    for file in ["d/admin.toml", "d/trust/ca.key", "config.toml"] {
        assert_eq!(mode(&dir.join(file)), 0o600, "{file}");
    }
    assert!(refused(dir, &["init"]).contains("set up already"));

    let _serving = serve(dir, at);
    // The commands wait until it listens.
    let token = printed(dir, &["token", "create", "--node", "n1", "--ttl", "10m"]);
    token.parse::<JoinToken>().unwrap();
    let create = ["certificate", "create", "--name", "bob", "--role", "reader"];
    let said = printed(dir, &create);
    assert!(said.contains("fabctl context import bob.toml"), "{said}");
    assert_eq!(mode(&dir.join("bob.toml")), 0o600);
    assert!(refused(dir, &create).contains("is there already"));

    let mut contexts = Contexts::read(&dir.join("bob.toml")).unwrap().contexts;
    let bob = contexts.remove("fabric").unwrap();
    assert_eq!(bob.server.to_string(), at.to_string());
    let client = Client::over_tls(&bob).await.unwrap();
    client.list().await;
    assert!(printed(dir, &["certificate", "list"]).contains("reader"));

    // An administrator elsewhere does it by a context, and not by the socket.
    let revoke = ["certificate", "revoke", "--name", "bob"];
    let mut command = program(dir);
    let output = command
        .env_remove("FABRIC_CONTROLLER_DATA")
        .args(revoke)
        .output();
    assert!(output.unwrap().status.success());
    let refused = Client::over_tls(&bob).await.err().unwrap();
    assert!(refused.contains("revoked"), "{refused}");
}

#[test]
fn an_administrators_context_that_is_taken_away_is_not_made_again() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    printed(dir, &["init", "--no-context"]);
    assert!(!dir.join("config.toml").exists());
    std::fs::remove_file(dir.join("d/admin.toml")).unwrap();
    let _serving = serve(dir, free_port());
    printed(dir, &["token", "create", "--node"]);
    assert!(!dir.join("d/admin.toml").exists());
}
