//! Which nodes are heard from, by this leader's own clock.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use tokio::time::Instant;

/// An election takes less; who was heard longer ago may have been cut off as everybody was.
const RECENT: Duration = Duration::from_secs(3);

/// Within this time a leader that keeps up has heard at least half of the nodes: their pause between heartbeats.
const BEAT: Duration = Duration::from_secs(1);
/// So many times as long as alone a node may be silent where most are late; beyond, they may be gone.
const LATENESS_MAX: f64 = 5.0;

/// How late heartbeats are all over, 1 while they are on time: by how much the silence of the median node is
/// longer than the pause between two.
///
/// A leader, a machine or a link that has more to do than it can hears everybody late. Who is called
/// silent for that makes more to do: that is written, and written again when it is heard. As in the φ
/// accrual failure detector (Hayashibara et al., 2004), silence is measured by what is usual.
pub(super) fn lateness(silences: impl Iterator<Item = Duration>) -> f64 {
    let mut all: Vec<_> = silences.collect();
    let Some(middle) = all.len().checked_sub(1).map(|last| last / 2) else { return 1.0 };
    let (_, median, _) = all.select_nth_unstable(middle);
    median.div_duration_f64(BEAT).clamp(1.0, LATENESS_MAX)
}

/// What of a Lease changes when its node renews it.
#[derive(Debug, PartialEq)]
struct Beat {
    lease: (Option<String>, Option<String>, Option<String>),
    /// When the last one came, written or not, if that is known.
    came: Option<Instant>,
}

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
    /// It was heard itself since this leader listens, and not only given the same start as all.
    is_proved: bool,
    /// Of the node of the leader before: when that was last heard.
    before: Option<Instant>,
}

/// When each node was last heard of. Time stamps of other machines are compared for being
/// different, never for being late: a node's clock may be wrong.
#[derive(Debug)]
pub(super) struct Hearing {
    started: Instant,
    /// The leader was taken for the one cut off when it was last asked.
    is_doubted: bool,
    /// The node of the leader before, until it is listened for; and when that was last heard.
    predecessor: Option<(String, Instant)>,
    heard: BTreeMap<String, Heard>,
}

impl Hearing {
    /// Starts to listen: until it renews, every node counts as heard of at `now`.
    pub(super) fn new(now: Instant) -> Self {
        Self { started: now, is_doubted: false, predecessor: None, heard: BTreeMap::new() }
    }

    /// The same for a leader that knows of the node of the one before it, and when that was last heard. After a
    /// long time without a leader nobody knows who is there, and all get the same start.
    pub(super) fn after(predecessor: Option<(String, Instant)>, now: Instant) -> Self {
        let is_recent = |(_, last): &(String, Instant)| now.duration_since(*last) < RECENT;
        Self { predecessor: predecessor.filter(is_recent), ..Self::new(now) }
    }

    /// How long this leader has been listening.
    pub(super) fn listening_for(&self, now: Instant) -> Duration {
        now.duration_since(self.started)
    }

    /// Takes note whether the leader may be the one cut off. When that is over it starts to listen anew,
    /// and this returns `true`: it was deaf, and the first nodes that are heard again are no proof that
    /// the others are dead.
    pub(super) fn doubt(&mut self, is_doubted: bool, now: Instant) -> bool {
        let is_over = self.is_doubted && !is_doubted;
        if is_over {
            *self = Self::new(now);
        }
        self.is_doubted = is_doubted;
        is_over
    }

    /// Takes note of the Lease of `node` as it is at `now`, `None` when it has none, of when the last
    /// heartbeat came, and of its agent's own word.
    pub(super) fn listen(
        &mut self,
        node: &str,
        (lease, came): (Option<&Lease>, Option<Instant>),
        word: Option<Word>,
        now: Instant,
    ) {
        let spec = lease.and_then(|lease| lease.spec.as_ref());
        let written = (
            lease.and_then(|lease| lease.metadata.uid.clone()),
            spec.and_then(|spec| spec.holder_identity.clone()),
            spec.and_then(|spec| spec.renew_time.as_ref()).map(|time| time.0.to_string()),
        );
        let beat = Beat { lease: written, came };
        let was_listening = self.started < now;
        match self.heard.get_mut(node) {
            Some(known) => {
                // A Lease that vanished is no sign of life.
                let has_beaten = known.beat != beat && lease.is_some();
                let has_spoken = word.is_some() && known.word != word;
                known.beat = beat;
                if has_beaten || has_spoken {
                    let at = came.filter(|_| !has_spoken).unwrap_or(now);
                    (known.at, known.is_proved, known.before) = (known.at.max(at), true, None);
                }
                known.word = word.or(known.word.take());
            }
            // A node that appears later has just been registered by its agent.
            None => {
                let at = if was_listening { now } else { self.started };
                let before = self.predecessor.take_if(|(name, _)| name == node);
                // A Lease was renewed since this leader began: it begins with none.
                let is_proved = lease.is_some();
                let before = before.map(|(_, last)| last).filter(|_| !is_proved);
                self.heard.insert(node.to_owned(), Heard { beat, word, at, is_proved, before });
            }
        }
    }

    /// How long `node` has been silent. That of the leader before is told in full once most nodes are
    /// heard: until then all may have been lost with it, and it is no worse off than they.
    pub(super) fn silent_for(&self, node: &str, now: Instant) -> Duration {
        let known = self.heard.get(node);
        let before = known.and_then(|heard| heard.before).filter(|_| self.hears_most());
        now.duration_since(before.or(known.map(|heard| heard.at)).unwrap_or(self.started))
    }

    /// When the last heartbeat of `node` came that was noted.
    pub(super) fn last_heartbeat(&self, node: &str) -> Option<Instant> {
        self.heard.get(node)?.beat.came
    }

    fn hears_most(&self) -> bool {
        let proved = self.heard.values().filter(|heard| heard.is_proved).count();
        proved * 2 > self.heard.len()
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
        hearing.listen(
            "a",
            (Some(&lease("2026-01-01T00:00:10.000000Z")), None),
            None,
            Instant::now(),
        );
        tokio::time::advance(Duration::from_secs(2)).await;
        hearing.listen(
            "a",
            (Some(&lease("2026-01-01T00:00:10.000000Z")), None),
            None,
            Instant::now(),
        );
        assert_eq!(hearing.silent_for("a", Instant::now()), Duration::from_secs(2));
        hearing.listen(
            "a",
            (Some(&lease("1970-01-01T00:00:01.000000Z")), None),
            None,
            Instant::now(),
        );
        assert_eq!(hearing.silent_for("a", Instant::now()), Duration::ZERO);
    }

    #[test]
    fn silence_is_measured_by_that_of_most_nodes() {
        let of = |tenths: &[u64]| lateness(tenths.iter().map(|t| Duration::from_millis(t * 100)));
        assert_eq!(of(&[]), 1.0);
        assert_eq!(of(&[90]), 5.0, "nobody is heard");
        assert_eq!(of(&[5, 9, 1]), 1.0, "on time");
        assert_eq!(of(&[90, 0]), 1.0, "one of two is gone");
        assert_eq!(of(&[90, 3, 90, 3, 9]), 1.0, "two of five are gone");
        assert_eq!(of(&[10, 20, 40]), 2.0, "all are late");
    }

    #[tokio::test(start_paused = true)]
    async fn a_heartbeat_is_a_sign_of_life_from_when_it_came() {
        let same = lease("2026-01-01T00:00:10.000000Z");
        let mut hearing = Hearing::new(Instant::now());
        let (mut came, second) = (None, Duration::from_secs(1));
        for (is_renewed, silent) in [(true, 0), (false, 3), (true, 1), (false, 4), (true, 1)] {
            tokio::time::advance(second * 2).await;
            came = if is_renewed { Some(Instant::now()) } else { came };
            tokio::time::advance(second).await;
            hearing.listen("a", (Some(&same), came), None, Instant::now());
            let heard = hearing.silent_for("a", Instant::now());
            assert_eq!(heard, second * silent, "{is_renewed}");
            assert_eq!(hearing.last_heartbeat("a"), came);
        }
        tokio::time::advance(second).await;
        hearing.listen("a", (None, None), None, Instant::now());
        assert_eq!(hearing.silent_for("a", Instant::now()), second * 2, "the Lease is gone");
        let late = Some(Instant::now());
        tokio::time::advance(second).await;
        let written = lease("2026-01-01T00:00:20.000000Z");
        hearing.listen("a", (Some(&written), late), None, Instant::now());
        assert_eq!(hearing.silent_for("a", Instant::now()), second, "it was written");
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_that_vanishes_is_no_sign_of_life() {
        let mut hearing = Hearing::new(Instant::now());
        hearing.listen(
            "a",
            (Some(&lease("2026-01-01T00:00:10.000000Z")), None),
            None,
            Instant::now(),
        );
        tokio::time::advance(Duration::from_secs(2)).await;
        hearing.listen("a", (None, None), None, Instant::now());
        assert_eq!(hearing.silent_for("a", Instant::now()), Duration::from_secs(2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_gives_every_node_the_same_start() {
        let mut hearing = Hearing::new(Instant::now());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(hearing.silent_for("never-seen", Instant::now()), Duration::from_secs(1));
        hearing.listen("registered-late", (None, None), None, Instant::now());
        assert_eq!(hearing.silent_for("registered-late", Instant::now()), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn the_silence_of_the_leader_before_began_before_this_one() {
        let last = Instant::now();
        tokio::time::advance(Duration::from_secs(2)).await;
        let beaten = lease("2026-01-01T00:00:10.000000Z");
        let silent = |lease: Option<&Lease>, others: [Option<&Lease>; 2]| {
            let before = Some(("old".to_owned(), last));
            let mut hearing = Hearing::after(before, Instant::now());
            hearing.listen("old", (lease, None), None, Instant::now());
            for (name, _) in ["a", "b"].iter().zip(others) {
                hearing.listen(name, (None, None), None, Instant::now());
                assert_eq!(hearing.silent_for(name, Instant::now()), Duration::ZERO);
            }
            for (name, lease) in ["a", "b"].iter().zip(others) {
                hearing.listen(name, (lease, None), None, Instant::now());
            }
            hearing.silent_for("old", Instant::now())
        };
        let both = [Some(&beaten), Some(&beaten)];
        assert_eq!(silent(None, both), Duration::from_secs(2));
        assert_eq!(silent(Some(&beaten), both), Duration::ZERO, "it is there, and leads no more");
        let one = [Some(&beaten), None];
        assert_eq!(silent(None, one), Duration::ZERO, "most may be cut off, and it with them");
        let mut hearing = Hearing::after(Some(("old".to_owned(), last)), Instant::now() + RECENT);
        hearing.listen("old", (None, None), None, Instant::now() + RECENT);
        assert_eq!(hearing.silent_for("old", Instant::now() + RECENT), Duration::ZERO);
        let mut hearing = Hearing::after(Some(("old".to_owned(), last)), Instant::now());
        hearing.listen("old", (None, None), None, Instant::now());
        hearing.retain(|_| false);
        hearing.listen("old", (None, None), None, Instant::now());
        assert_eq!(hearing.silent_for("old", Instant::now()), Duration::ZERO, "it joined anew");
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_was_deaf_gives_every_node_the_same_start_again() {
        let same = lease("2026-01-01T00:00:10.000000Z");
        let mut hearing = Hearing::new(Instant::now());
        hearing.listen("late", (Some(&same), None), None, Instant::now());
        assert!(!hearing.doubt(false, Instant::now()));
        tokio::time::advance(Duration::from_secs(8)).await;
        assert!(!hearing.doubt(true, Instant::now()) && !hearing.doubt(true, Instant::now()));
        hearing.listen("late", (Some(&same), None), None, Instant::now());
        assert_eq!(hearing.silent_for("late", Instant::now()), Duration::from_secs(8));
        assert!(hearing.doubt(false, Instant::now()), "somebody is heard again");
        assert_eq!(hearing.silent_for("late", Instant::now()), Duration::ZERO);
        assert_eq!(hearing.listening_for(Instant::now()), Duration::ZERO);
        assert!(!hearing.doubt(false, Instant::now()));
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
            hearing.listen("a", (Some(&same), None), word(node), now);
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
