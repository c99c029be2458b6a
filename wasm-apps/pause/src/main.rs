//! Sleeps until it is stopped, as the container that holds a pod's sandbox elsewhere.

use std::thread::sleep;
use std::time::Duration;

/// One sleep. WASI counts nanoseconds in 64 bits, so it cannot be without end.
const SLEEP: Duration = Duration::from_secs(24 * 60 * 60);

fn main() {
    loop {
        sleep(SLEEP);
    }
}
