//! What the controller knows: plain types and the rules on them.
//!
//! Nothing here reads a clock, a file or a socket, and nothing knows gRPC or the
//! store: state goes in, state or a decision comes out.
//!
//! | module | what it holds |
//! |---|---|
//! | [`definition`] | the service file: parsed, checked, explained |
//! | [`size`] | Azure's instance sizes |
//! | [`service`] | a service as it is kept, and how two of its versions differ |
//! | [`deployment`] | a version of a service in one of its slots |
//! | [`update`] | how far a rolling update is |
//! | [`revision`] | what a service was to be before |
//! | [`os_line`] | OS images with versions |
//! | [`change`] | what applying a file changes, for people |
//! | [`instance`] | one instance of a role as it is kept |
//! | [`keep`] | its pause, its stop and its snapshots |
//! | [`label`] | what labels of machines may be |
//! | [`lease`] | how long a node may run what it was told to |
//! | [`own`] | resources that only operators know what they are, counted |
//! | [`state`] | the one word that users see for an instance |
//! | [`node`] | a machine as it is kept |
//! | [`architecture`] | for which processors an image is, and which ones a machine has |
//! | [`blame`] | which machines are to blame for what fails on them |
//! | [`steadiness`] | whether a machine comes and goes |
//! | [`decay`] | points that halve with time |
//! | [`blob`] | an image or a package as it is kept |
//! | [`event`] | something that happened |
//! | [`time`] | points in time as they are kept |

pub mod architecture;
pub mod blame;
pub mod blob;
pub mod change;
pub mod decay;
pub mod definition;
pub mod deployment;
pub mod event;
pub mod instance;
pub mod keep;
pub mod label;
pub mod lease;
pub mod node;
pub mod os_line;
pub mod own;
pub mod revision;
pub mod service;
pub mod size;
pub mod state;
pub mod steadiness;
pub mod stock;
pub mod time;
pub mod update;
