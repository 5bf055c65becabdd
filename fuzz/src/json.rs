//! JSON that is nearly what is expected: a document that is right, and few edits.

use arbitrary::Arbitrary;
use serde_json::Value;

/// A change of one value in a document.
#[derive(Arbitrary, Debug, Clone)]
pub struct Edit {
    path: [u8; 4],
    change: Change,
}

#[derive(Arbitrary, Debug, Clone)]
enum Change {
    Number(i64),
    Unsigned(u64),
    Float(f64),
    Bool(bool),
    Text(String),
    Null,
    Empty,
    Remove,
    Double,
    Add(String),
}

impl Edit {
    /// Makes the change at a place that depends on the document.
    pub fn apply(&self, document: &mut Value) {
        let place = place(document, &self.path);
        match &self.change {
            Change::Number(number) => *place = (*number).into(),
            Change::Unsigned(number) => *place = (*number).into(),
            Change::Float(number) => *place = (*number).into(),
            Change::Bool(value) => *place = (*value).into(),
            Change::Text(text) => *place = text.as_str().into(),
            Change::Null => *place = Value::Null,
            Change::Empty => empty(place),
            Change::Remove => remove(place),
            Change::Double => double(place),
            Change::Add(name) => add(place, name),
        }
    }
}

fn children(value: &Value) -> usize {
    match value {
        Value::Array(list) => list.len(),
        Value::Object(map) => map.len(),
        _ => 0,
    }
}

/// The place to which steps lead; one past the last child, or into what has none,
/// ends the way.
fn place<'a>(value: &'a mut Value, steps: &[u8]) -> &'a mut Value {
    let count = children(value);
    let Some((step, rest)) = steps.split_first() else {
        return value;
    };
    let index = usize::from(*step) % (count + 1);
    if index == count {
        return value;
    }
    match value {
        Value::Array(list) => place(&mut list[index], rest),
        Value::Object(map) => {
            let name = map.keys().nth(index).cloned().unwrap_or_default();
            place(&mut map[&name], rest)
        }
        other => other,
    }
}

fn empty(value: &mut Value) {
    match value {
        Value::Array(list) => list.clear(),
        Value::Object(map) => map.clear(),
        Value::String(text) => text.clear(),
        other => *other = 0.into(),
    }
}

fn remove(value: &mut Value) {
    match value {
        Value::Array(list) => drop(list.pop()),
        Value::Object(map) => {
            let first = map.keys().next().cloned();
            first.and_then(|name| map.remove(&name));
        }
        other => *other = Value::Null,
    }
}

fn double(value: &mut Value) {
    if let Value::Array(list) = value {
        list.extend_from_within(..list.len().min(64));
    }
}

fn add(value: &mut Value, name: &str) {
    if let Value::Object(map) = value {
        map.insert(name.to_owned(), true.into());
    }
}
