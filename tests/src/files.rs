//! The repository's own files as tests read them: text, YAML, and what stands in it.

use serde_json::Value;
use std::path::{Path, PathBuf};

/// Returns the path of a file of the repository.
pub fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name)
}

/// Returns a file's text.
///
/// # Panics
/// When it cannot be read.
pub fn text(name: &str) -> String {
    std::fs::read_to_string(file(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Returns the one document of a YAML file.
///
/// # Panics
/// When it is no such file.
pub fn yaml(name: &str) -> Value {
    serde_saphyr::from_str(&text(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Returns every document of a YAML text.
///
/// # Panics
/// When it is none.
pub fn documents(text: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(text).unwrap_or_else(|error| panic!("no YAML: {error}"))
}

/// Returns the items of a list, and none of what is no list.
pub fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// Returns a text.
///
/// # Panics
/// When the value is none.
pub fn word(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("a text, not {value}"))
}
