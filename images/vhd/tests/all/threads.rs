//! Several threads use one disk at once without disturbing each other.

use vhd::BlockDevice;

use crate::support::{SECTOR, contents, noise, open_ro, open_rw, options};

#[test]
fn threads_write_neighbouring_sectors_of_one_block() {
    const THREADS: usize = 4;
    const SECTORS: usize = 4000;
    let folder = tempfile::tempdir().unwrap();
    let (base, child) = (
        folder.path().join("base.vhd"),
        folder.path().join("child.vhd"),
    );
    vhd::create_dynamic(&base, &options((SECTORS * SECTOR) as u64, 64 << 10)).unwrap();
    open_rw(&base, &[]).write_at(&noise(1, 1 << 20), 0).unwrap();
    let small = vhd::DifferencingOptions {
        block_size: 64 << 10,
        ..Default::default()
    };
    vhd::create_differencing(&child, &base, &small).unwrap();

    let disk = open_rw(&child, &[&base]);
    let data = noise(2, SECTORS * SECTOR);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (disk, data) = (&disk, &data);
            scope.spawn(move || {
                for sector in (thread..SECTORS).step_by(THREADS) {
                    let at = sector * SECTOR;
                    let bytes = &data[at..at + SECTOR];
                    disk.write_at(bytes, at as u64).unwrap();
                    let mut back = [0; SECTOR];
                    disk.read_at(&mut back, at as u64).unwrap();
                    assert!(back == bytes, "sector {sector}");
                    if sector % 500 == thread {
                        disk.flush().unwrap();
                    }
                }
            });
        }
    });
    assert!(contents(&disk) == data);
    drop(disk);
    assert!(contents(&open_ro(&child, &[&base])) == data);
}
