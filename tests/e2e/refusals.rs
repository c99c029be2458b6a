//! What goes wrong gets one clear sentence and the right exit code.

use std::process::{Command, Output, Stdio};

use crate::support::{Block, Node, PATIENCE, both, edgeorc, eventually, guest, hello};

/// Runs to the end, at most for a while.
fn outcome(command: &mut Command) -> (Option<i32>, String) {
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    eventually("the command ends", PATIENCE, || child.try_wait().unwrap().ok_or("still running"));
    let output: Output = child.wait_with_output().unwrap();
    (output.status.code(), both(&output))
}

/// One line that starts with `error: ` and contains every word.
fn assert_sentence(text: &str, words: &[&str]) {
    let errors: Vec<_> = text.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "one sentence expected:\n{text}");
    for word in words {
        assert!(errors[0].contains(word), "{word:?} expected in:\n{text}");
    }
}

#[test]
fn a_bad_module_is_refused_before_anything_is_sent() {
    for (name, word) in [
        ("bad-not-wasm", "not a valid WebAssembly"),
        ("bad-truncated", "not a valid WebAssembly"),
        ("bad-unknown-import", "mystery"),
    ] {
        let (code, text) = outcome(edgeorc().arg("up").arg(guest(name)));
        assert_eq!(code, Some(3), "{name}: {text}");
        assert_sentence(&text, &[word, name]);
    }
    let (code, text) = outcome(edgeorc().args(["up", "/no/such/file.wasm"]));
    assert_eq!(code, Some(3), "{text}");
    assert_sentence(&text, &["/no/such/file.wasm", "No such file"]);
}

#[test]
fn a_missing_import_is_named_by_deploy() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::start(folder.path(), "one", Block::take().address(1), None);
    node.wait_ready();
    let module = guest("bad-unknown-import-component");
    let module = module.to_str().unwrap();
    let (code, text) = outcome(&mut node.edgeorc(&["deploy", module, "--wait"]));
    assert_eq!(code, Some(1), "{text}");
    assert_sentence(&text, &["does not start", "import"]);
}

#[test]
fn a_port_in_use_and_a_locked_data_dir_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let address = Block::take().address(1);
    let node = Node::start(folder.path(), "one", address, None);
    node.wait_ready();
    let start = |data_dir: &std::path::Path| {
        let mut command = edgeorc();
        command.args(["node", "start", "--bind-address", &address.to_string(), "--data-dir"]);
        command.arg(data_dir);
        outcome(&mut command)
    };
    let (code, text) = start(&folder.path().join("other"));
    assert_eq!(code, Some(6), "{text}");
    assert_sentence(&text, &["6443", "in use", "--api-port"]);
    let (code, text) = start(&node.data_dir);
    assert_eq!(code, Some(6), "{text}");
    assert_sentence(&text, &["another edgeorc process"]);
}

#[test]
fn a_wrong_token_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let block = Block::take();
    let node = Node::start(folder.path(), "one", block.address(1), None);
    node.wait_ready();
    let token =
        String::from_utf8(node.edgeorc(&["node", "token", "create"]).output().unwrap().stdout)
            .unwrap();
    let join = |name: &str, token: &str| {
        let mut command = edgeorc();
        command.args(["node", "start", "--node-name", name, "--token", token, "--join"]);
        command.arg(format!("https://{}:6443", block.address(1)));
        command.args(["--bind-address", &block.address(2).to_string(), "--data-dir"]);
        command.arg(folder.path().join(name));
        outcome(&mut command)
    };
    let (code, text) = join("garbled", "not-a-token");
    assert_eq!(code, Some(7), "{text}");
    assert_sentence(&text, &["token"]);
    let mut other_secret = token.trim().to_owned();
    let last = if other_secret.ends_with('0') { "1" } else { "0" };
    other_secret.replace_range(other_secret.len() - 1.., last);
    let (code, text) = join("guessed", &other_secret);
    assert_eq!(code, Some(7), "{text}");
    assert_sentence(&text, &["token"]);
    let parts: Vec<_> = token.trim().split('.').collect();
    let other_ca = format!("{}.{}.{}.{}", parts[0], "0".repeat(64), parts[2], parts[3]);
    let (code, text) = join("misled", &other_ca);
    assert_eq!(code, Some(7), "{text}");
    assert_sentence(&text, &["CA"]);
}

#[test]
fn an_unusable_data_dir_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a-file");
    std::fs::write(&file, "x").unwrap();
    let (code, text) = outcome(edgeorc().args(["node", "start", "--data-dir"]).arg(&file));
    assert_eq!(code, Some(6), "{text}");
    assert_sentence(&text, &["a-file", "--data-dir"]);
}

#[test]
fn a_full_disk_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk");
    std::fs::create_dir(&disk).unwrap();
    // A user namespace of its own lets anyone mount a small filesystem.
    let script = format!(
        "mount -t tmpfs -o size=4m tmpfs {dir} && exec {binary} node start --bind-address {address} --data-dir {dir}",
        dir = disk.display(),
        binary = env!("CARGO_BIN_EXE_edgeorc"),
        address = Block::take().address(1),
    );
    let (code, text) = outcome(Command::new("unshare").args([
        "--user",
        "--map-root-user",
        "--mount",
        "sh",
        "-c",
        &script,
    ]));
    assert_eq!(code, Some(6), "{text}");
    assert_sentence(&text, &["disk is full"]);
}

#[test]
fn no_server_is_told_from_a_refusal() {
    let folder = tempfile::tempdir().unwrap();
    let (code, text) =
        outcome(edgeorc().args(["get", "pods", "--kubeconfig"]).arg(folder.path().join("none")));
    assert_eq!(code, Some(4), "{text}");
    assert_sentence(&text, &["kubeconfig"]);
    let (code, text) = outcome(edgeorc().args(["deploy"]).arg(hello()).args(["--env", "x"]));
    assert_eq!(code, Some(2), "{text}");
    assert_sentence(&text, &["K=V"]);
}
