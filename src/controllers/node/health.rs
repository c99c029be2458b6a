//! Which nodes are heard from, by this leader's own clock.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use tokio::time::Instant;

/// What of a Lease changes when its node renews it.
type Beat = (Option<String>, Option<String>, Option<String>);

/// What of a Node's `Ready` changes when its agent writes it.
pub(super) type Word = (String, Option<String>, Option<String>);

/// The agent's own word on the node; `None`: the last word was a controller's.
///
/// A node that comes back writes its status as soon as its heartbeats are answered, and the status may
/// be seen here before the Lease is: to call it silent again would begin an exchange of contrary words.
pub(super) fn word(node: &Node) -> Option<Word> {
    let conditions = node.status.as_ref()?.conditions.as_ref()?;
    let ready = conditions.iter().find(|condition| condition.type_ == "Ready")?;
    let seen = ready.last_heartbeat_time.as_ref().map(|time| time.0.to_string());
    let since = ready.last_transition_time.as_ref().map(|time| time.0.to_string());
    (ready.status != "Unknown").then(|| (ready.status.clone(), seen, since))
}

/// What is known of one node.
#[derive(Debug)]
struct Heard {
    beat: Beat,
    word: Option<Word>,
    at: Instant,
}

/// When each node was last heard of. Time stamps of other machines are compared for being
/// different, never for being late: a node's clock may be wrong.
#[derive(Debug)]
pub(super) struct Hearing {
    started: Instant,
    heard: BTreeMap<String, Heard>,
}

impl Hearing {
    /// Starts to listen: until it renews, every node counts as heard of at `now`.
    pub(super) fn new(now: Instant) -> Self {
        Self { started: now, heard: BTreeMap::new() }
    }

    /// How long this leader has been listening.
    pub(super) fn listening_for(&self, now: Instant) -> Duration {
        now.duration_since(self.started)
    }

    /// Takes note of the Lease of `node` as it is at `now`, `None` when it has none, and of its agent's
    /// own word.
    pub(super) fn listen(
        &mut self,
        node: &str,
        lease: Option<&Lease>,
        word: Option<Word>,
        now: Instant,
    ) {
        let spec = lease.and_then(|lease| lease.spec.as_ref());
        let beat = (
            lease.and_then(|lease| lease.metadata.uid.clone()),
            spec.and_then(|spec| spec.holder_identity.clone()),
            spec.and_then(|spec| spec.renew_time.as_ref()).map(|time| time.0.to_string()),
        );
        let was_listening = self.started < now;
        match self.heard.get_mut(node) {
            Some(known) => {
                // A Lease that vanished is no sign of life.
                let has_beaten = known.beat != beat && lease.is_some();
                let has_spoken = word.is_some() && known.word != word;
                known.beat = beat;
                if has_beaten || has_spoken {
                    known.at = now;
                }
                known.word = word.or(known.word.take());
            }
            // A node that appears later has just been registered by its agent.
            None => {
                let at = if was_listening { now } else { self.started };
                self.heard.insert(node.to_owned(), Heard { beat, word, at });
            }
        }
    }

    /// How long `node` has been silent.
    pub(super) fn silent_for(&self, node: &str, now: Instant) -> Duration {
        let at = self.heard.get(node).map_or(self.started, |heard| heard.at);
        now.duration_since(at)
    }

    /// Forgets nodes that are gone.
    pub(super) fn retain(&mut self, is_there: impl Fn(&str) -> bool) {
        self.heard.retain(|node, _| is_there(node));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn lease(renewed: &str) -> Lease {
        serde_json::from_value(json!({
            "metadata": { "uid": "l" },
            "spec": { "holderIdentity": "a", "renewTime": renewed },
        }))
        .unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_renewal_is_a_change_even_when_the_clock_of_the_node_goes_back() {
        let mut hearing = Hearing::new(Instant::now());
        hearing.listen("a", Some(&lease("2026-01-01T00:00:10.000000Z")), None, Instant::now());
        tokio::time::advance(Duration::from_secs(2)).await;
        hearing.listen("a", Some(&lease("2026-01-01T00:00:10.000000Z")), None, Instant::now());
        assert_eq!(hearing.silent_for("a", Instant::now()), Duration::from_secs(2));
        hearing.listen("a", Some(&lease("1970-01-01T00:00:01.000000Z")), None, Instant::now());
        assert_eq!(hearing.silent_for("a", Instant::now()), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_that_vanishes_is_no_sign_of_life() {
        let mut hearing = Hearing::new(Instant::now());
        hearing.listen("a", Some(&lease("2026-01-01T00:00:10.000000Z")), None, Instant::now());
        tokio::time::advance(Duration::from_secs(2)).await;
        hearing.listen("a", None, None, Instant::now());
        assert_eq!(hearing.silent_for("a", Instant::now()), Duration::from_secs(2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_gives_every_node_the_same_start() {
        let mut hearing = Hearing::new(Instant::now());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(hearing.silent_for("never-seen", Instant::now()), Duration::from_secs(1));
        hearing.listen("registered-late", None, None, Instant::now());
        assert_eq!(hearing.silent_for("registered-late", Instant::now()), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_status_of_the_agents_is_a_sign_of_life_and_a_controllers_is_none() {
        let node = |status: &str, since: &str| -> Node {
            serde_json::from_value(json!({"status": {"conditions": [
                {"type": "Ready", "status": status, "lastTransitionTime": since},
            ]}}))
            .unwrap()
        };
        let (early, late) = ("2026-01-01T00:00:00Z", "2026-01-01T00:00:09Z");
        let same = lease("2026-01-01T00:00:10.000000Z");
        let mut hearing = Hearing::new(Instant::now());
        let mut listen = |node: &Node| {
            let now = Instant::now();
            hearing.listen("a", Some(&same), word(node), now);
            hearing.silent_for("a", now)
        };
        listen(&node("True", early));
        tokio::time::advance(Duration::from_secs(4)).await;
        assert_eq!(listen(&node("Unknown", early)), Duration::from_secs(4));
        assert_eq!(listen(&node("True", early)), Duration::from_secs(4), "an old word");
        assert_eq!(listen(&node("Unknown", late)), Duration::from_secs(4));
        assert_eq!(listen(&node("True", late)), Duration::ZERO);
        tokio::time::advance(Duration::from_secs(4)).await;
        assert_eq!(listen(&node("True", late)), Duration::from_secs(4));
    }
}
