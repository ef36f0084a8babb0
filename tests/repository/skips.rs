//! The switch that turns a skip of a test into a failure.

use crate::skip::allowed;

#[test]
fn a_skip_fails_where_its_need_is_named() {
    for needed in ["", "cxx", "cxx,slurm", " cxx , "] {
        assert_eq!(allowed("gpu", needed), Ok(()), "{needed}");
    }
    for needed in ["gpu", "all", "cxx,gpu", "cxx, gpu"] {
        let message = allowed("gpu", needed).expect_err(needed);
        assert!(message.contains("asks for gpu"), "{message}");
    }
    let message = allowed("gpu", "cxx,gpus").expect_err("a misspelt need");
    assert!(message.contains("\"gpus\"") && message.contains("candle-kernels"), "{message}");
}
