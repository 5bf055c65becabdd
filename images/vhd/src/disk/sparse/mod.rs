//! stub
use super::Disk;
use crate::device::Extent;
use crate::error::Result;
use crate::format::Header;
pub(super) struct Sparse { header: Header }
impl Sparse {
    pub(super) fn header(&self) -> &Header { &self.header }
    pub(super) fn parent(&self) -> Option<&Disk> { None }
    pub(super) fn read_at(&self, _buf: &mut [u8], _offset: u64) -> Result<()> { Ok(()) }
    pub(super) fn write_at(&self, _buf: &[u8], _offset: u64) -> Result<()> { Ok(()) }
    pub(super) fn flush(&self) -> Result<()> { Ok(()) }
    pub(super) fn discard(&self, _offset: u64, _len: u64) -> Result<()> { Ok(()) }
    pub(super) fn write_zeroes(&self, _offset: u64, _len: u64) -> Result<()> { Ok(()) }
    pub(super) fn extent_at(&self, offset: u64) -> Result<Extent> { Ok(Extent { offset, len: 512, kind: crate::ExtentKind::Zero }) }
}
