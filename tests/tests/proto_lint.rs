//! The contracts keep the rules that clients in any language rely on (those of
//! Buf's `STANDARD` set that apply), and every part of them is documented.

#![allow(clippy::expect_used, reason = "a helper of a test")]

use std::collections::BTreeSet;

use prost::Message as _;
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto,
    FileDescriptorSet, ServiceDescriptorProto,
};

/// Field numbers in `descriptor.proto` that lead to a commented element.
mod path {
    pub const FILE_MESSAGE: i32 = 4;
    pub const FILE_ENUM: i32 = 5;
    pub const FILE_SERVICE: i32 = 6;
    pub const MESSAGE_FIELD: i32 = 2;
    pub const MESSAGE_ONEOF: i32 = 8;
    pub const ENUM_VALUE: i32 = 2;
    pub const SERVICE_METHOD: i32 = 2;
}

/// Our own files; those of Google's well-known types keep rules of their own.
fn files() -> Vec<FileDescriptorProto> {
    let set = FileDescriptorSet::decode(fabric_proto::FILE_DESCRIPTOR_SET).expect("descriptors");
    let ours: Vec<_> = set
        .file
        .into_iter()
        .filter(|file| file.name().starts_with("fabric/"))
        .collect();
    assert_eq!(ours.len(), 4, "three packages, four files");
    ours
}

fn messages() -> Vec<DescriptorProto> {
    files()
        .into_iter()
        .flat_map(|file| file.message_type)
        .collect()
}

fn enums() -> Vec<EnumDescriptorProto> {
    files()
        .into_iter()
        .flat_map(|file| file.enum_type)
        .collect()
}

fn services() -> Vec<(String, ServiceDescriptorProto)> {
    files()
        .into_iter()
        .flat_map(|file| {
            let package = file.package().to_owned();
            file.service
                .into_iter()
                .map(move |service| (package.clone(), service))
        })
        .collect()
}

fn is_pascal_case(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_uppercase()) && !name.contains('_')
}

fn is_lower_snake_case(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_lowercase())
        && name
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

/// `RoleState` → `ROLE_STATE`.
fn upper_snake_case(name: &str) -> String {
    let mut text = String::new();
    for c in name.chars() {
        if c.is_ascii_uppercase() && !text.is_empty() {
            text.push('_');
        }
        text.push(c.to_ascii_uppercase());
    }
    text
}

#[test]
fn packages_carry_a_version_and_stand_in_the_folder_of_their_name() {
    for file in files() {
        let (package, name) = (file.package(), file.name());
        assert!(
            package.ends_with(".v1"),
            "{name}: package {package} has no version"
        );
        let folder = package.replace('.', "/");
        assert!(
            name.rsplit_once('/').is_some_and(|(at, _)| at == folder),
            "{name} does not stand in {folder}",
        );
    }
}

#[test]
fn names_are_in_the_case_of_their_kind() {
    for message in messages() {
        assert!(is_pascal_case(message.name()), "message {}", message.name());
        for field in &message.field {
            let name = field.name();
            assert!(is_lower_snake_case(name), "field {}.{name}", message.name());
        }
    }
    for (_, service) in services() {
        assert!(
            service.name().ends_with("Service"),
            "service {}",
            service.name()
        );
        for method in &service.method {
            assert!(is_pascal_case(method.name()), "method {}", method.name());
        }
    }
}

#[test]
fn enum_values_carry_the_name_of_their_enum_and_zero_says_nothing() {
    for e in enums() {
        let prefix = upper_snake_case(e.name());
        for value in &e.value {
            assert!(
                value.name().starts_with(&format!("{prefix}_")),
                "{}",
                value.name()
            );
        }
        let zero = e
            .value
            .iter()
            .find(|value| value.number() == 0)
            .expect("a zero value");
        assert_eq!(zero.name(), format!("{prefix}_UNSPECIFIED"));
    }
}

#[test]
fn every_call_has_a_request_and_a_response_of_its_own() {
    let mut seen = BTreeSet::new();
    for (package, service) in services() {
        for method in &service.method {
            let call = method.name();
            assert_eq!(method.input_type(), format!(".{package}.{call}Request"));
            assert_eq!(method.output_type(), format!(".{package}.{call}Response"));
            assert!(
                seen.insert(format!("{package}.{call}")),
                "{package}.{call} stands twice"
            );
        }
    }
}

#[test]
fn every_call_that_changes_something_carries_a_request_id() {
    let reads = ["List", "Get", "Watch", "Stream", "Explain", "Simulate"];
    for (package, service) in services()
        .iter()
        .filter(|(package, _)| package == "fabric.v1")
    {
        for method in &service.method {
            let name = method.name();
            // `Upload` is idempotent by digest and offset; `BeginUpload` opens it.
            if name == "Upload" || reads.iter().any(|verb| name.starts_with(verb)) {
                continue;
            }
            let request = messages()
                .into_iter()
                .find(|message| message.name() == format!("{name}Request"))
                .expect("the request");
            assert!(
                request
                    .field
                    .iter()
                    .any(|field| field.name() == "request_id"),
                "{package}.{name} has no request_id",
            );
        }
    }
}

#[test]
fn every_message_field_enum_value_service_and_call_is_documented() {
    for file in files() {
        let info = file
            .source_code_info
            .as_ref()
            .expect("descriptors carry the comments");
        let documented: BTreeSet<Vec<i32>> = info
            .location
            .iter()
            .filter(|at| !at.leading_comments().trim().is_empty())
            .map(|at| at.path.clone())
            .collect();
        for (path, what) in elements(&file) {
            assert!(
                documented.contains(&path),
                "{}: {what} is not documented",
                file.name()
            );
        }
    }
}

/// Every element that must be documented: its path in the file, and its name.
fn elements(file: &FileDescriptorProto) -> Vec<(Vec<i32>, String)> {
    let mut all = Vec::new();
    let index = |i: usize| i32::try_from(i).expect("few elements");
    for (i, message) in file.message_type.iter().enumerate() {
        let at = vec![path::FILE_MESSAGE, index(i)];
        let child = |kind, j| [at.clone(), vec![kind, index(j)]].concat();
        for (j, field) in message.field.iter().enumerate() {
            let name = format!("{}.{}", message.name(), field.name());
            all.push((child(path::MESSAGE_FIELD, j), name));
        }
        for (j, oneof) in message.oneof_decl.iter().enumerate() {
            // One that the compiler makes of an `optional` field is nowhere in the text.
            let of_it = |field: &&FieldDescriptorProto| field.oneof_index == Some(index(j));
            let mut fields = message.field.iter().filter(of_it);
            if fields.any(FieldDescriptorProto::proto3_optional) {
                continue;
            }
            let name = format!("{}.{}", message.name(), oneof.name());
            all.push((child(path::MESSAGE_ONEOF, j), name));
        }
        all.push((at, message.name().to_owned()));
    }
    for (i, e) in file.enum_type.iter().enumerate() {
        let at = vec![path::FILE_ENUM, index(i)];
        for (j, value) in e.value.iter().enumerate() {
            let path = [at.clone(), vec![path::ENUM_VALUE, index(j)]].concat();
            all.push((path, value.name().to_owned()));
        }
        all.push((at, e.name().to_owned()));
    }
    for (i, service) in file.service.iter().enumerate() {
        let at = vec![path::FILE_SERVICE, index(i)];
        for (j, method) in service.method.iter().enumerate() {
            let path = [at.clone(), vec![path::SERVICE_METHOD, index(j)]].concat();
            all.push((path, format!("{}.{}", service.name(), method.name())));
        }
        all.push((at, service.name().to_owned()));
    }
    all
}
