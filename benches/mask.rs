//! Masks of 256 rows of 2,928 image tokens (LLaVA-1.6's largest picture), and packing what they keep between text.

mod common;

use std::rc::Rc;

use bdhs::ops::mask::{Law, Piece, Positions, Row, TokenGrid, draw, pack};
use bdhs::ops::philox::Draws;
use candle_core::DType;
use common::{Case, Output, rotate, tensor};

const ROWS: usize = 256;
const TOKENS: usize = 2928;
const HIDDEN: usize = 1024;
const GRIDS: [TokenGrid; 2] = [
    TokenGrid { start: 0, rows: 24, cols: 24, stride: 24 },
    TokenGrid { start: 576, rows: 48, cols: 48, stride: 49 },
];

fn rows() -> Vec<Row<'static>> {
    (0..ROWS as u32)
        .map(|sample| Row {
            draws: Draws { seed: 1, sample, attempt: 1 },
            sentence: 0,
            tokens: TOKENS,
            grids: &GRIDS,
        })
        .collect()
}

fn main() {
    let laws = [
        ("bernoulli", Law::Bernoulli { rho: 0.99 }),
        ("exact k", Law::ExactK { rho: 0.99 }),
        ("blocks", Law::Blocks { rho: 0.99, block: 4 }),
    ];
    let mut cases: Vec<Case> = laws
        .into_iter()
        .map(|(name, law)| {
            Case::new(format!("mask/{name}/{ROWS} x {TOKENS}"), ROWS * TOKENS / 8, 0, move || {
                rotate(vec![rows()], move |rows| {
                    Output::Numbers(vec![draw(law, rows, false).unwrap().indices.len() as f64])
                })
            })
        })
        .collect();
    let kept = Rc::new(draw(laws[0].1, &rows(), false).unwrap());
    let packed = ROWS * 64 + kept.indices.len();
    cases.push(Case::new(
        format!("mask/pack/{packed} x {HIDDEN}/bf16"),
        2 * packed * HIDDEN * 2,
        0,
        move || {
            let kept = kept.clone();
            let side = |n| tensor(n as u64, &[n, HIDDEN], DType::BF16);
            rotate(vec![(side(64), side(TOKENS))], move |(text, image)| {
                let pieces: Vec<[Piece; 3]> = (0..ROWS)
                    .map(|r| {
                        let indices = kept.row(r);
                        [
                            Piece::Rows { source: 0, start: 0, len: 32 },
                            Piece::Kept { source: 1, start: 0, tokens: TOKENS, indices },
                            Piece::Rows { source: 0, start: 32, len: 32 },
                        ]
                    })
                    .collect();
                let sequences: Vec<&[Piece]> = pieces.iter().map(|p| &p[..]).collect();
                let packed = pack(&[text, image], &sequences, Positions::Original).unwrap();
                Output::Numbers(vec![packed.rows.dim(0).unwrap() as f64])
            })
        },
    ));
    #[cfg(feature = "cuda")]
    cases.extend(common::gpu::first().into_iter().flat_map(|stream| launches(&stream, &laws)));
    common::main(cases);
}

/// The same draws on a GPU: indices and bits.
#[cfg(feature = "cuda")]
fn launches(stream: &common::gpu::Stream, laws: &[(&'static str, Law)]) -> Vec<Case> {
    use bdhs::ops::cuda::mask::{Masks, draw};
    use std::cell::RefCell;

    let of_law = |&(name, law): &(&'static str, Law)| {
        let name = format!("mask/gpu {name}/{ROWS} x {TOKENS}");
        let inputs = move |stream: &common::gpu::Stream| {
            let masks = Masks::new(stream, law, &rows(), false).unwrap();
            let [indices, words] = [masks.kept().indices.len().max(1), masks.words()]
                .map(|n| RefCell::new(stream.alloc_zeros::<u32>(n).unwrap()));
            vec![(masks, indices, words)]
        };
        common::gpu::case(stream, name, (ROWS * TOKENS / 8, 0), inputs, |stream, input| {
            let (masks, indices, words) = input;
            let (mut indices, mut words) = (indices.borrow_mut(), words.borrow_mut());
            draw(stream, masks, Some(&mut indices), Some(&mut words)).unwrap();
        })
    };
    laws.iter().map(of_law).collect()
}
