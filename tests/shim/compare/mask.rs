//! Masks.

use std::path::Path;

use bdhs::ops::mask::{self, MaskScheme, TokenGrid};
use bdhs::ops::philox::{Draws, WHOLE_RESPONSE};

use super::{Cases, Results, below, draws, pick, unit};
use crate::numbers::Random;
use crate::replay;

struct MaskCase {
    law: MaskScheme,
    exempt: bool,
    rows: Vec<(Draws, u32, usize, Vec<TokenGrid>)>,
}

fn mask_case(random: &mut Random) -> MaskCase {
    let any = unit(random);
    let rho = pick(random, &[0.0, 1.0, 0.99, 0.5, any]);
    let law = match random.word() % 3 {
        0 => MaskScheme::Bernoulli { rho },
        1 => MaskScheme::ExactK { rho },
        _ => MaskScheme::Blocks { rho, block: 1 + below(random, 5) },
    };
    let rows = (0..below(random, 5))
        .map(|_| {
            let (mut grids, mut next) = (vec![], below(random, 3));
            for _ in 0..below(random, 4) {
                let (rows, cols) = (below(random, 25), below(random, 25));
                let stride = cols + below(random, 2);
                grids.push(TokenGrid { start: next, rows, cols, stride });
                next += rows * stride + below(random, 2);
            }
            let sentence = pick(random, &[0, 0, 3, WHOLE_RESPONSE]);
            (draws(random), sentence, next + below(random, 40), grids)
        })
        .collect();
    MaskCase { law, exempt: random.word().is_multiple_of(2), rows }
}

impl MaskCase {
    fn kept(&self) -> mask::Kept {
        let rows: Vec<mask::Row<'_>> = self
            .rows
            .iter()
            .map(|(draws, sentence, tokens, grids)| mask::Row {
                draws: *draws,
                sentence: *sentence,
                tokens: *tokens,
                grids,
            })
            .collect();
        mask::draw(self.law, &rows, self.exempt).unwrap()
    }

    fn write(&self, kept: &mask::Kept, bits: &mask::Bitmask, to: &mut Cases) {
        let (law, block) = match self.law {
            MaskScheme::Bernoulli { .. } => (0, 1),
            MaskScheme::ExactK { .. } => (1, 1),
            MaskScheme::Blocks { block, .. } => (2, block),
        };
        to.values([law, block as u64, u64::from(self.exempt)]);
        to.float(self.law.rho());
        to.values([kept.indices.len() as u64, bits.words.len() as u64]);
        to.count(self.rows.len());
        let mut first_grid = 0;
        for (r, (draws, sentence, tokens, grids)) in self.rows.iter().enumerate() {
            to.values([draws.seed, u64::from(kept.cu_seqlens[r]), bits.starts[r] as u64]);
            let grid_count = grids.len() as u32;
            to.words(&[draws.sample, draws.attempt, *sentence, *tokens as u32]);
            to.words(&[first_grid, grid_count, 0, 0]);
            first_grid += grid_count;
        }
        let grids: Vec<[u32; 4]> = self
            .rows
            .iter()
            .flat_map(|row| &row.3)
            .map(|g| [g.start, g.rows, g.cols, g.stride].map(|v| v as u32))
            .collect();
        to.array(&grids);
    }
}

/// Kept indices and bitmasks, equal bit for bit.
pub fn mask(program: &Path, calls: usize) -> Result<String, String> {
    let mut random = Random(1);
    let mut file = Cases::default();
    let cases: Vec<(mask::Kept, mask::Bitmask, MaskScheme)> = (0..calls)
        .map(|_| {
            let case = mask_case(&mut random);
            let kept = case.kept();
            let bits = kept.bitmask();
            case.write(&kept, &bits, &mut file);
            (kept, bits, case.law)
        })
        .collect();
    let mut results = Results::new(replay(program, &file.0));
    let (mut rows, mut tokens) = (0, 0u64);
    for (c, (kept, bits, law)) in cases.iter().enumerate() {
        if results.array::<u32>() != kept.indices || results.array::<u32>() != bits.words {
            return Err(format!("call {c}, {law:?}: another mask"));
        }
        rows += kept.rows();
        tokens += kept.tokens.iter().map(|&t| u64::from(t)).sum::<u64>();
    }
    Ok(format!("{calls} calls, {rows} rows, {tokens} tokens, equal bit for bit"))
}
