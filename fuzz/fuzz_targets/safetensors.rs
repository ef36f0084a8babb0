//! Header of a safetensors file, and the index of shards.
#![no_main]

use bdhs::models::weights::Weights;
use bdhs_fuzz::halves;
use candle_core::{DType, Device};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let (shard, index) = halves(data);
    let dir = tempfile::tempdir().expect("a folder");
    let single = index.is_empty();
    let name = if single { "model.safetensors" } else { "model-00001-of-00001.safetensors" };
    std::fs::write(dir.path().join(name), shard).expect("a file");
    if !single {
        std::fs::write(dir.path().join("model.safetensors.index.json"), index).expect("a file");
    }
    let Ok(weights) = Weights::open(dir.path(), &Device::Cpu, DType::F32) else { return };
    for name in weights.names() {
        let shape = weights.shape(name).expect("a shape").to_vec();
        let _ = weights.get(&shape, name);
    }
});
