//! `norm` on a GPU.

use bdhs::Result;
use bdhs::ops::cuda;
use bdhs::ops::norm::{Add, NormKind, layer_norm, layer_norm_sum, rms_norm, rms_norm_sum};
use candle_core::{DType, Device, Tensor, Var};

use super::{FLOATS, Random, assert_close, both, candle_runs, gpu, roundoff, stream, values};

/// x, residual, weight, bias, bias before.
type Operands = [Tensor; 5];

/// Operands on the CPU and on the GPU.
fn operands(
    device: &Device,
    random: &mut Random,
    (rows, width): (usize, usize),
    dtype: DType,
) -> (Operands, Operands) {
    let mut pair =
        |shape: &[usize]| both(device, &random.vec(shape.iter().product()), shape, dtype);
    let (x, residual) = (pair(&[rows, width]), pair(&[rows, width]));
    let (weight, bias, add_bias) = (pair(&[width]), pair(&[width]), pair(&[width]));
    let all = [x, residual, weight, bias, add_bias];
    (all.clone().map(|pair| pair.0), all.map(|pair| pair.1))
}

/// Every form of the norms: what was normalised, where the form returns it, and the norm.
fn forms(
    [x, residual, weight, bias, add_bias]: &Operands,
) -> Result<Vec<(Option<Tensor>, Tensor)>> {
    let eps = 1e-3;
    let plain = Add { residual, bias: None };
    let add = Add { residual, bias: Some(add_bias) };
    let whole = |(sum, y)| (Some(sum), y);
    Ok(vec![
        (None, layer_norm(x, None, weight, Some(bias), eps)?),
        (None, layer_norm(x, Some(add), weight, None, eps)?),
        whole(layer_norm_sum(x, plain, weight, Some(bias), eps)?),
        (None, rms_norm(x, None, weight, eps)?),
        (None, rms_norm(x, Some(plain), weight, eps)?),
        whole(rms_norm_sum(x, add, weight, eps)?),
    ])
}

#[test]
fn every_form_is_the_cpus() {
    let Some(device) = gpu() else { return };
    let mut random = Random(21);
    for dtype in FLOATS {
        // A warp a row, a block a row, rows that are read again; whole vectors or not.
        for shape in
            [(0, 8), (1, 1), (19, 33), (9, 384), (3, 1024), (2, 1031), (3, 4096), (2, 8200)]
        {
            let (on_cpu, on_gpu) = operands(&device, &mut random, shape, dtype);
            let (twins, seen) = (forms(&on_cpu).unwrap(), forms(&on_gpu).unwrap());
            for (form, (twin, seen)) in twins.into_iter().zip(seen).enumerate() {
                let what = format!("{shape:?}, {dtype:?}, form {form}");
                assert_eq!((seen.1.dims(), seen.1.dtype()), (twin.1.dims(), dtype), "{what}");
                let (unit, slack) = (2.0 * roundoff(dtype), 1e-5 + roundoff(dtype) / 8.0);
                assert_close(&values(&seen.1), &values(&twin.1), slack, unit, &what);
                if let (Some(twin), Some(seen)) = (twin.0, seen.0) {
                    assert_eq!(values(&seen), values(&twin), "{what}: the sum");
                }
            }
        }
    }
}

/// Views: rows further apart than their width, which no vector load fits; and rows without even distances, which are copied.
#[test]
fn strided_and_misaligned_rows_give_the_same_bits() {
    let Some(device) = gpu() else { return };
    let mut random = Random(22);
    for (width, dtype) in [(64, FLOATS[0]), (1280, FLOATS[1]), (136, FLOATS[2])] {
        let [weight, bias] = [0; 2].map(|_| both(&device, &random.vec(width), &[width], dtype).1);
        let wide = random.vec(6 * (width + 9));
        let (_, gpu_wide) = both(&device, &wide, &[6, width + 9], dtype);
        let cut =
            |x: &[f32]| x.chunks(width + 9).flat_map(|row| row[3..3 + width].to_vec()).collect();
        let narrow: Vec<f32> = cut(&wide);
        let (_, packed) = both(&device, &narrow, &[6, width], dtype);
        let norm = |x: &Tensor| layer_norm(x, None, &weight, Some(&bias), 1e-5).unwrap();
        let view = gpu_wide.narrow(1, 3, width).unwrap();
        assert_eq!(values(&norm(&view)), values(&norm(&packed)), "{width}, {dtype:?}");
    }
}

#[test]
fn bits_do_not_depend_on_the_batch() {
    let Some(device) = gpu() else { return };
    let mut random = Random(23);
    for (width, dtype) in [(96, FLOATS[2]), (33, FLOATS[0]), (2048, FLOATS[1]), (9000, FLOATS[0])] {
        let (_, all) = operands(&device, &mut random, (11, width), dtype);
        let together = forms(&all).unwrap();
        for row in [0, 4, 10] {
            let one = |t: &Tensor| t.narrow(0, row, 1).unwrap();
            let [x, residual, weight, bias, add_bias] = &all;
            let alone = [one(x), one(residual), weight.clone(), bias.clone(), add_bias.clone()];
            for (form, (own, all)) in forms(&alone).unwrap().iter().zip(&together).enumerate() {
                let what = format!("row {row} of width {width}, {dtype:?}, form {form}");
                assert_eq!(values(&own.1), values(&one(&all.1)), "{what}");
            }
        }
    }
}

#[test]
fn a_constant_row_and_nan_stay_in_their_row() {
    let Some(device) = gpu() else { return };
    let mut x = Random(24).vec(4 * 64);
    x[64..128].fill(0.5);
    x[130] = f32::NAN;
    let (cpu, gpu) = both(&device, &x, &[4, 64], DType::F32);
    let (one, gpu_one) = both(&device, &[1.0; 64], &[64], DType::F32);
    let seen = values(&layer_norm(&gpu, None, &gpu_one, None, 0.0).unwrap());
    let twin = values(&layer_norm(&cpu, None, &one, None, 0.0).unwrap());
    assert!(seen[64..192].iter().all(|y| y.is_nan()), "{seen:?}");
    assert_close(&seen, &twin, 1e-5, 0.0, "the other rows");
}

/// Tracked tensors give what others do; gradients, made of candle's ops there, are the CPU's.
#[test]
fn gradients_are_the_cpus() {
    let Some(device) = gpu() else { return };
    let mut random = Random(25);
    let (cpu, gpu) = both(&device, &random.vec(3 * 40), &[3, 40], DType::F32);
    let (weight, gpu_weight) = both(&device, &random.vec(40), &[40], DType::F32);
    let (bias, gpu_bias) = both(&device, &random.vec(40), &[40], DType::F32);
    let var = Var::from_tensor(&gpu).unwrap();
    let y = layer_norm(&var, None, &gpu_weight, Some(&gpu_bias), 1e-5).unwrap();
    let twin = layer_norm(&cpu, None, &weight, Some(&bias), 1e-5).unwrap();
    assert_close(&values(&y), &values(&twin), 1e-5, 0.0, "tracked");
    if !candle_runs(&device) {
        return;
    }
    let gradients = |x: &Tensor, weight: &Tensor, bias: &Tensor| {
        let [x, weight, bias] = [x, weight, bias].map(|t| Var::from_tensor(t).unwrap());
        let y = layer_norm(&x, None, &weight, Some(&bias), 1e-5).unwrap();
        let loss = y.sqr().unwrap().sum_all().unwrap();
        let grads = loss.backward().unwrap();
        [&x, &weight, &bias].map(|var| values(grads.get(var).unwrap()))
    };
    let (seen, twin) = (gradients(&gpu, &gpu_weight, &gpu_bias), gradients(&cpu, &weight, &bias));
    for (seen, twin) in seen.iter().zip(&twin) {
        assert_close(seen, twin, 1e-4, 1e-4, "gradient");
    }
}

#[test]
fn bad_calls_are_refused_by_name() {
    let Some(device) = gpu() else { return };
    let stream = stream(&device);
    let (cpu, x) = both(&device, &[1.0; 24], &[4, 6], DType::F32);
    let (_, weight) = both(&device, &[1.0; 6], &[6], DType::F32);
    let mut others = vec![cpu.clone()];
    if cuda::probe(1).is_ok() {
        let second = Device::new_cuda_with_stream(1).unwrap();
        others.push(both(&second, &[1.0; 24], &[4, 6], DType::F32).1);
    }
    for other in &others {
        let row = other.get(0).unwrap();
        for result in [
            rms_norm(&x, None, &row, 1e-5),
            layer_norm(&x, None, &weight, Some(&row), 1e-5),
            rms_norm(&x, Some(Add { residual: other, bias: None }), &weight, 1e-5),
            rms_norm(&x, Some(Add { residual: &x, bias: Some(&row) }), &weight, 1e-5),
        ] {
            let message = result.unwrap_err().to_string();
            assert!(message.contains("expected on Cuda { gpu_id: 0 }"), "{message}");
        }
    }

    let buffer = stream.alloc_zeros::<f32>(24).unwrap();
    let rows = |count, width| cuda::Rows::packed(&buffer, count, width).unwrap();
    let rule = |weight, residual, eps| cuda::norm::Norm {
        kind: NormKind::Rms,
        residual,
        weight,
        bias: None,
        add_bias: None,
        eps,
    };
    let mut out = stream.alloc_zeros::<f32>(23).unwrap();
    let mut call = |rule| cuda::norm::norm(&stream, &rows(4, 6), &rule, None, &mut out);
    for (rule, expected) in [
        (rule(rows(1, 6), None, 0.0), "out is 23 elements long, expected at least 24"),
        (rule(rows(1, 5), None, 0.0), "weight is 1 rows of 5 f32, expected 1 rows of 6 f32"),
        (rule(rows(1, 6), Some(rows(3, 6)), 0.0), "residual is 3 rows of 6"),
        (rule(rows(1, 6), None, -1.0), "eps is -1"),
    ] {
        let message = call(rule).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    }
    let mut other = stream.alloc_zeros::<half::f16>(24).unwrap();
    let rule = rule(rows(1, 6), None, 0.0);
    let error = cuda::norm::norm(&stream, &rows(4, 6), &rule, None, &mut other).unwrap_err();
    assert!(error.to_string().contains("out is of another dtype, expected f32"), "{error}");
}
