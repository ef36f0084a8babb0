//! Masks of 256 rows of 2,928 image tokens (LLaVA-1.6's largest picture), and packing what they keep between text.

mod common;

use std::rc::Rc;

use bdhs::ops::mask::{MaskScheme, Piece, Positions, Row, TokenGrid, draw, pack};
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
        ("bernoulli", MaskScheme::Bernoulli { rho: 0.99 }),
        ("exact k", MaskScheme::ExactK { rho: 0.99 }),
        ("blocks", MaskScheme::Blocks { rho: 0.99, block: 4 }),
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
    cases.extend(common::gpu::first().into_iter().flat_map(|stream| gpu::cases(&stream, &laws)));
    common::main(cases);
}

/// The same draws on a GPU, indices and bits; and packing with every row of text its own: `mask/gpu WHAT/SHAPE`.
#[cfg(feature = "cuda")]
mod gpu {
    use std::cell::RefCell;

    use bdhs::ops::cuda::Rows;
    use bdhs::ops::cuda::mask::{Gather, Masks, draw, pack};
    use bdhs::ops::mask::{Kept, MaskScheme, draw as draw_on_host};
    use candle_core::DType;
    use cudarc::driver::CudaSlice;
    use half::bf16;

    use super::common::gpu::{Buffer, Launches, Stream};
    use super::common::{Case, digest};
    use super::{ROWS, TOKENS, rows};

    /// Rows of text around an image.
    const TEXT: usize = 64;
    /// Attempts at one image: so many rows of masks have an image in common.
    const ATTEMPTS: usize = 8;

    pub fn cases(stream: &Stream, laws: &[(&'static str, MaskScheme)]) -> Vec<Case> {
        let draws = laws.iter().map(|&(name, law)| drawn(name, law));
        let mut cases: Vec<Case> =
            draws.flat_map(|launches| launches.calls_and_replays(stream)).collect();
        for (rows, hidden, kept) in [(ATTEMPTS, 64, "hot"), (ROWS, 4096, "cold")] {
            cases.push(packed(laws[0].1, rows, hidden, kept).calls(stream));
        }
        cases
    }

    type Drawn = (Masks, RefCell<CudaSlice<u32>>, RefCell<CudaSlice<u32>>);

    fn drawn(name: &str, law: MaskScheme) -> Launches<Drawn> {
        Launches {
            name: format!("mask/gpu {name}/{ROWS} x {TOKENS}"),
            costs: (ROWS * TOKENS / 8, 0),
            sets: 1,
            input: Box::new(move |stream, _| {
                let masks = Masks::new(stream, law, &rows(), false).unwrap();
                let [indices, words] = [masks.kept().indices.len().max(1), masks.words()]
                    .map(|n| RefCell::new(stream.alloc_zeros::<u32>(n).unwrap()));
                (masks, indices, words)
            }),
            launch: |stream, (masks, indices, words)| {
                let (mut indices, mut words) = (indices.borrow_mut(), words.borrow_mut());
                draw(stream, masks, Some(&mut indices), Some(&mut words)).unwrap();
            },
            read: |stream, (_, indices, _)| digest(&stream.clone_dtoh(&*indices.borrow()).unwrap()),
        }
    }

    /// A gather and the buffers it reads: fields are dropped in order, borrowers first.
    struct Packing {
        gather: Gather<'static>,
        _sources: Box<[Rows<'static>]>,
        _buffers: Box<[Buffer]>,
        out: RefCell<CudaSlice<bf16>>,
    }

    impl Packing {
        fn new(stream: &Stream, kept: &Kept, images: usize, hidden: usize) -> Self {
            let counts = [TEXT * kept.rows(), images * TOKENS];
            let buffers: Box<[Buffer]> =
                counts.map(|n| Buffer::new(stream, n as u64, n * hidden, DType::BF16)).into();
            let sources: Box<[Rows<'_>]> =
                buffers.iter().zip(counts).map(|(buffer, n)| buffer.rows(n, hidden)).collect();
            // SAFETY: what is borrowed lies in boxes that move nothing, is never handed out, and outlives its borrowers.
            let (sources, borrowed) = unsafe {
                let sources: Box<[Rows<'static>]> = std::mem::transmute(sources);
                let borrowed: &'static [Rows<'static>] = &*std::ptr::from_ref(&*sources);
                (sources, borrowed)
            };
            let mut order = vec![];
            for row in 0..kept.rows() {
                let text = |at| (0, row * TEXT + at);
                let image = row / ATTEMPTS * TOKENS;
                order.extend((0..TEXT / 2).map(text));
                order.extend(kept.row(row).iter().map(|&at| (1, image + at as usize)));
                order.extend((TEXT / 2..TEXT).map(text));
            }
            let out = stream.alloc_zeros(order.len() * hidden).unwrap();
            let gather = Gather::new(stream, borrowed, &order).unwrap();
            Self { gather, _sources: sources, _buffers: buffers, out: RefCell::new(out) }
        }
    }

    /// Packs what bernoulli masks keep of images of [`TOKENS`] rows. Cold by its size alone: it reads and writes each row once.
    fn packed(law: MaskScheme, rows: usize, hidden: usize, kept_where: &str) -> Launches<Packing> {
        let kept = draw_on_host(law, &super::rows()[..rows], false).unwrap();
        let packed = rows * TEXT + kept.indices.len();
        Launches {
            name: format!("mask/gpu pack {kept_where}/{packed} x {hidden}/bf16"),
            costs: (2 * packed * hidden * 2, 0),
            sets: 1,
            input: Box::new(move |stream, _| {
                Packing::new(stream, &kept, rows.div_ceil(ATTEMPTS), hidden)
            }),
            launch: |stream, input| {
                pack::<bf16>(stream, &input.gather, &mut *input.out.borrow_mut()).unwrap();
            },
            read: |stream, input| digest(&stream.clone_dtoh(&*input.out.borrow()).unwrap()),
        }
    }
}
