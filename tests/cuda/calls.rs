//! What all calls share: host threads, graphs, refusals, empty input.

use bdhs::Error;
use bdhs::ops::cosine;
use bdhs::ops::cuda;
use bdhs::ops::mask::{self, Positions};
use bdhs::ops::philox::Draws;
use bdhs::ops::pool::{self, Mode, Options, Rows};
use bdhs::ops::token::{self, Params};
use candle_core::{DType, Device, Tensor};
use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use half::f16;

use super::{
    FLOATS, LENGTHS, Random, assert_close, both, gpu, packed_rows, stream, stream_to_capture,
    values,
};

#[test]
fn two_host_threads_share_a_gpu() {
    let Some(device) = gpu() else { return };
    let (cu, _) = packed_rows();
    let (tokens, hidden) = (cu[cu.len() - 1] as usize, 64);
    let inputs: Vec<Vec<f32>> = (0..2).map(|t| Random(11 + t).vec(tokens * hidden)).collect();
    let options = Options { normalize: true, ..Options::new(Mode::Mean) };
    let run = |device: &Device, input: &[f32]| {
        let (_, states) = both(device, input, &[tokens, hidden], DType::F32);
        values(&pool::pool(&states, Rows::Packed { cu_seqlens: &cu }, &options, None).unwrap())
    };
    let alone: Vec<Vec<f64>> = inputs.iter().map(|input| run(&device, input)).collect();
    std::thread::scope(|scope| {
        for (input, alone) in inputs.iter().zip(&alone) {
            let (device, run) = (&device, &run);
            // One with the shared stream, one with a stream of its own on the same GPU.
            scope.spawn(move || {
                let own = Device::new_cuda_with_stream(0).unwrap();
                for _ in 0..5 {
                    assert_eq!(run(device, input), *alone);
                    assert_eq!(run(&own, input), *alone);
                }
            });
        }
    });
}

/// Pooling, scoring and sampling in one graph, replayed on new values.
#[test]
fn calls_are_captured_into_a_graph() {
    let Some(stream) = stream_to_capture() else { return };
    let (cu, _) = packed_rows();
    let (tokens, hidden, batch) = (cu[cu.len() - 1] as usize, 32, LENGTHS.len());
    let mut random = Random(13);
    let mut states = stream.clone_htod(&random.vec(tokens * hidden)).unwrap();
    let mut pooled = stream.alloc_zeros::<f32>(batch * hidden).unwrap();
    let places = cuda::pool::Places::packed(&stream, &cu, tokens).unwrap();
    let limits = cuda::cosine::Thresholds::new(&stream, &[0.5]).unwrap();
    let mut scores = cuda::cosine::RowOutput::new(&stream, batch, batch, 1).unwrap();
    let row = token::Row {
        params: Params { top_p: 0.9, ..Params::default() },
        draws: Draws { seed: 3, sample: 1, attempt: 2 },
        sentence: 0,
        step: 0,
        history: &[],
    };
    let mut tokens_of = cuda::token::Batch::new(&stream, &vec![row; batch], hidden).unwrap();
    let mut drawn = cuda::token::Output::new(&stream, batch).unwrap();
    let options = Options::new(Mode::Mean);

    stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
    let rows = cuda::Rows::packed(&states, tokens, hidden).unwrap();
    cuda::pool::pool(&stream, &rows, &places, &options, None, &mut pooled).unwrap();
    let vectors = cuda::Rows::packed(&pooled, batch, hidden).unwrap();
    cuda::cosine::rows(&stream, &vectors, &vectors, None, &limits, &mut scores).unwrap();
    cuda::token::sample(&stream, &vectors, &tokens_of, &mut drawn).unwrap();
    // What would read host memory later is refused, and does not spoil the capture.
    let refused = cuda::pool::Places::packed(&stream, &cu, tokens).unwrap_err().to_string();
    assert!(refused.contains("captured"), "{refused}");
    let graph = stream
        .end_capture(CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH)
        .unwrap()
        .unwrap();

    for step in 0..3 {
        let input = random.vec(tokens * hidden);
        stream.memcpy_htod(&input, &mut states).unwrap();
        let now = token::Row { step, ..row };
        tokens_of.update(&stream, &vec![now; batch]).unwrap();
        graph.launch().unwrap();
        stream.synchronize().unwrap();
        let cpu = Tensor::from_vec(input, (tokens, hidden), &Device::Cpu).unwrap();
        let expected = pool::pool(&cpu, Rows::Packed { cu_seqlens: &cu }, &options, None).unwrap();
        let seen: Vec<f64> =
            stream.clone_dtoh(&pooled).unwrap().iter().map(|x| f64::from(*x)).collect();
        assert_close(&seen, &values(&expected), 1e-6, 1e-6, "pooled in a graph");
        let ones: Vec<f64> =
            stream.clone_dtoh(&scores.scores).unwrap().iter().map(|x| f64::from(*x)).collect();
        let expected_ones: Vec<f64> = LENGTHS.iter().map(|&n| f64::from(u8::from(n > 0))).collect();
        assert_close(&ones, &expected_ones, 1e-6, 0.0, "scored in a graph");
        let expected = token::sample(&expected, &vec![now; batch]).unwrap();
        let expected: Vec<u32> = expected.iter().map(|s| s.token).collect();
        assert_eq!(stream.clone_dtoh(&drawn.tokens()).unwrap(), expected, "step {step}");
    }
}

#[test]
fn bad_calls_are_refused_by_name() {
    let Some(device) = gpu() else { return };
    let stream = stream(&device);
    let buffer = stream.alloc_zeros::<f32>(24).unwrap();
    let message = |error: Error| error.to_string();
    let rows = |count, width, stride| cuda::Rows::strided(&buffer, count, width, stride);
    assert!(message(rows(4, 7, 6).unwrap_err()).contains("4 rows of 7, 6 apart"));
    assert!(
        rows(usize::MAX, 2, 2).is_err()
            && rows(0, 99, 99).is_ok()
            && rows(4, 6, 6).is_ok()
            && rows(19, 6, 1).is_ok()
    );

    let states = rows(4, 6, 6).unwrap();
    let places = cuda::pool::Places::packed(&stream, &[0, 1, 4], 4).unwrap();
    let mut out = stream.alloc_zeros::<f32>(12).unwrap();
    let options = Options::new(Mode::Mean);
    let wrong = Options { dim: Some(7), ..options };
    let error = cuda::pool::pool(&stream, &states, &places, &wrong, None, &mut out).unwrap_err();
    assert!(message(error).contains("dim is 7, expected in 1..=6"));
    let mut short = stream.alloc_zeros::<f32>(11).unwrap();
    let error =
        cuda::pool::pool(&stream, &states, &places, &options, None, &mut short).unwrap_err();
    assert!(message(error).contains("out is 11 elements long, expected at least 12"));
    let error =
        cuda::pool::pool(&stream, &rows(3, 6, 6).unwrap(), &places, &options, None, &mut out)
            .unwrap_err();
    assert!(message(error).contains("states is 3 rows of 6"));
    let mut codes = stream.alloc_zeros::<i8>(12).unwrap();
    let error =
        cuda::pool::pool(&stream, &states, &places, &options, None, &mut codes).unwrap_err();
    assert!(message(error).contains("normalize is false"));
    for bad in [&[0, 3, 2, 4][..], &[1, 4], &[0, 5], &[]] {
        assert!(cuda::pool::Places::packed(&stream, bad, 4).is_err(), "{bad:?}");
    }
    assert!(cuda::cosine::Thresholds::new(&stream, &[0.5, f64::NAN]).is_err());
    assert!(cuda::cosine::Groups::new(&stream, &[0, 2, 1], 1, 2).is_err());
    let side = cuda::cosine::Side::new(&stream, &states).unwrap();
    let other = stream.alloc_zeros::<f16>(24).unwrap();
    let halves = cuda::Rows::packed(&other, 4, 6).unwrap();
    let half_side = cuda::cosine::Side::new(&stream, &halves).unwrap();
    let mut scores = stream.alloc_zeros::<f32>(16).unwrap();
    let error = cuda::cosine::matrix(&stream, &side, &half_side, &mut scores).unwrap_err();
    assert!(message(error).contains("dtypes is f32 and f16"));
    let bands = cuda::cosine::Bands::new(&stream, &[0.5], &halves).unwrap();
    let mut counts = cuda::cosine::CountOutput::new(&stream, 1).unwrap();
    assert!(cuda::cosine::count(&stream, &side, None, &bands, true, &mut counts).is_err());
    let row = token::Row {
        params: Params { top_p: 0.0, ..Params::default() },
        draws: Draws { seed: 1, sample: 0, attempt: 0 },
        sentence: 0,
        step: 0,
        history: &[],
    };
    let error = cuda::token::Batch::new(&stream, &[row], 6).unwrap_err();
    assert!(message(error).contains("top_p is 0 in row 0"));
    assert!(cuda::token::Batch::new(&stream, &[], cuda::token::MAX_VOCAB + 1).is_err());
    let error =
        cuda::mask::Gather::new(&stream, std::slice::from_ref(&states), &[(0, 4)]).unwrap_err();
    assert!(message(error).contains("row 4 of source 0"));
}

#[test]
fn nothing_to_do_is_no_error() {
    let Some(device) = gpu() else { return };
    for dtype in FLOATS {
        let (_, none) = both(&device, &[], &[0, 8], dtype);
        let pooled =
            pool::pool(&none, Rows::Packed { cu_seqlens: &[0] }, &Options::new(Mode::Max), None)
                .unwrap();
        assert_eq!(pooled.dims(), [0, 8]);
        let empty = pool::pool(
            &none,
            Rows::Packed { cu_seqlens: &[0, 0, 0] },
            &Options::new(Mode::Max),
            None,
        )
        .unwrap();
        assert_eq!(values(&empty), [0.0; 16]);
        let (_, some) = both(&device, &[1.0; 24], &[3, 8], dtype);
        assert_eq!(cosine::matrix(&none, &some).unwrap().dims(), [0, 3]);
        assert_eq!(cosine::count_above(&none, None, &[0.5]).unwrap().counts, [0]);
        assert_eq!(cosine::count_above(&some, None, &[]).unwrap().pairs, 3);
        assert!(cosine::pairs_above(&some, Some(&none), 0.5).unwrap().pairs.is_empty());
        let scores = cosine::rows(&none, &some, Some(&[0, 0, 0, 0]), &[0.5]).unwrap();
        assert_eq!((scores.scores.dims(), &scores.first_below[..]), (&[0][..], &[None; 3][..]));
        assert!(token::sample(&none, &[]).unwrap().is_empty());
        assert_eq!(mask::pack(&[&some], &[], Positions::Original).unwrap().rows.dims(), [0, 8]);
    }
}

#[test]
fn tensors_of_two_devices_are_refused() {
    let Some(device) = gpu() else { return };
    let (cpu, gpu) = both(&device, &[1.0; 24], &[3, 8], DType::F32);
    let mut others = vec![cpu];
    if cuda::probe(1).is_ok() {
        let second = Device::new_cuda_with_stream(1).unwrap();
        others.push(both(&second, &[1.0; 24], &[3, 8], DType::F32).1);
        // And of plain buffers.
        let far = second.as_cuda_device().unwrap().cuda_stream().alloc_zeros::<f32>(24).unwrap();
        let rows = cuda::Rows::packed(&far, 3, 8).unwrap();
        let message = cuda::cosine::Side::new(&stream(&device), &rows).unwrap_err().to_string();
        assert!(message.contains("GPU 1") && message.contains("GPU 0"), "{message}");
    }
    for other in &others {
        for result in [
            cosine::matrix(&gpu, other).map(|_| ()),
            cosine::count_above(other, Some(&gpu), &[0.5]).map(|_| ()),
            cosine::rows(&gpu, other, None, &[]).map(|_| ()),
            mask::pack(&[&gpu, other], &[], Positions::Original).map(|_| ()),
        ] {
            let message = result.unwrap_err().to_string();
            assert!(message.contains("Cuda { gpu_id: 0 }"), "{message}");
        }
    }
}
