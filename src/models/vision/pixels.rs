//! What the image processors of all families have in common: where their settings are, and how 8-bit values become floats.

use std::path::Path;

use super::resample::Filter;
use crate::models::fields::Fields;
use crate::{Error, Result};

pub(in crate::models) const CLIP_MEAN: [f64; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
pub(in crate::models) const CLIP_STD: [f64; 3] = [0.268_629_54, 0.261_302_58, 0.275_777_11];

/// The settings of the image processor, where transformers keeps them.
pub(in crate::models) fn processor_fields(dir: &Path) -> Result<Fields> {
    if let Some(file) = Fields::read_if_present(&dir.join("processor_config.json"))?
        && let Some(inner) = file.object("image_processor")?
    {
        return Ok(inner);
    }
    Fields::read(&dir.join("preprocessor_config.json"))
}

/// The filter of resizing; Pillow's bicubic if absent.
pub(in crate::models) fn resample(fields: &Fields) -> Result<Filter> {
    let number = fields.usize("resample")?.unwrap_or(3);
    Filter::from_number(number).ok_or_else(|| {
        Error::unsupported(
            format!("resample {number}"),
            format!("{}: expected 1 to 5, Pillow's convolutions", fields.path().display()),
        )
    })
}

/// Rescaling and normalisation of every 8-bit value, rounded where numpy rounds: after the product, then in f32.
pub(in crate::models) fn values(
    fields: &Fields,
    mean: [f64; 3],
    std: [f64; 3],
) -> Result<Box<[[f32; 256]; 3]>> {
    let std = fields.channels("image_std", std)?;
    if let Some(bad) = std.iter().find(|s| !(s.is_finite() && **s > 0.0)) {
        return Err(fields.invalid("image_std", format!("holds {bad}, expected positive numbers")));
    }
    let rescale = fields.bool("do_rescale", true)?;
    let factor = if rescale { fields.f64("rescale_factor", 1.0 / 255.0)? } else { 1.0 };
    let normalise = fields.bool("do_normalize", true)?;
    let mut table = Box::new([[0.0; 256]; 3]);
    for (c, row) in table.iter_mut().enumerate() {
        for (v, out) in row.iter_mut().enumerate() {
            let x = (v as f64 * factor) as f32;
            *out = if normalise { (x - mean[c] as f32) / std[c] as f32 } else { x };
        }
    }
    Ok(table)
}
