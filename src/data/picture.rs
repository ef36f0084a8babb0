//! A picture of a row: a file, bytes that are in memory, or bytes that still lie in the data file.

use std::borrow::Cow;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::image;
use super::json::kind;
use super::row::{Bad, Reason, Row};
use super::shapes;
use super::table::{Shared, Want};
use crate::{Error, Result};

/// A picture. It is decoded when it is asked for.
#[derive(Clone, Debug)]
pub struct Picture {
    /// Its file; of one that lies in a data file, that file, the row and the place in the row.
    name: PathBuf,
    content: Content,
}

#[derive(Clone, Debug)]
enum Content {
    File,
    Bytes(Arc<[u8]>),
    /// Row of a table, and which of its pictures.
    Row {
        table: Shared,
        row: usize,
        nth: usize,
    },
}

/// Pictures are the same if their names are.
impl PartialEq for Picture {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Picture {}

impl From<PathBuf> for Picture {
    fn from(name: PathBuf) -> Self {
        Self { name, content: Content::File }
    }
}

impl Picture {
    /// Names the picture: the path of a file, or the place in a data file. Two pictures of one name are the same.
    pub fn name(&self) -> &Path {
        &self.name
    }

    /// Its file, if it is one.
    pub fn file(&self) -> Option<&Path> {
        matches!(self.content, Content::File).then_some(&*self.name)
    }

    /// Its encoded bytes.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn read(&self) -> Result<Cow<'_, [u8]>> {
        match &self.content {
            Content::File => {
                Ok(Cow::Owned(std::fs::read(&self.name).map_err(Error::io(&self.name))?))
            }
            Content::Bytes(bytes) => Ok(Cow::Borrowed(bytes)),
            Content::Row { table, row, nth } => {
                let mut found = None;
                table.read(&[*row], Want::All, &mut |_, row| {
                    found = values(&row).1.get(*nth).and_then(|value| bytes(&row, value));
                    Ok(())
                })?;
                let gone = || Error::invalid(&self.name, "", "is not in the data file any more");
                Ok(Cow::Owned(found.ok_or_else(gone)?.to_vec()))
            }
        }
    }

    /// Decodes it: see [`image::open`].
    ///
    /// # Errors
    /// As there.
    pub fn open(&self) -> Result<::image::RgbImage> {
        self.open_as(true)
    }

    /// As [`Picture::open`]; the EXIF orientation is applied only if `turned` says so.
    ///
    /// # Errors
    /// As there.
    pub fn open_as(&self, turned: bool) -> Result<::image::RgbImage> {
        image::decode_as(&self.read()?, &self.name, turned)
    }

    /// Width and height in pixels, from its header.
    ///
    /// # Errors
    /// As [`image::dimensions`].
    pub fn dimensions(&self) -> Result<(u32, u32)> {
        self.dimensions_as(true)
    }

    /// Those of what [`Picture::open_as`] returns.
    ///
    /// # Errors
    /// As [`image::dimensions`].
    pub fn dimensions_as(&self, turned: bool) -> Result<(u32, u32)> {
        image::dimensions_of(&self.read()?, &self.name, turned)
    }

    /// BLAKE3 of its encoded bytes: its identity, wherever it lies.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn content_hash(&self) -> Result<[u8; 32]> {
        Ok(*blake3::hash(&self.read()?).as_bytes())
    }

    /// The same picture, its bytes left in the table that they are from.
    pub(crate) fn in_table(self, table: &Shared, row: usize, nth: usize) -> Self {
        let content = match self.content {
            Content::File => Content::File,
            _ => Content::Row { table: table.clone(), row, nth },
        };
        Self { content, ..self }
    }
}

/// Where pictures may lie.
#[derive(Clone, Debug)]
pub(crate) struct Folders {
    /// The folder as given, absolute, and as it really is.
    given: PathBuf,
    real: PathBuf,
    /// Take links that lead out of it.
    allow_links: bool,
    /// Take absolute paths that lie elsewhere.
    anywhere: bool,
}

impl Folders {
    /// # Errors
    /// A folder that does not exist.
    pub fn new(folder: &Path, allow_links: bool, anywhere: bool) -> Result<Self> {
        let real = folder.canonicalize().map_err(Error::io(folder))?;
        let given = std::path::absolute(folder).map_err(Error::io(folder))?;
        Ok(Self { given, real, allow_links, anywhere })
    }

    /// The file of a path, if it lies inside.
    pub fn find(&self, field: &str, text: &str) -> Result<PathBuf, Bad> {
        if text.starts_with("http://") || text.starts_with("https://") {
            let message =
                format!("{text:?} is an address, expected a file: fetch the pictures first");
            return Err(Bad::new(Reason::MissingPicture, field, message));
        }
        let path = Path::new(text.strip_prefix("file://").unwrap_or(text));
        let inside = |path: &Path| path.starts_with(&self.given) || path.starts_with(&self.real);
        let climbs = path.components().any(|part| part == Component::ParentDir);
        let named_inside = !climbs && (path.is_relative() || inside(path));
        let anywhere = self.anywhere && path.is_absolute();
        let outside = || {
            let folder = self.real.display();
            let message = format!(
                "{text:?} is absolute or has .., expected a path inside {folder}; --images names another folder"
            );
            Bad::new(Reason::PictureOutside, field, message)
        };
        let path = self.real.join(path);
        let real = match path.canonicalize() {
            Ok(real) => real,
            Err(error) if named_inside || anywhere => {
                let message = format!("{}: {error}", path.display());
                return Err(Bad::new(Reason::MissingPicture, field, message));
            }
            Err(_) => return Err(outside()),
        };
        if !inside(&real) && !anywhere {
            if !named_inside {
                return Err(outside());
            }
            if !self.allow_links {
                let message = format!(
                    "{text:?} leads to {}, outside {}; --allow-links (data.allow_links = true) follows links",
                    real.display(),
                    self.real.display()
                );
                return Err(Bad::new(Reason::PictureOutside, field, message));
            }
        }
        if !real.is_file() {
            let message = format!("{} is not a file", real.display());
            return Err(Bad::new(Reason::MissingPicture, field, message));
        }
        Ok(real)
    }
}

/// The pictures of a row, in order. `file` is the row's own.
pub(crate) fn pictures(row: &Row, folders: &Folders, file: &Path) -> Result<Vec<Picture>, Bad> {
    let (field, values) = values(row);
    let one = |(nth, value): (usize, &Value)| {
        if let Some(bytes) = bytes(row, value) {
            let place = format!("{} {} picture {}", file.display(), row.place, nth + 1);
            return Ok(Picture { name: place.into(), content: Content::Bytes(bytes) });
        }
        let path = match value {
            Value::Object(fields) => fields.get("path").unwrap_or(&Value::Null),
            value => value,
        };
        match path.as_str().filter(|text| !text.trim().is_empty()) {
            Some(text) => folders.find(field, text).map(Picture::from),
            None => Err(Bad::malformed(field, format!("is {}, expected a path", kind(path)))),
        }
    };
    values.into_iter().enumerate().map(one).collect()
}

/// The column of a row's pictures, and its values.
fn values(row: &Row) -> (&'static str, Vec<&Value>) {
    let field = shapes::picture_column(row).unwrap_or("image");
    let values = match row.get(field) {
        Some(Value::Array(values)) => values.iter().collect(),
        Some(value) => vec![value],
        None => Vec::new(),
    };
    (field, values)
}

/// The bytes of a picture: a value of bytes, an object with such a value, or a `data:` address.
fn bytes(row: &Row, value: &Value) -> Option<Arc<[u8]>> {
    if let Some(text) = value.as_str() {
        let (_, coded) = text.strip_prefix("data:image/")?.split_once(";base64,")?;
        return Some(STANDARD.decode(coded).ok()?.into());
    }
    row.bytes(value).or_else(|| row.bytes(value.get("bytes")?)).cloned()
}
