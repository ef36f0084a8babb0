//! How much memory there is and was needed, and how many key-value slots it is good for.

use candle_core::{DType, Device};

use super::{KvCache, Model, outline::Outline, source::Source};
use crate::{Error, Result};

/// Bytes that count as free on a CPU, in place of what the system says.
const VARIABLE: &str = "BDHS_MEMORY";
/// Bytes that count as free for features where the system does not say.
const FEATURES_UNKNOWN: u64 = 8 << 30;
/// Slots beyond which a pass does not gain any more.
const MOST_SLOTS: u64 = 16_384;
/// On a GPU they are bounded by its memory alone.
const MOST_SLOTS_ON_GPU: u64 = u32::MAX as u64;

/// Bytes that are free on a device; `None` where the system does not tell. On a CPU that is what Linux calls available, within the
/// limits of the control group, or what `BDHS_MEMORY` says.
///
/// # Errors
/// A `BDHS_MEMORY` that is no number, and statuses of the driver.
pub fn free(device: &Device) -> Result<Option<u64>> {
    match device {
        Device::Cpu => free_on_host(),
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => {
            Ok(Some(crate::ops::cuda::free_memory(device.cuda_stream().context())?))
        }
        _ => Ok(None),
    }
}

/// Gives back what this process holds of a device's memory and does not use.
///
/// # Errors
/// Statuses of the driver.
pub fn trim(device: &Device) -> Result<()> {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(device) = device {
        return crate::ops::cuda::trim_memory(device.cuda_stream().context());
    }
    let _ = device;
    Ok(())
}

fn free_on_host() -> Result<Option<u64>> {
    if let Some(bytes) = std::env::var_os(VARIABLE) {
        let parsed = bytes.to_str().and_then(|text| text.parse::<u64>().ok());
        let expected = "a number of bytes";
        let wrong = || Error::argument("memory", VARIABLE, bytes.display(), expected);
        return parsed.map(Some).ok_or_else(wrong);
    }
    let file = |path| std::fs::read_to_string(path).ok();
    let number = |path| file(path)?.trim().parse::<u64>().ok();
    let group = |limit, used| Some(number(limit)?.saturating_sub(number(used)?));
    let version2 = group("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current");
    let available =
        file("/proc/meminfo").as_deref().and_then(|text| kilobytes(text, "MemAvailable:"));
    Ok([available, version2].into_iter().flatten().min())
}

/// The high-water mark that Linux keeps of this process, in bytes.
pub fn peak() -> Option<u64> {
    kilobytes(&std::fs::read_to_string("/proc/self/status").ok()?, "VmHWM:")
}

/// A line of a file of Linux, in bytes.
fn kilobytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(1024 * line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?)
}

/// Key-value slots for a model that is not loaded yet: what half of the memory holds that its weights leave free, the other half being
/// for the states of a pass; at most 16,384 on a CPU.
///
/// # Errors
/// As [`Outline::read`] and [`free`].
pub fn slots(source: &Source, dtype: DType, device: &Device) -> Result<u32> {
    let most = if device.is_cpu() { MOST_SLOTS } else { MOST_SLOTS_ON_GPU };
    let Some(free) = free(device)? else { return Ok(most as u32) };
    let outline = Outline::read(source, 1)?;
    let own = outline.memory.iter().find(|memory| memory.dtype == dtype.as_str());
    let (weights, slot) = own.map_or((0, 1), |m| (m.weight_bytes, m.cache_bytes_per_token));
    Ok(fitting(free, weights, slot, most))
}

/// As [`slots`] for a model that is loaded: what half of the free memory holds.
///
/// # Errors
/// As [`free`].
pub fn slots_beside(model: &Model) -> Result<usize> {
    let language = &model.language;
    let most = if language.device().is_cpu() { MOST_SLOTS } else { MOST_SLOTS_ON_GPU };
    let Some(free) = free(language.device())? else { return Ok(most as usize) };
    let slot = KvCache::bytes(language.config(), 1, language.dtype()) as u64;
    Ok(fitting(free, 0, slot, most) as usize)
}

/// Bytes for what is remembered of images beside a loaded model and its slots: an eighth of the
/// free memory.
///
/// # Errors
/// As [`free`].
pub fn features(device: &Device) -> Result<usize> {
    Ok((free(device)?.unwrap_or(FEATURES_UNKNOWN) / 8) as usize)
}

/// At least one: what has no room at all is told when it is allocated.
fn fitting(free: u64, weights: u64, slot: u64, most: u64) -> u32 {
    (free.saturating_sub(weights) / 2 / slot.max(1)).clamp(1, most) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_fit_into_half_of_what_weights_leave() {
        const GB: u64 = 1 << 30;
        for (free, weights, slot, expected) in [
            (80 * GB, 14 * GB, 512 << 10, 67_584),
            (141 * GB, 14 * GB, 512 << 10, 130_048),
            (24 * GB, 14 * GB, 512 << 10, 10_240),
            (14 * GB, 14 * GB, 512 << 10, 1),
            (0, GB, 1, 1),
        ] {
            assert_eq!(fitting(free, weights, slot, MOST_SLOTS_ON_GPU), expected, "{free}");
        }
    }

    #[test]
    fn free_memory_is_told() {
        let status = "Name:\tx\nVmRSS:\t   2048 kB\n";
        assert_eq!(kilobytes(status, "VmRSS:"), Some(2 << 20));
        assert_eq!(kilobytes(status, "VmHWM:"), None);
        if cfg!(target_os = "linux") {
            assert!(free(&Device::Cpu).unwrap().is_some_and(|bytes| bytes > 1 << 20));
        }
    }
}
