//! Where tests find their files, and which device their models run on.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::path::PathBuf;
use std::sync::OnceLock;

use candle_core::Device;

/// The crate's folder: of the running checkout or unpacked bundle (cargo and `scripts/gpu-check` set the variable), else of
/// the one that was compiled.
pub fn root() -> PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR").map_or(env!("CARGO_MANIFEST_DIR").into(), PathBuf::from)
}

/// The CPU, or what `BDHS_TEST_DEVICE` names: the tests of models hold on a GPU too. Always the same handle.
pub fn device() -> Device {
    static DEVICE: OnceLock<Device> = OnceLock::new();
    let open = || {
        let name = std::env::var("BDHS_TEST_DEVICE").unwrap_or_else(|_| "cpu".into());
        bdhs::models::device::open(&name).expect("the device that BDHS_TEST_DEVICE names")
    };
    DEVICE.get_or_init(open).clone()
}
