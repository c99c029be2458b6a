//! `edgeorc up`: the main job.

use std::time::Duration;

use crate::support::{Block, INGRESS_PORT, PATIENCE, Process, edgeorc, get, guest};

#[test]
fn up_prints_the_url_of_a_running_app_and_stops_cleanly() {
    let folder = tempfile::tempdir().unwrap();
    let address = Block::take().address(1).to_string();
    let mut up = Process::spawn(
        edgeorc().args(["up", "--bind-address", &address]).env("TMPDIR", folder.path()),
        folder.path().join("up.log"),
    );
    let url = up.line(PATIENCE);
    assert_eq!(url, format!("http://{address}:{INGRESS_PORT}/"));
    let ingress = format!("{address}:{INGRESS_PORT}").parse().unwrap();
    let first = get(ingress, &address, "/", PATIENCE).unwrap();
    assert_eq!(first.code, 200, "{first:?}");
    assert!(first.body.starts_with("Hello from pod hello-"), "{first:?}");
    up.signal("INT");
    assert_eq!(up.end(Duration::from_secs(20)), Some(0), "{}", up.stderr());
    assert_eq!(up.rest(), Vec::<String>::new(), "the URL is the only line on stdout");
    let left: Vec<_> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .filter(|name| name != "up.log")
        .collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}

#[test]
fn up_keeps_state_in_a_named_folder_and_serves_a_p3_component() {
    let folder = tempfile::tempdir().unwrap();
    let address = Block::take().address(1).to_string();
    let state = folder.path().join("state");
    let start = || {
        let mut command = edgeorc();
        command.arg("up").arg(guest("hello-p3")).args(["--bind-address", &address]);
        command.arg("--data-dir").arg(&state);
        Process::spawn(&mut command, folder.path().join("up.log"))
    };
    let mut first = start();
    first.line(PATIENCE);
    let ingress = format!("{address}:{INGRESS_PORT}").parse().unwrap();
    let answer = get(ingress, &address, "/", PATIENCE).unwrap();
    assert_eq!(answer.code, 200, "{answer:?}");
    assert!(answer.body.contains("hello-p3-"), "{answer:?}");
    first.kill();
    let mut second = start();
    second.line(PATIENCE);
    let again = get(ingress, &address, "/", PATIENCE).unwrap();
    assert_eq!(again.code, 200, "{again:?}");
    second.signal("TERM");
    assert_eq!(second.end(Duration::from_secs(20)), Some(0), "{}", second.stderr());
}

#[test]
fn up_says_that_a_command_serves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let address = Block::take().address(1).to_string();
    let mut up = Process::spawn(
        edgeorc()
            .arg("up")
            .arg(guest("ticker"))
            .args(["--bind-address", &address])
            .env("TMPDIR", folder.path()),
        folder.path().join("up.log"),
    );
    assert_eq!(up.line(PATIENCE), format!("http://{address}:{INGRESS_PORT}/"));
    assert!(up.stderr().contains("ticker is a command, it has no HTTP handler"), "{}", up.stderr());
    up.signal("INT");
    assert_eq!(up.end(Duration::from_secs(20)), Some(0), "{}", up.stderr());
}
