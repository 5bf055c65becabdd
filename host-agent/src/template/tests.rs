//! The store over a hypervisor that runs nothing, and over files that get damaged.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use tempfile::TempDir;

use super::*;
use crate::hypervisor::fake::FakeHypervisor;

struct Stage {
    data: TempDir,
    hypervisor: FakeHypervisor,
    templates: Arc<Templates>,
    wanted: Wanted,
}

impl Stage {
    fn new() -> Self {
        let data = tempfile::tempdir().unwrap();
        for program in ["vmm", "kernel"] {
            fs::write(data.path().join(program), program).unwrap();
        }
        let image = data.path().join("image");
        vhd::create_dynamic(&image, &vhd::CreateOptions::new(8 << 20)).unwrap();
        let hypervisor = FakeHypervisor::default();
        Self {
            templates: open(&data, &hypervisor),
            wanted: Wanted {
                digest: files::sha256(&image).unwrap(),
                image,
                memory_mib: 128,
                vcpus: 1,
                package: true,
                program: Program::new("/bin/true"),
                role: None,
            },
            data,
            hypervisor,
        }
    }

    async fn ensure(&self) -> Result<Template, TemplateError> {
        self.templates.ensure(&self.wanted).await
    }

    async fn made(&self) -> Template {
        let template = self.ensure().await.unwrap();
        assert!(template.made.is_some());
        template
    }

    /// What is in the directory, without the lock.
    fn names(&self) -> Vec<String> {
        let places = self.templates.entries();
        let names = places.iter().map(|place| name_of(place).to_owned());
        names.filter(|name| name != LOCK).collect()
    }
}

/// The same directory, as another process opens it.
fn open(data: &TempDir, hypervisor: &FakeHypervisor) -> Arc<Templates> {
    let host = Host::look(
        &data.path().join("vmm"),
        &data.path().join("kernel"),
        "",
        "hardware",
    );
    let limits = Limits {
        boot: Duration::from_millis(200),
        wait: Duration::from_secs(5),
        keep: Keep::default(),
    };
    let directory = data.path().join("templates");
    let hypervisor = Arc::new(hypervisor.clone());
    Arc::new(Templates::open(&directory, hypervisor, host, "boot".to_owned(), limits).unwrap())
}

/// Writes a byte of a file anew, as nobody should.
fn damage(file: &Path) {
    let mut bytes = fs::read(file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::set_permissions(file, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(file, bytes).unwrap();
    // However coarse the file system's times are.
    let file = File::options().append(true).open(file).unwrap();
    file.set_modified(SystemTime::now() + Duration::from_secs(1))
        .unwrap();
}

#[tokio::test]
async fn a_template_is_made_once_and_found_from_then_on() {
    let stage = Stage::new();
    let first = stage.made().await;
    assert_eq!(stage.names(), [first.key.as_str()]);
    let mut kept: Vec<_> = fs::read_dir(first.disk.parent().unwrap())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    kept.sort();
    assert_eq!(kept, ["booted", "disk.vhd", "snapshot", "template.json"]);

    let again = stage.ensure().await.unwrap();
    assert_eq!((again.made, &again.key), (None, &first.key));
    let another_process = open(&stage.data, &stage.hypervisor);
    assert_eq!(another_process.ensure(&stage.wanted).await.unwrap(), again);
    assert_eq!(stage.hypervisor.templates(), 1);
}

#[tokio::test]
async fn what_can_be_copied_is_told_as_long_as_it_can_be() {
    let stage = Stage::new();
    assert_eq!(stage.templates.there(), BTreeSet::new());
    let made = stage.made().await;
    let kind = Kind {
        image: stage.wanted.digest.to_string(),
        vcpus: 1,
        memory_mib: 128,
    };
    assert_eq!(stage.templates.there(), [kind.clone()].into());

    // By whoever opens it next, but not with another VMM, which would make its own.
    let told = async || {
        let next = open(&stage.data, &stage.hypervisor);
        next.tidy().await;
        next.there()
    };
    assert_eq!(told().await, [kind].into());
    fs::write(stage.data.path().join("vmm"), "another").unwrap();
    assert_eq!(told().await, BTreeSet::new());
    fs::write(stage.data.path().join("vmm"), "vmm").unwrap();

    stage.templates.refuse(made.key, "it does not start").await;
    assert_eq!(stage.templates.there(), BTreeSet::new());
}

#[tokio::test]
async fn all_who_want_one_at_once_wait_for_the_same() {
    let stage = Stage::new();
    let another_process = open(&stage.data, &stage.hypervisor);
    let mut asked = tokio::task::JoinSet::new();
    for number in 0..20 {
        let templates = [&stage.templates, &another_process][number % 2];
        let (templates, wanted) = (Arc::clone(templates), stage.wanted.clone());
        asked.spawn(async move { templates.ensure(&wanted).await.unwrap().key });
    }
    let keys = asked.join_all().await;
    assert!(keys.iter().all(|key| *key == keys[0]));
    assert_eq!(stage.hypervisor.templates(), 1);
}

#[tokio::test]
async fn a_template_with_a_role_in_it_is_copied_from_the_one_without() {
    let mut stage = Stage::new();
    let role = RoleSpec {
        name: "web".to_owned(),
        ..RoleSpec::default()
    };
    stage.wanted.role = Some(TemplateRole::ready(&role, None));
    stage.wanted.package = false;
    let warm = stage.made().await;
    assert_eq!(stage.hypervisor.templates(), 2);

    stage.wanted.role = None;
    let base = stage.ensure().await.unwrap();
    assert_eq!(base.made, None, "it was made on the way");
    assert_ne!(base.key, warm.key);
    assert_eq!(
        fs::read(&warm.disk).unwrap(),
        fs::read(&base.disk).unwrap(),
        "one disk, which memory knows"
    );
    let booted = |template: &Template| {
        let booted = template.booted.as_ref().unwrap();
        fs::metadata(booted.join("memory")).unwrap().ino()
    };
    assert_eq!(booted(&warm), booted(&base), "their guest has booted once");
    assert_eq!(stage.names().len(), 2);
}

#[test]
fn roles_share_the_template_of_their_package_if_their_program_is_the_same() {
    let package = |name: &str| {
        let digest = files::sha256(Path::new("/dev/null")).unwrap();
        (digest, PathBuf::from(name))
    };
    let role = RoleSpec {
        name: "web".to_owned(),
        command: vec!["/role/web/server".to_owned(), "--fast".to_owned()],
        settings: [("colour".to_owned(), "red".to_owned())].into(),
        ..RoleSpec::default()
    };
    let digest = |role: &RoleSpec| TemplateRole::prepared(role, package("a")).digest();
    let same = digest(&role);
    let change = |change: fn(&mut RoleSpec)| {
        let mut other = role.clone();
        change(&mut other);
        digest(&other)
    };
    assert_eq!(change(|role| role.settings.clear()), same);
    assert_eq!(change(|role| role.restart_generation = 7), same);
    assert_eq!(change(|role| role.command[1].push('x')), same);
    assert_ne!(change(|role| role.command[0].push('x')), same);
    assert_ne!(change(|role| role.name.push('x')), same);
    let warm = TemplateRole::ready(&role, Some(package("a"))).digest();
    assert_ne!(warm, same);
}

#[tokio::test]
async fn who_is_larger_is_copied_from_another() {
    let mut stage = Stage::new();
    let small = stage.made().await;
    stage.wanted.memory_mib *= 2;
    assert_ne!(stage.made().await.key, small.key);
    fs::write(stage.data.path().join("vmm"), "a newer vmm").unwrap();
    stage.made().await;
    assert_eq!(stage.hypervisor.templates(), 3);
}

#[tokio::test]
async fn a_damaged_template_is_refused_once_and_then_made_again() {
    for part in [
        "snapshot/memory",
        "snapshot/state.json",
        "booted/memory",
        "booted/state.json",
        "disk.vhd",
        "template.json",
    ] {
        let stage = Stage::new();
        let template = stage.made().await;
        damage(&template.disk.with_file_name(part));
        if part == "template.json" {
            fs::write(template.disk.with_file_name(part), "{").unwrap();
        }
        let refusal = stage.ensure().await.unwrap_err();
        assert_eq!(
            refusal.reason(),
            Reason::TemplateRefused,
            "{part}: {refusal}"
        );
        assert_eq!(stage.names(), [""; 0], "{part}");
        stage.made().await;
    }
}

#[tokio::test]
async fn where_a_kernel_had_booted_is_found_with_its_template_and_refused_with_it() {
    let stage = Stage::new();
    let booted = async || stage.templates.booted(&stage.wanted).await;
    assert_eq!(booted().await.unwrap(), None, "none is made for that");
    let template = stage.made().await;
    let there = (template.key, template.booted.unwrap());
    assert_eq!(booted().await.unwrap(), Some(there.clone()));

    damage(&there.1.join("memory"));
    let refusal = booted().await.unwrap_err();
    assert_eq!(refusal.reason(), Reason::TemplateRefused, "{refusal}");
    assert_eq!(booted().await.unwrap(), None);
}

#[tokio::test]
async fn files_that_only_look_different_are_read_once_more() {
    let stage = Stage::new();
    let template = stage.made().await;
    let memory = template.snapshot.join("memory");
    fs::copy(&memory, template.snapshot.join("copy")).unwrap();
    fs::rename(template.snapshot.join("copy"), &memory).unwrap();
    let doubtful = || {
        let record = Record::load(template.disk.parent().unwrap()).unwrap();
        !matches!(
            stage.templates.look(&template.key, &record.inputs),
            Found::Good
        )
    };
    assert!(doubtful());
    assert_eq!(stage.ensure().await.unwrap().made, None);
    assert!(!doubtful());
    assert_eq!(stage.hypervisor.templates(), 1);
}

#[tokio::test]
async fn a_guest_that_never_calls_is_ended_and_not_started_again_at_once() {
    let stage = Stage::new();
    stage.hypervisor.hang_templates(true);
    let silent = stage.ensure().await.unwrap_err();
    assert!(matches!(silent, TemplateError::Silent { .. }), "{silent}");
    assert_eq!(stage.hypervisor.running(), 0);
    assert_eq!(stage.names(), [""; 0]);
    let resting = stage.ensure().await.unwrap_err();
    assert!(
        matches!(resting, TemplateError::Resting { .. }),
        "{resting}"
    );
    assert!(resting.to_string().contains("did not call"), "{resting}");
    assert_eq!(stage.hypervisor.templates(), 1);
}

#[tokio::test]
async fn a_template_that_nobody_could_start_from_is_removed_and_rested() {
    let stage = Stage::new();
    let template = stage.made().await;
    stage
        .templates
        .refuse(template.key, "it did not go on")
        .await;
    assert_eq!(stage.names(), [""; 0]);
    let resting = stage.ensure().await.unwrap_err();
    assert!(
        resting.to_string().contains("it did not go on"),
        "{resting}"
    );
}

#[tokio::test]
async fn what_a_dead_process_was_making_is_ended_and_removed() {
    let stage = Stage::new();
    stage.hypervisor.hang_templates(true);
    // As if the process had died: nobody kills the machine and nobody cleans up.
    let place = stage.templates.directory.join("making-dead");
    let directory = crate::instance::directory::InstanceDirectory::open(place).unwrap();
    let spec = crate::hypervisor::VmSpec {
        name: "template".to_owned(),
        vcpus: 1,
        memory_mib: 128,
        cpu_weight: 100,
        os_disk: DISK,
        os_parents: Vec::new(),
        package: None,
        cid: 3,
        origin: crate::hypervisor::Origin::BecomeTemplate { program: None },
        booted: None,
    };
    stage.hypervisor.launch(&directory, &spec).await.unwrap();

    // Not while somebody is making one.
    let lock = stage.templates.try_lock().unwrap().unwrap();
    open(&stage.data, &stage.hypervisor).tidy().await;
    assert_eq!(stage.hypervisor.running(), 1);
    drop(lock);
    open(&stage.data, &stage.hypervisor).tidy().await;
    assert_eq!(stage.hypervisor.running(), 0);
    assert_eq!(stage.names(), [""; 0]);
}

#[tokio::test]
async fn others_who_hold_the_lock_are_not_waited_for_without_end() {
    let mut stage = Stage::new();
    let mut templates = open(&stage.data, &stage.hypervisor);
    Arc::get_mut(&mut templates).unwrap().limits.wait = Duration::from_millis(100);
    stage.templates = templates;
    let lock = stage.templates.try_lock().unwrap().unwrap();
    let busy = stage.ensure().await.unwrap_err();
    assert!(matches!(busy, TemplateError::Busy { .. }), "{busy}");
    drop(lock);
    stage.made().await;
}

#[tokio::test]
async fn what_is_not_to_be_kept_goes_and_its_disk_stays_with_those_who_have_it() {
    let mut stage = Stage::new();
    let template = stage.made().await;
    let linked = stage.data.path().join("template.vhd");
    files::link_or_copy(&template.disk, &linked).unwrap();
    let long_ago = SystemTime::now() - Duration::from_secs(30 * 24 * 3600);
    let record = File::options()
        .append(true)
        .open(template.disk.with_file_name(record::RECORD))
        .unwrap();
    record.set_modified(long_ago).unwrap();

    stage.wanted.vcpus = 2;
    let other = stage.made().await;
    assert_eq!(stage.names(), [other.key.as_str()]);
    vhd::open(
        &linked,
        &vhd::OpenOptions::read_only().with_parents([&stage.wanted.image]),
    )
    .unwrap();
}
