//! What is checked of a data set before hours of work: every picture is decoded once, and every sample laid out for the
//! model, whose weights are not read for it. Pictures are hashed on the way, since identity covers content.

use std::io::Write;
use std::path::Path;

use candle_core::{DType, Device};
use rayon::prelude::*;

use crate::{
    Error, Result,
    config::Config,
    data::{Dataset, Reason, Sample, Skipped},
    engine::{Engine, Progress, Request, checkpoint, is_too_long},
    files::AtomicFile,
    models::Model,
};

/// The file of a run folder that lists rows which were left out.
pub(super) const SKIPPED: &str = "skipped.jsonl";
/// What a person can do about rows that are of no use.
pub const ADVICE: &str = "--skip-bad (data.skip_bad = true) leaves such rows out, counts them and lists them in skipped.jsonl";
/// Samples whose pictures are in memory at a time.
/// Why a sample is of no use, and in words; none for a sample that is.
type Fault = Option<(Reason, String)>;

const CHUNK: usize = 64;

/// The content hashes of every sample's pictures. With `check`, samples that are of no use are left out of the data set on
/// the way; without, every sample is taken for good.
pub(super) fn survey(
    dataset: &mut Dataset,
    config: &Config,
    check: bool,
    progress: &dyn Progress,
) -> Result<Vec<Vec<[u8; 32]>>> {
    let count = dataset.len();
    progress.begin("checking data", Some(count as u64));
    let model = match check && !config.model.path.as_os_str().is_empty() {
        true => {
            let source = config.model.source()?;
            let weights = source.weights(&Device::Cpu, DType::F32)?.outline();
            Some(Model::with_weights(source.base(), &weights)?)
        }
        false => None,
    };
    let engine =
        model.as_ref().map(|model| Engine::new(model, config.sampling.clone(), config.run.seed));
    let engine = engine.transpose()?;
    let (mut hashes, mut bad) = (Vec::with_capacity(count), Vec::new());
    for first in (0..count).step_by(CHUNK) {
        checkpoint(progress)?;
        let samples = dataset.read(first..count.min(first + CHUNK))?;
        let looked: Vec<(Vec<[u8; 32]>, Fault)> = samples
            .par_iter()
            .map(|sample| {
                let hashes = sample.images.iter().map(|image| image.content_hash());
                let fault = if check { fault(sample, engine.as_ref(), config)? } else { None };
                Ok((hashes.collect::<Result<_>>()?, fault))
            })
            .collect::<Result<_>>()?;
        for (sample, (own, fault)) in samples.iter().zip(looked) {
            if let Some((reason, message)) = fault {
                bad.push(dataset.bad(sample, reason, message));
            }
            hashes.push(own);
        }
        progress.advance(samples.len() as u64);
    }
    let mut kept = dataset.leave_out(bad).into_iter();
    hashes.retain(|_| kept.next().unwrap_or(true));
    Ok(hashes)
}

/// Why a sample is of no use to a run, if it is none.
fn fault(
    sample: &Sample,
    engine: Option<&Engine>,
    config: &Config,
) -> Result<Option<(Reason, String)>> {
    // Where no image token is ever visible, no picture is needed but for its size.
    if config.sampling.rho < 1.0 {
        for image in &sample.images {
            if let Err(error) = image.open() {
                return Ok(Some((Reason::BrokenPicture, error.to_string())));
            }
        }
    }
    let Some(engine) = engine else { return Ok(None) };
    for guided in [config.sampling.guidance, false] {
        match engine.prepare(Request { sample, attempt: 1, guided }) {
            Ok(_) => {}
            Err(error) if is_too_long(&error) => {
                return Ok(Some((Reason::TooLong, message(error))));
            }
            // A picture whose header cannot be read, or a prompt that the model's template refuses.
            Err(error @ Error::Invalid { .. }) => {
                let broken = sample.images.iter().any(|image| image.dimensions().is_err());
                let reason = if broken { Reason::BrokenPicture } else { Reason::Malformed };
                return Ok(Some((reason, message(error))));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// What an error says, without the place, which is known.
fn message(error: Error) -> String {
    match error {
        Error::Invalid { path, message, .. } if path.as_os_str().is_empty() => message,
        other => other.to_string(),
    }
}

/// Writes the list of rows that are left out.
///
/// # Errors
/// If the file cannot be written.
pub fn write(out: &Path, skipped: &[Skipped]) -> Result<()> {
    let path = out.join(SKIPPED);
    let mut file = AtomicFile::create(&path)?;
    for one in skipped {
        serde_json::to_writer(&mut file, one)
            .map_err(std::io::Error::from)
            .and_then(|()| file.write_all(b"\n"))
            .map_err(Error::io(&path))?;
    }
    file.commit()
}

/// Reads the list that an earlier call wrote; none if there is none.
pub(super) fn read(out: &Path) -> Result<Option<Vec<Skipped>>> {
    let path = out.join(SKIPPED);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io(path)(error)),
    };
    let line = |(number, line): (usize, &str)| {
        serde_json::from_str(line).map_err(|error| {
            Error::invalid(&path, format!("line {}", number + 1), error.to_string())
        })
    };
    text.lines().enumerate().map(line).collect::<Result<_>>().map(Some)
}
