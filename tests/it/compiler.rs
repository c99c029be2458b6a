//! Goal: the child process that compiles can be limited at any time of its life. Method: the real binary,
//! held at the moment when it opens what it is to compile.

use std::process::{Command, Stdio};

use edgeorc::agent::Compiler;

/// The agent limits the child's private memory once it runs. What the child had taken by then counts: as
/// much as the limit itself, and nothing could be compiled.
#[test]
fn the_compiler_has_taken_little_memory_when_it_is_limited() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("input");
    assert!(Command::new("mkfifo").arg(&input).status().unwrap().success());
    let compiler = Compiler::new(env!("CARGO_BIN_EXE_edgeorc").into());
    let mut child = Command::new(&compiler.program)
        .args(&compiler.args)
        .args([&input, &folder.path().join("output")])
        .envs(compiler.env)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // Returns once the child opens the other end.
    let writing = std::fs::File::create(&input).unwrap();
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let taken = status.lines().find_map(|line| line.strip_prefix("VmData:")).unwrap();
    let taken: u64 = taken.trim().trim_end_matches(" kB").parse().unwrap();
    drop(writing);
    assert!(!child.wait().unwrap().success(), "nothing is no component");
    let most = compiler.memory_bytes_max.unwrap() / 1024 / 8;
    assert!(taken < most, "{taken} KiB of private memory before anything is compiled");
}
