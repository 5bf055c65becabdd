//! Who is who on a TCP link: what both ends of it must agree on.
//!
//! | module | what it has |
//! |---|---|
//! | [`identity`] | what a certificate says: a role and a name |
//! | [`key`] | private keys, requests for certificates, random bytes |
//! | [`token`] | what a machine joins with once, which names the CA by its fingerprint |
//! | [`context`] | a controller's address with the certificate for it, as kept in files |
//! | [`address`] | addresses as users write them |
//! | [`dial`] | the way to a controller: mTLS 1.3 over TCP, or a unix socket |
//! | [`explain`] | what a failed handshake means, and what to do |
//!
//! Who may do what is not decided here: that is the controller's table. Making
//! certificates is the controller's too.

#![forbid(unsafe_code)]

pub mod address;
pub mod context;
pub mod dial;
pub mod explain;
pub mod identity;
pub mod key;
pub mod token;

/// Port of a controller unless another one is said.
pub const PORT: u16 = 7070;
