//! Images and packages that are named and have nothing in them.

use std::{collections::BTreeMap, sync::Arc, time::SystemTime};

use anyhow::Context as _;
use async_trait::async_trait;
use bytes::Bytes;
use fabric_controller::model::{
    architecture::Architecture,
    blob::{BlobKind, BlobRecord, VhdFacts},
    time::WallTime,
};
use fabric_proto::id::Digest;
use host_agent::blobs::source::{BlobSource, Pieces, SourceError};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;
use vhd::{CreateOptions, Identity};

use crate::{
    host::BEGINNING,
    network::{HostId, Network},
    world::CONTROLLER,
};

/// As small as it can be.
const SIZE: u64 = 1 << 20;

/// Everything that has been uploaded.
#[derive(Debug, Clone, Default)]
pub struct Shelf {
    bytes: BTreeMap<Digest, Bytes>,
    /// What the controller is told of it.
    pub records: Vec<BlobRecord>,
}

impl Shelf {
    /// Puts a disk of that name there.
    ///
    /// # Errors
    ///
    /// It cannot be made.
    pub fn add(&mut self, kind: BlobKind, name: &str) -> anyhow::Result<()> {
        let known = |one: &BlobRecord| one.kind == kind && one.name.as_str() == name;
        if self.records.iter().any(known) {
            return Ok(());
        }
        let name = name.parse().context("the name of an image or package")?;
        let sum = Sha256::digest(format!("{kind} {name}"));
        let mut id = [0; 16];
        id.copy_from_slice(&sum[..16]);
        let place = tempfile::tempdir()?;
        let path = place.path().join("disk.vhd");
        let options = CreateOptions {
            identity: Identity {
                unique_id: Uuid::from_bytes(id),
                time_stamp: (SystemTime::UNIX_EPOCH + BEGINNING).into(),
            },
            ..CreateOptions::new(SIZE)
        };
        vhd::create_dynamic(&path, &options)?;
        let bytes = Bytes::from(std::fs::read(&path)?);
        let digest = Digest::of_sha256(&Sha256::digest(&bytes).into());
        self.records.push(BlobRecord {
            name,
            kind,
            digest: digest.clone(),
            size_bytes: bytes.len() as u64,
            vhd: VhdFacts {
                virtual_bytes: SIZE,
                vhd_type: "dynamic".to_owned(),
            },
            architecture: Architecture::X86_64,
            created: WallTime::from_micros(u64::try_from(BEGINNING.as_micros())?),
        });
        self.bytes.insert(digest, bytes);
        Ok(())
    }
}

impl Shelf {
    /// What lies there, by digest.
    pub fn files(&self) -> impl Iterator<Item = (&Digest, &Bytes)> {
        self.bytes.iter()
    }
}

/// The shelf at the other end of the network.
#[derive(Debug)]
pub struct Download {
    /// What is there.
    pub shelf: Arc<Shelf>,
    /// The way.
    pub network: Network,
    /// Who fetches.
    pub host: HostId,
}

#[async_trait]
impl BlobSource for Download {
    async fn fetch(&self, digest: &Digest, offset: u64) -> Result<Pieces, SourceError> {
        let unavailable = |why: String| Box::new(tonic::Status::unavailable(why));
        // The bytes are taken from the shelf, if the controller can be reached.
        let way = self.network.clone().dial(self.host, CONTROLLER).await;
        way.map_err(|error| unavailable(error.to_string()))?;
        let bytes = self.shelf.bytes.get(digest).cloned();
        let bytes = bytes.ok_or_else(|| unavailable("no such blob".to_owned()))?;
        let from = usize::try_from(offset)
            .unwrap_or(usize::MAX)
            .min(bytes.len());
        Ok(Box::pin(tokio_stream::once(Ok(bytes.slice(from..)))))
    }
}
