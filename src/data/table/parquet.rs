//! Parquet, by row group: pages outside of the rows that are asked for are passed over.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};

use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder, RowSelection,
};
use parquet::basic::{ConvertedType, Type};

use super::{Each, Format, Want, batches, failed};
use crate::{Error, Result};

/// Rows that are decoded at a time.
const BATCH: usize = 64;

pub(super) struct Parquet {
    path: PathBuf,
    metadata: ArrowReaderMetadata,
    /// First row of each row group, and the number of rows at the end.
    starts: Vec<usize>,
    /// The columns that are read, and those of them that are no bytes.
    all: ProjectionMask,
    texts: ProjectionMask,
}

impl Parquet {
    pub fn open(path: &Path, columns: &BTreeSet<String>) -> Result<Self> {
        let file = File::open(path).map_err(Error::io(path))?;
        let metadata = ArrowReaderMetadata::load(&file, ArrowReaderOptions::new())
            .map_err(|error| failed(path, error))?;
        let mut starts = vec![0];
        let mut at = 0;
        for group in metadata.metadata().row_groups() {
            at += usize::try_from(group.num_rows()).unwrap_or(0);
            starts.push(at);
        }
        let schema = metadata.parquet_schema();
        let known = |leaf: &usize| columns.contains(schema.get_column_root(*leaf).name());
        let is_text = |leaf: &usize| {
            let column = schema.column(*leaf);
            column.physical_type() != Type::BYTE_ARRAY
                || column.logical_type_ref().is_some()
                || column.converted_type() != ConvertedType::NONE
        };
        let leaves = 0..schema.num_columns();
        let all = ProjectionMask::leaves(schema, leaves.clone().filter(known));
        let texts =
            ProjectionMask::leaves(schema, leaves.filter(|leaf| known(leaf) && is_text(leaf)));
        Ok(Self { path: path.to_owned(), starts, all, texts, metadata })
    }

    /// Reads rows of one row group.
    fn group(&self, group: usize, rows: &[usize], want: Want, each: Each) -> Result<()> {
        let file = File::open(&self.path).map_err(Error::io(&self.path))?;
        let start = self.starts[group];
        let (first, count) = (rows[0], self.starts[group + 1] - start);
        let last = rows[rows.len() - 1];
        let selection = RowSelection::from_consecutive_ranges(
            std::iter::once(first - start..last + 1 - start),
            count,
        );
        let mask = match want {
            Want::All => &self.all,
            Want::Texts => &self.texts,
        };
        let reader =
            ParquetRecordBatchReaderBuilder::new_with_metadata(file, self.metadata.clone())
                .with_projection(mask.clone())
                .with_row_groups(vec![group])
                .with_row_selection(selection)
                .with_batch_size(BATCH)
                .build()
                .map_err(|error| failed(&self.path, error))?;
        batches(&self.path, first, rows, reader, each)
    }
}

impl Format for Parquet {
    fn columns(&self) -> Vec<String> {
        self.metadata.schema().fields().iter().map(|field| field.name().clone()).collect()
    }

    fn len(&self) -> usize {
        self.starts[self.starts.len() - 1]
    }

    fn read(&self, rows: &[usize], want: Want, each: Each) -> Result<()> {
        let mut rest = rows;
        while let Some(&row) = rest.first() {
            let group = self.starts.partition_point(|&start| start <= row) - 1;
            let own = rest.partition_point(|&row| row < self.starts[group + 1]);
            self.group(group, &rest[..own], want, &mut *each)?;
            rest = &rest[own..];
        }
        Ok(())
    }
}
