//! The `host-agent` program.

#![forbid(unsafe_code)]
#![warn(clippy::print_stderr)]

fn main() -> std::process::ExitCode {
    host_agent::cli::main()
}
