//! `rope` on a GPU.

use bdhs::ops::cuda;
use bdhs::ops::rope::rotate;
use candle_core::{DType, Device, Tensor, Var};

use super::{FLOATS, Random, both, candle_runs, gpu, stream, values};

/// cos and sin, each on the CPU and on the GPU.
fn tables(
    device: &Device,
    random: &mut Random,
    shape: [usize; 2],
) -> ((Tensor, Tensor), (Tensor, Tensor)) {
    let angles = random.vec(shape[0] * shape[1]);
    let table = |f: fn(f32) -> f32| {
        let values: Vec<f32> = angles.iter().map(|a| f(30.0 * a)).collect();
        both(device, &values, &shape, DType::F32)
    };
    let (cos, sin) = (table(f32::cos), table(f32::sin));
    ((cos.0, sin.0), (cos.1, sin.1))
}

/// Equal but for which NaN.
#[track_caller]
fn assert_same(seen: &Tensor, twin: &Tensor, what: &str) {
    assert_eq!((seen.dims(), seen.dtype()), (twin.dims(), twin.dtype()), "{what}");
    let bits = |t: &Tensor| -> Vec<u64> {
        values(t).iter().map(|x| if x.is_nan() { 0 } else { x.to_bits() }).collect()
    };
    assert_eq!(bits(seen), bits(twin), "{what}");
}

#[test]
fn bits_are_the_cpus() {
    let Some(device) = gpu() else { return };
    let mut random = Random(41);
    for dtype in FLOATS {
        for shape in [[0, 1, 2], [3, 0, 8], [1, 1, 2], [3, 2, 6], [5, 3, 80], [9, 4, 128]] {
            let [rows, heads, dim] = shape;
            let mut x = random.vec(rows * heads * dim);
            x.iter_mut().skip(7).step_by(41).for_each(|x| *x = f32::NAN);
            x.iter_mut().skip(12).step_by(53).for_each(|x| *x = f32::INFINITY);
            let (cpu, gpu) = both(&device, &x, &shape, dtype);
            let ((cos, sin), (gpu_cos, gpu_sin)) = tables(&device, &mut random, [rows, dim / 2]);
            let what = format!("{shape:?}, {dtype:?}");
            let twin = rotate(&cpu, &cos, &sin).unwrap();
            assert_same(&rotate(&gpu, &gpu_cos, &gpu_sin).unwrap(), &twin, &what);
            // Views past the first row: misaligned where a row or a half is no multiple of 16 bytes.
            if rows > 2 {
                let cut = |t: &Tensor| t.narrow(0, 1, rows - 1).unwrap();
                let seen = rotate(&cut(&gpu), &cut(&gpu_cos), &cut(&gpu_sin)).unwrap();
                assert_same(&seen, &cut(&twin), &format!("{what}, from row 1"));
            }
            // Heads in the middle of longer rows.
            if heads > 1 {
                let cut = |t: &Tensor| t.narrow(1, 1, heads - 1).unwrap();
                let seen = rotate(&cut(&gpu), &gpu_cos, &gpu_sin).unwrap();
                assert_same(&seen, &cut(&twin), &format!("{what}, from head 1"));
            }
        }
    }
}

/// Through candle's own backward, which needs candle's kernels.
#[test]
fn gradients_are_turned_back() {
    let Some(device) = gpu() else { return };
    if !candle_runs(&device) {
        return;
    }
    let mut random = Random(42);
    let (cpu, gpu) = both(&device, &random.vec(5 * 2 * 16), &[5, 2, 16], DType::F32);
    let (grad, gpu_grad) = both(&device, &random.vec(5 * 2 * 16), &[5, 2, 16], DType::F32);
    let (tables, gpu_tables) = tables(&device, &mut random, [5, 8]);
    let gradient = |x: &Tensor, (cos, sin): &(Tensor, Tensor), grad: &Tensor| {
        let var = Var::from_tensor(x).unwrap();
        let loss = (rotate(&var, cos, sin).unwrap() * grad).unwrap().sum_all().unwrap();
        loss.backward().unwrap().get(&var).unwrap().clone()
    };
    assert_same(&gradient(&gpu, &gpu_tables, &gpu_grad), &gradient(&cpu, &tables, &grad), "x");
}

#[test]
fn bad_calls_are_refused_by_name() {
    let Some(device) = gpu() else { return };
    let stream = stream(&device);
    let (_, x) = both(&device, &[1.0; 48], &[4, 2, 6], DType::F32);
    let (cpu, table) = both(&device, &[1.0; 12], &[4, 3], DType::F32);
    let mut others = vec![cpu];
    if cuda::probe(1).is_ok() {
        let second = Device::new_cuda_with_stream(1).unwrap();
        others.push(both(&second, &[1.0; 12], &[4, 3], DType::F32).1);
    }
    for other in &others {
        for result in [rotate(&x, other, &table), rotate(&x, &table, other)] {
            let message = result.unwrap_err().to_string();
            assert!(message.contains("expected on Cuda { gpu_id: 0 }"), "{message}");
        }
    }

    let buffer = stream.alloc_zeros::<f32>(48).unwrap();
    let x = cuda::Rows::packed(&buffer, 4, 12).unwrap();
    let (short, table) = (buffer.slice(..11), buffer.slice(..12));
    let mut out = stream.alloc_zeros::<f32>(48).unwrap();
    for (heads, sin, expected) in [
        (0, &table, "x is rows of 12, expected 0 heads of an even D"),
        (4, &table, "expected 4 heads of an even D"),
        (5, &table, "expected 5 heads of an even D"),
        (2, &short, "sin is 11 elements long, expected at least 12"),
    ] {
        let error = cuda::rope::rotate(&stream, &x, heads, &table, sin, &mut out).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
}
