//! What the kernels are compiled for, and on which GPUs and drivers they then run.
//!
//! Pure functions of version numbers, so that the whole table is tested without a GPU (`tests/ops/cuda_support.rs`). Std only:
//! the build script reads `BDHS_CUDA_ARCHS` with the same code.
//!
//! | compiled for | runs on |
//! |---|---|
//! | `sm_80` (binary) | the same major version from that minor on: 8.0, 8.6, 8.9 |
//! | `sm_90a` (binary of one generation) | exactly that version: 9.0 |
//! | `compute_90` (PTX) | that version and all later ones, compiled by the driver at load |
//!
//! A driver runs binaries of its own major CUDA version and of older ones; PTX only of CUDA versions up to its own.
//!
//! Source: NVIDIA, "CUDA C++ Programming Guide", binary and PTX compatibility; "CUDA Compatibility".

use std::fmt;

/// The targets of a build that names none: what `BDHS_CUDA_ARCHS` replaces.
pub const DEFAULT: &str = "80,86,89,90a,compute_90";

/// The oldest compute capability of the kernels: bf16 and `mma.m16n8k16`.
pub const OLDEST: Version = Version(8, 0);

/// The oldest toolkit that knows all default targets.
pub const OLDEST_TOOLKIT: Version = Version(12, 0);

/// A compute capability or a CUDA version: major, minor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub u32, pub u32);

impl Version {
    /// From the driver's own number, as 13000 for 13.0.
    pub fn from_driver(number: i32) -> Self {
        let number = u32::try_from(number).unwrap_or(0);
        Self(number / 1000, number % 1000 / 10)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// How a target is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Machine code, as for `sm_80`.
    Binary,
    /// Machine code of one generation alone, as for `sm_90a`.
    Specific,
    /// Text that the driver compiles, as for `compute_90`.
    Ptx,
}

/// One thing the kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Target {
    /// Binary or PTX.
    pub kind: Kind,
    /// The compute capability.
    pub capability: Version,
}

impl Target {
    /// nvcc's `-gencode` value.
    pub fn gencode(&self) -> String {
        let Version(major, minor) = self.capability;
        match self.kind {
            Kind::Binary => format!("arch=compute_{major}{minor},code=sm_{major}{minor}"),
            Kind::Specific => format!("arch=compute_{major}{minor}a,code=sm_{major}{minor}a"),
            Kind::Ptx => format!("arch=compute_{major}{minor},code=compute_{major}{minor}"),
        }
    }

    /// Whether a GPU of this capability can run it.
    pub fn runs_on(&self, gpu: Version) -> bool {
        let own = self.capability;
        match self.kind {
            Kind::Binary => gpu.0 == own.0 && gpu.1 >= own.1,
            Kind::Specific => gpu == own,
            Kind::Ptx => gpu >= own,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Version(major, minor) = self.capability;
        match self.kind {
            Kind::Binary => write!(f, "sm_{major}{minor}"),
            Kind::Specific => write!(f, "sm_{major}{minor}a"),
            Kind::Ptx => write!(f, "compute_{major}{minor}"),
        }
    }
}

/// Reads a list as `80,86,90a,compute_90`; `sm_` may stand before a number, and spaces or semicolons between entries.
///
/// # Errors
/// A message that names the entry.
pub fn parse_targets(text: &str) -> Result<Vec<Target>, String> {
    let mut targets = vec![];
    for entry in text.split([',', ';', ' ']).filter(|entry| !entry.is_empty()) {
        let target = parse_target(entry)?;
        if targets.contains(&target) {
            return Err(format!("{target} is named twice in {text:?}"));
        }
        targets.push(target);
    }
    if targets.is_empty() {
        return Err(format!("{text:?} names no target, expected a list as {DEFAULT}"));
    }
    Ok(targets)
}

fn parse_target(entry: &str) -> Result<Target, String> {
    let expected = "expected 80, sm_80, 90a, or compute_90 for PTX";
    let (rest, ptx) = match entry.strip_prefix("compute_") {
        Some(rest) => (rest, true),
        None => (entry.strip_prefix("sm_").unwrap_or(entry), false),
    };
    let (digits, specific) = match rest.strip_suffix('a') {
        Some(digits) => (digits, true),
        None => (rest, false),
    };
    if !matches!(digits.len(), 2 | 3) || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(format!("{entry:?} is no target: {expected}"));
    }
    let (major, minor) = digits.split_at(digits.len() - 1);
    let number =
        |text: &str| text.parse().map_err(|_| format!("{entry:?} is no target: {expected}"));
    let capability = Version(number(major)?, number(minor)?);
    if capability < OLDEST {
        return Err(format!("{entry} is too old: the kernels need sm_80 or later"));
    }
    let kind = match (ptx, specific) {
        (true, true) => {
            return Err(format!(
                "{entry} runs on one generation only, which sm_{rest} serves: use that, or {digits} as PTX"
            ));
        }
        (true, false) => Kind::Ptx,
        (false, true) => Kind::Specific,
        (false, false) => Kind::Binary,
    };
    Ok(Target { kind, capability })
}

/// What will run on a GPU: the binary nearest to it, else PTX.
///
/// `toolkit` is what the targets were compiled with, `driver` the newest CUDA version that the driver knows.
///
/// # Errors
/// A message that says what does not fit, and both ways to make it fit.
pub fn choose(
    targets: &[Target],
    toolkit: Version,
    gpu: Version,
    driver: Version,
) -> Result<Target, String> {
    if driver.0 < toolkit.0 {
        return Err(format!(
            "the driver knows CUDA up to {driver}, and this build was made with CUDA {toolkit}: install {}, or rebuild with \
             a CUDA {}.x toolkit",
            driver_for(toolkit.0),
            driver.0
        ));
    }
    if gpu < OLDEST {
        return Err(format!(
            "the GPU has compute capability {gpu} ({}), and the kernels need {OLDEST} (Ampere) or later: use --device cpu",
            generation(gpu)
        ));
    }
    let fitting = targets.iter().filter(|target| target.runs_on(gpu));
    // A binary of the very generation first, then the highest minor, then PTX.
    let best =
        fitting.max_by_key(|t| (t.kind != Kind::Ptx, t.capability, t.kind == Kind::Specific));
    let Some(&best) = best else {
        let own: Vec<String> = targets.iter().map(Target::to_string).collect();
        return Err(format!(
            "the GPU has compute capability {gpu} ({}), and this build holds kernels for {} only: rebuild with \
             BDHS_CUDA_ARCHS={}{} or with the default list",
            generation(gpu),
            own.join(", "),
            gpu.0,
            gpu.1
        ));
    };
    if best.kind == Kind::Ptx && driver < toolkit {
        return Err(format!(
            "the GPU has compute capability {gpu} ({}), for which this build holds PTX of CUDA {toolkit} only, and the \
             driver knows CUDA up to {driver}: update the driver, or rebuild with BDHS_CUDA_ARCHS={}{}",
            generation(gpu),
            gpu.0,
            gpu.1
        ));
    }
    Ok(best)
}

/// The oldest driver of a CUDA version, in words.
fn driver_for(major: u32) -> String {
    match major {
        12 => "driver 525 or later".into(),
        13 => "driver 580 or later".into(),
        _ => format!("a driver for CUDA {major}"),
    }
}

/// The name of a GPU generation, for messages.
fn generation(gpu: Version) -> &'static str {
    match gpu {
        Version(..=2, _) => "Fermi or older",
        Version(3, _) => "Kepler",
        Version(5, _) => "Maxwell",
        Version(6, _) => "Pascal",
        Version(7, 5) => "Turing",
        Version(7, _) => "Volta",
        Version(8, 9) => "Ada",
        Version(8, _) => "Ampere",
        Version(9, _) => "Hopper",
        Version(10..=12, _) => "Blackwell",
        _ => "a later generation",
    }
}
