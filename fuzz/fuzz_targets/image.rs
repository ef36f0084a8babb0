//! A picture, decoded and preprocessed, padded to a square and not.
#![no_main]

use std::path::Path;
use std::sync::LazyLock;

use bdhs::models::Model;
use bdhs_fuzz::golden;
use candle_core::{DType, Device};
use libfuzzer_sys::fuzz_target;

static MODELS: LazyLock<Vec<Model>> = LazyLock::new(|| {
    let load = |name: &str| Model::load(golden(name), &Device::Cpu, DType::F32).expect("a model");
    vec![load("llava/llava15"), load("llava/next_vicuna")]
});

fuzz_target!(|data: &[u8]| {
    let Ok(picture) = bdhs::data::image::decode(data, Path::new("picture")) else { return };
    // Larger ones take the time of many.
    if u64::from(picture.width()) * u64::from(picture.height()) > 1 << 20 {
        return;
    }
    for model in &*MODELS {
        let (width, height) = (picture.width() as usize, picture.height() as usize);
        if let Ok(pixels) = model.preprocess(&picture) {
            let layout = model.layout(width, height).expect("a layout of what was preprocessed");
            assert_eq!(layout.tokens, pixels.layout.tokens);
        }
    }
});
