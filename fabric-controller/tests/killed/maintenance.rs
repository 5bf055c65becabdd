//! Backups and restores.

use std::{fs, path::Path};

use fabric_controller::fail_point::Step;

use crate::{
    files::{names, twice},
    program::ARMED,
    said::said,
    stage::{INSTANCES, Stage, assert_sound, copy, settled, start},
    steps,
};

#[tokio::test(flavor = "multi_thread")]
async fn of_a_backup_there_is_nothing_until_there_is_all() {
    let stage = Stage::set().await;
    for step in steps("backup") {
        let dir = stage.files();
        let backup = ["backup", "--data-dir", "d", "backup"];
        let there = dir.path().join("backup");
        twice(step, dir.path(), &backup, || assert!(!there.exists()));
        assert_sound(&there);
        let beside = names(dir.path());
        assert_eq!(
            beside,
            [ARMED, "backup", "d"],
            "{step:?} has left something"
        );
        let trust = names(&dir.path().join("d/trust"));
        assert_eq!(names(&there.join("trust")), trust, "{step:?}");
    }
}

/// A fabric, and a backup of one with other services.
async fn with_a_backup(stage: &Stage) -> tempfile::TempDir {
    let dir = stage.files();
    copy(&dir.path().join("d"), &dir.path().join("backup"));
    fs::remove_dir_all(dir.path().join("backup/uploads")).unwrap();
    let (mut program, client) = start(dir.path()).await;
    client
        .apply(&crate::stage::service("later", 0, "/v1"))
        .await
        .unwrap();
    // Its log is not in its file yet.
    program.kill();
    dir
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_is_done_or_not_begun() {
    let stage = Stage::set().await;
    let before = with_a_backup(&stage).await;
    let has_later = |dir: &Path| {
        let said = said(dir);
        said.iter().any(|line| line.starts_with("services/later "))
    };
    // A CA is only restored where there is none.
    for step in steps("restore").chain([Step::FileCopied]) {
        let dir = tempfile::tempdir().unwrap();
        for name in ["d", "backup"] {
            copy(&before.path().join(name), &dir.path().join(name));
        }
        let data_dir = dir.path().join("d");
        let (log, store) = (data_dir.join("store.db-wal"), data_dir.join("store.db"));
        assert!(log.exists(), "the test wants a store with a log");
        fs::remove_dir_all(data_dir.join("trust")).unwrap();
        let restore = ["restore", "--data-dir", "d", "backup", "--force"];
        let cut_off = tempfile::tempdir().unwrap();
        twice(step, dir.path(), &restore, || {
            copy(&data_dir, &cut_off.path().join("d"));
        });
        assert_sound(&data_dir);
        assert!(!has_later(dir.path()), "{step:?}: it is what was before");
        // What was before is kept whole.
        let old = tempfile::tempdir().unwrap();
        fs::create_dir(old.path().join("d")).unwrap();
        for end in ["", "-wal"] {
            let kept = data_dir.join(format!("store.db.replaced{end}"));
            fs::copy(kept, old.path().join(format!("d/store.db{end}"))).unwrap();
        }
        assert!(has_later(old.path()), "{step:?}: what was before is gone");
        let left = names(&data_dir);
        let left: Vec<_> = left.iter().filter(|name| name.contains("resto")).collect();
        assert!(left.is_empty(), "{step:?}: {left:?}");
        assert!(store.exists());

        // Or it is let be, and a controller started: on what was before, or on the backup.
        let (_program, client) = start(cut_off.path()).await;
        settled(cut_off.path()).await;
        assert_sound(&cut_off.path().join("d"));
        let decided = matches!(
            step,
            Step::RestoreDecided | Step::StoreAside | Step::LogAside
        );
        assert_eq!(has_later(cut_off.path()), !decided, "{step:?}");
        assert_eq!(client.list().await.len(), INSTANCES, "{step:?}");
        let left = names(&cut_off.path().join("d"));
        let left: Vec<_> = left.iter().filter(|name| name.contains("restor")).collect();
        assert!(left.is_empty(), "{step:?}: {left:?}");
    }
}
