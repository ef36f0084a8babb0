//! WordNet's noun lemmas (the procedure `morphy`), from the user's copy of WordNet.

use std::{
    collections::{HashMap, HashSet},
    path::Path,
};

use crate::{Error, Result};

/// Nouns, and irregular forms with their lemmas.
pub(super) struct Nouns {
    lemmas: HashSet<String>,
    irregular: HashMap<String, String>,
}

/// Endings of plural nouns and what replaces them.
const ENDINGS: [(&str, &str); 9] = [
    ("s", ""),
    ("ses", "s"),
    ("ves", "f"),
    ("xes", "x"),
    ("zes", "z"),
    ("ches", "ch"),
    ("shes", "sh"),
    ("men", "man"),
    ("ies", "y"),
];

impl Nouns {
    /// Reads `index.noun` and `noun.exc` of a WordNet `dict` folder.
    ///
    /// # Errors
    /// If one cannot be read.
    pub fn read(folder: &Path) -> Result<Self> {
        let text = |name: &str| -> Result<String> {
            let path = folder.join(name);
            let bytes = std::fs::read(&path).map_err(Error::io(&path))?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        let index = text("index.noun")?;
        // Licence lines begin with a blank.
        let lemmas = index
            .lines()
            .filter(|line| !line.starts_with(' '))
            .filter_map(|line| line.split(' ').next())
            .map(str::to_owned)
            .collect();
        let exceptions = text("noun.exc")?;
        let irregular = exceptions
            .lines()
            .filter_map(|line| {
                let mut words = line.split(' ');
                Some((words.next()?.to_owned(), words.next()?.to_owned()))
            })
            .collect();
        Ok(Self { lemmas, irregular })
    }

    /// The lemma, as NLTK's `WordNetLemmatizer` gives it: the shortest of the forms that are nouns, the word itself among
    /// them; the word itself if none is.
    pub fn lemma(&self, word: &str) -> String {
        let mut forms: Vec<String> = vec![word.to_owned()];
        match self.irregular.get(word) {
            Some(lemma) => forms.push(lemma.clone()),
            None => {
                for (ending, replacement) in ENDINGS {
                    if let Some(stem) = word.strip_suffix(ending) {
                        forms.push(format!("{stem}{replacement}"));
                    }
                }
            }
        }
        forms.retain(|form| self.lemmas.contains(form));
        forms.into_iter().min_by_key(String::len).unwrap_or_else(|| word.to_owned())
    }
}
