use std::{os::unix::fs::PermissionsExt as _, sync::atomic::Ordering};

use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use super::{source::tests::Shelf, *};

fn cache() -> (TempDir, Arc<Shelf>, BlobCache) {
    let directory = tempfile::tempdir().unwrap();
    let shelf = Arc::new(Shelf::default());
    let cache = BlobCache::open(directory.path().join("blobs"), Arc::clone(&shelf) as _).unwrap();
    (directory, shelf, cache)
}

fn files_in(cache: &BlobCache) -> usize {
    fs::read_dir(&cache.directory).unwrap().count()
}

#[tokio::test]
async fn a_blob_is_fetched_once_and_cannot_be_written() {
    let (_directory, shelf, cache) = cache();
    let (digest, bytes) = shelf.put_vhd();
    let blob = BlobRef {
        digest: digest.clone(),
        bytes,
    };
    let (first, second) = tokio::join!(cache.ensure(&blob), cache.ensure(&blob));
    let (first, second) = (first.unwrap(), second.unwrap());
    assert!(first.fetched && !second.fetched);
    assert_eq!(shelf.sent.load(Ordering::Relaxed), bytes);
    let mode = fs::metadata(&first.path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o444);
    assert_eq!(cache.digests(), [digest]);
}

#[tokio::test]
async fn a_transfer_that_was_cut_off_goes_on_where_it_stopped() {
    let (_directory, shelf, cache) = cache();
    let (digest, bytes) = shelf.put_vhd();
    let blob = BlobRef { digest, bytes };
    shelf.cut_after.store(1000, Ordering::Relaxed);
    let error = cache.ensure(&blob).await.unwrap_err();
    assert!(matches!(error, BlobError::Fetch { .. }) && error.may_pass());
    assert!(cache.digests().is_empty(), "a part is not a blob");
    cache.ensure(&blob).await.unwrap();
    assert_eq!(shelf.sent.load(Ordering::Relaxed), bytes);
}

#[tokio::test]
async fn what_is_not_what_was_asked_for_is_thrown_away() {
    let (_directory, shelf, cache) = cache();
    let (sound, bytes) = shelf.put_vhd();
    let digest = Digest::of_sha256(&[1; 32]);
    shelf.put(&digest, vec![0; 2000]);
    for size in [2000, 1999] {
        let blob = BlobRef {
            digest: digest.clone(),
            bytes: size,
        };
        let error = cache.ensure(&blob).await.unwrap_err();
        assert!(matches!(error, BlobError::Corrupt { .. }), "{error:?}");
        assert_eq!(files_in(&cache), 0);
    }
    let blob = BlobRef {
        digest,
        bytes: 2001,
    };
    let error = cache.ensure(&blob).await.unwrap_err();
    assert!(matches!(
        error,
        BlobError::Fetch {
            source: SourceError::Short { .. },
            ..
        }
    ));
    cache
        .ensure(&BlobRef {
            digest: sound,
            bytes,
        })
        .await
        .unwrap();
}

#[tokio::test]
async fn a_file_that_is_no_vhd_is_refused_for_good() {
    let (_directory, shelf, cache) = cache();
    let junk = vec![7; 2048];
    let digest = Digest::of_sha256(&Sha256::digest(&junk).into());
    shelf.put(&digest, junk);
    let error = cache
        .ensure(&BlobRef {
            digest,
            bytes: 2048,
        })
        .await
        .unwrap_err();
    assert!(
        matches!(error, BlobError::NotADisk { .. }) && !error.may_pass(),
        "{error:?}"
    );
    assert_eq!(files_in(&cache), 0);
}

#[tokio::test]
async fn there_must_be_room_and_what_nothing_uses_is_removed_for_it() {
    let (_directory, shelf, cache) = cache();
    let (used, bytes) = shelf.put_vhd();
    let (unused, more) = shelf.put_vhd();
    cache
        .ensure(&BlobRef {
            digest: used.clone(),
            bytes,
        })
        .await
        .unwrap();
    cache
        .ensure(&BlobRef {
            digest: unused,
            bytes: more,
        })
        .await
        .unwrap();
    cache.keep(BTreeSet::from([used.clone()]));
    let blob = BlobRef {
        digest: Digest::of_sha256(&[1; 32]),
        bytes: u64::MAX,
    };
    let error = cache.ensure(&blob).await.unwrap_err();
    assert!(
        matches!(
            error,
            BlobError::NoRoom {
                needed: u64::MAX,
                ..
            }
        ) && error.may_pass()
    );
    assert!(error.to_string().contains("free some"), "{error}");
    assert_eq!(cache.digests(), [used]);
}
