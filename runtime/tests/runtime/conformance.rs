//! Programs that nobody here wrote, with the network that they find in a pod.
//!
//! By hand: build the guests of a WASI test suite (core modules or components), and
//!
//! ```text
//! EDGEORC_WASI_PROGRAMS=<folder of .wasm> cargo test -p edgeorc-runtime --test runtime -- \
//!     --ignored --nocapture programs_of_others
//! ```

use std::path::Path;
use std::time::Duration;

use crate::support::{Node, compiled};

/// None of them takes longer unless it hangs.
const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::test]
#[ignore = "needs a folder of programs, see the module"]
#[expect(clippy::disallowed_methods, reason = "a run by hand is told what to run")]
async fn programs_of_others_end_well_in_a_pod() {
    let folder = std::env::var("EDGEORC_WASI_PROGRAMS").unwrap();
    let mut paths: Vec<_> =
        std::fs::read_dir(Path::new(&folder)).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|end| end == "wasm"));
    paths.sort();
    let mut failed = Vec::new();
    for path in &paths {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let node = Node::start();
        let pod = node.pod("10.0.0.1").await;
        let code = compiled(&std::fs::read(path).unwrap());
        // Those that are to trap say so in their names.
        let wanted = if name.ends_with("_too_much") { 134 } else { 0 };
        let said = match pod.start(node.container(&name, code)).await {
            Ok(container) => match tokio::time::timeout(PATIENCE, container.wait()).await {
                Ok(exit) if exit.code == wanted => None,
                Ok(exit) => Some(format!("{exit:?}\n{}", node.log(&name))),
                Err(_) => Some(format!("hangs\n{}", node.log(&name))),
            },
            Err(error) => Some(error.to_string()),
        };
        println!("{} {name}", if said.is_none() { "pass" } else { "FAIL" });
        failed.extend(said.map(|said| format!("{name}: {said}")));
    }
    let passed = paths.len() - failed.len();
    assert!(failed.is_empty(), "{passed} of {} pass\n{}", paths.len(), failed.join("\n"));
}
