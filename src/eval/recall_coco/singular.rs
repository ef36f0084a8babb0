//! Singular forms by suffix rules, as pattern.en makes them.
//!
//! The rules are those of CLiPS pattern's `singularize` for nouns (De Smedt and Daelemans 2012, after B. Ferrer's Inflector),
//! written as a table of endings. Words are in lower case. Their faults decide scores and are kept: `bus` becomes `bu` and is
//! lost to the object list, `glass` becomes `glas`, `tennis` becomes `tenni`, `our` becomes `my` and so `four` becomes `fmy`.

/// What must stand before the ending.
enum Before {
    /// Nothing in particular, also nothing at all.
    Anything,
    /// At least one character.
    One,
    /// One of these characters.
    OneOf(&'static str),
    /// A character that is none of these.
    NoneOf(&'static str),
    /// One of these strings.
    Ends(&'static [&'static str]),
    /// The word is one of these and the ending.
    Whole(&'static [&'static str]),
}

use Before::{Anything, Ends, NoneOf, One, OneOf, Whole};

/// (before, ending, what replaces the ending); the first that fits is applied. Those that keep their ending protect the word
/// from later ones.
const RULES: &[(Before, &str, &str)] = &[
    (One, "ae", "a"),
    (One, "itis", "itis"),
    (One, "eaux", "eau"),
    (Ends(&["quiz"]), "zes", ""),
    (Ends(&["matr"]), "ices", "ix"),
    (Ends(&["ap", "vert", "ind"]), "ices", "ex"),
    // `oxen` at the start of a word is dealt with by `oxen`.
    (Ends(&["alias", "status"]), "es", ""),
    (OneOf("octp|vir"), "i", "us"),
    (Ends(&["cris", "ax", "test"]), "es", "is"),
    (Ends(&["shoe"]), "s", ""),
    (Ends(&["o"]), "es", ""),
    (Ends(&["bus"]), "es", ""),
    (OneOf("m|l"), "ice", "ouse"),
    (Ends(&["x", "ch", "ss", "sh"]), "es", ""),
    (Ends(&["m"]), "ovies", "ovie"),
    (One, "ombies", "ombie"),
    (Ends(&["s"]), "eries", "eries"),
    (NoneOf("aeiouy"), "ies", "y"),
    (Ends(&["qu"]), "ies", "y"),
    (OneOf("aeo"), "lves", "lf"),
    (NoneOf("d"), "eaves", "eaf"),
    (Anything, "arves", "arf"),
    (Anything, "erves", "erve"),
    (OneOf("nlw"), "ives", "ife"),
    (OneOf("lr"), "ves", "f"),
    (OneOf("aeo"), "ves", "ve"),
    (Ends(&["sive", "tive", "hive"]), "s", ""),
    (NoneOf("f"), "ves", "fe"),
    (Whole(&["analy"]), "ses", "sis"),
    // The reference repeats the `a` of `(a)naly`, and only that.
    (Ends(&["analy"]), "ses", "asis"),
    (Ends(&["ba", "diagno", "parenthe", "progno", "synop", "the"]), "ses", "sis"),
    (One, "opses", "opsis"),
    (One, "yses", "ysis"),
    (Ends(&["h", "d", "r", "o", "n", "b", "cl", "p"]), "oses", "ose"),
    (
        Ends(&["fruct", "gluc", "galact", "lact", "ket", "malt", "rib", "sacchar", "cellul"]),
        "ose",
        "ose",
    ),
    (One, "oses", "osis"),
    (OneOf("ti"), "a", "um"),
    (Ends(&["n"]), "ews", "ews"),
    (Anything, "s", ""),
];

/// Words without a plural of their own. A word that one of these *ends with* stays as it is: also `s`, `tuna`'s `a` and the
/// like.
const UNCHANGED: &[&str] = &[
    "bison",
    "bream",
    "breeches",
    "britches",
    "carp",
    "chassis",
    "christmas",
    "clippers",
    "cod",
    "contretemps",
    "corps",
    "debris",
    "diabetes",
    "djinn",
    "eland",
    "elk",
    "flounder",
    "gallows",
    "georgia",
    "graffiti",
    "headquarters",
    "herpes",
    "high-jinks",
    "homework",
    "innings",
    "jackanapes",
    "mackerel",
    "measles",
    "mews",
    "mumps",
    "news",
    "pincers",
    "pliers",
    "proceedings",
    "rabies",
    "salmon",
    "scissors",
    "series",
    "shears",
    "species",
    "swine",
    "swiss",
    "trout",
    "tuna",
    "whiting",
    "wildebeest",
    // Not countable.
    "advice",
    "bread",
    "butter",
    "cheese",
    "electricity",
    "equipment",
    "fruit",
    "furniture",
    "garbage",
    "gravel",
    "happiness",
    "information",
    "ketchup",
    "knowledge",
    "love",
    "luggage",
    "mathematics",
    "mayonnaise",
    "meat",
    "mustard",
    "news",
    "progress",
    "research",
    "rice",
    "sand",
    "software",
    "understanding",
    "water",
];

/// Singulars in -ie: the plural only loses its `s`. (`pie` and `tie` are in the reference's list with an anchor that its
/// comparison takes literally, so `ties` becomes `ty`.)
const IE: &[&str] = &[
    "alergie", "auntie", "beanie", "birdie", "bogie", "bombie", "collie", "cookie", "cutie",
    "doggie", "eyrie", "freebie", "goonie", "groupie", "hankie", "hippie", "hoagie", "hottie",
    "indie", "junkie", "laddie", "laramie", "lingerie", "meanie", "newbie", "nightie", "oldie",
    "pixie", "quickie", "reverie", "rookie", "softie", "sortie", "stoolie", "sweetie", "techie",
    "toughie", "valkyrie", "veggie", "weenie", "yuppie", "zombie",
];

/// Irregular plurals; any word that ends with one changes its end, the first that fits.
const IRREGULAR: &[(&str, &str)] = &[
    ("atlantes", "atlas"),
    ("atlases", "atlas"),
    ("axes", "axe"),
    ("beeves", "beef"),
    ("brethren", "brother"),
    ("children", "child"),
    ("corpora", "corpus"),
    ("corpuses", "corpus"),
    ("ephemerides", "ephemeris"),
    ("feet", "foot"),
    ("ganglia", "ganglion"),
    ("geese", "goose"),
    ("genera", "genus"),
    ("genii", "genie"),
    ("graffiti", "graffito"),
    ("helves", "helve"),
    ("kine", "cow"),
    ("leaves", "leaf"),
    ("loaves", "loaf"),
    ("men", "man"),
    ("mongooses", "mongoose"),
    ("monies", "money"),
    ("moves", "move"),
    ("mythoi", "mythos"),
    ("numena", "numen"),
    ("occipita", "occiput"),
    ("octopodes", "octopus"),
    ("opera", "opus"),
    ("opuses", "opus"),
    ("our", "my"),
    ("oxen", "ox"),
    ("penes", "penis"),
    ("penises", "penis"),
    ("people", "person"),
    ("sexes", "sex"),
    ("soliloquies", "soliloquy"),
    ("teeth", "tooth"),
    ("testes", "testis"),
    ("trilbys", "trilby"),
    ("turves", "turf"),
    ("zoa", "zoon"),
];

/// Words after which the second part of a compound shows that the first is the noun: `mothers-in-law`.
const PREPOSITIONS: &[&str] = &[
    "about", "above", "across", "after", "among", "around", "at", "athwart", "before", "behind",
    "below", "beneath", "beside", "besides", "between", "betwixt", "beyond", "but", "by", "during",
    "except", "for", "from", "in", "into", "near", "of", "off", "on", "onto", "out", "over",
    "since", "till", "to", "under", "until", "unto", "upon", "with",
];

/// The singular of a word in lower case, by pattern.en's rules.
pub fn pattern(word: &str) -> String {
    if let Some((first, rest)) = word.split_once('-')
        && PREPOSITIONS.contains(&rest.split('-').next().unwrap_or_default())
    {
        return format!("{}-{rest}", pattern(first));
    }
    if let Some(owner) = word.strip_suffix('\'') {
        return format!("{}'s", pattern(owner));
    }
    if UNCHANGED.iter().any(|known| known.ends_with(word)) {
        return word.to_owned();
    }
    if let Some(singular) = word.strip_suffix('s')
        && IE.iter().any(|known| singular.ends_with(known))
    {
        return word.to_owned();
    }
    for (plural, singular) in IRREGULAR {
        if let Some(start) = word.strip_suffix(plural) {
            return format!("{start}{singular}");
        }
    }
    by_rule(word)
}

fn by_rule(word: &str) -> String {
    for (i, (before, ending, replacement)) in RULES.iter().enumerate() {
        // The rule about oxen has its place after the sixth.
        if i == 6
            && let Some(rest) = word.strip_prefix("oxen")
        {
            return format!("ox{rest}");
        }
        if let Some(start) = word.strip_suffix(ending)
            && before.fits(start)
        {
            return format!("{start}{replacement}");
        }
    }
    word.to_owned()
}

impl Before {
    fn fits(&self, start: &str) -> bool {
        let last = start.chars().next_back();
        match self {
            Anything => true,
            One => last.is_some(),
            OneOf(these) => last.is_some_and(|c| these.contains(c)),
            NoneOf(these) => last.is_some_and(|c| !these.contains(c)),
            Ends(these) => these.iter().any(|end| start.ends_with(end)),
            Whole(these) => these.contains(&start),
        }
    }
}
