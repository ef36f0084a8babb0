//! Reading JSON settings with errors that name the file, the field and the value seen.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::models::settings::Table;
use crate::ops::act::Activation;
use crate::{Error, Result};

/// A JSON object of a settings file, with its place in that file.
///
/// A field that is absent or `null` takes the default, as in transformers; a field of the wrong type is an error.
pub(crate) struct Fields {
    path: PathBuf,
    prefix: String,
    map: Map<String, Value>,
}

impl Fields {
    /// Reads a file that must hold one JSON object.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        let value: Value = serde_json::from_str(&text).map_err(|e| {
            Error::invalid(path, format!("line {}", e.line()), format!("not JSON: {e}"))
        })?;
        match value {
            Value::Object(map) => Ok(Self::of(path, map)),
            other => Err(Error::invalid(
                path,
                "",
                format!("holds {}, expected a JSON object", kind(&other)),
            )),
        }
    }

    /// Fields as they are; `path` stands for their file in errors.
    pub fn of(path: &Path, map: Map<String, Value>) -> Self {
        Self { path: path.into(), prefix: String::new(), map }
    }

    /// As [`Fields::read`]; `None` if there is no such file.
    pub fn read_if_present(path: &Path) -> Result<Option<Self>> {
        if path.is_file() { Self::read(path).map(Some) } else { Ok(None) }
    }

    /// Refuses fields that the table does not allow.
    pub fn check(&self, table: &Table) -> Result<()> {
        table.check(&self.map, &self.path)
    }

    /// The file these fields are from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The raw value; `None` if absent or null.
    pub fn value(&self, name: &str) -> Option<&Value> {
        self.map.get(name).filter(|v| !v.is_null())
    }

    /// Whether the field is there, even as null: an explicit null can mean "off" where absence means a default.
    pub fn has(&self, name: &str) -> bool {
        self.map.contains_key(name)
    }

    /// The object under `name`; `None` if absent or null.
    pub fn object(&self, name: &str) -> Result<Option<Fields>> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Fields {
                path: self.path.clone(),
                prefix: format!("{}{name}.", self.prefix),
                map: map.clone(),
            })),
            Some(other) => Err(self.wrong(name, other, "an object")),
        }
    }

    /// The object under `name`, empty if absent.
    pub fn object_or_empty(&self, name: &str) -> Result<Fields> {
        Ok(self.object(name)?.unwrap_or_else(|| Fields {
            path: self.path.clone(),
            prefix: format!("{}{name}.", self.prefix),
            map: Map::new(),
        }))
    }

    /// A non-negative integer.
    pub fn usize(&self, name: &str) -> Result<Option<usize>> {
        self.get(name, "a non-negative integer", |v| {
            v.as_u64().and_then(|n| usize::try_from(n).ok())
        })
    }

    /// A positive integer, `default` if absent.
    pub fn positive(&self, name: &str, default: usize) -> Result<usize> {
        match self.usize(name)? {
            Some(0) => Err(self.invalid(name, "is 0, expected a positive integer")),
            Some(n) => Ok(n),
            None => Ok(default),
        }
    }

    /// A number, `default` if absent.
    pub fn f64(&self, name: &str, default: f64) -> Result<f64> {
        Ok(self.get(name, "a number", Value::as_f64)?.unwrap_or(default))
    }

    /// A positive number that must be there.
    pub fn positive_f64(&self, name: &str) -> Result<f64> {
        let x = self.required_f64(name)?;
        if x.is_finite() && x > 0.0 {
            Ok(x)
        } else {
            Err(self.invalid(name, format!("is {x}, expected a positive number")))
        }
    }

    /// An activation by its name in transformers.
    pub fn activation(&self, name: &str, default: &str) -> Result<Activation> {
        let given = self.str(name)?.unwrap_or(default);
        Activation::from_name(given).ok_or_else(|| {
            Error::unsupported(
                format!("activation \"{given}\""),
                format!(
                    "{}: {name} may be gelu, gelu_pytorch_tanh, quick_gelu, relu or silu",
                    self.path.display()
                ),
            )
        })
    }

    /// A number that must be there.
    pub fn required_f64(&self, name: &str) -> Result<f64> {
        self.get(name, "a number", Value::as_f64)?
            .ok_or_else(|| self.invalid(name, "is missing, expected a number"))
    }

    /// A boolean, `default` if absent.
    pub fn bool(&self, name: &str, default: bool) -> Result<bool> {
        Ok(self.get(name, "true or false", Value::as_bool)?.unwrap_or(default))
    }

    /// A string; `None` if absent.
    pub fn str(&self, name: &str) -> Result<Option<&str>> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::String(s)) => Ok(Some(s)),
            Some(other) => Err(self.wrong(name, other, "a string")),
        }
    }

    /// Three numbers, one per colour channel; a single number stands for all three.
    pub fn channels(&self, name: &str, default: [f64; 3]) -> Result<[f64; 3]> {
        let Some(value) = self.value(name) else { return Ok(default) };
        if let Some(x) = value.as_f64() {
            return Ok([x; 3]);
        }
        let numbers: Option<Vec<f64>> =
            value.as_array().and_then(|a| a.iter().map(Value::as_f64).collect());
        numbers
            .and_then(|n| <[f64; 3]>::try_from(n).ok())
            .ok_or_else(|| self.wrong(name, value, "three numbers"))
    }

    /// Token ids: one integer or a list of them; empty if absent.
    pub fn ids(&self, name: &str) -> Result<Vec<u32>> {
        let id = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
        let Some(value) = self.value(name) else { return Ok(Vec::new()) };
        let ids = match value {
            Value::Array(list) => list.iter().map(id).collect::<Option<Vec<_>>>(),
            one => id(one).map(|id| vec![id]),
        };
        ids.ok_or_else(|| self.wrong(name, value, "a token id or a list of token ids"))
    }

    /// A pair list `[[a, b], ...]` of positive integers; `None` if absent.
    pub fn pairs(&self, name: &str) -> Result<Option<Vec<(usize, usize)>>> {
        let pair = |v: &Value| -> Option<(usize, usize)> {
            let [a, b] = v.as_array()?.as_slice() else { return None };
            let side = |v: &Value| {
                usize::try_from(v.as_u64()?).ok().filter(|&n| (1..=65_536).contains(&n))
            };
            Some((side(a)?, side(b)?))
        };
        let Some(value) = self.value(name) else { return Ok(None) };
        let pairs: Option<Vec<_>> = value.as_array().and_then(|a| a.iter().map(pair).collect());
        pairs
            .filter(|p| !p.is_empty())
            .map(Some)
            .ok_or_else(|| self.wrong(name, value, "a list of pairs of sides in 1..=65536"))
    }

    /// An [`Error::Invalid`] about a field.
    pub fn invalid(&self, name: &str, message: impl Into<String>) -> Error {
        Error::invalid(&self.path, format!("field {}{name}", self.prefix), message)
    }

    fn get<T>(
        &self,
        name: &str,
        expected: &str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.value(name) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| self.wrong(name, value, expected))
    }

    /// The error for a value of the wrong type.
    pub fn wrong(&self, name: &str, value: &Value, expected: &str) -> Error {
        let mut seen = value.to_string();
        if let Some((cut, _)) = seen.char_indices().nth(80) {
            seen.truncate(cut);
            seen.push_str("...");
        }
        self.invalid(name, format!("is {seen}, expected {expected}"))
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
