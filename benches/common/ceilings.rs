//! What the GPU's memory gives at most: a copy by the driver, and a kernel that only reads, compiled when the cases are listed.
//! NVRTC is looked up at run time, so that nothing is needed to build; without it there is no ceiling of reading.

use std::cell::RefCell;
use std::ffi::{CString, c_char, c_int, c_void};
use std::ptr::{null, null_mut};

use cudarc::driver::sys::CUdevice_attribute;
use cudarc::driver::{CudaFunction, CudaSlice, LaunchConfig, PushKernelArg};
use cudarc::nvrtc::Ptx;

use super::Case;
use super::gpu::{Launches, Stream};

/// Words of the buffers: 1 GiB, many times the largest L2.
const WORDS: usize = 1 << 28;

/// Random words, again and again over the whole buffer: a prime number of them, so that no two blocks of memory are alike.
const PATTERN: usize = 4_194_301;

/// Four loads of 16 bytes in flight a thread; one atomic a warp keeps the loads alive.
const SOURCE: &str = r#"
extern "C" __global__ void read_all(const uint4* __restrict__ from, unsigned long long count, unsigned* sum) {
    const unsigned long long step = (unsigned long long)gridDim.x * blockDim.x;
    unsigned total = 0;
    auto add = [&total](uint4 x) { total += x.x + x.y + x.z + x.w; };
    unsigned long long at = (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x;
    for (; at + 3 * step < count; at += 4 * step) {
        const uint4 a = from[at], b = from[at + step], c = from[at + 2 * step], d = from[at + 3 * step];
        add(a), add(b), add(c), add(d);
    }
    for (; at < count; at += step) add(from[at]);
    total = __reduce_add_sync(0xffffffffu, total);
    if (threadIdx.x % 32 == 0) atomicAdd(sum, total);
}
"#;
const THREADS: u32 = 256;
const BLOCKS_A_MULTIPROCESSOR: u32 = 8;

/// What the ceilings run on.
struct Memory {
    from: CudaSlice<u32>,
    to: RefCell<CudaSlice<u32>>,
    sum: RefCell<CudaSlice<u32>>,
    /// The sum of all words, as the host knows it.
    expected: u32,
    read: Option<CudaFunction>,
    blocks: u32,
}

/// `machine/gpu copy` (bytes read and written), and `machine/gpu read` where NVRTC is found.
pub fn cases(stream: &Stream) -> Vec<Case> {
    let case = |what: &str, bytes: usize, read: Option<CudaFunction>, launch| {
        Launches {
            name: format!("machine/gpu {what}"),
            costs: (bytes, 0),
            sets: 1,
            input: Box::new(move |stream, _| Memory::new(stream, read.clone())),
            launch,
            read: Memory::sums,
        }
        .calls(stream)
    };
    let mut cases = vec![case("copy", 8 * WORDS, None, Memory::copy)];
    match compile(stream) {
        Ok(read) => cases.push(case("read", 4 * WORDS, Some(read), Memory::read)),
        Err(error) => eprintln!("no ceiling of reading: {error}"),
    }
    cases
}

impl Memory {
    fn new(stream: &Stream, read: Option<CudaFunction>) -> Self {
        let mut z = 1u32;
        let pattern: Vec<u32> = std::iter::repeat_with(|| {
            z ^= z << 13;
            z ^= z >> 17;
            z ^= z << 5;
            z
        })
        .take(PATTERN)
        .collect();
        let words = pattern.iter().cycle().take(WORDS);
        let words: Vec<u32> = words.copied().collect();
        let attribute = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
        let multiprocessors = stream.context().attribute(attribute).expect("a GPU");
        Self {
            from: stream.clone_htod(&words).expect("memory"),
            to: RefCell::new(stream.alloc_zeros(WORDS).expect("memory")),
            sum: RefCell::new(stream.alloc_zeros(1).expect("memory")),
            expected: words.iter().fold(0, |sum, word| sum.wrapping_add(*word)),
            read,
            blocks: BLOCKS_A_MULTIPROCESSOR * multiprocessors as u32,
        }
    }

    fn copy(stream: &Stream, memory: &Self) {
        stream.memcpy_dtod(&memory.from, &mut *memory.to.borrow_mut()).expect("a copy");
    }

    fn read(stream: &Stream, memory: &Self) {
        let function = memory.read.as_ref().expect("a kernel");
        let config = LaunchConfig {
            grid_dim: (memory.blocks, 1, 1),
            block_dim: (THREADS, 1, 1),
            shared_mem_bytes: 0,
        };
        let mut sum = memory.sum.borrow_mut();
        // SAFETY: the kernel reads WORDS / 4 vectors of four words, which the buffer holds, and adds to one word.
        unsafe {
            stream
                .launch_builder(function)
                .arg(&memory.from)
                .arg(&(WORDS as u64 / 4))
                .arg(&mut *sum)
                .launch(config)
        }
        .expect("a launch");
    }

    /// What was read or copied, added up, and what it should be.
    fn sums(stream: &Stream, memory: &Self) -> Vec<f64> {
        let seen = match memory.read {
            Some(_) => stream.clone_dtoh(&*memory.sum.borrow()).expect("a sum")[0],
            None => {
                let copied = stream.clone_dtoh(&*memory.to.borrow()).expect("a copy");
                copied.iter().fold(0u32, |sum, word| sum.wrapping_add(*word))
            }
        };
        vec![f64::from(seen), f64::from(memory.expected)]
    }
}

const NAMES: [&str; 3] = ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"];

type Create = unsafe extern "C" fn(
    *mut *mut c_void,
    *const c_char,
    *const c_char,
    c_int,
    *const *const c_char,
    *const *const c_char,
) -> c_int;
type Compile = unsafe extern "C" fn(*mut c_void, c_int, *const *const c_char) -> c_int;
type Size = unsafe extern "C" fn(*mut c_void, *mut usize) -> c_int;
type Bytes = unsafe extern "C" fn(*mut c_void, *mut c_char) -> c_int;

/// The kernel that only reads, as machine code of this GPU: unlike PTX, an older driver of the same major version takes it.
fn compile(stream: &Stream) -> Result<CudaFunction, String> {
    let context = stream.context();
    let (major, minor) = context.compute_capability().map_err(|error| error.to_string())?;
    let code = machine_code(&format!("--gpu-architecture=sm_{major}{minor}"))?;
    let module = context.load_module(Ptx::from_binary(code)).map_err(|error| error.to_string())?;
    module.load_function("read_all").map_err(|error| error.to_string())
}

fn machine_code(architecture: &str) -> Result<Vec<u8>, String> {
    // SAFETY: NVIDIA's library has no initialiser with preconditions.
    let library = NAMES.iter().find_map(|name| unsafe { libloading::Library::new(*name) }.ok());
    let library = library.ok_or(format!("none of {NAMES:?} is on the library path"))?;
    let source = CString::new(SOURCE).expect("no zero bytes");
    let option = CString::new(architecture).expect("no zero bytes");
    let done = |what: &str, status: c_int| match status {
        0 => Ok(()),
        status => Err(format!("NVRTC: {what}: status {status}")),
    };
    let missing = |error: libloading::Error| format!("NVRTC: {error}");
    // SAFETY: the signatures are those of nvrtc.h; strings outlive the calls, and `code` is as long as NVRTC says. The
    // program is never destroyed: one a process.
    unsafe {
        let create = library.get::<Create>(b"nvrtcCreateProgram\0").map_err(missing)?;
        let compile = library.get::<Compile>(b"nvrtcCompileProgram\0").map_err(missing)?;
        let size = library.get::<Size>(b"nvrtcGetCUBINSize\0").map_err(missing)?;
        let bytes = library.get::<Bytes>(b"nvrtcGetCUBIN\0").map_err(missing)?;
        let (mut program, mut length) = (null_mut(), 0);
        done("create", create(&mut program, source.as_ptr(), null(), 0, null(), null()))?;
        done("compile", compile(program, 1, [option.as_ptr()].as_ptr()))?;
        done("size", size(program, &mut length))?;
        let mut code = vec![0u8; length];
        done("code", bytes(program, code.as_mut_ptr().cast()))?;
        Ok(code)
    }
}
