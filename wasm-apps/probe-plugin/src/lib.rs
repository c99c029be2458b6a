//! A plugin that does what the label `do` of the pod says:
//!
//! ```text
//! trap      ends by force             grow   takes all memory it gets
//! spin      computes for ever         clock  calls an import
//! high      gives 101 points          long   refuses with a long text
//! refuse    refuses, with all that it was told as the reason
//! count     gives as many points as it was asked before
//! ```
//!
//! Otherwise the pod may go everywhere, for no points.

mod bindings {
    wit_bindgen::generate!({
        path: "../../runtime/wit/scheduler.wit",
        world: "edgeorc:scheduler/scheduler-plugin",
    });
}

use std::sync::atomic::{AtomicI64, Ordering};

use bindings::exports::edgeorc::scheduler::plugin::{Guest, Node, Pod};

bindings::export!(Probe with_types_in bindings);

/// Bytes of one piece.
const PIECE: usize = 1 << 20;

static ASKED: AtomicI64 = AtomicI64::new(0);

struct Probe;

impl Guest for Probe {
    fn filter(pod: Pod, node: Node) -> Result<(), String> {
        match wanted(&pod) {
            "refuse" => Err(format!("{pod:?} {node:?}")),
            "long" => Err("x".repeat(PIECE)),
            "high" | "count" => Ok(()),
            other => harm(other),
        }
    }

    fn score(pod: Pod, _: Node) -> i64 {
        let asked = ASKED.fetch_add(1, Ordering::Relaxed);
        match wanted(&pod) {
            "high" => 101,
            "count" => asked,
            other => {
                let _fine = harm(other);
                0
            }
        }
    }
}

fn wanted(pod: &Pod) -> &str {
    pod.labels.iter().find(|(name, _)| name == "do").map_or("", |(_, value)| value.as_str())
}

fn harm(kind: &str) -> Result<(), String> {
    match kind {
        "trap" => std::process::abort(),
        "spin" => loop {
            std::hint::spin_loop();
        },
        "grow" => {
            let mut pieces = Vec::new();
            loop {
                pieces.push(std::hint::black_box(vec![1_u8; PIECE]));
            }
        }
        "clock" => Err(format!("{:?}", std::time::SystemTime::now())),
        _ => Ok(()),
    }
}
