//! The compiled kernels: embedded by `build.rs`, loaded once per context, after a look at the GPU and the driver.
//!
//! For work on kernels: with `BDHS_KERNEL_DIR` set, a `NAME.fatbin` or `NAME.cubin` in that folder takes the place of the
//! embedded file of that name, so that a kernel can be tried without a new build of the crate.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::sys::CUfunction_attribute_enum as CUfunction_attribute;
use cudarc::driver::{CudaContext, CudaFunction, CudaModule, DriverError, result, sys};
use cudarc::nvrtc::Ptx;

use super::support::{self, Target, Version};
use super::{args, driver_error};
use crate::{Error, Result};

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// A file of kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum File {
    Act,
    Attend,
    Cosine,
    Mask,
    Norm,
    Pool,
    Rope,
    Token,
}

impl File {
    const ALL: [Self; 8] = [
        Self::Act,
        Self::Attend,
        Self::Cosine,
        Self::Mask,
        Self::Norm,
        Self::Pool,
        Self::Rope,
        Self::Token,
    ];

    fn fatbin(self) -> Option<&'static [u8]> {
        match self {
            Self::Act => ACT,
            Self::Attend => ATTEND,
            Self::Cosine => COSINE,
            Self::Mask => MASK,
            Self::Norm => NORM,
            Self::Pool => POOL,
            Self::Rope => ROPE,
            Self::Token => TOKEN,
        }
    }

    fn kernels(self) -> &'static [&'static str] {
        match self {
            Self::Act => &[
                "act_bias_f32",
                "act_bias_f16",
                "act_bias_bf16",
                "act_gated_f32",
                "act_gated_f16",
                "act_gated_bf16",
            ],
            Self::Attend => &[
                "attend_f32_64",
                "attend_f32_128",
                "attend_f32_256",
                "attend_few_f32_64",
                "attend_few_f32_128",
                "attend_few_f32_256",
                "attend_f16_64",
                "attend_f16_96",
                "attend_f16_128",
                "attend_f16_256",
                "attend_few_f16_64",
                "attend_few_f16_96",
                "attend_few_f16_128",
                "attend_few_f16_256",
                "attend_bf16_64",
                "attend_bf16_96",
                "attend_bf16_128",
                "attend_bf16_256",
                "attend_few_bf16_64",
                "attend_few_bf16_96",
                "attend_few_bf16_128",
                "attend_few_bf16_256",
                "write_rows",
            ],
            Self::Cosine => &[
                "cosine_rows_f32",
                "cosine_rows_f16",
                "cosine_rows_bf16",
                "cosine_prepare_f32",
                "cosine_prepare_f16",
                "cosine_prepare_bf16",
                "cosine_matrix_f16",
                "cosine_matrix_bf16",
                "cosine_count_f16",
                "cosine_count_bf16",
                "cosine_pairs_f16",
                "cosine_pairs_bf16",
                "cosine_top_k_f32",
                "cosine_top_k_f16",
                "cosine_top_k_bf16",
            ],
            Self::Mask => &["mask_draw", "pack_rows"],
            Self::Norm => &[
                "norm_warp_f32",
                "norm_warp_f16",
                "norm_warp_bf16",
                "norm_block_f32",
                "norm_block_f16",
                "norm_block_bf16",
            ],
            Self::Pool => &[
                "pool_f32",
                "pool_f16",
                "pool_bf16",
                "pool_norm_f32",
                "pool_norm_f16",
                "pool_norm_bf16",
                "pool_places",
                "pool_grad_f32",
                "pool_grad_f16",
                "pool_grad_bf16",
            ],
            Self::Rope => &["rope_f32", "rope_f16", "rope_bf16"],
            Self::Token => &["token_sample_f32", "token_sample_f16", "token_sample_bf16"],
        }
    }

    /// Kernels that only the binary for sm_90a has, and their bytes of dynamic shared memory. Which binary the driver took
    /// is seen by whether they are there.
    fn hopper_kernels(self) -> &'static [(&'static str, u32)] {
        match self {
            Self::Cosine => &[
                ("cosine_count_wgmma_f16", args::WGMMA_SHARED),
                ("cosine_count_wgmma_bf16", args::WGMMA_SHARED),
                ("cosine_pairs_wgmma_f16", args::WGMMA_SHARED),
                ("cosine_pairs_wgmma_bf16", args::WGMMA_SHARED),
            ],
            _ => &[],
        }
    }
}

const NO_KERNELS: &str = "this build has no kernels: it was made without nvcc, for checks, lints or documentation. Set CUDA_HOME to \
                          a CUDA toolkit and build again";

/// What one context has loaded. Kept until the process ends, and the context with it.
struct Loaded {
    context: Arc<CudaContext>,
    multiprocessors: u32,
    modules: HashMap<File, HashMap<&'static str, CudaFunction>>,
}

static LOADED: Mutex<Vec<Loaded>> = Mutex::new(vec![]);

/// Runs `f` on what `context` has loaded.
fn with_loaded<R>(
    op: &'static str,
    context: &Arc<CudaContext>,
    f: impl FnOnce(&mut Loaded) -> Result<R>,
) -> Result<R> {
    // Nothing is left half done by a panic: an entry is pushed or inserted whole.
    let mut all = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    let at = match all.iter().position(|loaded| loaded.context == *context) {
        Some(at) => at,
        None => {
            let count = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
            let multiprocessors =
                context.attribute(count).map_err(driver_error(op, "reading the GPU's size"))?;
            let capability = context
                .compute_capability()
                .map_err(driver_error(op, "reading the GPU's version"))?;
            check(capability)?;
            all.push(Loaded {
                context: context.clone(),
                multiprocessors: u32::try_from(multiprocessors).unwrap_or(1).max(1),
                modules: HashMap::new(),
            });
            all.len() - 1
        }
    };
    f(&mut all[at])
}

/// The kernel of that name, its file loaded if it is not.
pub(super) fn function(
    op: &'static str,
    context: &Arc<CudaContext>,
    file: File,
    name: &'static str,
) -> Result<CudaFunction> {
    with_loaded(op, context, |loaded| {
        let functions = functions(op, loaded, file)?;
        functions.get(name).cloned().ok_or_else(|| {
            Error::argument(op, "kernel", name, "one that src/ops/cuda/module.rs lists")
        })
    })
}

/// Whether what runs on the GPU has a kernel of that name: see [`File::hopper_kernels`].
pub(super) fn has(
    op: &'static str,
    context: &Arc<CudaContext>,
    file: File,
    name: &'static str,
) -> Result<bool> {
    with_loaded(op, context, |loaded| Ok(functions(op, loaded, file)?.contains_key(name)))
}

fn functions<'a>(
    op: &'static str,
    loaded: &'a mut Loaded,
    file: File,
) -> Result<&'a HashMap<&'static str, CudaFunction>> {
    if !loaded.modules.contains_key(&file) {
        let none = || Error::unsupported(format!("{op} on a GPU"), NO_KERNELS);
        let image = match replacement(op, file)? {
            Some(image) => image,
            None => file.fatbin().ok_or_else(none)?.to_vec(),
        };
        let module: Arc<CudaModule> =
            loaded.context.load_module(Ptx::from_binary(image.clone())).map_err(
                |error| match image.starts_with(b"// bdhs stand-in") {
                    true => none(),
                    false => driver_error(op, "loading the kernels")(error),
                },
            )?;
        let mut functions = HashMap::new();
        for &name in file.kernels() {
            let function =
                module.load_function(name).map_err(driver_error(op, "looking up a kernel"))?;
            functions.insert(name, function);
        }
        for &(name, shared) in file.hopper_kernels() {
            let function = match module.load_function(name) {
                Err(DriverError(sys::CUresult::CUDA_ERROR_NOT_FOUND)) => continue,
                other => other.map_err(driver_error(op, "looking up a kernel"))?,
            };
            let limit = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            function
                .set_attribute(limit, shared as i32)
                .map_err(driver_error(op, "asking for shared memory"))?;
            functions.insert(name, function);
        }
        loaded.modules.insert(file, functions);
    }
    Ok(&loaded.modules[&file])
}

/// What `BDHS_KERNEL_DIR` has in place of an embedded file.
fn replacement(op: &'static str, file: File) -> Result<Option<Vec<u8>>> {
    let Some(folder) = std::env::var_os("BDHS_KERNEL_DIR") else { return Ok(None) };
    let name = format!("{file:?}").to_lowercase();
    for path in ["fatbin", "cubin"].map(|end| Path::new(&folder).join(format!("{name}.{end}"))) {
        match std::fs::read(&path) {
            Ok(image) => return Ok(Some(image)),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => {
                let got = format!("{}: {error}", path.display());
                return Err(Error::argument(op, "BDHS_KERNEL_DIR", got, "a file of kernels"));
            }
        }
    }
    Ok(None)
}

/// How many multiprocessors the GPU has.
pub(super) fn multiprocessors(op: &'static str, context: &Arc<CudaContext>) -> Result<u32> {
    with_loaded(op, context, |loaded| Ok(loaded.multiprocessors))
}

/// Loads all kernels into a context, so that no later call has to. Loading while a graph is being captured is an error
/// of the driver: call this, or each op once, before.
///
/// # Errors
/// If the kernels do not run on this GPU or driver, with what to do about it.
pub fn load(context: &Arc<CudaContext>) -> Result<()> {
    let op = "cuda::load";
    with_loaded(op, context, |loaded| {
        File::ALL.iter().try_for_each(|&file| functions(op, loaded, file).map(|_| ()))
    })
}

/// What a GPU is, and what this build runs on it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Gpu {
    /// Its name, as "NVIDIA H100 80GB HBM3".
    pub name: String,
    /// Its compute capability.
    pub capability: Version,
    /// The newest CUDA version that the driver knows.
    pub driver: Version,
    /// The CUDA version that this build's kernels were compiled with.
    pub toolkit: Version,
    /// Which of the build's targets runs.
    pub target: Target,
}

/// Looks at a GPU, without making a context on it: whether there is one, and whether this build's kernels run on it.
///
/// # Errors
/// If there is no such GPU, or it or the driver does not fit this build; the message says what to do.
pub fn probe(ordinal: usize) -> Result<Gpu> {
    let device = format!("device cuda:{ordinal}");
    let fail = |what: &str, error: result::DriverError| {
        Error::unsupported(device.clone(), format!("{what}: {error:?}"))
    };
    let count = count_for(&device)?;
    let number = i32::try_from(ordinal).unwrap_or(i32::MAX);
    if ordinal >= count {
        return Err(Error::unsupported(
            device,
            format!("the driver reports {count} GPUs, numbered from 0"),
        ));
    }
    let handle = result::device::get(number).map_err(|e| fail("opening the GPU failed", e))?;
    let name = result::device::get_name(handle).map_err(|e| fail("reading its name failed", e))?;
    let attribute = |attribute| {
        // SAFETY: the handle comes from the driver; the attribute is one that every GPU has.
        unsafe { result::device::get_attribute(handle, attribute) }
            .map_err(|e| fail("reading its compute capability failed", e))
    };
    let capability = (
        attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
        attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
    );
    let (capability, driver, target) = check(capability).map_err(|error| match error {
        Error::Unsupported { message, .. } => {
            Error::unsupported(format!("{device} ({name})"), message)
        }
        other => other,
    })?;
    Ok(Gpu { name, capability, driver, toolkit: TOOLKIT, target })
}

/// How many GPUs the driver reports.
///
/// # Errors
/// If the driver does not start, or finds none.
pub fn count() -> Result<usize> {
    count_for("device cuda:all")
}

/// Bytes of a GPU that nothing holds: those that are free for anyone, and those of this process's
/// memory pool that nobody uses.
///
/// # Errors
/// A status of the driver.
pub fn free_memory(context: &CudaContext) -> Result<u64> {
    let status = context.mem_get_info();
    let (free, _) = status.map_err(driver_error("cuda", "asking for free memory"))?;
    let unused = match pool(context)? {
        None => 0,
        Some(pool) => {
            type Attribute = sys::CUmemPool_attribute;
            let reserved = pool_attribute(pool, Attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT)?;
            let used = pool_attribute(pool, Attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT)?;
            reserved.saturating_sub(used)
        }
    };
    Ok(free as u64 + unused)
}

/// Has the memory pool of a GPU keep what is freed, for what is allocated next: by default the
/// driver gives all of it back whenever the device is waited for, and maps it again for the next
/// pass.
///
/// # Errors
/// A status of the driver.
pub fn keep_memory(context: &CudaContext) -> Result<()> {
    let Some(pool) = pool(context)? else { return Ok(()) };
    let mut threshold = u64::MAX;
    let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    // SAFETY: the pool is the device's, and the attribute 64 bits wide.
    unsafe { result::mem_pool::set_attribute(pool, attribute, (&raw mut threshold).cast()) }
        .map_err(driver_error("cuda", "setting up the memory pool"))
}

/// Gives back what the memory pool of a GPU holds and nobody uses: for an allocation that its
/// pieces are too small for.
///
/// # Errors
/// A status of the driver.
pub fn trim_memory(context: &CudaContext) -> Result<()> {
    // What has been freed in the order of a stream is free once the stream has come to it.
    context.synchronize().map_err(driver_error("cuda", "waiting"))?;
    let Some(pool) = pool(context)? else { return Ok(()) };
    // SAFETY: the pool is the device's.
    unsafe { result::mem_pool::trim_to(pool, 0) }
        .map_err(driver_error("cuda", "trimming the memory pool"))
}

/// The memory pool that allocations of a context are from; none where the driver has no pools.
fn pool(context: &CudaContext) -> Result<Option<sys::CUmemoryPool>> {
    let supported = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED;
    let status = context.attribute(supported);
    if status.map_err(driver_error("cuda", "asking for memory pools"))? == 0 {
        return Ok(None);
    }
    // SAFETY: the handle is the context's.
    unsafe { result::device::get_mem_pool(context.cu_device()) }
        .map(Some)
        .map_err(driver_error("cuda", "asking for the memory pool"))
}

fn pool_attribute(pool: sys::CUmemoryPool, attribute: sys::CUmemPool_attribute) -> Result<u64> {
    let mut value = 0u64;
    // SAFETY: the pool is a device's, and the attribute 64 bits wide.
    unsafe { result::mem_pool::get_attribute(pool, attribute, (&raw mut value).cast()) }
        .map_err(driver_error("cuda", "asking for the memory pool's size"))?;
    Ok(value)
}

/// The count; `device` is what an error is about.
fn count_for(device: &str) -> Result<usize> {
    let fail = |what: &str, error: result::DriverError| {
        Error::unsupported(device, format!("{what}: {error:?}"))
    };
    // With candle the driver is linked, and there is no program without it. Loaded at run time, a call without it would panic.
    // SAFETY: it looks for the library and calls nothing in it.
    #[cfg(not(feature = "cuda"))]
    if !unsafe { sys::is_culib_present() } {
        return Err(Error::unsupported(
            device,
            "NVIDIA's driver (libcuda.so.1) is not on the library path",
        ));
    }
    result::init().map_err(|e| fail("the CUDA driver does not start, or finds no GPU", e))?;
    let count = result::device::get_count().map_err(|e| fail("counting GPUs failed", e))?;
    Ok(usize::try_from(count).unwrap_or(0))
}

/// What this build runs on a GPU of that compute capability, under this machine's driver.
fn check((major, minor): (i32, i32)) -> Result<(Version, Version, Target)> {
    if TARGETS.is_empty() {
        return Err(Error::unsupported("this GPU", NO_KERNELS));
    }
    let mut driver = 0;
    // SAFETY: the pointer is to a live integer.
    unsafe { sys::cuDriverGetVersion(&mut driver) }
        .result()
        .map_err(driver_error("cuda", "asking for the driver's version"))?;
    let driver = Version::from_driver(driver);
    let capability = Version(u32::try_from(major).unwrap_or(0), u32::try_from(minor).unwrap_or(0));
    let target = support::choose(TARGETS, TOOLKIT, capability, driver)
        .map_err(|message| Error::unsupported("this GPU", message))?;
    Ok((capability, driver, target))
}
