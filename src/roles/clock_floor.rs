//! The time of a machine that does not know it: a Raspberry Pi has no clock that runs without power.
//!
//! The node's certificate was made at a time that its servers knew. While the system says that it is
//! earlier, the last time that this disk was written at is the better guess, and costs no write.

use std::path::PathBuf;
use std::time::SystemTime;

use crate::roles::data_dir::DataDir;
use crate::roles::identity::NODE_CERT;
use crate::rt::WallClock;

/// What is written while a node runs.
const WRITTEN: [&str; 6] =
    [NODE_CERT, "node.json", "raft", "agent", "agent/routes.json", "agent/network-policies.json"];

/// The system's clock; at the last time seen here, should that one be before the certificate.
pub(super) fn clock(dir: &DataDir) -> WallClock {
    let system = WallClock::system();
    let Some(issued) = modified(dir.join(NODE_CERT)) else { return system };
    if system.system_time() >= issued {
        return system;
    }
    let last = WRITTEN.iter().filter_map(|name| modified(dir.join(name))).max();
    tracing::warn!(?issued, ?last, "the clock is wrong, going on from the last time seen");
    WallClock::not_before(last.unwrap_or(issued))
}

fn modified(path: PathBuf) -> Option<SystemTime> {
    std::fs::metadata(path).ok()?.modified().ok()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_clock_before_the_certificate_goes_on_from_the_last_time_seen() {
        let folder = tempfile::tempdir().unwrap();
        let dir = DataDir::open(folder.path()).unwrap();
        let now = WallClock::system().system_time();
        let (hour, day) = (Duration::from_secs(3600), Duration::from_secs(86_400));
        assert!(clock(&dir).system_time() < now + hour, "nothing is known yet");
        let written_at = |name: &str, time: SystemTime| {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::File::create(&path).unwrap().set_modified(time).unwrap();
        };
        written_at(NODE_CERT, now - day);
        written_at("node.json", now + 3 * day);
        assert!(clock(&dir).system_time() < now + hour, "a later file alone proves nothing");
        written_at(NODE_CERT, now + day);
        let found = clock(&dir).system_time();
        assert!(found >= now + 3 * day && found < now + 3 * day + hour);
    }
}
