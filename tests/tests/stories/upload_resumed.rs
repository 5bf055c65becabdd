//! An upload that was cut off goes on where it was, and a wrong file is refused.

use std::fs;

use anyhow::{Context as _, ensure};
use fabric_proto::{
    id::Digest,
    v1::{BeginUploadRequest, BlobKind, UploadRequest, blob_service_client::BlobServiceClient},
};
use fabric_tests::{Cluster, Story, eventually, story};
use sha2::{Digest as _, Sha256};

/// Bytes in one message.
const CHUNK: usize = 256 << 10;

pub(crate) const STORIES: &[Story] = &[story!(an_upload_goes_on_where_it_was_cut_off)];

async fn an_upload_goes_on_where_it_was_cut_off() -> anyhow::Result<()> {
    let mut cluster = Cluster::start().await?;
    let file = fs::read(&cluster.place.guest_os)?;
    let digest = Digest::of_sha256(&Sha256::digest(&file).into()).to_string();
    let begin = BeginUploadRequest {
        name: "guest-os".to_owned(),
        kind: BlobKind::Image.into(),
        digest: digest.clone(),
        size_bytes: file.len() as u64,
        ..BeginUploadRequest::default()
    };

    // Half of it, then the sender is gone, and so is the controller.
    let mut blobs = BlobServiceClient::new(cluster.channel());
    let offset = blobs.begin_upload(begin.clone()).await?.into_inner().offset;
    ensure!(
        offset == 0,
        "nothing was there, and yet it begins at {offset}"
    );
    let half = file.len() / 2;
    let pieces: Vec<_> = file[..half]
        .chunks(CHUNK)
        .scan(0u64, |at, data| {
            let offset = *at;
            *at += data.len() as u64;
            let digest = if offset == 0 {
                digest.clone()
            } else {
                String::new()
            };
            Some(UploadRequest {
                digest,
                offset,
                data: data.to_vec().into(),
            })
        })
        .collect();
    let cut_off = blobs.upload(tokio_stream::iter(pieces)).await;
    ensure!(cut_off.is_err(), "half a file was taken for a whole one");
    cluster.controller.kill()?;
    cluster.controller.start_again()?;
    cluster.until_node_is_connected().await?;

    // It knows how much it has.
    let offset = eventually(fabric_tests::SOON, "an offset", || async {
        let mut blobs = BlobServiceClient::new(cluster.channel());
        let answer = blobs
            .begin_upload(begin.clone())
            .await
            .map_err(|e| e.to_string())?;
        Ok(answer.into_inner().offset)
    })
    .await?;
    ensure!(
        offset > 0 && offset <= half as u64,
        "goes on at {offset} of {half}"
    );

    cluster.upload_guest_os()?;
    let shown: serde_json::Value =
        serde_json::from_str(&cluster.fabctl(&["--output", "json", "image", "list"])?)?;
    let image = shown
        .as_array()
        .and_then(|images| images.first())
        .context("no image")?;
    ensure!(image["digest"] == digest.as_str(), "{image}");
    Ok(())
}
