//! What a program counts and measures, for Prometheus.
//!
//! | module | what it has |
//! |---|---|
//! | [`list`] | the metrics of a program: each is named, documented and exposed by one line |
//! | [`serve`] | `GET /metrics` over HTTP, on loopback or a unix socket, for whoever comes |
//!
//! What is counted, and where, is its users' business.

#![forbid(unsafe_code)]

pub mod list;
pub mod serve;
