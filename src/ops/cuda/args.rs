//! What the kernels take: their argument structs, byte for byte, and the constants that both sides rely on.
//!
//! Std only: `tests/ops/cuda_args.rs` includes this file and has a C++ compiler print the same offsets from `kernels/*.cu`. Field
//! names are those of the kernels. Addresses are `u64`, 0 where a kernel takes null.

/// An address in device memory.
pub type Address = u64;

/// Name, offset and size of a field.
pub type Field = (&'static str, usize, usize);

macro_rules! layouts {
    ($($(#[$about:meta])* struct $name:ident { $($field:ident: $ty:ty,)* })*) => {
        $(
            $(#[$about])*
            #[repr(C)]
            #[derive(Debug, Clone, Copy, Default, PartialEq)]
            #[allow(missing_docs, reason = "the kernels' headers say what the fields are")]
            pub struct $name { $(pub $field: $ty,)* }
        )*

        /// Name, size and fields of every struct.
        pub const LAYOUTS: &[(&str, usize, &[Field])] = &[$(
            (stringify!($name), size_of::<$name>(), &[$(
                (stringify!($field), std::mem::offset_of!($name, $field), size_of::<$ty>()),
            )*]),
        )*];
    };
}

macro_rules! constants {
    ($($(#[$about:meta])* const $name:ident: $ty:ty = $value:expr;)*) => {
        $($(#[$about])* pub const $name: $ty = $value;)*

        /// Every constant with its value.
        pub const CONSTANTS: &[(&str, u64)] = &[$((stringify!($name), $name as u64),)*];
    };
}

constants! {
    /// Codes of element types.
    const DTYPE_F32: u32 = 0;
    const DTYPE_F16: u32 = 1;
    const DTYPE_BF16: u32 = 2;
    const DTYPE_I8: u32 = 3;

    /// Codes of pooling modes.
    const POOL_CLS: u32 = 0;
    const POOL_MEAN: u32 = 1;
    const POOL_MAX: u32 = 2;
    const POOL_LAST: u32 = 3;
    const POOL_WEIGHTED: u32 = 4;
    const POOL_SQRT: u32 = 5;
    /// Threads of a pooling block, at most.
    const POOL_THREADS: u32 = 256;
    /// Tokens of a part.
    const POOL_PART: u64 = 64;
    /// The widest vector that fits shared memory.
    const POOL_SHARED_ROW: u64 = 2048;
    const POOL_MASK_THREADS: u32 = 256;
    const POOL_GRAD_THREADS: u32 = 256;

    const ATTEND_THREADS: u32 = 128;
    /// Lines (a query row and a query head of one key head) of an item.
    const ATTEND_LINES: u64 = 64;
    /// Lines of a share, and keys of its chunk; threads of a block of shares in f16 and bf16, a warp each.
    const ATTEND_FEW: u64 = 16;
    const ATTEND_CHUNK: u64 = 64;
    const ATTEND_FEW_THREADS: u32 = 64;
    /// Lines of a block of threads in f32; of few lines; of many where D is above 128.
    const ATTEND_FLOAT_LINES: u64 = 32;
    const ATTEND_FLOAT_FEW: u64 = 4;
    const ATTEND_FLOAT_WIDE: u64 = 16;
    const WRITE_THREADS: u32 = 256;
    /// The slot of rows that are not written.
    const WRITE_NOWHERE: u32 = 0xffff_ffff;

    const COSINE_ROW_THREADS: u32 = 256;
    /// Rows and columns of a tile; rows of operands are padded to it, and lie in chunks of as many rows.
    const TILE: u64 = 128;
    /// Operands' widths are padded to it; columns of a chunk.
    const TILE_K: u64 = 64;
    const COSINE_TILE_THREADS: u32 = 256;
    /// Of the kernels for sm_90a: threads and bytes of dynamic shared memory of a block, and the columns of its tile.
    const WGMMA_THREADS: u32 = 384;
    const WGMMA_SHARED: u32 = 205_888;
    const WGMMA_COLUMNS: u64 = 256;
    /// Thresholds of one launch, at most.
    const COSINE_THRESHOLDS: usize = 64;
    const TOP_K_THREADS: u32 = 256;

    /// Codes of masking laws.
    const LAW_BERNOULLI: u32 = 0;
    const LAW_EXACT_K: u32 = 1;
    const LAW_BLOCKS: u32 = 2;
    const MASK_THREADS: u32 = 256;
    const PACK_THREADS: u32 = 256;

    /// Codes of activations.
    const ACT_IDENTITY: u32 = 0;
    const ACT_GELU_ERF: u32 = 1;
    const ACT_GELU_TANH: u32 = 2;
    const ACT_QUICK_GELU: u32 = 3;
    const ACT_RELU: u32 = 4;
    const ACT_SILU: u32 = 5;
    const ACT_TANH: u32 = 6;
    const ACT_THREADS: u32 = 256;
    /// Vectors of a thread.
    const ACT_FLIGHT: u64 = 2;

    /// Codes of norms.
    const NORM_LAYER: u32 = 0;
    const NORM_RMS: u32 = 1;
    /// Threads of a block, at most.
    const NORM_THREADS: u32 = 256;
    /// Values of a row that a thread keeps, at most.
    const NORM_KEPT: u64 = 32;

    const ROPE_THREADS: u32 = 256;

    const TOKEN_THREADS: u32 = 512;
    /// Why a row of logits has no distribution.
    const TOKEN_OK: u32 = 0;
    const TOKEN_NAN: u32 = 1;
    const TOKEN_INFINITE: u32 = 2;
    const TOKEN_EMPTY: u32 = 3;
}

layouts! {
    /// Which rows of the states belong to which sequence.
    struct PoolRows {
        cu: Address,
        lengths: Address,
        order: Address,
        width: u64,
    }

    /// `pool_*`.
    struct PoolArgs {
        states: Address,
        rows: PoolRows,
        residual: Address,
        weight: Address,
        bias: Address,
        out: Address,
        parts: Address,
        pooled: Address,
        tickets: Address,
        hidden: i64,
        dim: i64,
        state_stride: i64,
        residual_stride: i64,
        batch: u32,
        mode: u32,
        out_dtype: u32,
        residual_dtype: u32,
        normalize: u32,
        aligned: u32,
        residual_aligned: u32,
        columns: u32,
        parts_per_block: u32,
        groups: u32,
        eps: f32,
        reserved: u32,
    }

    /// `pool_places`.
    struct PoolMaskArgs {
        mask: Address,
        order: Address,
        lengths: Address,
        width: u64,
        mask_bytes: u32,
        reserved: u32,
    }

    /// `pool_grad_*`.
    struct PoolGradArgs {
        states: Address,
        rows: PoolRows,
        grad: Address,
        pooled: Address,
        out: Address,
        hidden: i64,
        dim: i64,
        state_stride: i64,
        batch: u32,
        mode: u32,
        normalize: u32,
        chunks: u32,
    }

    /// Keys of `attend_*` that lie one after another.
    struct AttendSegment {
        base: u32,
        end: u32,
    }

    /// Lines of a block of many, of `attend_*`.
    struct AttendItem {
        first_row: u32,
        rows: u32,
        first_segment: u32,
        keys: u32,
        causal: u32,
        first_line: u32,
        lines: u32,
        reserved: u32,
    }

    /// A row of a block of few lines, of `attend_few_*`.
    struct AttendRow {
        row: u32,
        position: u32,
        keys: u32,
        part: u32,
        ticket: u32,
    }

    /// Lines that go through a chunk together, of `attend_few_*`.
    struct AttendShare {
        members: u32,
        first_line: u32,
        lines: u32,
        first_segment: u32,
        base: u32,
        end: u32,
        from: u32,
        to: u32,
    }

    /// `attend_*`.
    struct AttendArgs {
        q: Address,
        k: Address,
        v: Address,
        out: Address,
        bias: Address,
        items: Address,
        shares: Address,
        segments: Address,
        rows: Address,
        members: Address,
        parts: Address,
        tickets: Address,
        q_pitch: i64,
        k_pitch: i64,
        v_pitch: i64,
        dim: u32,
        kv_heads: u32,
        group: u32,
        bias_max: u32,
        scale: f32,
        aligned: u32,
        share_count: u32,
        reserved: u32,
    }

    /// `write_rows`.
    struct WriteArgs {
        rows: Address,
        arena: Address,
        slots: Address,
        count: u64,
        row_bytes: u64,
        pitch: u64,
        unit: u32,
        reserved: u32,
    }

    /// `cosine_rows_*`.
    struct CosineRowsArgs {
        candidates: Address,
        references: Address,
        groups: Address,
        thresholds: Address,
        scores: Address,
        first_below: Address,
        tally: Address,
        candidate_count: u64,
        reference_count: u64,
        d: i64,
        candidate_stride: i64,
        reference_stride: i64,
        bound: f64,
        threshold_count: u32,
        aligned: u32,
    }

    /// `cosine_prepare_*`.
    struct CosinePrepareArgs {
        rows: Address,
        high: Address,
        low: Address,
        scale: Address,
        nan: Address,
        tally: Address,
        count: u64,
        padded: u64,
        d: i64,
        padded_d: i64,
        stride: i64,
    }

    /// One side of a tile kernel.
    struct CosineSide {
        high: Address,
        low: Address,
        scale: Address,
        nan: Address,
        rows: Address,
        count: u64,
        stride: i64,
    }

    /// A pair that `cosine_pairs_*` found.
    struct FoundPair {
        i: u32,
        j: u32,
        score: f32,
    }

    /// `cosine_matrix_*`, `cosine_count_*`, `cosine_pairs_*`.
    struct CosineTileArgs {
        a: CosineSide,
        b: CosineSide,
        d: i64,
        padded_d: i64,
        tiles_a: u64,
        tiles_b: u64,
        scores: Address,
        thresholds: Address,
        low: Address,
        high: Address,
        counts: Address,
        rechecked: Address,
        found: Address,
        capacity: u64,
        lowest: f32,
        threshold_count: u32,
        products: u32,
        symmetric: u32,
        strict: u32,
        dtype: u32,
    }

    /// `cosine_top_k_*`.
    struct TopKArgs {
        scores: Address,
        a: Address,
        b: Address,
        candidate: Address,
        exact: Address,
        best: Address,
        index: Address,
        rechecked: Address,
        first_row: u64,
        columns: u64,
        k: u64,
        d: i64,
        a_stride: i64,
        b_stride: i64,
        margin: f64,
    }

    /// A patch region of `mask_draw`.
    struct MaskGrid {
        start: u32,
        rows: u32,
        cols: u32,
        stride: u32,
    }

    /// A row of `mask_draw`.
    struct MaskRow {
        seed: u64,
        index_start: u64,
        word_start: u64,
        sample: u32,
        attempt: u32,
        sentence: u32,
        tokens: u32,
        first_grid: u32,
        grids: u32,
        keep: u32,
        drawn: u32,
    }

    /// `mask_draw`.
    struct MaskArgs {
        rows: Address,
        grids: Address,
        indices: Address,
        bitmask: Address,
        bar: u64,
        law: u32,
        block: u32,
        exempt_newlines: u32,
        row_count: u32,
    }

    /// `pack_rows`.
    struct PackArgs {
        sources: Address,
        source_of: Address,
        row_of: Address,
        out: Address,
        rows: u64,
        row_bytes: u64,
        unit: u32,
        reserved: u32,
    }

    /// `act_*`.
    struct ActArgs {
        x: Address,
        other: Address,
        out: Address,
        rows: u64,
        vectors: u64,
        width: i64,
        x_stride: i64,
        other_stride: i64,
        activation: u32,
        aligned: u32,
    }

    /// `norm_*`.
    struct NormArgs {
        x: Address,
        residual: Address,
        weight: Address,
        bias: Address,
        add_bias: Address,
        sum: Address,
        out: Address,
        rows: i64,
        width: i64,
        x_stride: i64,
        residual_stride: i64,
        law: u32,
        aligned: u32,
        eps: f32,
        reserved: u32,
    }

    /// `rope_*`.
    struct RopeArgs {
        x: Address,
        cos: Address,
        sin: Address,
        out: Address,
        rows: u64,
        heads: u64,
        vectors: u64,
        half: i64,
        x_stride: i64,
        aligned: u32,
        reserved: u32,
    }

    /// A row of `token_sample_*`.
    struct TokenRow {
        seed: u64,
        step: u64,
        history_start: u64,
        top_p: f64,
        min_p: f64,
        scale: f32,
        penalty: f32,
        sample: u32,
        attempt: u32,
        sentence: u32,
        top_k: u32,
        history: u32,
        reserved: u32,
    }

    /// `token_sample_*`.
    struct TokenArgs {
        logits: Address,
        rows: Address,
        history: Address,
        penalised: Address,
        token: Address,
        log_prob: Address,
        status: Address,
        row_stride: i64,
        vocab: u32,
        aligned: u32,
    }
}
