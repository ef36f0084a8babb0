//! Calls captured into a graph, and what is replaced between its launches.

use bdhs::ops::attend::{AttendPlan, Block, Segment};
use bdhs::ops::cuda;
use bdhs::ops::cuda::attend::{Operands, Plan, Slots, Workspace, attend_in, write_rows};
use bdhs::ops::cuda::graph::Graph;
use candle_core::{Device, Tensor};

use super::attend::reference;
use super::{Random, assert_close, stream_to_capture};

const ROWS: usize = 6;
const SLOTS: usize = 300;
const DIM: usize = 32;

/// Forks of one prefix, `own` keys each beside it.
fn forks(rows: usize, own: usize) -> AttendPlan {
    let keys = |row: usize| {
        vec![Segment { start: 0, len: 130 }, Segment { start: 140 + 20 * row, len: own }]
    };
    let block = |row: usize| Block { rows: row..row + 1, keys: keys(row), causal: true };
    AttendPlan { blocks: (0..rows).map(block).collect() }
}

/// Rows are written and attended to by other slots and another plan at each launch.
#[test]
fn plans_and_slots_are_replaced_between_launches() {
    let Some(stream) = stream_to_capture() else { return };
    let mut random = Random(51);
    let mut plan = Plan::with_room(&stream, &forks(ROWS, 1), ROWS, SLOTS, 1).unwrap();
    let mut slots = Slots::padded(&stream, &[140, 160], ROWS, SLOTS).unwrap();
    let mut workspace = Workspace::new(&stream, &plan, 1, DIM).unwrap();
    let mut host = random.vec(SLOTS * DIM);
    let mut arena = stream.clone_htod(&host).unwrap();
    let mut q = stream.clone_htod(&random.vec(ROWS * DIM)).unwrap();
    let mut out = stream.alloc_zeros::<f32>(ROWS * DIM).unwrap();
    // SAFETY of the launches below: everything captured lives to the end.
    let mut graph = Graph::capture(&stream, || {
        let rows = |values, count| cuda::Rows::packed(values, count, DIM);
        write_rows(&stream, &rows(&q, ROWS)?, &slots, &mut arena)?;
        let [k, v] = [rows(&arena, SLOTS)?, rows(&arena, SLOTS)?];
        let operands = Operands { q: rows(&q, ROWS)?, k, v, dim: DIM };
        attend_in(&stream, &operands, &plan, 0.2, None, &mut workspace, &mut out)
    })
    .unwrap();
    assert_eq!(stream.clone_dtoh(&arena).unwrap(), host, "nothing ran");

    for (now, places) in
        [(forks(ROWS, 1), vec![140, 160]), (forks(ROWS, 9), vec![]), (forks(ROWS, 3), vec![7])]
    {
        let input = random.vec(ROWS * DIM);
        stream.memcpy_htod(&input, &mut q).unwrap();
        assert!(plan.replace(&stream, &now).unwrap());
        slots.replace(&stream, &places).unwrap();
        unsafe { graph.launch() }.unwrap();
        for (row, &slot) in input.chunks(DIM).zip(&places) {
            host[slot as usize * DIM..][..DIM].copy_from_slice(row);
        }
        assert_eq!(stream.clone_dtoh(&arena).unwrap(), host, "written");
        let tensor =
            |x: &[f32]| Tensor::from_slice(x, (x.len() / DIM, 1, DIM), &Device::Cpu).unwrap();
        let (q, kv) = (tensor(&input), tensor(&host));
        let exact = reference([&q, &kv, &kv], &now, f64::from(0.2f32), |_, _| 0.0);
        let seen: Vec<f64> =
            stream.clone_dtoh(&out).unwrap().iter().map(|&x| f64::from(x)).collect();
        assert_close(&seen, &exact, 5e-5, 0.0, "attended to");
    }

    // What has no room, or leaves a row without keys, changes nothing.
    let many = AttendPlan {
        blocks: (0..ROWS)
            .map(|row| Block {
                rows: row..row + 1,
                keys: (0..100).map(|i| Segment { start: row + i, len: 1 }).collect(),
                causal: true,
            })
            .collect(),
    };
    for other in [&many, &forks(ROWS - 1, 3)] {
        assert!(!plan.replace(&stream, other).unwrap());
    }
    let mut grown = plan.grown(&stream, &many).unwrap();
    for other in [&forks(ROWS, 9), &many] {
        assert!(grown.replace(&stream, other).unwrap());
    }
    let small = Plan::new(&stream, &forks(1, 1), 1, SLOTS, 1).unwrap();
    let small = Workspace::new(&stream, &small, 1, DIM).unwrap();
    assert!(!small.fits(&plan, 1, DIM) && workspace.fits(&plan, 1, DIM));
    let refused = |result: bdhs::Result<()>, part: &str| {
        let message = result.unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
    };
    refused(slots.replace(&stream, &[1; 2]), "1 twice");
    refused(slots.replace(&stream, &[0, 1, 2, 3, 4, 5, 6]), "at most 6");
}

/// Work that fails ends the capture, and the stream can be used.
#[test]
fn a_capture_that_fails_leaves_the_stream_as_it_was() {
    let Some(stream) = stream_to_capture() else { return };
    let failed = Graph::capture(&stream, || Slots::new(&stream, &[1], 2).map(|_| ()));
    let message = failed.err().unwrap().to_string();
    assert!(message.contains("being captured"), "{message}");
    let usable = || {
        let values = stream.clone_htod(&[1u32, 2]).unwrap();
        assert_eq!(stream.clone_dtoh(&values).unwrap(), [1, 2]);
    };
    usable();
    // As a dropped buffer does whose event cannot be waited for: an error that the next call of the
    // context would report.
    let record = || {
        let status = cudarc::driver::sys::CUresult::CUDA_ERROR_INVALID_VALUE;
        stream.context().record_err::<()>(Err(cudarc::driver::DriverError(status)));
    };
    let recorded = Graph::capture(&stream, || {
        record();
        Ok(())
    });
    let message = recorded.err().unwrap().to_string();
    assert!(message.contains("INVALID_VALUE"), "{message}");
    usable();
    // One from before is none of the capture's.
    record();
    assert!(Graph::capture(&stream, || Ok(())).is_ok());
    usable();
}
