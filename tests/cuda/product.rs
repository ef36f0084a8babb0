//! Products by cuBLAS, into a buffer of the caller.

use std::sync::Arc;

use bdhs::ops::cuda;
use bdhs::ops::cuda::product::Products;
use candle_core::DType;
use cudarc::driver::{CudaSlice, CudaStream, DeviceRepr};
use half::{bf16, f16};

use super::{Random, assert_close, gpu, roundoff, stream};

trait Float: Copy {
    fn from_float(x: f32) -> Self;
    fn to_float(self) -> f64;
}

macro_rules! float {
    ($($ty:ty),*) => {
        $(impl Float for $ty {
            fn from_float(x: f32) -> Self {
                <$ty>::from_f64(x.into())
            }

            fn to_float(self) -> f64 {
                self.to_f64()
            }
        })*
    };
}
float!(f16, bf16);

impl Float for f32 {
    fn from_float(x: f32) -> Self {
        x
    }

    fn to_float(self) -> f64 {
        self.into()
    }
}

/// Against float64; what the buffer has more is left alone.
fn check<T: Float + DeviceRepr + cuda::pool::Output>(
    stream: &Arc<CudaStream>,
    random: &mut Random,
    [n, input, output]: [usize; 3],
    roundoff: f64,
) where
    for<'a> cuda::Values<'a>: From<&'a CudaSlice<T>>,
{
    let mut values = |n| random.vec(n).into_iter().map(T::from_float).collect::<Vec<_>>();
    let (x, weight) = (values(n * input), values(output * input));
    let [gpu_x, gpu_weight] = [&x, &weight].map(|values| stream.clone_htod(values).unwrap());
    let mut out = stream.clone_htod(&vec![T::from_float(7.0); n * output + 3]).unwrap();
    let x_rows = cuda::Rows::packed(&gpu_x, n, input).unwrap();
    let weight_rows = cuda::Rows::packed(&gpu_weight, output, input).unwrap();
    let products = Products::new(stream).unwrap();
    products.product(&x_rows, &weight_rows, &mut out).unwrap();
    let seen: Vec<f64> = stream.clone_dtoh(&out).unwrap().iter().map(|x| x.to_float()).collect();
    let dot = |a: &[T], b: &[T]| a.iter().zip(b).map(|(a, b)| a.to_float() * b.to_float()).sum();
    let mut exact: Vec<f64> =
        x.chunks(input).flat_map(|row| weight.chunks(input).map(move |w| dot(row, w))).collect();
    exact.extend([7.0; 3]);
    assert_close(
        &seen,
        &exact,
        1e-5 * (input as f64).sqrt(),
        roundoff,
        &format!("{n} {input} {output}"),
    );
}

#[test]
fn products_equal_float64() {
    let Some(device) = gpu() else { return };
    let (stream, mut random) = (stream(&device), Random(61));
    for sizes in [[1, 1, 1], [3, 40, 17], [33, 128, 72], [8, 8, 130]] {
        check::<f32>(&stream, &mut random, sizes, roundoff(DType::F32));
        check::<f16>(&stream, &mut random, sizes, roundoff(DType::F16));
        check::<bf16>(&stream, &mut random, sizes, roundoff(DType::BF16));
    }
}

#[test]
fn bad_products_are_refused_by_name() {
    let Some(device) = gpu() else { return };
    let stream = stream(&device);
    let products = Products::new(&stream).unwrap();
    let buffer = stream.alloc_zeros::<f32>(24).unwrap();
    let rows = |count, width, stride| cuda::Rows::strided(&buffer, count, width, stride).unwrap();
    let refused = |x: cuda::Rows<'_>, weight: cuda::Rows<'_>, part: &str| {
        let mut out = stream.alloc_zeros::<f32>(11).unwrap();
        let message = products.product(&x, &weight, &mut out).unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
    };
    refused(rows(3, 4, 5), rows(2, 4, 4), "x is f32 values, 5 apart");
    refused(rows(3, 4, 4), rows(2, 5, 5), "width of x is 4, expected 5");
    refused(rows(3, 4, 4), rows(4, 4, 4), "out is 11 elements long");
    let mut halves = stream.alloc_zeros::<f16>(12).unwrap();
    let message = products.product(&rows(3, 4, 4), &rows(4, 4, 4), &mut halves).unwrap_err();
    assert!(message.to_string().contains("of the output's type"), "{message}");
    let mut none = stream.alloc_zeros::<f32>(1).unwrap();
    products.product(&rows(0, 4, 4), &rows(4, 4, 4), &mut none).unwrap();
}
