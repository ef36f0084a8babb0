//! The values of a candle tensor that lives on the host, as a typed slice or as rows.

use candle_core::{CpuStorage, Layout, Shape, Storage, Tensor, bail};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;

use super::simd::{self, Element};
use crate::{Error, Result};

/// A float tensor's values, row-major.
#[derive(Clone, Copy)]
pub(crate) enum Floats<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
    BF16(&'a [bf16]),
}

impl<'a> Floats<'a> {
    /// The slice of a contiguous tensor; other layouts and dtypes are refused under the name `what`.
    pub(crate) fn new(
        op: &'static str,
        what: &'static str,
        storage: &'a CpuStorage,
        layout: &Layout,
    ) -> Result<Self> {
        let Some((start, end)) = layout.contiguous_offsets() else {
            return Err(Error::argument(
                op,
                what,
                format!("strided {layout:?}"),
                "a contiguous tensor",
            ));
        };
        // A view of nothing may lie past the end.
        let (start, end) = if start == end { (0, 0) } else { (start, end) };
        match storage {
            CpuStorage::F32(v) => Ok(Self::F32(&v[start..end])),
            CpuStorage::F16(v) => Ok(Self::F16(&v[start..end])),
            CpuStorage::BF16(v) => Ok(Self::BF16(&v[start..end])),
            other => {
                let dtype = candle_core::backend::BackendStorage::dtype(other);
                Err(Error::argument(op, what, format!("{dtype:?}"), "f32, f16 or bf16"))
            }
        }
    }
}

/// An error unless `tensor` is on the device of `like`.
pub(crate) fn check_device(
    op: &'static str,
    what: &'static str,
    tensor: &Tensor,
    like: &Tensor,
) -> Result<()> {
    if tensor.device().same_device(like.device()) {
        return Ok(());
    }
    let (own, other) = (like.device().location(), tensor.device().location());
    let expected = if own == other {
        format!("on {own:?} through one device handle, cloned")
    } else {
        format!("on {own:?}, as the first tensor")
    };
    Err(Error::argument(op, what, format!("on {other:?}"), expected))
}

/// An error of ours inside a candle op.
pub(crate) fn candle(error: Error) -> candle_core::Error {
    error.into()
}

/// The tensor as the ops over its last axis take it: itself if its rows are evenly spaced, as in a slice of a joined product, else
/// a contiguous copy.
pub(crate) fn rows(tensor: &Tensor) -> candle_core::Result<Tensor> {
    if even_rows(tensor.layout()).is_some() { Ok(tensor.clone()) } else { tensor.contiguous() }
}

/// `[n, ..]` itself if what a row holds lies together, else a contiguous copy.
pub(crate) fn whole_rows(tensor: &Tensor) -> candle_core::Result<Tensor> {
    if flat_rows(tensor.layout()).is_some() { Ok(tensor.clone()) } else { tensor.contiguous() }
}

/// `[n, ..]` as `[n, values of a row]`, if what a row holds lies together.
pub(crate) fn flat_rows(layout: &Layout) -> Option<Layout> {
    let (&n, inner) = layout.dims().split_first()?;
    let (&pitch, strides) = layout.stride().split_first()?;
    let inner = Shape::from(inner);
    let flat = Layout::new((n, inner.elem_count()).into(), vec![pitch, 1], layout.start_offset());
    inner.is_contiguous(strides).then_some(flat)
}

/// Rows, width and distance of a layout whose rows along the last axis are evenly spaced.
pub(crate) fn even_rows(layout: &Layout) -> Option<(usize, usize, usize)> {
    let (Some((&width, outer)), Some((&step, strides))) =
        (layout.dims().split_last(), layout.stride().split_last())
    else {
        return Some((1, 1, 1));
    };
    if step != 1 && width > 1 {
        return None;
    }
    let count: usize = outer.iter().product();
    // From the innermost axis out; axes of one place have no distance.
    let mut even: Option<(usize, usize)> = None;
    for (&dim, &stride) in outer.iter().zip(strides).rev().filter(|(dim, _)| **dim != 1) {
        even = match even {
            None => Some((stride, stride * dim)),
            Some((row, whole)) if stride == whole => Some((row, whole * dim)),
            Some(_) if count == 0 => even,
            Some(_) => return None,
        };
    }
    Some((count, width, even.map_or(width, |(row, _)| row)))
}

/// An error unless offsets lead from 0 to `total`, which are `of`, and never fall.
pub(crate) fn check_offsets(
    op: &'static str,
    what: &'static str,
    offsets: &[u32],
    total: usize,
    of: &str,
) -> Result<()> {
    let fail = |got: String, expected: String| Err(Error::argument(op, what, got, expected));
    let (Some(&first), Some(&last)) = (offsets.first(), offsets.last()) else {
        return fail("empty".into(), "B + 1 offsets".into());
    };
    if first != 0 || last as usize != total {
        return fail(format!("from {first} to {last}"), format!("from 0 to {total}, {of}"));
    }
    if let Some(at) = offsets.windows(2).position(|pair| pair[0] > pair[1]) {
        return fail(
            format!("{} after {}, at {}", offsets[at + 1], offsets[at], at + 1),
            "no fall".into(),
        );
    }
    Ok(())
}

/// Runs `f` on the values of `tensor`. A strided tensor is copied first.
pub(crate) fn with_floats<R>(
    op: &'static str,
    what: &'static str,
    tensor: &Tensor,
    f: impl FnOnce(Floats<'_>) -> Result<R>,
) -> Result<R> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => f(Floats::new(op, what, storage, layout)?),
        _ => Err(Error::unsupported(
            format!("{op} on {:?}", tensor.device().location()),
            "it has no path there in this build; move the tensor with to_device(&Device::Cpu)",
        )),
    }
}

/// One body for the three float types: `each_float!(floats, x => f(x))`.
macro_rules! each_float {
    ($floats:expr, $x:ident => $body:expr) => {
        match $floats {
            $crate::ops::host::Floats::F32($x) => $body,
            $crate::ops::host::Floats::F16($x) => $body,
            $crate::ops::host::Floats::BF16($x) => $body,
        }
    };
}
pub(crate) use each_float;

/// An element type, and the storages that hold it.
pub(crate) trait Stored: Element {
    /// The values themselves, if they are f32.
    fn as_f32(values: &[Self]) -> Option<&[f32]>;
    /// The values themselves, if they are bf16.
    fn as_bf16(values: &[Self]) -> Option<&[bf16]>;
    /// Rounds `src` to this type. Slices of one length.
    fn store(src: &[f32], dst: &mut [Self]);
    /// The typed slice inside a storage, `None` for another dtype.
    fn slice(storage: &CpuStorage) -> Option<&[Self]>;
    /// The same, to write to.
    fn slice_mut(storage: &mut CpuStorage) -> Option<&mut [Self]>;
    /// Wraps values into a storage.
    fn wrap(values: Vec<Self>) -> CpuStorage;

    /// The values as f32.
    fn to_f32_vec(values: &[Self]) -> Vec<f32> {
        let mut out = vec![0f32; values.len()];
        simd::widen(values, &mut out);
        out
    }
}

macro_rules! stored {
    ($ty:ty, $variant:ident, $as_f32:expr, $as_bf16:expr, $store:expr) => {
        impl Stored for $ty {
            fn as_f32(values: &[Self]) -> Option<&[f32]> {
                let f: fn(&[Self]) -> Option<&[f32]> = $as_f32;
                f(values)
            }
            fn as_bf16(values: &[Self]) -> Option<&[bf16]> {
                let f: fn(&[Self]) -> Option<&[bf16]> = $as_bf16;
                f(values)
            }
            fn store(src: &[f32], dst: &mut [Self]) {
                let f: fn(&[f32], &mut [Self]) = $store;
                f(src, dst);
            }
            fn slice(storage: &CpuStorage) -> Option<&[Self]> {
                match storage {
                    CpuStorage::$variant(values) => Some(values),
                    _ => None,
                }
            }
            fn slice_mut(storage: &mut CpuStorage) -> Option<&mut [Self]> {
                match storage {
                    CpuStorage::$variant(values) => Some(values),
                    _ => None,
                }
            }
            fn wrap(values: Vec<Self>) -> CpuStorage {
                CpuStorage::$variant(values)
            }
        }
    };
}
stored!(f32, F32, |values| Some(values), |_| None, |src, dst| dst.copy_from_slice(src));
stored!(f16, F16, |_| None, |_| None, |src, dst| dst.convert_from_f32_slice(src));
stored!(bf16, BF16, |_| None, |values| Some(values), simd::narrow);

/// The elements of a contiguous operand, inside a candle op.
pub(crate) fn contiguous<'a, T: Stored>(
    storage: &'a CpuStorage,
    layout: &Layout,
    op: &'static str,
) -> candle_core::Result<&'a [T]> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("{op}: operand is not contiguous")
    };
    match T::slice(storage) {
        // A view of nothing may lie past the end.
        Some(_) if start == end => Ok(&[]),
        Some(values) => Ok(&values[start..end]),
        None => bail!("{op}: operands differ in dtype"),
    }
}

/// Runs `$body` with `$ty` bound to the element type of `$storage`; other dtypes are an error.
macro_rules! by_float {
    ($storage:expr, $op:expr, $ty:ident => $body:expr) => {
        match $storage {
            candle_core::CpuStorage::F32(_) => {
                type $ty = f32;
                $body
            }
            candle_core::CpuStorage::F16(_) => {
                type $ty = half::f16;
                $body
            }
            candle_core::CpuStorage::BF16(_) => {
                type $ty = half::bf16;
                $body
            }
            _ => candle_core::bail!("{}: dtype is not f32, f16 or bf16", $op),
        }
    };
}
pub(crate) use by_float;

/// Rows of one width, evenly spaced.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a, T> {
    values: &'a [T],
    pub(crate) count: usize,
    pub(crate) width: usize,
    pitch: usize,
}

impl<'a, T: Stored> Rows<'a, T> {
    /// Rows one after another; `width` is not 0.
    pub(crate) fn packed(values: &'a [T], width: usize) -> Self {
        Self { values, count: values.len() / width, width, pitch: width }
    }

    /// Those of an operand that [`rows`] gave, inside a candle op.
    pub(crate) fn of(
        storage: &'a CpuStorage,
        layout: &Layout,
        op: &'static str,
    ) -> candle_core::Result<Self> {
        let Some(values) = T::slice(storage) else { bail!("{op}: operands differ in dtype") };
        let Some((count, width, pitch)) = even_rows(layout) else {
            bail!("{op}: rows of {layout:?} are not evenly spaced")
        };
        let extent = if count * width == 0 { 0 } else { (count - 1) * pitch + width };
        // A view of nothing may lie past the end.
        let start = if extent == 0 { 0 } else { layout.start_offset() };
        Ok(Self { values: &values[start..start + extent], count, width, pitch })
    }

    #[inline]
    pub(crate) fn get(&self, row: usize) -> &'a [T] {
        &self.values[row * self.pitch..][..self.width]
    }

    /// All values of all rows.
    pub(crate) fn len(&self) -> usize {
        self.count * self.width
    }
}

/// Elements a task handles at least: enough to hide what a task costs.
pub(crate) const TASK: usize = 1 << 14;

/// Calls `f(row as f32, index of the row)` on every row and returns what it left in them, one after another.
pub(crate) fn map_rows<T: Stored>(x: Rows<T>, f: impl Fn(&mut [f32], usize) + Sync) -> Vec<T> {
    let mut out = vec![T::default(); x.len()];
    if out.is_empty() {
        return out;
    }
    let rows = TASK.div_ceil(x.width);
    out.par_chunks_mut(rows * x.width).enumerate().for_each(|(task, out)| {
        let mut values = vec![0f32; x.width];
        for (i, out) in out.chunks_mut(x.width).enumerate() {
            let row = task * rows + i;
            simd::widen(x.get(row), &mut values);
            f(&mut values, row);
            T::store(&values, out);
        }
    });
    out
}

/// A pointer that rayon tasks may share, each writing elements that no other one touches.
#[derive(Clone, Copy)]
pub(crate) struct SharedMut<T>(*mut T, usize);

// SAFETY: the users of `SharedMut` write disjoint ranges, as each call of `range` must promise.
unsafe impl<T: Send> Send for SharedMut<T> {}
// SAFETY: as for `Send`.
unsafe impl<T: Send> Sync for SharedMut<T> {}

impl<T> SharedMut<T> {
    pub(crate) fn new(values: &mut [T]) -> Self {
        Self(values.as_mut_ptr(), values.len())
    }

    /// # Safety
    /// No other live reference covers any of these elements, and the slice outlives the use.
    #[inline]
    pub(crate) unsafe fn range<'a>(self, start: usize, len: usize) -> &'a mut [T] {
        assert!(start.checked_add(len).is_some_and(|end| end <= self.1), "range outside the slice");
        // SAFETY: in bounds by the assertion; exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(start), len) }
    }
}

/// Values with the distances between rows and between columns.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) strides: (usize, usize),
}

impl Matrix<'_> {
    /// Whether `rows` x `columns` of it lie within its values.
    fn holds(&self, rows: usize, columns: usize) -> bool {
        self.values.len() > (rows - 1) * self.strides.0 + (columns - 1) * self.strides.1
    }
}

/// `dst[m, n] = beta lhs[m, k] rhs[k, n]`, added to dst if `accumulate`. Serial.
pub(crate) fn gemm(
    (m, n, k): (usize, usize, usize),
    (dst, dst_pitch): (&mut [f32], usize),
    lhs: Matrix,
    rhs: Matrix,
    beta: f32,
    accumulate: bool,
) {
    assert!(m > 0 && n > 0 && k > 0);
    assert!(dst.len() >= (m - 1) * dst_pitch + n && n <= dst_pitch);
    assert!(lhs.holds(m, k) && rhs.holds(k, n));
    // SAFETY: the assertions bound every address; dst is exclusive, and its rows do not overlap.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            dst.as_mut_ptr(),
            1,
            dst_pitch as isize,
            accumulate,
            lhs.values.as_ptr(),
            lhs.strides.1 as isize,
            lhs.strides.0 as isize,
            rhs.values.as_ptr(),
            rhs.strides.1 as isize,
            rhs.strides.0 as isize,
            1.0,
            beta,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}
