//! Settings and tensors of an adapter, put on a base.
#![no_main]

use bdhs::models::Source;
use bdhs_fuzz::{golden, halves};
use candle_core::{DType, Device};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let (settings, tensors) = halves(data);
    let dir = tempfile::tempdir().expect("a folder");
    std::fs::write(dir.path().join("adapter_config.json"), settings).expect("a file");
    let stored = match tensors.is_empty() {
        true => std::fs::read(golden("peft/alpha_pattern/adapter_model.safetensors")),
        false => Ok(tensors.to_vec()),
    };
    std::fs::write(dir.path().join("adapter_model.safetensors"), stored.expect("a file"))
        .expect("a file");
    let Ok(source) = Source::new(&golden("llava/llava15"), Some(dir.path())) else { return };
    let Ok(weights) = source.weights(&Device::Cpu, DType::F32) else { return };
    for name in weights.names() {
        let shape = weights.shape(name).expect("a shape").to_vec();
        let _ = weights.get(&shape, name);
    }
});
