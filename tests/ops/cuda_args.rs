//! The argument structs of the kernels, as Rust has them and as a C++ compiler sees them in `kernels/*.cu`. Needs no GPU and no
//! CUDA; skipped, with a message, where there is no C++ compiler.

#[path = "../../src/ops/cuda/args.rs"]
#[allow(dead_code)]
mod args;

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use args::{CONSTANTS, LAYOUTS};

/// What the compiler prints for each line of `expressions`.
fn evaluate(expressions: &[String]) -> Option<Vec<u64>> {
    let compiler = crate::skip::compiler()?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = tempfile::tempdir().unwrap();
    let mut source = String::from("#include <stddef.h>\n#include <stdio.h>\n");
    for kernel in ["act", "attend", "cosine", "mask", "norm", "pool", "rope", "token"] {
        let _ = writeln!(source, "#include \"{kernel}.cu\"");
    }
    source += "using namespace bdhs;\nint main() {\n";
    for expression in expressions {
        let _ = writeln!(source, "    printf(\"%llu\\n\", (unsigned long long)({expression}));");
    }
    source += "}\n";
    let runtime = ["fibers.cpp", "launch.cpp", "collectives.cpp", "halves.cpp"];
    let (file, program) = (folder.path().join("layout.cpp"), folder.path().join("layout"));
    std::fs::write(&file, source).unwrap();
    let output = Command::new(&compiler)
        .args(["-std=c++17", "-O0", "-w", "-I"])
        .arg(root.join("tests/shim"))
        .arg("-I")
        .arg(root.join("kernels"))
        .arg(&file)
        .args(runtime.map(|part| root.join("tests/shim").join(part)))
        .arg("-o")
        .arg(&program)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(Command::new(&program).output().unwrap().stdout).unwrap();
    Some(text.lines().map(|line| line.parse().unwrap()).collect())
}

#[test]
fn structs_and_constants_are_those_of_the_kernels() {
    let mut asked: Vec<(String, u64)> =
        CONSTANTS.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
    for (name, size, fields) in LAYOUTS {
        asked.push((format!("sizeof({name})"), *size as u64));
        for (field, offset, size) in *fields {
            asked.push((format!("offsetof({name}, {field})"), *offset as u64));
            asked.push((format!("sizeof((({name}*)nullptr)->{field})"), *size as u64));
        }
    }
    let expressions: Vec<String> = asked.iter().map(|(text, _)| text.clone()).collect();
    let Some(seen) = evaluate(&expressions) else { return };
    assert_eq!(seen.len(), asked.len());
    for ((expression, rust), cpp) in asked.iter().zip(seen) {
        assert_eq!(*rust, cpp, "{expression}: Rust and C++ differ");
    }
}

/// No byte of a struct is outside its fields, so that no field of the kernels is missing here and nothing unset is copied.
#[test]
fn structs_have_no_gaps() {
    for (name, size, fields) in LAYOUTS {
        let mut end = 0;
        for (field, offset, size) in *fields {
            assert_eq!(*offset, end, "{name}.{field}");
            end = offset + size;
        }
        assert_eq!(end, *size, "{name} ends");
    }
}
