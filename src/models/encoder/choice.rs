//! An encoder as settings name it: a folder or a name, and what is asked of it beside what its files say.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::models::fingerprint::fingerprint;
use crate::models::hub::Origin;
use crate::{Error, Result};

/// A folder or a name, then options, as in `all-mpnet-base-v2,dim=256,prompt=query`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The folder or name.
    pub place: PathBuf,
    /// The options.
    pub variant: Variant,
}

/// What is asked of an encoder beside what its files say. Its text is that of the options, `,dim=256,prompt=query`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Variant {
    /// Only so many of a vector's first components, as Matryoshka models are trained for; else the files' `truncate_dim`, else all.
    pub dim: Option<usize>,
    /// Name of the prompt that is put before every text, of those in `config_sentence_transformers.json`; empty for none, else
    /// the files' `default_prompt_name`.
    pub prompt: Option<String>,
}

impl Choice {
    /// Reads a choice. A folder of the whole text's name is that folder.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an option that is unknown, given twice or malformed.
    pub fn parse(text: &Path) -> Result<Self> {
        let plain = || Self { place: text.to_owned(), variant: Variant::default() };
        let Some(name) = text.to_str().filter(|_| !text.is_dir()) else { return Ok(plain()) };
        let mut parts = name.split(',');
        let mut choice = Self { place: parts.next().unwrap_or_default().into(), ..plain() };
        for part in parts {
            let invalid = |message: &str| {
                Error::invalid(
                    text,
                    format!("option {part:?}"),
                    format!(
                        "{message}; options are dim=N and prompt=NAME, with commas before them"
                    ),
                )
            };
            let variant = &mut choice.variant;
            match part.split_once('=') {
                Some(("dim", _)) if variant.dim.is_some() => return Err(invalid("given twice")),
                Some(("dim", dim)) => {
                    let dim = dim.parse().ok().filter(|&dim| dim > 0);
                    variant.dim = Some(dim.ok_or_else(|| invalid("expected a positive number"))?);
                }
                Some(("prompt", _)) if variant.prompt.is_some() => {
                    return Err(invalid("given twice"));
                }
                Some(("prompt", prompt)) => variant.prompt = Some(prompt.to_owned()),
                _ => return Err(invalid("is no option, and there is no folder of the whole name")),
            }
        }
        Ok(choice)
    }

    /// The text that [`Choice::parse`] reads.
    pub fn path(&self) -> PathBuf {
        let mut text = self.place.clone().into_os_string();
        text.push(self.variant.to_string());
        text.into()
    }

    /// What the encoder is called: its folder's name, or its repository's if it is from the hub, and the options.
    pub fn name(&self) -> String {
        let place = self.place.canonicalize();
        let folder = place.as_ref().unwrap_or(&self.place);
        let name = match Origin::of(folder) {
            Some(origin) => origin.name().to_owned(),
            None => {
                let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
                // A repository that is not fetched yet may have a revision.
                match (&place, name.split_once('@')) {
                    (Err(_), Some((name, _))) => name.to_owned(),
                    _ => name,
                }
            }
        };
        name + &self.variant.to_string()
    }

    /// What identifies the vectors: [`fingerprint`] of the folder, and the options if there are any.
    ///
    /// # Errors
    /// [`Error::Io`] if a file cannot be read.
    pub fn fingerprint(&self) -> Result<String> {
        let files = fingerprint(&self.place)?;
        if self.variant == Variant::default() {
            return Ok(files);
        }
        Ok(blake3::hash(format!("{files}{}", self.variant).as_bytes()).to_hex().to_string())
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(dim) = self.dim {
            write!(f, ",dim={dim}")?;
        }
        match &self.prompt {
            Some(prompt) => write!(f, ",prompt={prompt}"),
            None => Ok(()),
        }
    }
}
