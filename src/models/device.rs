//! Devices and storage types by name.

use candle_core::{DType, Device};

use crate::{Error, Result};

/// What stands for every usable GPU, or the CPU where there is none.
pub const AUTO: &str = "auto";

/// The devices that [`AUTO`] stands for, as [`list`] gives them: every GPU that this build and
/// driver can use, else the CPU; and why, for people.
pub fn automatic() -> (Vec<String>, String) {
    let count = match gpus() {
        Ok(count) => count,
        Err(Error::Unsupported { message, .. }) => {
            return (vec!["cpu".to_owned()], format!("cpu ({message})"));
        }
        Err(error) => return (vec!["cpu".to_owned()], format!("cpu ({error})")),
    };
    let names = (0..count).map(|n| format!("cuda:{n}"));
    let (mut usable, mut unusable) = (Vec::new(), Vec::new());
    for name in names {
        match check(&name) {
            Ok(_) => usable.push(name),
            Err(error) => unusable.push(error.to_string()),
        }
    }
    if usable.is_empty() {
        usable.push("cpu".to_owned());
        if count == 0 {
            unusable.push("the driver reports no GPU".to_owned());
        }
    }
    let mut why = usable.join(",");
    if !unusable.is_empty() {
        why.push_str(&format!(" ({})", unusable.join("; ")));
    }
    (usable, why)
}

/// The devices that `--device` names, each as [`open`] takes it: one, or several with commas
/// between them. Behind a GPU a number alone is another (`cuda:0,1`), and `cuda:all` is every GPU
/// that the driver reports. `gpu` is another word for `cuda`. One that is named twice is there
/// twice. For [`AUTO`] see [`automatic`].
///
/// # Errors
/// An unknown name, the CPU beside a GPU, and `cuda:all` where no GPU can be counted.
pub fn list(names: &str) -> Result<Vec<String>> {
    if names == AUTO {
        return Ok(automatic().0);
    }
    if names == "cuda:all" || names == "gpu:all" {
        return match gpus()? {
            0 => Err(Error::unsupported("device \"cuda:all\"", "the driver reports no GPU")),
            count => Ok((0..count).map(|n| format!("cuda:{n}")).collect()),
        };
    }
    let mut list: Vec<String> = Vec::new();
    for name in names.split(',') {
        let behind_gpu = list.last().is_some_and(|last| last.starts_with("cuda"));
        let number = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit());
        let name = match name.strip_prefix("gpu") {
            Some(rest) => format!("cuda{rest}"),
            None if behind_gpu && number => format!("cuda:{name}"),
            None => name.to_owned(),
        };
        ordinal(&name)?;
        list.push(name);
    }
    if list.iter().any(|name| (name == "cpu") != (list[0] == "cpu")) {
        // They would differ in the last bits, and the CPU would be waited for.
        return Err(Error::unsupported(
            format!("device {names:?}"),
            "expected GPUs alone, or the CPU alone",
        ));
    }
    Ok(list)
}

/// How many GPUs the driver reports.
///
/// # Errors
/// A build without CUDA, and a driver that does not start.
pub fn gpus() -> Result<usize> {
    #[cfg(feature = "cuda")]
    return crate::ops::cuda::count();
    #[cfg(not(feature = "cuda"))]
    Err(no_cuda("cuda:all"))
}

#[cfg(not(feature = "cuda"))]
fn no_cuda(name: &str) -> Error {
    Error::unsupported(
        format!("device {name:?}"),
        "this build has no CUDA; rebuild with `--features cuda`, or use --device cpu",
    )
}

/// Whether this build and this machine have a device, which is not opened for it; its number if it is a GPU.
///
/// # Errors
/// As [`open`].
pub fn check(name: &str) -> Result<Option<usize>> {
    let ordinal = ordinal(name)?;
    #[cfg(feature = "cuda")]
    if let Some(ordinal) = ordinal {
        crate::ops::cuda::probe(ordinal)?;
    }
    #[cfg(not(feature = "cuda"))]
    if ordinal.is_some() {
        return Err(no_cuda(name));
    }
    Ok(ordinal)
}

/// Opens `cpu`, `cuda` (the first GPU) or `cuda:N`.
///
/// CUDA devices get a stream of their own rather than the thread's default one, so that work from
/// several host threads is ordered by the device and not by accident. All ops run there, and with them the networks.
///
/// # Errors
/// An unknown name, a build without CUDA, a GPU that the driver does not report, and a GPU or driver that this
/// build's kernels do not run on; the message says what to do.
pub fn open(name: &str) -> Result<Device> {
    // Checked first, since candle's own start on an unfit driver fails without a reason.
    match check(name)? {
        None => Ok(Device::Cpu),
        Some(ordinal) => {
            let device = Device::new_cuda_with_stream(ordinal)?;
            #[cfg(feature = "cuda")]
            if let Device::Cuda(gpu) = &device {
                crate::ops::cuda::keep_memory(gpu.cuda_stream().context())?;
            }
            Ok(device)
        }
    }
}

/// The number of the GPU that a device name means; `None` for `cpu`.
///
/// # Errors
/// An unknown name.
pub fn ordinal(name: &str) -> Result<Option<usize>> {
    match name {
        "cpu" => Ok(None),
        "cuda" => Ok(Some(0)),
        _ => match name.strip_prefix("cuda:").map(str::parse) {
            Some(Ok(n)) => Ok(Some(n)),
            _ => Err(Error::unsupported(
                format!("device {name:?}"),
                "expected auto, cpu, cuda or cuda:N with N from 0; several as cuda:0,1, all GPUs as cuda:all",
            )),
        },
    }
}

/// Parses a storage type: `f32`, `f16` or `bf16`. For [`AUTO`] see
/// [`Source::dtype`](super::Source::dtype).
///
/// # Errors
/// Another name.
pub fn dtype(name: &str) -> Result<DType> {
    match name {
        "f32" => Ok(DType::F32),
        "f16" => Ok(DType::F16),
        "bf16" => Ok(DType::BF16),
        _ => {
            Err(Error::unsupported(format!("dtype {name:?}"), "expected one of f32, f16 and bf16"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_always_a_device() {
        let (devices, why) = automatic();
        assert_eq!(list(AUTO).unwrap(), devices);
        assert!(why.starts_with(&devices.join(",")), "{why}");
        let kinds: Vec<bool> = devices.iter().map(|name| open(name).unwrap().is_cpu()).collect();
        assert!(kinds == [true] || !kinds.contains(&true), "{devices:?}");
    }

    #[test]
    fn devices_are_listed() {
        for (names, expected) in [
            ("cpu", vec!["cpu"]),
            ("cpu,cpu", vec!["cpu", "cpu"]),
            ("cuda", vec!["cuda"]),
            ("cuda:0,1,7", vec!["cuda:0", "cuda:1", "cuda:7"]),
            ("cuda:0,cuda:2,1", vec!["cuda:0", "cuda:2", "cuda:1"]),
            ("cuda,3", vec!["cuda", "cuda:3"]),
            ("gpu", vec!["cuda"]),
            ("gpu:1,0,gpu:2", vec!["cuda:1", "cuda:0", "cuda:2"]),
        ] {
            assert_eq!(list(names).unwrap(), expected, "{names}");
        }
        for (names, part) in [
            ("", "device \"\""),
            ("0,1", "device \"0\""),
            ("cpu,1", "device \"1\""),
            ("cuda:0,", "device \"\""),
            ("cuda:0,x", "device \"x\""),
            ("cuda:all,1", "device \"cuda:all\""),
            ("gpus", "device \"cudas\""),
            ("cuda:0,cpu", "expected GPUs alone"),
            ("cpu,cuda:1", "expected GPUs alone"),
        ] {
            let message = list(names).unwrap_err().to_string();
            assert!(message.contains(part), "{names}: {message}");
        }
    }
}
