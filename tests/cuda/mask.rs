//! `mask` on a GPU.

use bdhs::ops::cuda;
use bdhs::ops::mask::{self, MaskScheme, Piece, Positions, TokenGrid};
use bdhs::ops::philox::{Draws, WHOLE_RESPONSE};

use super::{FLOATS, Random, both, gpu, stream, values};

#[test]
fn draws_are_the_same() {
    let Some(device) = gpu() else { return };
    let stream = stream(&device);
    let grids = [
        TokenGrid { start: 0, rows: 24, cols: 24, stride: 24 },
        TokenGrid { start: 577, rows: 30, cols: 17, stride: 18 },
    ];
    let tokens = [577 + 30 * 18, 0, 1, 1119, 2880];
    let rows: Vec<mask::Row<'_>> = tokens
        .iter()
        .enumerate()
        .map(|(r, &tokens)| mask::Row {
            draws: Draws {
                seed: 0x1234_5678_9ABC_DEF0 + r as u64,
                sample: r as u32 * 7,
                attempt: r as u32,
            },
            sentence: if r == 4 { WHOLE_RESPONSE } else { 0 },
            tokens,
            grids: if tokens >= 1117 { &grids } else { &[] },
        })
        .collect();
    for rho in [0.0, 0.5, 0.99, 1.0] {
        for law in [
            MaskScheme::Bernoulli { rho },
            MaskScheme::ExactK { rho },
            MaskScheme::Blocks { rho, block: 4 },
        ] {
            for exempt in [false, true] {
                let what = format!("{law:?}, exempt {exempt}");
                let kept = mask::draw(law, &rows, exempt).unwrap();
                let masks = cuda::mask::Masks::new(&stream, law, &rows, exempt).unwrap();
                assert_eq!(*masks.kept(), kept, "{what}");
                let mut indices = stream.alloc_zeros::<u32>(kept.indices.len().max(1)).unwrap();
                let mut words = stream.alloc_zeros::<u32>(masks.words()).unwrap();
                cuda::mask::draw(&stream, &masks, Some(&mut indices), Some(&mut words)).unwrap();
                let seen = stream.clone_dtoh(&indices).unwrap();
                assert_eq!(seen[..kept.indices.len()], kept.indices, "{what}");
                assert_eq!(stream.clone_dtoh(&words).unwrap(), kept.bitmask().words, "{what}");
            }
        }
    }
}

#[test]
fn packs_the_same_rows() {
    let Some(device) = gpu() else { return };
    let mut random = Random(9);
    for dtype in FLOATS {
        for hidden in [1, 6, 64, 515] {
            let (text, gpu_text) = both(&device, &random.vec(9 * hidden), &[9, hidden], dtype);
            // A view past the first row: misaligned where a row is no multiple of 16 bytes.
            let (image, gpu_image) = both(&device, &random.vec(21 * hidden), &[21, hidden], dtype);
            let (image, gpu_image) =
                (image.narrow(0, 1, 20).unwrap(), gpu_image.narrow(0, 1, 20).unwrap());
            let kept = [0, 3, 4, 19];
            let pieces = [
                Piece::Rows { source: 0, start: 2, len: 4 },
                Piece::Kept { source: 1, start: 0, tokens: 20, indices: &kept },
                Piece::Rows { source: 0, start: 8, len: 1 },
            ];
            let sequences: [&[Piece<'_>]; 3] = [&pieces, &[], &pieces[..1]];
            let twin = mask::pack(&[&text, &image], &sequences, Positions::Original).unwrap();
            let seen =
                mask::pack(&[&gpu_text, &gpu_image], &sequences, Positions::Original).unwrap();
            assert_eq!((&seen.positions, &seen.cu_seqlens), (&twin.positions, &twin.cu_seqlens));
            assert_eq!(values(&seen.rows), values(&twin.rows), "{dtype:?}, H = {hidden}");
        }
    }
}
