//! One instance of a role: its directory, its record, its machine, and the task
//! that owns them.
//!
//! | module | what |
//! |---|---|
//! | [`state`] | the words: states, inputs, actions |
//! | [`machine`] | all decisions, pure; opens with the picture of the states |
//! | [`supervisor`] | carries them out; one task per instance |
//! | [`manifest`] | the record that survives the host agent |
//! | [`last_exit`] | what is kept of a virtual machine's end |
//! | [`directory`] | names of files, ways to sockets |
//! | [`disks`] | image, package, differencing disk |
//! | [`turn`] | how many copies are started at a time |
//! | [`snapshots`] | memory, devices and disk as they were once |

pub mod directory;
pub mod disks;
pub mod last_exit;
pub mod machine;
pub mod manifest;
pub mod snapshots;
pub mod state;
pub mod status;
pub mod supervisor;
pub mod turn;
