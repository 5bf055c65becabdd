//! The `host-agent` program.

#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    host_agent::cli::main()
}
