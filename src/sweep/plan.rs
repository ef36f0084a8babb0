//! What a run has to do: its samples, blocks, shard and cells.

use std::ops::Range;

use crate::{Error, Result, store::Shard};

/// Parses `I/N` with 1 <= I <= N: part I of a run that N machines or devices share.
pub fn parse_shard(text: &str) -> Result<Shard> {
    text.split_once('/')
        .and_then(|(part, count)| Some((part.parse::<u32>().ok()?, count.parse().ok()?)))
        .filter(|&(part, count)| (1..=count).contains(&part))
        .map(|(part, count)| Shard::Part { index: part - 1, count })
        .ok_or_else(|| {
            Error::unsupported(format!("shard {text:?}"), "expected I/N with 1 <= I <= N")
        })
}

/// The blocks that a shard works on: ranges of samples, in order. A shard holds whole blocks, in turn;
/// the union of all shards and a merged run hold every block.
pub fn blocks(samples: usize, block: usize, shard: Shard) -> Vec<Range<usize>> {
    let mine = |i: usize| match shard {
        Shard::Part { index, count } => i % count as usize == index as usize,
        Shard::Merged => true,
    };
    (0..samples.div_ceil(block))
        .filter(|&i| mine(i))
        .map(|i| i * block..((i + 1) * block).min(samples))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_hold_every_block_once() {
        assert_eq!(blocks(10, 4, Shard::WHOLE), [0..4, 4..8, 8..10]);
        let mut all = Vec::new();
        for index in 0..3 {
            all.extend(blocks(10, 2, Shard::Part { index, count: 3 }));
        }
        all.sort_by_key(|range| range.start);
        assert_eq!(all, blocks(10, 2, Shard::Merged));
        assert!(blocks(0, 4, Shard::WHOLE).is_empty());
    }

    #[test]
    fn shards_parse() {
        assert_eq!(parse_shard("2/3").ok(), Some(Shard::Part { index: 1, count: 3 }));
        for bad in ["0/3", "4/3", "3", "a/b", "1/0", ""] {
            assert!(parse_shard(bad).is_err(), "{bad}");
        }
    }
}
