//! Roles that follow their line of OS images: who is given the newest one next.
//!
//! Pure. One deployment after another, those in staging first, each by the same walk
//! as any other update ([`super::rollout`]), and only one whose instances are all
//! `Ready`. While one is on its way, paused or stopped, no other begins; an image that
//! any deployment had to be taken back from is given to nobody else. So a bad image
//! costs one upgrade domain of one service. Nobody is given an image for other processors
//! than those that it has.

use std::collections::BTreeMap;

use fabric_proto::id::BlobName;

use super::{
    plan::{Input, Plan},
    rollout::{self, FABRIC, HealthOf},
    update_walk::Health,
};
use crate::{
    model::{
        blob::{BlobRecord, BlobRef},
        definition::OsUpdates,
        deployment::{Deployment, Slot, Version},
        event::{EventRecord, Reason, SubjectKind},
        os_line,
        revision::Revision,
        service::{ServiceRecord, ServiceRole},
        time::WallTime,
        update::Cause,
    },
    records::{self, Kept},
};

/// Whether anybody follows a line.
#[must_use]
pub fn is_wanted(services: &[ServiceRecord]) -> bool {
    let mut roles = services.iter().flat_map(ServiceRecord::roles);
    roles.any(|role| role.os_updates == OsUpdates::Auto && role.image_line.is_some())
}

/// Begins the next update, if there is one and it may begin. `images` are all that
/// there are.
#[must_use]
pub fn begin(
    input: &Input,
    images: &[Kept<BlobRecord>],
    health: &HealthOf<'_>,
    now: WallTime,
) -> Plan {
    let mut plan = Plan::default();
    let deployments = || {
        let all = input.services.iter();
        all.flat_map(|service| {
            service
                .slots
                .iter()
                .map(move |(slot, one)| (service, *slot, one))
        })
    };
    let is_busy = |one: &Deployment| {
        one.under_way()
            .is_some_and(|update| matches!(update.cause, Cause::OsImage(_)))
    };
    if deployments().any(|(_, _, one)| is_busy(one)) {
        return plan;
    }
    let is_refused =
        |image: &BlobRecord| deployments().any(|(_, _, one)| one.refused.contains(&image.digest));
    let images: Vec<_> = images
        .iter()
        .filter(|kept| !is_refused(&kept.value))
        .collect();
    let mut all: Vec<_> = deployments().collect();
    all.sort_by_key(|(service, slot, _)| (*slot == Slot::Production, &service.name));
    for (service, slot, deployment) in all {
        let Some((version, image)) = newer(&deployment.version, &images) else {
            continue;
        };
        if deployment.under_way().is_some() || !is_well(input, service, deployment, health) {
            continue;
        }
        let name: &BlobName = &image.value.name;
        let cause = Cause::OsImage(name.to_string());
        let next = deployment.with(service.generation + 1, version, cause, now);
        let what = format!("OS image {name}");
        let version = Some(next.version.clone());
        let changed = rollout::with(service, slot, next, now);
        plan.revisions.push((
            service.name.clone(),
            Revision {
                number: changed.generation,
                time: now,
                who: FABRIC.to_owned(),
                what: what.clone(),
                slot,
                version,
            },
        ));
        plan.events.push(EventRecord::new(
            now,
            Reason::OsUpdateBegun,
            SubjectKind::Service,
            &service.name,
            format!("{slot}: {what}"),
        ));
        let key = records::blob(image.value.kind, name);
        plan.unchanged.insert(key, image.modified);
        plan.services.insert(service.name.clone(), changed);
        break;
    }
    plan
}

/// The version with newer images, and the last of those.
fn newer<'a>(
    version: &Version,
    images: &[&'a Kept<BlobRecord>],
) -> Option<(Version, &'a Kept<BlobRecord>)> {
    let mut newer = version.clone();
    let mut last = None;
    for role in &mut newer.roles {
        if let Some(image) = newer_image(role, images) {
            role.spec.image = BlobRef::of(image.value.name.to_string(), &image.value);
            last = Some(image);
        }
    }
    last.map(|image| (newer, image))
}

fn newer_image<'a>(
    role: &ServiceRole,
    images: &[&'a Kept<BlobRecord>],
) -> Option<&'a Kept<BlobRecord>> {
    let line = role.image_line.as_deref();
    let line = line.filter(|_| role.os_updates == OsUpdates::Auto)?;
    let has = &role.spec.image;
    let all = images.iter().map(|kept| &kept.value);
    let newest = os_line::newest(line, Some(has.architecture), all)?;
    let version = |name: &str| os_line::version_of(line, name);
    let is_newer = version(newest.name.as_str()) > version(&has.name);
    let wanted = is_newer && newest.digest != has.digest;
    let kept = images.iter().find(|kept| kept.value.name == newest.name);
    kept.copied().filter(|_| wanted)
}

/// Whether every instance is there and Ready.
fn is_well(
    input: &Input,
    service: &ServiceRecord,
    deployment: &Deployment,
    health: &HealthOf<'_>,
) -> bool {
    let wanted = deployment.instances(&service.name).unwrap_or_default();
    let there = input.instances.iter();
    let there: BTreeMap<_, _> = there.map(|one| (&one.id, one)).collect();
    wanted.iter().all(|(id, ..)| {
        let there = there.get(id);
        there.is_some_and(|one| health(one) == Health::Ready)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        architecture::Architecture,
        blob,
        instance::tests::spec,
        service::tests::service,
        update::{OnFailure, UpdateState},
    };

    const NOW: WallTime = WallTime::from_micros(5);

    fn image(name: &str, byte: u8) -> Kept<BlobRecord> {
        Kept {
            value: blob::tests::image(name, byte),
            modified: u64::from(byte),
        }
    }

    /// Services that follow `guest-os/1` and have `guest-os/1.0`; no instances.
    fn following(names: &[&str]) -> Input {
        let services = names.iter().map(|name| {
            let mut role = ServiceRole::of(spec(), 0);
            role.spec.image.name = "guest-os/1.0".to_owned();
            role.image_line = Some("guest-os/1".to_owned());
            role.os_updates = OsUpdates::Auto;
            service(name, vec![role])
        });
        Input {
            services: services.collect(),
            ..Input::default()
        }
    }

    fn turn(input: &mut Input, images: &[Kept<BlobRecord>]) -> Vec<String> {
        let plan = begin(input, images, &|_| Health::Ready, NOW);
        for service in &mut input.services {
            if let Some(changed) = plan.services.get(&service.name) {
                *service = changed.clone();
            }
        }
        plan.services.keys().map(ToString::to_string).collect()
    }

    fn deployment(input: &mut Input, index: usize) -> &mut Deployment {
        input.services[index]
            .slots
            .get_mut(&Slot::Production)
            .unwrap()
    }

    fn finish(input: &mut Input, index: usize, state: UpdateState) {
        let update = deployment(input, index).update.as_mut().unwrap();
        update.state = state;
    }

    #[test]
    fn one_follows_after_another() {
        let mut input = following(&["a", "b"]);
        let images = [
            image("guest-os/1.0", 1),
            image("guest-os/1.1", 2),
            image("other", 3),
        ];
        assert_eq!(turn(&mut input, &images), ["a"]);
        assert!(turn(&mut input, &images).is_empty(), "a is on its way");
        finish(&mut input, 0, UpdateState::Done);
        assert_eq!(turn(&mut input, &images), ["b"]);
        finish(&mut input, 1, UpdateState::Done);
        assert!(turn(&mut input, &images).is_empty(), "all have the newest");
    }

    #[test]
    fn an_image_for_other_processors_is_none_to_follow() {
        let mut input = following(&["a"]);
        let mut arm = image("guest-os/1.2", 3);
        arm.value.architecture = Architecture::Aarch64;
        assert!(turn(&mut input, &[arm.clone()]).is_empty());
        let images = [image("guest-os/1.1", 2), arm];
        assert_eq!(turn(&mut input, &images), ["a"]);
        let version = &deployment(&mut input, 0).version;
        assert_eq!(version.roles[0].spec.image.name, "guest-os/1.1");
    }

    #[test]
    fn it_stops_where_one_has_stopped_and_goes_on_when_that_is_mended() {
        let mut input = following(&["a", "b"]);
        let images = [image("guest-os/1.1", 2)];
        turn(&mut input, &images);
        finish(&mut input, 0, UpdateState::Stopped("bad".to_owned()));
        assert!(turn(&mut input, &images).is_empty());
        finish(&mut input, 0, UpdateState::Done);
        assert_eq!(turn(&mut input, &images), ["b"]);
    }

    #[test]
    fn an_image_that_one_was_taken_back_from_is_given_to_nobody_else() {
        let mut input = following(&["a", "b"]);
        let policy = &mut deployment(&mut input, 0).version.policy;
        policy.on_failure = OnFailure::Rollback;
        turn(&mut input, &[image("guest-os/1.1", 2)]);
        let back = deployment(&mut input, 0)
            .back(9, "bad".to_owned(), NOW)
            .unwrap();
        *deployment(&mut input, 0) = back;
        finish(&mut input, 0, UpdateState::Done);
        let images = [image("guest-os/1.1", 2)];
        assert!(turn(&mut input, &images).is_empty());
        let images = [image("guest-os/1.1", 2), image("guest-os/1.2", 3)];
        assert_eq!(turn(&mut input, &images), ["a"], "a newer one is tried");
    }

    #[test]
    fn a_service_that_is_not_well_is_left_alone() {
        let mut input = following(&["a"]);
        deployment(&mut input, 0).version.roles[0].instances = 1;
        assert!(turn(&mut input, &[image("guest-os/1.1", 2)]).is_empty());
    }
}
