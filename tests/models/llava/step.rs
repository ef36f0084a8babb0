//! Decode steps: on a GPU captured into CUDA graphs.

use super::*;

/// Own tokens that a fork may have.
const OWN: usize = 20;
/// Two prefixes: one with a whole chunk of the kernels for few rows, one without.
const PREFIXES: [usize; 2] = [70, 9];

/// A fork: which prefix, how many tokens of its own.
#[derive(Clone, Copy)]
struct Fork {
    prefix: usize,
    own: usize,
}

/// What the `n` first forks ask of a step, which gives each another token.
fn step(forks: &mut [Fork], n: usize, vocab: usize) -> (Vec<u32>, Vec<u32>, Vec<u32>, AttendPlan) {
    let (mut ids, mut positions, mut slots, mut blocks) = (vec![], vec![], vec![], vec![]);
    for (i, fork) in forks[..n].iter_mut().enumerate() {
        let start = PREFIXES.iter().sum::<usize>() + i * OWN;
        ids.push(((i * 31 + fork.own * 7 + 5) % vocab) as u32);
        positions.push((PREFIXES[fork.prefix] + fork.own) as u32);
        slots.push((start + fork.own) as u32);
        fork.own += 1;
        let prefix =
            Segment { start: PREFIXES[..fork.prefix].iter().sum(), len: PREFIXES[fork.prefix] };
        let keys = vec![prefix, Segment { start, len: fork.own }];
        blocks.push(Block { rows: i..i + 1, keys, causal: false });
    }
    (ids, positions, slots, AttendPlan { blocks })
}

/// Largest difference over the largest value.
fn error(seen: &Tensor, expected: &Tensor) -> f32 {
    let seen = seen.to_device(&Device::Cpu).unwrap().to_dtype(DType::F32).unwrap();
    let expected = expected.to_dtype(DType::F32).unwrap();
    let largest: f32 = expected.abs().unwrap().max_all().unwrap().to_scalar().unwrap();
    max_difference(&seen, &expected) / largest
}

/// Steps of changing counts of forks give what passes on the CPU give; the same step again gives the same bits, whether it is
/// launched call by call, captured or replayed.
#[test]
fn steps_equal_passes() {
    let bounds = [(DType::F32, 1e-5), (DType::F16, 4e-3), (DType::BF16, 4e-2)];
    for (name, (dtype, bound)) in
        ["llava15", "next_mistral"].into_iter().flat_map(|name| bounds.map(|b| (name, b)))
    {
        let cpu = Model::load(folder(name), &Device::Cpu, dtype).unwrap();
        let device = place::device();
        let own = Model::load(folder(name), &device, dtype).unwrap();
        let vocab = cpu.config().text.vocab;
        let mut forks: Vec<Fork> = (0..24).map(|i| Fork { prefix: i % 3 / 2, own: 0 }).collect();
        let slots = PREFIXES.iter().sum::<usize>() + forks.len() * OWN;
        let mut caches = [&cpu, &own].map(|model| model.language.new_cache(slots).unwrap());

        // Both prefixes in one pass.
        let rows: usize = PREFIXES.iter().sum();
        let ids: Vec<u32> = (0..rows).map(|i| ((i * 13 + 7) % vocab) as u32).collect();
        let x = cpu.language.embed(&ids).unwrap();
        let places: Vec<u32> = (0..rows as u32).collect();
        let positions: Vec<u32> = PREFIXES.iter().flat_map(|&len| 0..len as u32).collect();
        let plan = AttendPlan {
            blocks: vec![
                causal(0..PREFIXES[0], 0, PREFIXES[0]),
                causal(PREFIXES[0]..rows, PREFIXES[0], PREFIXES[1]),
            ],
        };
        for (model, cache) in [&cpu, &own].into_iter().zip(&mut caches) {
            let x = x.to_device(model.language.device()).unwrap();
            model.language.forward(&x, &positions, cache, &places, &plan).unwrap();
        }

        let mut worst = 0f32;
        for n in [11, 11, 11, 11, 5, 5, 5, 11, 24, 24, 24, 11] {
            let (ids, positions, slots, plan) = step(&mut forks, n, vocab);
            let x = cpu.language.embed(&ids).unwrap();
            let [on_cpu, on_device] = &mut caches;
            let expected = cpu.language.forward(&x, &positions, on_cpu, &slots, &plan).unwrap();
            let x = x.to_device(&device).unwrap();
            let mut again = || own.language.step(&x, &positions, on_device, &slots, &plan).unwrap();
            let (states, twice) = (again(), again());
            assert_eq!(error(&states, &twice.to_device(&Device::Cpu).unwrap()), 0.0, "{name} {n}");
            worst = worst.max(error(&states, &expected));
        }
        println!("{name} {dtype:?}: {worst:e}");
        assert!(worst <= bound, "{name} {dtype:?}: {worst}");
        #[cfg(feature = "cuda")]
        if !device.is_cpu() {
            // Each count's first step is launched call by call; after more rows than ever all are captured anew.
            assert_eq!((caches[1].not_captured(), caches[1].replays()), (None, 7 + 5 + 2 + 5 + 2));
        }
    }
}
