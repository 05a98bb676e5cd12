//! Reads JSON the way CNI's configurations are written.
//!
//! The Go decoder that nearly all of them were written for matches keys in any case and takes
//! `null` for absence (plugins in use write `bandWidth`, runtimes send `"portMappings": null`).

use serde_json::{Map, Value};

use super::error::{CniError, code};

/// The value of `key`, matched exactly or else in any case; `null` counts as absent.
pub fn field<'a>(map: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    let folded = || map.iter().find(|(name, _)| name.eq_ignore_ascii_case(key));
    map.get(key).or_else(|| folded().map(|(_, value)| value)).filter(|value| !value.is_null())
}

/// The object at `key`, or `None` when the key is absent.
///
/// # Errors
/// Code 7 naming `path` when the value is something else.
pub fn object<'a>(
    map: &'a Map<String, Value>,
    key: &str,
    path: &str,
) -> Result<Option<&'a Map<String, Value>>, CniError> {
    let Some(value) = field(map, key) else {
        return Ok(None);
    };
    value.as_object().map(Some).ok_or_else(|| wrong(path, "an object", value))
}

/// The string at `key`, or `None` when the key is absent.
///
/// # Errors
/// Code 7 naming `path` when the value is something else.
pub fn string<'a>(
    map: &'a Map<String, Value>,
    key: &str,
    path: &str,
) -> Result<Option<&'a str>, CniError> {
    let Some(value) = field(map, key) else {
        return Ok(None);
    };
    value.as_str().map(Some).ok_or_else(|| wrong(path, "a string", value))
}

/// The truth value at `key`, or `None` when the key is absent.
///
/// # Errors
/// Code 7 naming `path` when the value is something else.
pub fn boolean(map: &Map<String, Value>, key: &str, path: &str) -> Result<Option<bool>, CniError> {
    let Some(value) = field(map, key) else {
        return Ok(None);
    };
    value.as_bool().map(Some).ok_or_else(|| wrong(path, "true or false", value))
}

/// The list at `key`; an absent key is an empty list.
///
/// # Errors
/// Code 7 naming `path` when the value is something else.
pub fn list<'a>(
    map: &'a Map<String, Value>,
    key: &str,
    path: &str,
) -> Result<&'a [Value], CniError> {
    let Some(value) = field(map, key) else {
        return Ok(&[]);
    };
    value.as_array().map(Vec::as_slice).ok_or_else(|| wrong(path, "a list", value))
}

/// The strings of the list at `key`; an absent key is an empty list.
///
/// # Errors
/// Code 7 naming `path` when the value is no list of strings.
pub fn strings<'a>(
    map: &'a Map<String, Value>,
    key: &str,
    path: &str,
) -> Result<Vec<&'a str>, CniError> {
    list(map, key, path)?
        .iter()
        .map(|value| value.as_str().ok_or_else(|| wrong(path, "a list of strings", value)))
        .collect()
}

/// The error for a value of the wrong kind: names the key and the value, as the specification
/// wants of a plugin that refuses a field.
pub fn wrong(path: &str, expected: &str, value: &Value) -> CniError {
    invalid(path, &value.to_string(), &format!("it must be {expected}"))
}

/// The error for a value that cannot be used; `why` says what is expected.
pub fn invalid(path: &str, value: &str, why: &str) -> CniError {
    CniError::new(
        code::INVALID_CONFIG,
        format!("The configuration's {path} is {}: {why}", brief(value)),
    )
}

/// The error for a value that asks for what does not exist here; `why` ends the sentence with what
/// to do. Code 2 wants key and value in the message (SPEC.md, "Error").
pub fn unsupported(path: &str, value: &Value, why: &str) -> CniError {
    let value = brief(&value.to_string());
    CniError::new(code::UNSUPPORTED_FIELD, format!("{path} = {value} is not supported {why}"))
}

/// Longest quotation of a configuration in a message, in characters: a message is one line of a
/// log.
const QUOTE_CHARS_MAX: usize = 200;

/// `text`, cut to what fits in a message.
pub fn brief(text: &str) -> String {
    match text.char_indices().nth(QUOTE_CHARS_MAX) {
        Some((end, _)) => format!("{}...", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}
