//! A real process, killed while it writes.
//!
//! Goal: what was acknowledged is there after `kill -9`, whatever was under way. Method: this
//! test binary runs itself with an environment variable as a writer that prints a line for each
//! acknowledged write; it is killed after a while, started again in the same folder, and first
//! compares what it finds with what was printed.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use edgeorc_raft::{Config, Member, Replica, Transport, TransportError};

use crate::cluster::{member, put};

const DIR_VARIABLE: &str = "EDGEORC_RAFT_CRASH_DIR";
const WRITERS: u32 = 8;
const ROUNDS: u64 = 15;

struct Alone;

#[async_trait]
impl Transport for Alone {
    async fn call(
        &self,
        peer: &Member,
        _request: Bytes,
        _deadline: Duration,
    ) -> Result<Bytes, TransportError> {
        Err(TransportError::Unreachable { peer: peer.name.clone(), reason: "alone".to_owned() })
    }
}

/// The writer: reports what it found, then writes until it is killed. Does nothing when it runs
/// as an ordinary test.
#[test]
fn writer() {
    let Ok(dir) = std::env::var(DIR_VARIABLE) else { return };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut config = Config::new(dir, member(1));
        config.snapshot_every = 300;
        let replica = Replica::open(config, Arc::new(Alone)).await.unwrap();
        replica.bootstrap().await.unwrap();
        replica.read_barrier().await.unwrap();
        for entry in replica.range(b"", b"", 0, None).unwrap().entries {
            let key = String::from_utf8(entry.key.to_vec()).unwrap();
            say(&format!("found {key} {}", String::from_utf8_lossy(&entry.value)));
        }
        say("ready");
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let replica = replica.clone();
                let key = format!("w{writer}");
                let found = replica.get(key.as_bytes());
                let start = found.map_or(0, |entry| {
                    String::from_utf8_lossy(&entry.value).trim().parse::<u64>().unwrap()
                });
                tokio::spawn(async move {
                    for n in start + 1.. {
                        // Padded: records of many sizes.
                        let value = format!(
                            "{n:>width$}",
                            width = usize::try_from(n * 37 % 2000).unwrap() + 1
                        );
                        replica.txn(put(&key, &value)).await.unwrap();
                        say(&format!("wrote {key} {n}"));
                    }
                })
            })
            .collect();
        for writer in writers {
            writer.await.unwrap();
        }
    });
}

/// Past the test harness, which would keep it.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "@{line}").unwrap();
    out.flush().unwrap();
}

fn value_of(words: &[&str]) -> (String, u64) {
    (words[1].to_owned(), words.last().unwrap().parse().unwrap())
}

#[test]
fn a_killed_process_keeps_every_acknowledged_write() {
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged: BTreeMap<String, u64> = BTreeMap::new();
    let mut total = 0;
    for round in 0..ROUNDS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["crash::writer", "--exact", "--nocapture", "--test-threads=1"])
            .env(DIR_VARIABLE, dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut found: BTreeMap<String, u64> = BTreeMap::new();
        let mut is_ready = false;
        let mut written = 0;
        let kill_after = 40 + round * 67 % 500;
        for line in lines {
            // The last line may be cut off by the kill.
            let Ok(line) = line else { break };
            let Some((_, line)) = line.split_once('@') else { continue };
            let words: Vec<&str> = line.split_whitespace().collect();
            match words.first().copied() {
                Some("found") => drop(found.insert(value_of(&words).0, value_of(&words).1)),
                Some("ready") => {
                    is_ready = true;
                    for (key, n) in &acknowledged {
                        let have = found.get(key).copied().unwrap_or(0);
                        assert!(have >= *n, "round {round}: {key} is {have}, acknowledged {n}");
                    }
                }
                Some("wrote") => {
                    let (key, n) = value_of(&words);
                    acknowledged.insert(key, n);
                    written += 1;
                    if written == kill_after {
                        child.kill().unwrap();
                    }
                }
                _ => {}
            }
        }
        child.wait().unwrap();
        assert!(is_ready, "round {round}: the store did not open");
        total += written;
    }
    assert!(total > 1000, "{total} writes are too few to tell");
}
