//! Which objects are in an image: COCO's instances and captions, or a ready list.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    path::{Path, PathBuf},
};

use serde::Deserialize;

use super::tables::Pipeline;
use crate::{
    Error, Result,
    data::json::{Entries, read_document},
};

/// Classes in each image, by COCO's image id.
pub(super) type Objects = HashMap<String, BTreeSet<String>>;

/// Reads a ready list `{"569": ["kite", "person"], ...}`.
///
/// # Errors
/// If the file is malformed or names a class that the synonyms do not have.
pub(super) fn list(path: &Path, classes: &HashSet<&str>) -> Result<Objects> {
    let mut objects = Objects::new();
    for (id, names) in read_document::<Entries<Vec<String>>>(path)?.0 {
        if let Some(name) = names.iter().find(|name| !classes.contains(name.as_str())) {
            let message = format!("holds {name:?}, which is no class of the synonyms");
            return Err(Error::invalid(path, format!("image {id}"), message));
        }
        objects.insert(id, names.into_iter().collect());
    }
    Ok(objects)
}

#[derive(Deserialize)]
struct Instances {
    annotations: Vec<Instance>,
    categories: Vec<Category>,
}

#[derive(Deserialize)]
struct Instance {
    image_id: u64,
    category_id: u64,
}

#[derive(Deserialize)]
struct Category {
    id: u64,
    name: String,
}

#[derive(Deserialize)]
struct Captions {
    annotations: Vec<Caption>,
}

#[derive(Deserialize)]
struct Caption {
    image_id: u64,
    caption: String,
}

/// Objects of the wanted images, or of all: categories of all instances, and what all captions mention.
///
/// # Errors
/// If a file is malformed, or a category is none of the synonyms'.
pub(super) fn annotations(
    instances: &[PathBuf],
    captions: &[PathBuf],
    wanted: Option<&HashSet<String>>,
    pipeline: &Pipeline,
) -> Result<Objects> {
    let listed = wanted.into_iter().flatten().map(|id| (id.clone(), BTreeSet::new()));
    let mut objects: Objects = listed.collect();
    let counts = |id: &String| wanted.is_none_or(|wanted| wanted.contains(id));
    for path in instances {
        let Instances { annotations, categories } = read_document(path)?;
        let names: BTreeMap<u64, String> =
            categories.into_iter().map(|category| (category.id, category.name)).collect();
        for Instance { image_id, category_id } in annotations {
            let id = image_id.to_string();
            if !counts(&id) {
                continue;
            }
            let class = names.get(&category_id).and_then(|name| pipeline.synonyms.class(name));
            let Some(class) = class else {
                let message = format!("is {category_id}, which is no class of the synonyms");
                return Err(Error::invalid(path, format!("image {image_id}: category"), message));
            };
            objects.entry(id).or_default().insert(class.to_owned());
        }
    }
    let mut memory = HashMap::new();
    for path in captions {
        for Caption { image_id, caption } in read_document::<Captions>(path)?.annotations {
            let id = image_id.to_string();
            if counts(&id) {
                let classes = pipeline.classes(&caption, &mut memory);
                objects.entry(id).or_default().extend(classes.into_iter().map(str::to_owned));
            }
        }
    }
    Ok(objects)
}
