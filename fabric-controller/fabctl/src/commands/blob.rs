//! `fabctl image` and `fabctl package`

use std::path::PathBuf;

use fabric_proto::v1::{
    BeginUploadRequest, Blob, BlobKind, DeleteBlobRequest, GetBlobRequest, ListBlobsRequest,
};

use super::{Context, upload};
use crate::{
    cli::{Architecture, BlobCommand, Format},
    client::request_id,
    error::{Failure, Result},
    show::{self, json, table, words},
};

/// Uploads a file, given as NAME FILE or FILE alone.
pub(super) async fn upload(
    context: &Context,
    kind: BlobKind,
    name_and_file: Vec<String>,
    architecture: Option<Architecture>,
) -> Result<()> {
    let (name, file) = self::name_and_file(name_and_file)?;
    let begin = BeginUploadRequest {
        name,
        kind: kind.into(),
        architecture: architecture.map_or("", Architecture::word).to_owned(),
        ..BeginUploadRequest::default()
    };
    let blob = upload::upload(context, begin, &file).await?;
    uploaded(context, kind, &blob)
}

pub(super) async fn run(context: &Context, kind: BlobKind, command: BlobCommand) -> Result<()> {
    let mut blobs = context.client.blobs();
    match command {
        BlobCommand::List => {
            let answer = blobs
                .list_blobs(ListBlobsRequest { kind: kind.into() })
                .await?;
            let blobs = answer.into_inner().blobs;
            match context.format {
                Format::Table => show::print_line(&table::blobs(&blobs, kind)),
                Format::Json => show::print_json(&blobs.iter().map(json::blob).collect()),
            }
        }
        BlobCommand::Show(blob) => {
            let request = GetBlobRequest {
                name: blob.name,
                kind: kind.into(),
            };
            let answer = blobs.get_blob(request).await?.into_inner();
            let shown = json::blob(&answer.blob.ok_or(Failure::Answer("blob"))?);
            match context.format {
                Format::Table => show::print_line(&table::details(&shown)),
                Format::Json => show::print_json(&shown),
            }
        }
        BlobCommand::Delete(blob) => {
            let name = blob.name.clone();
            let request = DeleteBlobRequest {
                name: blob.name,
                kind: kind.into(),
                request_id: request_id(),
            };
            blobs.delete_blob(request).await?;
            match context.format {
                Format::Table => {
                    show::print_line(&format!("deleted {} {name}", words::blob_kind(kind)))
                }
                Format::Json => show::print_json(&serde_json::json!({ "deleted": name })),
            }
        }
    }
}

/// The name can be left out: it is then the file's.
fn name_and_file(mut given: Vec<String>) -> Result<(String, PathBuf)> {
    let file = PathBuf::from(given.pop().unwrap_or_default());
    if let Some(name) = given.pop() {
        return Ok((name, file));
    }
    let name = file
        .file_stem()
        .and_then(|name| name.to_str())
        .map(str::to_owned);
    let name = name.ok_or_else(|| {
        Failure::Input(format!(
            "{} has no name to upload it under; give NAME FILE",
            file.display()
        ))
    })?;
    Ok((name, file))
}

fn uploaded(context: &Context, kind: BlobKind, blob: &Blob) -> Result<()> {
    match context.format {
        Format::Table => show::print_line(&format!(
            "{} {} is there: {}, {}, a {} disk of {}{}",
            words::blob_kind(kind),
            blob.name,
            blob.digest,
            words::bytes(blob.size_bytes),
            blob.vhd_type,
            words::bytes(blob.virtual_bytes),
            match blob.architecture.as_str() {
                "" => String::new(),
                architecture => format!(", for {architecture}"),
            }
        )),
        Format::Json => show::print_json(&json::blob(blob)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_can_be_the_files() {
        let given = |words: &[&str]| {
            name_and_file(words.iter().map(|word| (*word).to_owned()).collect()).unwrap()
        };
        assert_eq!(
            given(&["guest-os", "a.vhd"]),
            ("guest-os".to_owned(), PathBuf::from("a.vhd"))
        );
        assert_eq!(
            given(&["dir/a.vhd"]),
            ("a".to_owned(), PathBuf::from("dir/a.vhd"))
        );
    }
}
