//! What the name of a model, an encoder or a judge means: a folder, a model of the demo, or a repository of the hub. Commands and
//! configurations name them alike.

use std::path::{Path, PathBuf};

use crate::Result;
use crate::demo::embedded;
use crate::demo::judge::{self, Service};
use crate::engine::Progress;
use crate::eval::judge::{Endpoint, Judge};
use crate::models::adapter;
use crate::models::encoder::Choice;
use crate::models::hub::{self, Depth, Kind, Name};

/// The folder of a model, fetched if it is not here; of an adapter, with its base.
///
/// # Errors
/// As [`hub::fetch`], and if the demo's models cannot be unpacked.
pub fn model(path: &Path, progress: &dyn Progress) -> Result<PathBuf> {
    let folder = place(path, Kind::Model, Depth::All, progress)?;
    if let Some(base) = adapter::base_on_hub(&folder)? {
        hub::fetch(&base, Kind::Model, Depth::All, progress)?;
    }
    Ok(folder)
}

/// The folder of an adapter, fetched if it is not here; its base is given beside it.
///
/// # Errors
/// As [`hub::fetch`].
pub fn adapter(path: &Path, progress: &dyn Progress) -> Result<PathBuf> {
    place(path, Kind::Model, Depth::All, progress)
}

/// The folder of an encoder, fetched if it is not here, with the options that the name had.
///
/// # Errors
/// As [`model`]; options that are none.
pub fn encoder(path: &Path, progress: &dyn Progress) -> Result<PathBuf> {
    let choice = Choice::parse(path)?;
    let place = place(&choice.place, Kind::Encoder, Depth::All, progress)?;
    Ok(Choice { place, ..choice }.path())
}

/// Whether what a path names is here as a whole, so that nothing has to be fetched.
pub(super) fn is_here(path: &Path, kind: Kind) -> bool {
    let place = Choice::parse(path).map_or_else(|_| path.to_owned(), |choice| choice.place);
    let name = place.to_str().and_then(|text| Name::parse(text, kind));
    place.is_dir()
        || embedded::is_embedded(&place)
        || name.is_none_or(|name| hub::cached(&name, kind).is_some())
}

/// Fetches the settings of what a path names, if it is a name on the hub: a model that is not supported is told before any
/// weights are fetched. Of an adapter, those of its base as well.
///
/// # Errors
/// As [`hub::fetch`].
pub fn settings(path: &Path, kind: Kind, progress: &dyn Progress) -> Result<()> {
    let place = match kind {
        Kind::Model => path.to_owned(),
        Kind::Encoder => Choice::parse(path)?.place,
    };
    let folder = self::place(&place, kind, Depth::Settings, progress)?;
    if kind == Kind::Model
        && folder.is_dir()
        && let Some(base) = adapter::base_on_hub(&folder)?
    {
        hub::fetch(&base, Kind::Model, Depth::Settings, progress)?;
    }
    Ok(())
}

fn place(path: &Path, kind: Kind, depth: Depth, progress: &dyn Progress) -> Result<PathBuf> {
    if path.is_dir() || embedded::is_embedded(path) {
        return embedded::resolve(path);
    }
    match path.to_str().and_then(|text| Name::parse(text, kind)) {
        Some(name) => hub::fetch(&name, kind, depth, progress),
        // Loading it says what is missing.
        None => Ok(path.to_owned()),
    }
}

/// The judge of a name, and the service that answers for it, which must be kept as long as the judge is asked: the demo's judge is
/// a service of this process, any other is a model at `OPENAI_BASE_URL`.
///
/// # Errors
/// As [`Service::start`] and [`Endpoint::from_env`].
pub fn judge(model: &str) -> Result<(Judge, Option<Service>)> {
    if model != judge::MODEL {
        return Ok((Judge::new(Endpoint::from_env(model)?), None));
    }
    let service = Service::start(0)?;
    Ok((Judge::new(Endpoint::new(service.url(), model, None)), Some(service)))
}

/// A path of a file in `base`, relative to it; names stay as they are.
pub(super) fn relative(path: &Path, kind: Kind, base: &Path) -> PathBuf {
    let place = match kind {
        Kind::Model => path.to_owned(),
        // What is no choice is said by `encoder`.
        Kind::Encoder => {
            Choice::parse(path).map_or_else(|_| path.to_owned(), |choice| choice.place)
        }
    };
    let named = || place.to_str().and_then(|text| Name::parse(text, kind)).is_some();
    let inside = base.join(path);
    let here = base.join(&place).exists() || inside.exists();
    match path.as_os_str().is_empty() || embedded::is_embedded(&place) || (!here && named()) {
        true => path.to_owned(),
        false => inside,
    }
}

/// What a run's record says of a folder: of a snapshot in the hub's cache, the repository and the commit, which name it on any
/// machine; else the absolute path.
pub fn recorded(path: &Path) -> PathBuf {
    let choice = Choice::parse(path).ok();
    let place = choice.as_ref().map_or(path, |choice| &choice.place);
    if place.as_os_str().is_empty() || embedded::is_embedded(place) {
        return path.to_owned();
    }
    let place = match (hub::Origin::in_cache(place), std::path::absolute(place)) {
        (Some(origin), _) => origin.to_string().into(),
        (None, Ok(absolute)) => absolute,
        (None, Err(_)) => place.to_owned(),
    };
    choice.map_or_else(|| place.clone(), |choice| Choice { place: place.clone(), ..choice }.path())
}
