//! The key-value arena of the language model, and the rotary tables that go with it.

use candle_core::{DType, Device, Tensor};

use super::Place;
use super::config::TextConfig;
#[cfg(feature = "cuda")]
use super::step::Steps;
use crate::models::memory;
use crate::{Error, Result};

/// Keys and values of every layer.
#[cfg(feature = "cuda")]
pub(super) struct Arenas<'a> {
    pub(super) keys: &'a [Tensor],
    pub(super) values: &'a [Tensor],
}

/// Keys and values of every layer, each an arena `[slots, kv heads, head dim]` in the model's dtype.
///
/// The cache has no notion of a sequence: who reads which slots is said by the attention plan of each forward pass, so
/// that many sequences can share a prefix and a fork costs nothing. A slot is valid once some pass has written it; the
/// caller owns their allocation. Not cleared between uses.
pub struct KvCache {
    keys: Vec<Tensor>,
    values: Vec<Tensor>,
    slots: usize,
    rotary: RotaryTable,
    device: Device,
    #[cfg(feature = "cuda")]
    steps: Steps,
}

impl KvCache {
    pub(super) fn new(
        config: &TextConfig,
        slots: usize,
        device: &Device,
        dtype: DType,
    ) -> Result<Self> {
        // A GPU's driver refuses by itself; on the CPU the system would end the process, once the pages are written to.
        if let (Device::Cpu, Some(free)) = (device, memory::free(device)?) {
            let needed = Self::bytes(config, slots, dtype) as u64;
            if needed > free {
                return Err(Error::Memory { what: "keys and values of a wave", needed, free });
            }
        }
        let arena = || Tensor::zeros((slots, config.kv_heads, config.head_dim), dtype, device);
        Ok(Self {
            keys: (0..config.layers).map(|_| arena()).collect::<Result<_, _>>()?,
            values: (0..config.layers).map(|_| arena()).collect::<Result<_, _>>()?,
            slots,
            rotary: RotaryTable::of(config),
            device: device.clone(),
            #[cfg(feature = "cuda")]
            steps: Steps::default(),
        })
    }

    /// Number of slots: token rows that fit at one time.
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// Bytes of all arenas of a cache with `slots` slots.
    pub fn bytes(config: &TextConfig, slots: usize, dtype: DType) -> usize {
        2 * config.layers * slots * config.kv_heads * config.head_dim * dtype.size_in_bytes()
    }

    /// Keys and values of a layer.
    pub(super) fn layer(&self, layer: usize) -> (&Tensor, &Tensor) {
        (&self.keys[layer], &self.values[layer])
    }

    /// Cosines and sines for these positions, each `[n, head dim / 2]` in f32.
    pub(super) fn rotary(&mut self, positions: &[Place]) -> Result<(Tensor, Tensor)> {
        self.rotary.rows(positions, &self.device)
    }

    /// How many decode steps were launches of a captured graph, see [`Language::step`](super::Language::step).
    pub fn replays(&self) -> u64 {
        #[cfg(feature = "cuda")]
        return self.steps.replays();
        #[cfg(not(feature = "cuda"))]
        0
    }

    /// Why decode steps are not captured although they could be, once.
    pub fn not_captured(&mut self) -> Option<String> {
        #[cfg(feature = "cuda")]
        return self.steps.not_captured();
        #[cfg(not(feature = "cuda"))]
        None
    }

    /// What a decode step needs of the cache: keys and values of each layer, rotary values, and its graphs.
    #[cfg(feature = "cuda")]
    pub(super) fn parts(&mut self) -> (Arenas<'_>, &mut RotaryTable, &mut Steps) {
        (Arenas { keys: &self.keys, values: &self.values }, &mut self.rotary, &mut self.steps)
    }

    /// Every slot must be inside the arena and named once: two rows in one slot would race.
    pub(super) fn check_slots(&self, slots: &[u32]) -> Result<()> {
        let mut seen = vec![false; self.slots];
        for &slot in slots {
            match seen.get_mut(slot as usize) {
                Some(used) if !*used => *used = true,
                Some(_) => {
                    return Err(Error::argument(
                        "Language::forward",
                        "slots",
                        format!("slot {slot} twice"),
                        "each slot at most once",
                    ));
                }
                None => {
                    return Err(Error::argument(
                        "Language::forward",
                        "slots",
                        slot,
                        format!("slots below {}", self.slots),
                    ));
                }
            }
        }
        Ok(())
    }
}

/// `cos` and `sin` of position x frequency in f32, one row a position, grown when a later position comes. On the host: who needs
/// rows of it uploads those.
pub(super) struct RotaryTable {
    frequencies: Vec<f32>,
    /// How many pairs, one run after another, turn with which component of a position.
    sections: Vec<(usize, usize)>,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl RotaryTable {
    pub(super) fn of(config: &TextConfig) -> Self {
        let frequencies = config.rope.frequencies(config.head_dim);
        let sections = match config.rope.sections {
            None => vec![(0, frequencies.len())],
            Some(sections) => sections.into_iter().enumerate().collect(),
        };
        Self { frequencies, sections, cos: vec![], sin: vec![] }
    }

    /// The rows of these positions, one after another.
    pub(super) fn values(&mut self, positions: &[Place]) -> [Vec<f32>; 2] {
        let pairs = self.frequencies.len();
        let needed = positions.iter().map(Place::last).max().map_or(1, |p| p as usize + 1);
        if self.cos.len() < needed * pairs {
            let rows = needed.next_power_of_two().max(256);
            let angles = (0..rows).flat_map(|p| self.frequencies.iter().map(move |f| p as f32 * f));
            (self.sin, self.cos) = angles.map(f32::sin_cos).unzip();
        }
        [&self.cos, &self.sin].map(|table| {
            let mut rows = Vec::with_capacity(positions.len() * pairs);
            for Place(components) in positions {
                let mut first = 0;
                for &(component, len) in &self.sections {
                    let start = components[component] as usize * pairs + first;
                    rows.extend_from_slice(&table[start..start + len]);
                    first += len;
                }
            }
            rows
        })
    }

    /// The same as tensors `[n, head dim / 2]`.
    pub(super) fn rows(
        &mut self,
        positions: &[Place],
        device: &Device,
    ) -> Result<(Tensor, Tensor)> {
        let shape = (positions.len(), self.frequencies.len());
        let [cos, sin] = self.values(positions);
        let tensor = |values| Tensor::from_vec(values, shape, device);
        Ok((tensor(cos)?, tensor(sin)?))
    }
}
