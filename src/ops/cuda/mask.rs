//! Masked-image sampling on a GPU. Contract: [`crate::ops::mask`]; calls: [`super`].
//!
//! Draws are cheap and the same on the CPU, bit for bit, so the CPU makes them too: counts and offsets come from there, and
//! nothing waits for the device. What the device draws is the long part, the indices or bits themselves.

#[cfg(feature = "cuda")]
mod tensors;

use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, DevicePtrMut};

use super::args::{self, MaskArgs, MaskGrid, MaskRow, PackArgs};
use super::module::File;
use super::{Queue, Rows, Upload, check_len, geometry};
use crate::ops::mask::{Kept, MaskScheme, Row, draw as draw_on_host, threshold};
use crate::{Error, Result};
#[cfg(feature = "cuda")]
pub(in crate::ops) use tensors::pack_tensors;

/// Masks to draw: checked, counted, uploaded.
#[derive(Debug)]
pub struct Masks {
    rows: CudaSlice<MaskRow>,
    grids: CudaSlice<MaskGrid>,
    scheme: MaskScheme,
    exempt_newlines: bool,
    kept: Kept,
    words: usize,
}

impl Masks {
    /// Draws on the CPU for the counts, and uploads what the device needs to draw the same.
    ///
    /// # Errors
    /// As [`crate::ops::mask::draw`], on a block of 2^32 or more, and statuses of the driver.
    pub fn new(
        to: &impl Upload,
        scheme: MaskScheme,
        rows: &[Row<'_>],
        exempt_newlines: bool,
    ) -> Result<Self> {
        let op = "cuda::mask::Masks";
        let kept = draw_on_host(scheme, rows, exempt_newlines)?;
        let (mut grids, mut device_rows, mut words) = (vec![], vec![], 0u64);
        for (r, row) in rows.iter().enumerate() {
            let first_grid = grids.len();
            // Checked by the draw: every grid lies within the row's tokens, below 2^32.
            // Only figures that reach no cell can be larger.
            let figure = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
            grids.extend(row.grids.iter().map(|grid| MaskGrid {
                start: figure(grid.start),
                rows: figure(grid.rows),
                cols: figure(grid.cols),
                stride: figure(grid.stride),
            }));
            let cells: usize = row.grids.iter().map(|grid| grid.rows * grid.cols).sum();
            let drawn = if exempt_newlines { cells } else { row.tokens };
            device_rows.push(MaskRow {
                seed: row.draws.seed,
                index_start: u64::from(kept.cu_seqlens[r]),
                word_start: words,
                sample: row.draws.sample,
                attempt: row.draws.attempt,
                sentence: row.sentence,
                tokens: row.tokens as u32,
                first_grid: u32::try_from(first_grid)
                    .map_err(|_| Error::argument(op, "grids", first_grid, "fewer than 2^32"))?,
                grids: row.grids.len() as u32,
                // Of those that stay, the exempt ones were not drawn.
                keep: (kept.row(r).len() - (row.tokens - drawn)) as u32,
                drawn: drawn as u32,
            });
            words += row.tokens.div_ceil(32) as u64;
        }
        if let MaskScheme::Blocks { block, .. } = scheme
            && u32::try_from(block).is_err()
        {
            return Err(Error::argument(op, "block", block, "below 2^32"));
        }
        Ok(Self {
            rows: to.upload(op, &device_rows)?,
            grids: to.upload(op, &grids)?,
            scheme,
            exempt_newlines,
            kept,
            words: words as usize,
        })
    }

    /// What stays, as the CPU drew it: with `cu_seqlens` of the device's indices.
    pub fn kept(&self) -> &Kept {
        &self.kept
    }

    /// Words of the bitmask of all rows.
    pub fn words(&self) -> usize {
        self.words
    }
}

/// Draws masks: kept indices (as [`Kept::indices`]) and bits (as [`crate::ops::mask::Bitmask::words`]), each if wanted. One launch
/// for all rows.
///
/// # Errors
/// On outputs that are too short or of another GPU, and statuses of the driver.
pub fn draw(
    stream: &Arc<CudaStream>,
    masks: &Masks,
    indices: Option<&mut CudaSlice<u32>>,
    bitmask: Option<&mut CudaSlice<u32>>,
) -> Result<()> {
    let op = "cuda::mask::draw";
    let queue = Queue { op, stream };
    let (law, block) = match masks.scheme {
        MaskScheme::Bernoulli { .. } => (args::LAW_BERNOULLI, 1),
        MaskScheme::ExactK { .. } => (args::LAW_EXACT_K, 1),
        MaskScheme::Blocks { block, .. } => (args::LAW_BLOCKS, block),
    };
    let (rows, _rows) = queue.read("rows", &masks.rows)?;
    let (grids, _grids) = queue.read("grids", &masks.grids)?;
    let (indices, _indices) = match indices {
        Some(indices) => {
            check_len(op, "indices", indices, masks.kept.indices.len())?;
            let (address, guard) = queue.write("indices", indices)?;
            (address, Some(guard))
        }
        None => (0, None),
    };
    let (bitmask, _bitmask) = match bitmask {
        Some(bitmask) => {
            check_len(op, "bitmask", bitmask, masks.words)?;
            let (address, guard) = queue.write("bitmask", bitmask)?;
            (address, Some(guard))
        }
        None => (0, None),
    };
    let count = masks.kept.rows();
    let args = MaskArgs {
        rows,
        grids,
        indices,
        bitmask,
        bar: threshold(masks.scheme.rho()),
        law,
        block: block as u32,
        exempt_newlines: u32::from(masks.exempt_newlines),
        row_count: count as u32,
    };
    // SAFETY: rows and grids are those that `Masks` checked; outputs are as long as the CPU's draw of the same masks. All
    // are guarded here.
    unsafe { queue.launch(File::Mask, "mask_draw", count as u64, args::MASK_THREADS, &args) }
}

/// Rows to gather from buffers that stay where they are.
#[derive(Debug)]
pub struct Gather<'a> {
    sources: &'a [Rows<'a>],
    bases: CudaSlice<u64>,
    source_of: CudaSlice<u32>,
    row_of: CudaSlice<u64>,
    rows: usize,
}

impl<'a> Gather<'a> {
    /// For each output row, its source and its row there. Sources are of one width and type, their rows one after another.
    ///
    /// # Errors
    /// On sources that do not fit together, rows that no source has, and statuses of the driver.
    pub fn new(to: &impl Upload, sources: &'a [Rows<'a>], rows: &[(usize, usize)]) -> Result<Self> {
        let op = "cuda::mask::Gather";
        let stream = to.stream();
        let queue = Queue { op, stream: &stream };
        let Some(first) = sources.first() else {
            return Err(Error::argument(op, "sources", "empty", "at least one"));
        };
        let mut bases = vec![];
        for (s, source) in sources.iter().enumerate() {
            if (source.width, source.values.code()) != (first.width, first.values.code()) {
                let got = format!("{} of {} at {s}", source.width, source.values.name());
                return Err(Error::argument(
                    op,
                    "sources",
                    got,
                    format!("{} of {}", first.width, first.values.name()),
                ));
            }
            if source.stride != source.width && source.count > 1 {
                let got = format!("{} apart at {s}", source.stride);
                return Err(Error::argument(
                    op,
                    "source rows",
                    got,
                    format!("{}, their width", source.width),
                ));
            }
            bases.push(source.read(&queue, "sources")?.0);
        }
        if let Some((at, &(source, row))) = rows
            .iter()
            .enumerate()
            .find(|(_, (source, row))| sources.get(*source).is_none_or(|s| *row >= s.count))
        {
            let got = format!("row {row} of source {source}, at {at}");
            return Err(Error::argument(op, "rows", got, "a row that its source has"));
        }
        let source_of: Vec<u32> = rows.iter().map(|(source, _)| *source as u32).collect();
        let row_of: Vec<u64> = rows.iter().map(|(_, row)| *row as u64).collect();
        Ok(Self {
            sources,
            bases: to.upload(op, &bases)?,
            source_of: to.upload(op, &source_of)?,
            row_of: to.upload(op, &row_of)?,
            rows: rows.len(),
        })
    }
}

/// Copies the rows of a gather into `out`, one after another. One launch.
///
/// # Errors
/// On an output that is too short, of another type or GPU, and statuses of the driver.
pub fn pack<T: super::pool::Output>(
    stream: &Arc<CudaStream>,
    gather: &Gather<'_>,
    out: &mut impl DevicePtrMut<T>,
) -> Result<()> {
    let op = "cuda::mask::pack";
    let queue = Queue { op, stream };
    let first = &gather.sources[0];
    if T::CODE != first.values.code() {
        return Err(Error::argument(
            op,
            "out",
            "of another dtype",
            format!("{}, as the sources", first.values.name()),
        ));
    }
    check_len(op, "out", out, gather.rows * first.width)?;
    let row_bytes = (first.width * first.values.bytes()) as u64;
    if row_bytes == 0 {
        return Ok(());
    }
    let mut guards = vec![];
    let mut addresses = vec![];
    for source in gather.sources {
        let (address, guard) = source.read(&queue, "sources")?;
        addresses.push(address);
        guards.push(guard);
    }
    let (bases, _bases) = queue.read("sources", &gather.bases)?;
    let (source_of, _source_of) = queue.read("rows", &gather.source_of)?;
    let (row_of, _row_of) = queue.read("rows", &gather.row_of)?;
    let (to, _out) = queue.write("out", out)?;
    addresses.push(to);
    let args = PackArgs {
        sources: bases,
        source_of,
        row_of,
        out: to,
        rows: gather.rows as u64,
        row_bytes,
        unit: geometry::copy_unit(row_bytes, addresses.into_iter()),
        reserved: 0,
    };
    let blocks = geometry::pack(gather.rows as u64, queue.multiprocessors()?);
    // SAFETY: `bases` are the addresses of the sources, which are borrowed and have every row asked for; `out` is long
    // enough; `unit` divides all. All are guarded here.
    unsafe { queue.launch(File::Mask, "pack_rows", blocks, args::PACK_THREADS, &args) }
}
