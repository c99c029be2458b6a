//! Filter and score plugins that are not part of this program: the trait, who has which, and what one
//! pod's round asks of them.
//!
//! A plugin is a pure function of what pods of one class ask for and of what a node says of itself, so
//! its answers are remembered until the node says something else.
//!
//! # Invariants
//!
//! - A plugin can only take nodes away and give points: who no built-in filter accepts, it never sees.
//! - One pod's round costs a bounded number of calls and a bounded time, whatever plugins do.
//! - What a failure means is said by the plugin's configuration and by nothing else.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::scheduler::demand::{Demand, SCHEDULER_NAME};
use crate::scheduler::need::Resources;
use crate::scheduler::node::{Facts, NodeInfo};
use crate::scheduler::reason::Reason;
use crate::scheduler::score::Candidate;

/// Calls of plugins for one pod; nodes beyond are looked at when the pod is tried again.
const CALLS_MAX: usize = 2000;
/// Answers that are remembered; beyond it all are forgotten, and asked for anew.
const ANSWERS_MAX: usize = 1 << 16;
/// Different reasons that one plugin may give one pod; the rest are one.
const TEXTS_MAX: usize = 8;
/// Longest reason that is passed on, in bytes.
const TEXT_BYTES_MAX: usize = 256;
/// The best score.
const SCORE_MAX: i64 = 100;

/// What a plugin hears of a pod: the same of all that ask for the same.
#[derive(Debug, Clone)]
pub struct PodFacts<'a> {
    /// Its namespace.
    pub namespace: &'a str,
    /// Its labels.
    pub labels: &'a BTreeMap<String, String>,
    /// Its priority.
    pub priority: i32,
    /// Images of its containers, those that run before the others included.
    pub images: &'a [String],
    /// `cpu` in thousandths of a core, `memory` and `ephemeral-storage` in bytes, others counted.
    pub requests: Vec<(String, i64)>,
}

/// What a plugin hears of a node.
#[derive(Debug, Clone, Copy)]
pub struct NodeFacts<'a> {
    /// Its name.
    pub name: &'a str,
    /// What it says of itself.
    pub facts: &'a Facts,
}

impl NodeFacts<'_> {
    /// What it can give, as a pod's requests.
    #[must_use]
    pub fn allocatable(&self) -> Vec<(String, i64)> {
        amounts(self.facts.allocatable, &self.facts.extended)
    }
}

fn amounts(of: Resources, extended: &BTreeMap<String, i64>) -> Vec<(String, i64)> {
    let common = [
        ("cpu", of.cpu_millis),
        ("memory", of.memory_bytes),
        ("ephemeral-storage", of.ephemeral_bytes),
    ];
    let common = common.into_iter().map(|(name, amount)| (name.to_owned(), amount));
    common.chain(extended.iter().map(|(name, amount)| (name.clone(), *amount))).collect()
}

/// Why a plugin gave no answer. Its configuration says what that means.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ExtensionError(pub String);

/// A plugin. Answers within the time it is given, or fails.
pub trait Extension: Send + Sync + 'static {
    /// Whether the pod may go to the node, or why not.
    ///
    /// # Errors
    ///
    /// [`ExtensionError`].
    fn filter(
        &self,
        pod: &PodFacts<'_>,
        node: NodeFacts<'_>,
        time_max: Duration,
    ) -> Result<Result<(), String>, ExtensionError>;

    /// The points of the node for the pod, which are to be from 0 to 100.
    ///
    /// # Errors
    ///
    /// [`ExtensionError`].
    fn score(
        &self,
        pod: &PodFacts<'_>,
        node: NodeFacts<'_>,
        time_max: Duration,
    ) -> Result<i64, ExtensionError>;
}

/// A plugin of a profile.
#[derive(Clone)]
pub struct Plugin {
    /// As the configuration calls it.
    pub name: Arc<str>,
    /// What answers.
    pub extension: Arc<dyn Extension>,
    /// Whether a pod waits when it gives no answer; if not, it goes on as if it had not been asked.
    pub is_required: bool,
    /// The longest that one pod may wait for it, all nodes together.
    pub time_max: Duration,
}

impl fmt::Debug for Plugin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plugin").field("name", &self.name).finish_non_exhaustive()
    }
}

/// The plugins of the pods that ask for one scheduler.
#[derive(Debug, Clone, Default)]
pub struct Profile {
    /// All of them, each once.
    pub plugins: Vec<Plugin>,
    /// Those that are asked whether a node will do, in this order.
    pub filters: Vec<usize>,
    /// Those that give points, with the weight of these.
    pub scores: Vec<(usize, i64)>,
}

/// The profiles, by the name of the scheduler that pods ask for.
pub type Profiles = BTreeMap<String, Arc<Profile>>;

/// What a plugin said.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Answer {
    Verdict(Option<Arc<str>>),
    Points(i64),
}

/// Whose answer it is: class, node, what the node said last, and the plugin with its question.
type Question = (u64, u32, u64, usize, bool);

/// The profiles of a view, and what their plugins said. A copy of a view remembers nothing: its nodes
/// go their own way.
#[derive(Debug, Default)]
pub(super) struct Extensions {
    pub(super) profiles: Profiles,
    answers: Mutex<BTreeMap<Question, Answer>>,
}

impl Clone for Extensions {
    fn clone(&self) -> Self {
        Self::new(self.profiles.clone())
    }
}

impl Extensions {
    pub(super) fn new(profiles: Profiles) -> Self {
        Self { profiles, answers: Mutex::default() }
    }

    /// The plugins of pods of `demand`.
    pub(super) fn profile_of(&self, demand: &Demand) -> Option<&Profile> {
        if self.profiles.is_empty() {
            return None;
        }
        let name = demand.scheduler.as_deref().unwrap_or(SCHEDULER_NAME);
        self.profiles.get(name).map(Arc::as_ref)
    }

    fn remember(&self, question: Question, answer: Answer) {
        let mut answers = self.answers.lock();
        if answers.len() >= ANSWERS_MAX {
            answers.clear();
        }
        answers.insert(question, answer);
    }
}

/// What one pod's round asks of its profile's plugins.
pub(super) struct Asker<'a> {
    extensions: &'a Extensions,
    profile: &'a Profile,
    pod: PodFacts<'a>,
    class: u64,
    calls: Cell<usize>,
    /// Of each plugin: how long it took so far, or why it is not asked any more.
    spent: RefCell<Vec<Result<Duration, Arc<str>>>>,
    texts: RefCell<BTreeSet<Arc<str>>>,
}

/// Why there is no answer.
enum NoAnswer {
    /// There were too many questions.
    Enough,
    Failed(Arc<str>),
}

impl<'a> Asker<'a> {
    /// For a pod of `demand`, which is that of class `class`; `None` if it has no plugins.
    pub(super) fn new(extensions: &'a Extensions, demand: &'a Demand, class: u64) -> Option<Self> {
        let profile = extensions.profile_of(demand)?;
        let pod = PodFacts {
            namespace: &demand.namespace,
            labels: &demand.labels,
            priority: demand.priority,
            images: &demand.images,
            requests: amounts(demand.need.resources, &demand.need.extended),
        };
        let spent = RefCell::new(vec![Ok(Duration::ZERO); profile.plugins.len()]);
        let (calls, texts) = (Cell::new(0), RefCell::default());
        Some(Self { extensions, profile, pod, class, calls, spent, texts })
    }

    /// What the plugins have against the node.
    pub(super) fn refusal<'r>(&self, id: u32, node: &NodeInfo) -> Option<Reason<'r>> {
        for at in &self.profile.filters {
            let plugin = self.profile.plugins.get(*at)?;
            let refused = |text, is_failure| {
                Some(Reason::Extension { plugin: Arc::clone(&plugin.name), text, is_failure })
            };
            match self.ask(*at, plugin, id, node, false) {
                Ok(Answer::Verdict(Some(text))) => return refused(self.bounded(text), false),
                Ok(_) => {}
                Err(NoAnswer::Enough) => return Some(Reason::NotAsked),
                Err(NoAnswer::Failed(why)) if plugin.is_required => return refused(why, true),
                Err(NoAnswer::Failed(_)) => {}
            }
        }
        None
    }

    /// The points of each node, weighed and summed; or why the pod has to wait.
    pub(super) fn points(&self, nodes: &[Candidate<'_>]) -> Result<Vec<i64>, Reason<'static>> {
        let mut sums = vec![0; nodes.len()];
        for (at, weight) in &self.profile.scores {
            let Some(plugin) = self.profile.plugins.get(*at) else { continue };
            match self.points_of(*at, plugin, nodes) {
                Ok(points) => {
                    for (sum, points) in sums.iter_mut().zip(points) {
                        *sum += weight * points;
                    }
                }
                // Points for some of the nodes would be no comparison: it has no say.
                Err(NoAnswer::Enough) => {}
                Err(NoAnswer::Failed(text)) if plugin.is_required => {
                    let plugin = Arc::clone(&plugin.name);
                    return Err(Reason::Extension { plugin, text, is_failure: true });
                }
                Err(NoAnswer::Failed(_)) => {}
            }
        }
        Ok(sums)
    }

    fn points_of(
        &self,
        at: usize,
        plugin: &Plugin,
        nodes: &[Candidate<'_>],
    ) -> Result<Vec<i64>, NoAnswer> {
        let points = nodes.iter().map(|node| {
            Ok(match self.ask(at, plugin, node.id, node.node, true)? {
                Answer::Points(points) => points,
                Answer::Verdict(_) => 0,
            })
        });
        points.collect()
    }

    /// What the plugin says, from memory if it was asked before.
    fn ask(
        &self,
        at: usize,
        plugin: &Plugin,
        id: u32,
        node: &NodeInfo,
        is_score: bool,
    ) -> Result<Answer, NoAnswer> {
        let question = (self.class, id, node.revision, at, is_score);
        if let Some(known) = self.extensions.answers.lock().get(&question) {
            return Ok(known.clone());
        }
        let spent = self.spent.borrow().get(at).cloned().unwrap_or(Ok(Duration::ZERO));
        let spent = spent.map_err(NoAnswer::Failed)?;
        if self.calls.get() >= CALLS_MAX {
            return Err(NoAnswer::Enough);
        }
        self.calls.set(self.calls.get() + 1);
        let began = Instant::now();
        let answer = self.call(plugin, node, is_score, plugin.time_max.saturating_sub(spent));
        let answer = answer.map_err(|why| Arc::from(cut(&why.to_string())));
        if let Some(spent) = self.spent.borrow_mut().get_mut(at) {
            *spent = match &answer {
                Ok(_) => spent.clone().map(|spent| spent + began.elapsed()),
                Err(why) => Err(Arc::clone(why)),
            };
        }
        let answer = answer.map_err(NoAnswer::Failed)?;
        self.extensions.remember(question, answer.clone());
        Ok(answer)
    }

    fn call(
        &self,
        plugin: &Plugin,
        node: &NodeInfo,
        is_score: bool,
        time_max: Duration,
    ) -> Result<Answer, ExtensionError> {
        let Some(facts) = &node.facts else { return Ok(Answer::Verdict(None)) };
        if time_max.is_zero() {
            let all = plugin.time_max.as_millis();
            return Err(ExtensionError(format!("it took longer than {all} ms for one pod")));
        }
        let node = NodeFacts { name: &node.name, facts };
        if is_score {
            let points = plugin.extension.score(&self.pod, node, time_max)?;
            if !(0..=SCORE_MAX).contains(&points) {
                let why = format!("it gave {points} points, which are not from 0 to {SCORE_MAX}");
                return Err(ExtensionError(why));
            }
            return Ok(Answer::Points(points));
        }
        let verdict = plugin.extension.filter(&self.pod, node, time_max)?;
        Ok(Answer::Verdict(verdict.err().map(|text| Arc::from(cut(&text)))))
    }

    /// The text, or one for all that come after the first few.
    fn bounded(&self, text: Arc<str>) -> Arc<str> {
        let mut texts = self.texts.borrow_mut();
        if texts.contains(&text) {
            return text;
        }
        if texts.len() >= TEXTS_MAX {
            return Arc::from("another reason");
        }
        texts.insert(Arc::clone(&text));
        text
    }
}

/// A stranger's words: bounded, on one line.
fn cut(text: &str) -> String {
    let begin = text.get(..text.floor_char_boundary(TEXT_BYTES_MAX)).unwrap_or(text);
    let plain = begin.chars().map(|c| if c.is_control() { ' ' } else { c }).collect::<String>();
    let plain = plain.trim();
    if plain.is_empty() { "no reason given".to_owned() } else { plain.to_owned() }
}
