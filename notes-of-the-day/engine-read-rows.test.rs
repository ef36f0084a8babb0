
/// Rows that are read alone are those of a pass whose rows are all read, and what they leave in the
/// arena is the same.
#[test]
fn rows_that_are_read_are_those_of_the_whole_pass() {
    for name in ["llava15", "next_mistral"] {
        let model = model(name);
        let language = &model.language;
        let n = 40;
        let ids: Vec<u32> = (0..n).map(|i| 5 + i * 7 % 400).collect();
        let slots: Vec<u32> = (0..n).collect();
        let plan = AttendPlan::ragged(&[0, 25, n], true);
        let positions: Vec<u32> = (0..25).chain(0..15).collect();
        let x = language.embed(&ids).unwrap();
        let mut caches = [0, 1].map(|_| language.new_cache(n as usize + 1).unwrap());
        let whole = language.forward(&x, &positions, &mut caches[0], &slots, &plan).unwrap();
        for read in [&[24, 39, 0, 7][..], &[3], &[]] {
            let seen =
                language.forward_rows(&x, &positions, &mut caches[1], &slots, &plan, read).unwrap();
            assert_eq!(seen.dims(), [read.len(), language.config().hidden]);
            if read.is_empty() {
                continue;
            }
            let read = Tensor::new(read, whole.device()).unwrap();
            let difference = largest_difference(&seen, &whole.index_select(&read, 0).unwrap());
            let bound = if whole.device().is_cpu() { 0.0 } else { 1e-5 };
            assert!(difference <= bound, "{name}: {difference}");
            let blocks = vec![Block {
                rows: 0..1,
                keys: vec![Segment { start: 0, len: 25 }, Segment { start: n as usize, len: 1 }],
                causal: false,
            }];
            let next = language.embed(&[9]).unwrap();
            let plan = AttendPlan { blocks };
            let [a, b] = &mut caches;
            let [a, b] =
                [a, b].map(|cache| language.forward(&next, &[25], cache, &[n], &plan).unwrap());
            assert!(largest_difference(&a, &b) <= bound, "{name}: the arena");
        }
        let error =
            language.forward_rows(&x, &positions, &mut caches[1], &slots, &plan, &[n]).unwrap_err();
        assert!(error.to_string().contains("rows below 40"), "{error}");
    }
}
