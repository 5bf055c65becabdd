//! The buses: which device answers at which address or port.
//!
//! Virtual CPU threads call in here on every access that KVM does not handle
//! itself. A guest may access anything at any width; what nobody answers reads
//! as all ones and takes writes silently, as on a real machine.

use std::sync::{Arc, Mutex, PoisonError};

use thiserror::Error;

/// A device that answers accesses to its window of the guest's address space.
pub trait MmioDevice: Send {
    /// Answers a read of `data.len()` bytes at `offset` in the window.
    fn read(&mut self, offset: u64, data: &mut [u8]);
    /// Takes a write of `data` at `offset` in the window.
    fn write(&mut self, offset: u64, data: &[u8]);
}

/// A device as buses share it between virtual CPUs.
pub type SharedDevice = Arc<Mutex<dyn MmioDevice>>;

/// Two devices want the same addresses.
#[derive(Debug, Error)]
#[error("the window {base:#x}+{length:#x} overlaps the one at {other:#x}")]
pub struct Overlap {
    base: u64,
    length: u64,
    other: u64,
}

/// Windows of an address space, each answered by one device.
///
/// Filled before the machine starts and constant from then on, so looking a
/// device up takes no lock.
#[derive(Default)]
pub struct Bus {
    windows: Vec<Window>,
}

struct Window {
    base: u64,
    length: u64,
    device: SharedDevice,
}

impl std::fmt::Debug for Bus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list()
            .entries(self.windows.iter().map(|w| (w.base, w.length)))
            .finish()
    }
}

impl Bus {
    /// A bus without devices.
    pub fn new() -> Bus {
        Bus::default()
    }

    /// Puts `device` at `base`, `length` bytes long.
    ///
    /// # Errors
    ///
    /// When another device has some of the window.
    pub fn insert(&mut self, base: u64, length: u64, device: SharedDevice) -> Result<(), Overlap> {
        let overlaps = |w: &&Window| base < w.base + w.length && w.base < base + length;
        if let Some(window) = self.windows.iter().find(overlaps) {
            return Err(Overlap {
                base,
                length,
                other: window.base,
            });
        }
        let at = self.windows.partition_point(|window| window.base < base);
        self.windows.insert(
            at,
            Window {
                base,
                length,
                device,
            },
        );
        Ok(())
    }

    /// Reads at `address`; all ones where nobody answers.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        match self.find(address) {
            Some((window, offset)) => lock(&window.device).read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// Writes at `address`; lost where nobody answers.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((window, offset)) = self.find(address) {
            lock(&window.device).write(offset, data);
        }
    }

    fn find(&self, address: u64) -> Option<(&Window, u64)> {
        let index = self
            .windows
            .partition_point(|w| w.base <= address)
            .checked_sub(1)?;
        let window = self.windows.get(index)?;
        let offset = address - window.base;
        (offset < window.length).then_some((window, offset))
    }
}

/// A thread that panicked in a device ends the machine; until then the others
/// may find the device as it left it.
fn lock(device: &SharedDevice) -> std::sync::MutexGuard<'_, dyn MmioDevice + 'static> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Recorder(Vec<(u64, Vec<u8>)>);

    impl MmioDevice for Recorder {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data.fill(offset as u8);
        }

        fn write(&mut self, offset: u64, data: &[u8]) {
            self.0.push((offset, data.to_vec()));
        }
    }

    #[test]
    fn an_access_reaches_the_device_that_has_the_address() {
        let (first, second) = (Arc::new(Mutex::new(Recorder::default())), Arc::default());
        let mut bus = Bus::new();
        bus.insert(0x2000, 0x1000, first.clone()).unwrap();
        let second: Arc<Mutex<Recorder>> = second;
        bus.insert(0x1000, 0x800, second.clone()).unwrap();

        bus.write(0x2004, &[1, 2]);
        bus.write(0x17ff, &[3]);
        bus.write(0x1800, &[4]);
        bus.write(0x3000, &[5]);
        assert_eq!(first.lock().unwrap().0, [(4, vec![1, 2])]);
        assert_eq!(second.lock().unwrap().0, [(0x7ff, vec![3])]);

        let mut data = [0; 2];
        bus.read(0x2007, &mut data);
        assert_eq!(data, [7, 7]);
        for nobody in [0, 0xfff, 0x1800, 0x3000, u64::MAX] {
            bus.read(nobody, &mut data);
            assert_eq!(data, [0xff, 0xff]);
        }
    }

    #[test]
    fn windows_do_not_overlap() {
        let mut bus = Bus::new();
        let device = || Arc::new(Mutex::new(Recorder::default()));
        bus.insert(0x1000, 0x1000, device()).unwrap();
        bus.insert(0x1fff, 0x1000, device()).unwrap_err();
        bus.insert(0x0fff, 2, device()).unwrap_err();
        bus.insert(0x2000, 0x1000, device()).unwrap();
    }
}
