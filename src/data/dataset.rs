//! Preference sources: pictures, a prompt and a preferred response a sample.
//!
//! # Rows
//! Of one of the shapes of [`shapes`](super::shapes), in files of one of the formats of [`table`](super::table). Columns not
//! named there are ignored.
//!
//! # Pictures
//! Paths are relative to the picture folder, or absolute inside of it. Each `<image>` in a human turn is one picture, in
//! order; their number must be that of the pictures. A row without any gets one a picture, in front. The only `<image>` of a
//! turn is moved to its start, with a line break behind it, as LLaVA's training does `[C]`.
//!
//! # References
//! Taken byte for byte. Blank ones make a row useless, since there is nothing to guide by.
//!
//! # Memory
//! A data set is listed once, row by row; what is kept of a sample is where it lies. Texts and pictures are read again when
//! they are needed, a block at a time.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::json::kind;
use super::picture::{Folders, Picture, pictures};
use super::row::{Bad, Reason, Row, Skipped};
use super::shapes::{self, Shape, picture_column};
use super::table::{Found, Shared, Table, Want, find};
use super::talk::{Talk, role_name};
use crate::models::{IMAGE, Role, Turn};
use crate::sampling::Flag;
use crate::{Error, Result};

/// Which answers of a conversation become references.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TurnChoice {
    /// The last one; the turns before it are context.
    #[default]
    Last,
    /// The first one; what follows is dropped.
    First,
    /// Each one is a sample of its own, with `#1`, `#2`, ... after the id.
    Each,
}

/// How to read a data set.
#[derive(Clone, Debug, Default)]
pub struct DatasetOptions {
    /// Folder of the pictures; the data file's folder if not given.
    pub image_folder: Option<PathBuf>,
    /// Which answers to take.
    pub turn: TurnChoice,
    /// Only the first so many samples; later rows are not read.
    pub limit: Option<usize>,
    /// Names of the file's columns by the names that shapes have: `prompt` to `question`.
    pub columns: BTreeMap<String, String>,
    /// Take links that lead out of the picture folder.
    pub allow_links: bool,
    /// Rows without a picture are of no use. Without one there is nothing to mask, so only rho = 1 (no picture is seen) means
    /// anything.
    pub needs_picture: bool,
    /// Rows without a rejected answer that differs from the chosen one are of no use.
    pub needs_rejected: bool,
    /// Take absolute paths wherever they lead: for files that this program wrote itself.
    pub anywhere: bool,
}

/// Pictures, a prompt and its preferred response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Position in the data set, from 0. Part of the random draws, so it stays the same in a shard.
    pub index: u32,
    /// Name; differs from those of all other samples.
    pub id: String,
    /// Pictures, in the order of their `<image>`.
    pub images: Vec<Picture>,
    /// The conversation up to the question, which is last.
    pub turns: Vec<Turn>,
    /// The preferred response, y+; not blank.
    pub reference: String,
    /// The data set's own rejected response, if it has one.
    pub rejected: Option<String>,
    /// Of a pair that this program made, the rejected response that its data came with.
    pub source_rejected: Option<String>,
    /// What is known of that response, where this program made it.
    pub flags: Vec<Flag>,
    /// Number of its row over all files, from 1.
    pub row: usize,
    /// Where its row is in the file: `line 3`.
    pub place: String,
}

impl Sample {
    /// Role and text of each turn, as they enter a candidate's key.
    pub fn key_turns(&self) -> Vec<(&str, &str)> {
        self.turns.iter().map(|turn| (role_name(turn.role), turn.text.as_str())).collect()
    }
}

/// A file of a data set.
#[derive(Clone, Debug)]
struct Source {
    table: Shared,
    folders: Folders,
    /// Number of its first row over all files.
    first: usize,
    /// While no row of a known shape was met: the first row's place, and what is said of it.
    unknown: Option<Option<(String, String)>>,
}

/// Rows of no known shape at the start of a file after which it is given up.
const UNKNOWN: usize = 100;

/// Where a sample lies.
#[derive(Clone, Copy, Debug)]
struct Place {
    /// Its row over all files.
    row: u32,
    /// Which repetition of its id it is, from 2; 0 if it is the first.
    repeat: u32,
    /// Which of the row's answers, from 0.
    answer: u32,
}

/// The samples of some files: see the module docs.
#[derive(Debug)]
pub struct Dataset {
    sources: Vec<Source>,
    samples: Vec<Place>,
    options: DatasetOptions,
    rows: usize,
    shapes: BTreeMap<String, u64>,
    templates: BTreeMap<&'static str, u64>,
    skipped: Vec<Skipped>,
    rejected: bool,
}

/// What a data set is, for a run's record.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Described {
    /// Rows by the name of their shape.
    pub shapes: BTreeMap<String, u64>,
    /// Rows that were read.
    pub rows: u64,
    /// Samples.
    pub samples: u64,
    /// Rows left out, by reason.
    pub skipped: BTreeMap<String, u64>,
}

impl Described {
    /// A line for people: `83,132 rows of shape rlaif-v`.
    pub fn text(&self) -> String {
        let shapes: Vec<String> = match self.shapes.len() {
            1 => self.shapes.keys().cloned().collect(),
            _ => self.shapes.iter().map(|(name, rows)| format!("{name} ({rows})")).collect(),
        };
        let mut text = format!("{} rows of shape {}", self.rows, shapes.join(", "));
        let left: u64 = self.skipped.values().sum();
        if left > 0 {
            text.push_str(&format!("; {left} left out: {}", reasons(&self.skipped)));
        }
        text
    }
}

/// Counts by reason, in words.
pub fn reasons(counts: &BTreeMap<String, u64>) -> String {
    let one = |(name, count): (&String, &u64)| format!("{} {count}", name.replace('_', " "));
    counts.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// What a row holds.
struct Parsed {
    talk: Talk,
    pictures: Vec<Picture>,
    shape: &'static str,
}

impl Dataset {
    /// Reads a file, a folder or a pattern, every row of which must be of use: see the module docs. Every picture's file must
    /// exist; none is decoded.
    ///
    /// # Errors
    /// As [`list`](Self::list), and on rows that are of no use: the message names the first, and counts every kind. No rows at
    /// all are an error, too.
    pub fn open(path: &Path, options: &DatasetOptions) -> Result<Self> {
        let dataset = Self::list(&[path.to_owned()], options)?;
        dataset.check("")?;
        Ok(dataset)
    }

    /// Reads files, folders or patterns. Rows that are of no use are left out; [`skipped`](Self::skipped) lists them.
    ///
    /// # Errors
    /// A file that cannot be read or has no rows; a first row of no known shape, with the shapes that are read.
    pub fn list(paths: &[PathBuf], options: &DatasetOptions) -> Result<Self> {
        let mut columns = shapes::columns();
        columns.extend(options.columns.values().cloned());
        let mut this = Self {
            sources: Vec::new(),
            samples: Vec::new(),
            options: options.clone(),
            rows: 0,
            shapes: BTreeMap::new(),
            templates: BTreeMap::new(),
            skipped: Vec::new(),
            rejected: false,
        };
        let mut names = Names::default();
        for path in paths {
            for found in find(path)? {
                this.add(&found, &columns, &mut names)?;
            }
        }
        if this.rows == 0 {
            let path = paths.first().cloned().unwrap_or_default();
            return Err(Error::invalid(path, "", "has no rows, expected at least one"));
        }
        Ok(this)
    }

    /// Lists a file.
    fn add(&mut self, found: &Found, columns: &BTreeSet<String>, names: &mut Names) -> Result<()> {
        let table = Shared::new(Table::open(&found.file, columns)?);
        let own = found.file.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = self.options.image_folder.as_deref();
        // A layout's own folder lies inside of the one that is given, if one is.
        let folder = match (folder, &found.folder) {
            (Some(given), Some(own)) if own.is_relative() => given.join(own),
            (Some(given), _) => given.to_owned(),
            (None, Some(own)) => own.clone(),
            (None, None) => own.unwrap_or(Path::new(".")).to_owned(),
        };
        let folders = Folders::new(&folder, self.options.allow_links, self.options.anywhere)?;
        let unknown = Some(None);
        let mut source = Source { table: table.clone(), folders, first: self.rows, unknown };
        let limit = self.options.limit.unwrap_or(usize::MAX);
        /// Rows asked for at a time.
        const CHUNK: usize = 4096;
        let rows: Vec<usize> = (0..table.len()).collect();
        for chunk in rows.chunks(CHUNK) {
            // A limit may end in the middle of a chunk: what is read after it is dropped.
            if self.samples.len() >= limit {
                break;
            }
            table.read(chunk, Want::All, &mut |number, row| {
                if self.samples.len() < limit {
                    self.list_row(&mut source, number, row, names)?;
                }
                Ok(())
            })?;
        }
        self.samples.truncate(limit);
        self.sources.push(source);
        Ok(())
    }

    fn list_row(
        &mut self,
        source: &mut Source,
        number: usize,
        row: Row,
        names: &mut Names,
    ) -> Result<()> {
        let row = self.renamed(row, &source.table)?;
        let global = source.first + number;
        let full = || {
            Error::invalid(
                &source.table.path,
                &row.place,
                "is past the 2^32 rows that can be numbered",
            )
        };
        let at = u32::try_from(global).map_err(|_| full())?;
        self.rows = global + 1;
        let id = row_id(&row, global);
        let base = id.clone().unwrap_or_else(|_| unnamed(global));
        let repeat = names.repeat(&base);
        if Shape::of(&row).is_some() {
            source.unknown = None;
        } else if let Some(first) = &mut source.unknown {
            let said = || (row.place.clone(), shapes::unknown(&source.table.columns(&row)));
            let first = first.get_or_insert_with(said);
            // Nothing of the file can be read: better said at once than once a row.
            if number + 1 == source.table.len().min(UNKNOWN) {
                return Err(Error::invalid(&source.table.path, &first.0, &first.1));
            }
        }
        let parsed = id.and_then(|_| self.parse(source, &row, Want::All, &base));
        match parsed {
            Ok(Parsed { talk, shape, .. }) => {
                *self.shapes.entry(shape.to_owned()).or_default() += 1;
                self.rejected |= talk.rejected.is_some();
                if let Some(name) = talk.template {
                    *self.templates.entry(name).or_default() += 1;
                }
                let answers = self.answers(&talk).len() as u32;
                self.samples.extend((0..answers).map(|answer| Place { row: at, repeat, answer }));
                Ok(())
            }
            Err(bad) => {
                let id = named(&base, repeat);
                self.skipped.push(skipped(global, &source.table.path, &row.place, id, bad));
                Ok(())
            }
        }
    }

    /// A row with the columns that the options name under the names of shapes.
    fn renamed(&self, mut row: Row, table: &Table) -> Result<Row> {
        for (name, column) in &self.options.columns {
            match row.fields.get(column) {
                Some(value) => {
                    let value = value.clone();
                    row.fields.insert(name.clone(), value);
                }
                None if row.fields.contains_key(name) => {}
                None => {
                    let own = table.columns(&row);
                    let message = format!(
                        "has no column {column:?}, which data.columns (--columns) gives for {name}; it has {}",
                        own.join(", ")
                    );
                    return Err(Error::invalid(&table.path, &row.place, message));
                }
            }
        }
        Ok(row)
    }

    fn parse(&self, source: &Source, row: &Row, want: Want, id: &str) -> Result<Parsed, Bad> {
        let shape = Shape::of(row).ok_or_else(|| {
            let own: Vec<&str> = row.fields.keys().map(String::as_str).collect();
            Bad::malformed("", format!("has the columns {}: of no known shape", own.join(", ")))
        })?;
        let mut talk = shape.read(row)?;
        let mut found = Vec::new();
        if want == Want::All {
            found = pictures(row, &source.folders, &source.table.path)?;
            talk.place(found.len(), picture_column(row).unwrap_or("image"))?;
            if found.is_empty() && self.options.needs_picture {
                let message = match self.options.needs_rejected {
                    true => format!("{id:?} holds no image, expected at least one"),
                    false => {
                        format!("sample {id:?} has no image, which is allowed with rho = 1 only")
                    }
                };
                return Err(Bad::new(Reason::NoPicture, "", message));
            }
        }
        let answers = self.answers(&talk);
        if let Some(&blank) = answers.iter().find(|&&at| talk.turns[at].text.trim().is_empty()) {
            let message = format!("the answer of turn {} is blank, expected text", blank + 1);
            return Err(Bad::new(Reason::Blank, "", message));
        }
        if self.options.needs_rejected {
            preferred(row, &talk)?;
        }
        Ok(Parsed { talk, pictures: found, shape: shape.name })
    }

    /// Places among the turns of the answers that are taken.
    fn answers(&self, talk: &Talk) -> Vec<usize> {
        let is_answer = |&i: &usize| talk.turns[i].role == Role::Assistant;
        let all: Vec<usize> = (0..talk.turns.len()).filter(is_answer).collect();
        match self.options.turn {
            TurnChoice::First => all[..all.len().min(1)].to_vec(),
            TurnChoice::Last => all.last().copied().into_iter().collect(),
            TurnChoice::Each => all,
        }
    }

    /// The first file.
    pub fn path(&self) -> &Path {
        self.sources.first().map_or(Path::new(""), |source| &source.table.path)
    }

    /// Whether some row has a rejected answer of its own.
    pub fn has_rejected(&self) -> bool {
        self.rejected
    }

    /// How many samples there are.
    pub fn len(&self) -> usize {
        self.samples.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.samples.is_empty()
    }

    /// The rows that are left out, in order of the passes that found them.
    pub fn skipped(&self) -> &[Skipped] {
        &self.skipped
    }

    /// What it is, for a run's record.
    pub fn described(&self) -> Described {
        Described {
            shapes: self.shapes.clone(),
            rows: self.rows as u64,
            samples: self.samples.len() as u64,
            skipped: Skipped::counts(&self.skipped),
        }
    }

    /// What a reader of the log should know; none where there is nothing.
    pub fn note(&self) -> Option<String> {
        let one = |(name, rows): (&&str, &u64)| format!("{rows} in that of {name}");
        let all: Vec<String> = self.templates.iter().map(one).collect();
        (!all.is_empty()).then(|| {
            format!(
                "prompts were in a chat template already ({}): it was taken off, and the model's own is put around them",
                all.join(", ")
            )
        })
    }

    /// # Errors
    /// If rows are left out: the first, every kind with its count, and `advice`. If no row is left.
    pub fn check(&self, advice: &str) -> Result<()> {
        match self.skipped.is_empty() {
            true => Ok(()),
            false => Err(Skipped::refuse(&self.skipped, self.rows, advice)),
        }
    }

    /// # Errors
    /// If more than a share of the rows is left out, or all.
    pub fn check_share(&self, most: f64) -> Result<()> {
        let rows: BTreeSet<usize> = self.skipped.iter().map(|one| one.row).collect();
        let share = rows.len() as f64 / self.rows.max(1) as f64;
        if share > most || self.samples.is_empty() {
            let advice = format!(
                "{:.1} % of the rows would be left out, more than data.max_skipped = {most} allows: is --images or --columns right?",
                100.0 * share
            );
            return Err(Skipped::refuse(&self.skipped, self.rows, &advice));
        }
        Ok(())
    }

    /// Leaves out the rows of samples, by what is wrong with each. Later samples move up. Says of every former sample
    /// whether it stays.
    pub fn leave_out(&mut self, bad: Vec<Skipped>) -> Vec<bool> {
        let mut rows = BTreeSet::new();
        for one in bad {
            if rows.insert(one.row) {
                self.skipped.push(one);
            }
        }
        let stays = |place: &Place| !rows.contains(&(place.row as usize + 1));
        let kept = self.samples.iter().map(stays).collect();
        self.samples.retain(stays);
        kept
    }

    /// Leaves out the samples of rows that an earlier pass over the same data found to be of no use.
    pub fn leave_out_known(&mut self, known: Vec<Skipped>) {
        let own: BTreeSet<usize> = self.skipped.iter().map(|one| one.row).collect();
        let new: Vec<Skipped> = known.into_iter().filter(|one| !own.contains(&one.row)).collect();
        let rows: BTreeSet<usize> = new.iter().map(|one| one.row).collect();
        self.samples.retain(|place| !rows.contains(&(place.row as usize + 1)));
        self.skipped.extend(new);
    }

    /// A sample that is of no use, as an entry of [`skipped`](Self::skipped).
    pub fn bad(&self, sample: &Sample, reason: Reason, message: String) -> Skipped {
        let row = sample.row - 1;
        let file = &self.source(row).table.path;
        let bad = Bad::new(reason, "", message);
        skipped(row, file, &sample.place, sample.id.clone(), bad)
    }

    fn source(&self, row: usize) -> &Source {
        &self.sources[self.sources.partition_point(|source| source.first <= row) - 1]
    }

    /// Samples, with the encoded bytes of those pictures that lie in a data file.
    ///
    /// # Errors
    /// If a file cannot be read, or is not any more what it was when it was listed.
    pub fn read(&self, range: Range<usize>) -> Result<Vec<Sample>> {
        let mut samples = Vec::with_capacity(range.len());
        self.visit(range, Want::All, |_, _, sample| samples.push(sample))?;
        Ok(samples)
    }

    /// As [`read`](Self::read); the pictures' bytes are left where they are.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn read_lazily(&self, range: Range<usize>) -> Result<Vec<Sample>> {
        let mut samples = Vec::with_capacity(range.len());
        self.visit(range, Want::All, |source, row, mut sample: Sample| {
            let images = std::mem::take(&mut sample.images).into_iter().enumerate();
            let table = &source.table;
            sample.images = images.map(|(nth, one)| one.in_table(table, row, nth)).collect();
            samples.push(sample);
        })?;
        Ok(samples)
    }

    /// The references of samples. Pictures are not looked at.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn references(&self, range: Range<usize>) -> Result<Vec<String>> {
        let mut texts = Vec::with_capacity(range.len());
        self.visit(range, Want::Texts, |_, _, sample| texts.push(sample.reference))?;
        Ok(texts)
    }

    /// Calls `done` for each sample with its source and row there.
    fn visit(
        &self,
        range: Range<usize>,
        want: Want,
        mut done: impl FnMut(&Source, usize, Sample),
    ) -> Result<()> {
        let mut next = range.start;
        while next < range.end {
            let source = self.source(self.samples[next].row as usize);
            let end = source.first + source.table.len();
            let own =
                self.samples[next..range.end].partition_point(|place| (place.row as usize) < end);
            let own = next..next + own;
            let mut rows: Vec<usize> =
                self.samples[own.clone()].iter().map(|p| p.row as usize - source.first).collect();
            rows.dedup();
            source.table.read(&rows, want, &mut |number, row| {
                let row = self.renamed(row, &source.table)?;
                let parsed = self.sample_row(source, number, &row, want)?;
                while own.contains(&next)
                    && self.samples[next].row as usize == source.first + number
                {
                    let sample = self.sample(next, &row, &parsed);
                    done(source, number, sample);
                    next += 1;
                }
                Ok(())
            })?;
            if next != own.end {
                return Err(Error::invalid(&source.table.path, "", CHANGED));
            }
        }
        Ok(())
    }

    fn sample_row(&self, source: &Source, number: usize, row: &Row, want: Want) -> Result<Parsed> {
        let id = row_id(row, source.first + number).unwrap_or_default();
        self.parse(source, row, want, &id).map_err(|bad| {
            let message = format!("{}; {CHANGED}", bad.message);
            Error::invalid(&source.table.path, bad.at(&row.place), message)
        })
    }

    fn sample(&self, index: usize, row: &Row, parsed: &Parsed) -> Sample {
        let Place { row: number, repeat, answer } = self.samples[index];
        let answers = self.answers(&parsed.talk);
        let at = answers[(answer as usize).min(answers.len() - 1)];
        let turns = &parsed.talk.turns;
        let seen: usize = turns[..at].iter().map(|turn| turn.text.matches(IMAGE).count()).sum();
        let id = row_id(row, number as usize).unwrap_or_else(|_| unnamed(number as usize));
        let id = named(&id, repeat);
        let last = at + 1 == turns.len();
        Sample {
            index: index as u32,
            id: match self.options.turn {
                TurnChoice::Each => format!("{id}#{}", answer + 1),
                _ => id,
            },
            images: parsed.pictures[..seen.min(parsed.pictures.len())].to_vec(),
            turns: turns[..at].to_vec(),
            reference: turns[at].text.clone(),
            rejected: parsed.talk.rejected.clone().filter(|_| last),
            source_rejected: row
                .get("source_rejected")
                .and_then(Value::as_str)
                .map(str::to_owned)
                .filter(|_| last),
            flags: flags(row),
            row: number as usize + 1,
            place: row.place.clone(),
        }
    }
}

const CHANGED: &str = "the file is not what it was when it was listed";

/// The flags of a row that this program wrote; those of other versions are passed over.
fn flags(row: &Row) -> Vec<Flag> {
    let list = row.get("flags").and_then(Value::as_array);
    let known = |flag: &Value| serde_json::from_value(flag.clone()).ok();
    list.map(|flags| flags.iter().filter_map(known).collect()).unwrap_or_default()
}

/// Refuses a row whose rejected answer teaches nothing.
fn preferred(row: &Row, talk: &Talk) -> Result<(), Bad> {
    let Some(rejected) = &talk.rejected else {
        return Err(Bad::malformed("rejected", "is missing, expected a rejected answer"));
    };
    let flagged = flags(row).iter().any(|flag| Flag::UNUSABLE.contains(flag));
    if talk.turns.last().is_some_and(|turn| turn.text == *rejected) && !flagged {
        let message = "equals chosen: there is nothing to prefer";
        return Err(Bad::new(Reason::NothingToPrefer, "rejected", message));
    }
    Ok(())
}

/// The name of a row that has none, by its place over all files.
fn unnamed(number: usize) -> String {
    format!("row-{}", number + 1)
}

/// A name, with a suffix if it was there before.
fn named(id: &str, repeat: u32) -> String {
    if repeat == 0 { id.to_owned() } else { format!("{id}#{repeat}") }
}

/// The column `id`: text or an integer. Row number `number`, from 0, is named by its place if it has none.
fn row_id(row: &Row, number: usize) -> Result<String, Bad> {
    match row.get("id") {
        None => Ok(unnamed(number)),
        Some(Value::String(id)) if id.trim().is_empty() => Ok(unnamed(number)),
        Some(Value::String(id)) => Ok(id.clone()),
        Some(Value::Number(id)) if !id.is_f64() => Ok(id.to_string()),
        // What a table with holes makes of integers.
        Some(Value::Number(id)) if id.as_f64().is_some_and(|x| x.fract() == 0.0) => {
            Ok(format!("{:.0}", id.as_f64().unwrap_or_default()))
        }
        Some(other) => {
            let message = format!("is {}, expected a name or an integer", kind(other));
            Err(Bad::malformed("id", message))
        }
    }
}

fn skipped(row: usize, file: &Path, place: &str, id: String, bad: Bad) -> Skipped {
    Skipped {
        row: row + 1,
        file: file.to_owned(),
        at: bad.at(place),
        id,
        reason: bad.reason,
        message: bad.message,
    }
}

/// The names that are taken: a hash of each, and the next suffix to try.
#[derive(Default)]
struct Names(HashMap<[u8; 16], u32>);

impl Names {
    /// 0 for a name that is new, else the number that makes it new: 2, 3, ...
    fn repeat(&mut self, id: &str) -> u32 {
        let hash = |text: &str| -> [u8; 16] {
            let mut short = [0; 16];
            short.copy_from_slice(&blake3::hash(text.as_bytes()).as_bytes()[..16]);
            short
        };
        let own = hash(id);
        let Some(&next) = self.0.get(&own) else {
            self.0.insert(own, 2);
            return 0;
        };
        let free = (next..).find(|&n| !self.0.contains_key(&hash(&named(id, n)))).unwrap_or(next);
        self.0.insert(own, free + 1);
        self.0.insert(hash(&named(id, free)), 2);
        free
    }
}
