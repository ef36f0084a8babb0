//! JSON arrays and JSON lines: cut into rows once, each parsed when it is read.

use std::path::{Path, PathBuf};

use super::{Content, Each, Format, Want};
use crate::Result;
use crate::data::json::{Piece, parse_piece, pieces};
use crate::data::row::Row;

pub(super) struct Lines {
    path: PathBuf,
    content: Content,
    pieces: Vec<Piece>,
}

impl Lines {
    pub fn open(path: &Path, content: Content) -> Result<Self> {
        let pieces = pieces(path, &content)?;
        Ok(Self { path: path.to_owned(), content, pieces })
    }
}

impl Format for Lines {
    fn len(&self) -> usize {
        self.pieces.len()
    }

    fn read(&self, rows: &[usize], _: Want, each: Each) -> Result<()> {
        for &number in rows {
            let piece = &self.pieces[number];
            let fields = parse_piece(&self.path, &self.content, piece)?;
            each(number, Row { place: piece.place(), fields, ..Row::default() })?;
        }
        Ok(())
    }
}
