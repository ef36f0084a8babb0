//! Opening images as RGB, the way the models' reference processors see them.
//!
//! The format is told by content, not by name: PNG, JPEG, WebP, BMP, GIF (first frame), TIFF.
//!
//! Pixels equal those of Pillow's `convert("RGB")` after `exif_transpose`:
//! - EXIF orientation is applied, unless a caller says otherwise ([`decode_as`]): the original LLaVA code does not;
//! - alpha is dropped, not blended; a transparent palette colour keeps its colour;
//! - palette and grey images become RGB;
//! - colour samples of 16 bits keep their high byte. Pillow does so for colour, but clips 16-bit *grey* values at 255 in some
//!   releases, which turns photographs white; the high byte is taken here for grey as well `[C]`;
//! - CMYK JPEGs are read as inverted, as Adobe writes them.
//!
//! JPEG decoders may differ by a few units in a channel; lossless formats do not. Colour profiles are ignored, by both.

use std::io::Cursor;
use std::path::Path;

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits, RgbImage};

use crate::models::guard::guarded;
use crate::{Error, Result};

/// Longest side that is decoded: what resizing needs grows with it.
pub const MAX_SIDE: u32 = 1 << 20;

/// Largest number of pixels that is decoded: Pillow's limit against decompression bombs. 268 MB as RGB.
pub const MAX_PIXELS: u64 = 89_478_485;

/// Opens an image file: see the module docs.
///
/// # Errors
/// If the file cannot be read, is empty, truncated or corrupt, of an unknown format, has samples that are not 8 or 16 bits,
/// or has more than [`MAX_PIXELS`] or a side over [`MAX_SIDE`] (known before it is decoded). The message names the file and the reason.
pub fn open(path: &Path) -> Result<RgbImage> {
    decode(&std::fs::read(path).map_err(Error::io(path))?, path)
}

/// As [`open`], for bytes that were read before; `path` is for messages.
///
/// # Errors
/// As [`open`].
pub fn decode(bytes: &[u8], path: &Path) -> Result<RgbImage> {
    decode_as(bytes, path, true)
}

/// As [`decode`]; the EXIF orientation is applied only if `turned` says so.
///
/// # Errors
/// As [`open`].
pub fn decode_as(bytes: &[u8], path: &Path, turned: bool) -> Result<RgbImage> {
    guarded(path, "image", || decode_unguarded(bytes, path, turned))?
}

fn decode_unguarded(bytes: &[u8], path: &Path, turned: bool) -> Result<RgbImage> {
    let (decoder, orientation) = decoder(bytes, path)?;
    let invalid = |message: String| Error::invalid(path, "", message);
    let mut image = DynamicImage::from_decoder(decoder)
        .map_err(|error| invalid(format!("cannot be decoded: {error}")))
        .and_then(|image| {
            to_rgb(image)
                .map(DynamicImage::ImageRgb8)
                .map_err(|layout| invalid(format!("has {layout} samples, expected 8 or 16 bits")))
        })?;
    if turned {
        image.apply_orientation(orientation);
    }
    Ok(image.into_rgb8())
}

/// Width and height of what [`open`] would return, from the file's header.
///
/// # Errors
/// As [`open`], as far as the header tells.
pub fn dimensions(path: &Path) -> Result<(u32, u32)> {
    dimensions_of(&std::fs::read(path).map_err(Error::io(path))?, path, true)
}

/// As [`dimensions`], for bytes that were read before; `path` is for messages, `turned` as in [`decode_as`].
///
/// # Errors
/// As [`dimensions`].
pub fn dimensions_of(bytes: &[u8], path: &Path, turned: bool) -> Result<(u32, u32)> {
    let (width, height, orientation) = guarded(path, "image", || {
        let (decoder, orientation) = decoder(bytes, path)?;
        let (width, height) = decoder.dimensions();
        Ok::<_, Error>((width, height, orientation))
    })??;
    Ok(match orientation {
        _ if !turned => (width, height),
        Orientation::Rotate90
        | Orientation::Rotate270
        | Orientation::Rotate90FlipH
        | Orientation::Rotate270FlipH => (height, width),
        _ => (width, height),
    })
}

/// A decoder whose header is sound, and how its picture is to be turned.
fn decoder<'a>(bytes: &'a [u8], path: &Path) -> Result<(impl ImageDecoder + 'a, Orientation)> {
    let invalid = |message: String| Error::invalid(path, "", message);
    if bytes.is_empty() {
        return Err(invalid("is empty, expected an image".to_owned()));
    }
    let format = image::guess_format(bytes).map_err(|_| {
        invalid(
            "is of no known image format, expected PNG, JPEG, WebP, BMP, GIF or TIFF".to_owned(),
        )
    })?;
    // The decoder fills what is missing with grey; such a picture must not be taken for the real one.
    if format == ImageFormat::Jpeg && !jpeg_is_complete(bytes) {
        return Err(invalid("is a truncated JPEG: it has no end-of-image marker".to_owned()));
    }
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut limits = Limits::no_limits();
    // Eight bytes a pixel is the largest sample layout read here; twice that for what decoders keep beside the picture.
    limits.max_alloc = Some(MAX_PIXELS * 16);
    reader.limits(limits);
    let mut decoder = reader
        .into_decoder()
        .map_err(|error| invalid(format!("cannot be decoded as {format:?}: {error}")))?;
    let (width, height) = decoder.dimensions();
    let pixels = u64::from(width) * u64::from(height);
    if pixels == 0 || pixels > MAX_PIXELS {
        return Err(invalid(format!(
            "is {width} x {height} pixels, expected 1 to {MAX_PIXELS} in all"
        )));
    }
    if width.max(height) > MAX_SIDE {
        return Err(invalid(format!(
            "is {width} x {height} pixels, expected sides of at most {MAX_SIDE}: cut the picture"
        )));
    }
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    Ok((decoder, orientation))
}

/// BLAKE3 of the file's bytes: the image's identity in a candidate's key.
///
/// # Errors
/// If the file cannot be read.
pub fn content_hash(path: &Path) -> Result<[u8; 32]> {
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    Ok(*blake3::hash(&bytes).as_bytes())
}

/// Drops alpha, spreads grey, keeps the high byte of 16 bits; the sample layout if it is another one.
fn to_rgb(image: DynamicImage) -> std::result::Result<RgbImage, String> {
    let (width, height) = (image.width(), image.height());
    let pixels: Vec<u8> = match &image {
        DynamicImage::ImageRgb8(_) => return Ok(image.into_rgb8()),
        DynamicImage::ImageLuma8(grey) => grey.as_raw().iter().flat_map(|&l| [l; 3]).collect(),
        DynamicImage::ImageLumaA8(grey) => {
            grey.as_raw().chunks_exact(2).flat_map(|p| [p[0]; 3]).collect()
        }
        DynamicImage::ImageRgba8(rgba) => {
            rgba.as_raw().chunks_exact(4).flat_map(|p| [p[0], p[1], p[2]]).collect()
        }
        DynamicImage::ImageLuma16(grey) => {
            grey.as_raw().iter().flat_map(|&l| [high(l); 3]).collect()
        }
        DynamicImage::ImageLumaA16(grey) => {
            grey.as_raw().chunks_exact(2).flat_map(|p| [high(p[0]); 3]).collect()
        }
        DynamicImage::ImageRgb16(rgb) => rgb.as_raw().iter().map(|&x| high(x)).collect(),
        DynamicImage::ImageRgba16(rgba) => rgba
            .as_raw()
            .chunks_exact(4)
            .flat_map(|p| [high(p[0]), high(p[1]), high(p[2])])
            .collect(),
        other => return Err(format!("{:?}", other.color())),
    };
    RgbImage::from_raw(width, height, pixels).ok_or_else(|| "an unexpected number of".to_owned())
}

fn high(sample: u16) -> u8 {
    (sample >> 8) as u8
}

/// Whether a JPEG's segments run up to an end-of-image marker. Markers inside segments (a thumbnail's) do not count.
fn jpeg_is_complete(bytes: &[u8]) -> bool {
    let mut at = 2;
    loop {
        // To the next marker: entropy-coded data is in between, where FF is followed by 00 or a restart marker.
        let Some(skip) = bytes[at.min(bytes.len())..]
            .windows(2)
            .position(|pair| pair[0] == 0xFF && !matches!(pair[1], 0x00 | 0xD0..=0xD7 | 0xFF))
        else {
            return false;
        };
        at += skip;
        if bytes[at + 1] == 0xD9 {
            return true;
        }
        let Some(&[high, low]) = bytes.get(at + 2..at + 4).and_then(|length| length.first_chunk())
        else {
            return false;
        };
        at += 2 + usize::from(u16::from_be_bytes([high, low]));
    }
}
