//! Building JSON objects whose empty fields are left out.
//!
//! Owns: the builder and the common parts (version, times, durations).
//! Does not know: any object.
//! Invariant: fields stand in the order in which they were added.

use base::{Millis, Timestamp};
use serde_json::{Map, Value, json};
use types::{Labels, Meta};

/// A JSON object under construction.
#[derive(Default)]
pub(crate) struct Object(Map<String, Value>);

impl Object {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// A field that is always there.
    pub(crate) fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.0.insert(name.into(), value.into());
        self
    }

    /// A field that is left out when it is null, false, zero, or an empty text, list or object.
    pub(crate) fn filled(self, name: &str, value: impl Into<Value>) -> Self {
        let value = value.into();
        let empty = match &value {
            Value::Null => true,
            Value::Bool(flag) => !flag,
            Value::Number(number) => number.as_f64() == Some(0.0),
            Value::String(text) => text.is_empty(),
            Value::Array(items) => items.is_empty(),
            Value::Object(fields) => fields.is_empty(),
        };
        if empty { self } else { self.with(name, value) }
    }

    /// `ID` has been added: the index and times that follow it everywhere.
    pub(crate) fn meta(self, meta: &Meta) -> Self {
        self.with("Version", json!({ "Index": meta.spec_version }))
            .with("CreatedAt", time(meta.created))
            .with("UpdatedAt", time(meta.updated))
    }

    pub(crate) fn build(self) -> Value {
        Value::Object(self.0)
    }
}

impl From<Object> for Value {
    fn from(object: Object) -> Self {
        object.build()
    }
}

/// RFC 3339.
pub(crate) fn time(at: Timestamp) -> Value {
    at.to_string().into()
}

/// Nanoseconds.
pub(crate) fn nanos(length: Millis) -> Value {
    length.0.saturating_mul(1_000_000).into()
}

pub(crate) fn map(labels: &Labels) -> Value {
    json!(labels)
}
