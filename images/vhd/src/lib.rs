//! stub
#![forbid(unsafe_code)]

mod check;
mod convert;
mod create;
mod device;
mod disk;
mod error;
pub mod format;
mod info;
mod newfile;
pub mod storage;

pub use check::{BlockCounts, Problem, Report, Severity, check};
pub use convert::{ConvertOptions, Converted, Target, convert};
pub use create::{
    CreateOptions, DifferencingOptions, Identity, create_differencing, create_dynamic, create_fixed,
};
pub use device::{BlockDevice, Extent, ExtentKind, SECTOR_SIZE, extents};
pub use disk::{Disk, MAX_CHAIN, OpenOptions, Raw, open};
pub use error::{Defect, Error, Result, Structure};
pub use format::DiskType;
pub use info::{DynamicInfo, Info, LocatorInfo, info};
