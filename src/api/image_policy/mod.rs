//! Image policies: which keys must have signed the images of a namespace, and whether one has.
//!
//! ```text
//! Namespace  label      edgeorc.io/image-policy: enforce | warn
//!            annotation edgeorc.io/image-policy-keys: [NAMESPACE/]NAME   (default: image-policy)
//! ConfigMap  NAME.pub or NAME.pem   public keys in PEM
//!            NAME.images            patterns of the images that NAME's keys are for
//! ```
//!
//! Data in: a Namespace, its ConfigMap, and signatures as `cosign` makes them. Data out: the key that
//! signed an image, or why none did.
//!
//! # Invariants
//!
//! - Pure: what is judged was fetched by others, who need not be trusted.
//! - Fails closed: a policy that cannot be understood lets no image pass.
//! - A signature counts for one digest and as an image's signature; one over anything else, by the
//!   same key, does not.

mod evidence;
mod keys;
mod pattern;

#[cfg(test)]
pub mod testing;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::api::meta;
use keys::PublicKey;
use pattern::Pattern;

pub use evidence::{
    BUNDLE_LAYER_PREFIX, Evidence, EvidenceKind, SIGNATURE_ANNOTATION, SIMPLE_SIGNING_LAYER,
};

/// Label of a Namespace that has a policy: `enforce` or `warn`.
pub const MODE_LABEL: &str = "edgeorc.io/image-policy";
/// Annotation of it that names the ConfigMap with the keys.
pub const KEYS_ANNOTATION: &str = "edgeorc.io/image-policy-keys";
/// Name of that ConfigMap when nothing else is said.
const KEYS_DEFAULT: &str = "image-policy";
/// Most keys of one policy.
const KEYS_MAX: usize = 64;
/// Most patterns of one entry.
const PATTERNS_MAX: usize = 256;

/// What becomes of an image that the policy refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// It does not run.
    Enforce,
    /// It runs, and somebody is told.
    Warn,
}

/// What a Namespace wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Demand {
    mode: Result<Mode, String>,
    keys_namespace: String,
    keys_name: String,
}

impl Demand {
    /// What a Namespace asks for; `None`: nothing.
    #[must_use]
    pub fn of(namespace: &Value) -> Option<Self> {
        let label = meta::label(namespace, MODE_LABEL)?;
        let mode = match label {
            "enforce" => Ok(Mode::Enforce),
            "warn" => Ok(Mode::Warn),
            other => Err(format!(
                "the label {MODE_LABEL} of the namespace is {other:?}: it must be \"enforce\" or \"warn\""
            )),
        };
        let named = meta::annotation(namespace, KEYS_ANNOTATION).unwrap_or(KEYS_DEFAULT);
        let own = meta::name(namespace);
        let (keys_namespace, keys_name) = named.split_once('/').unwrap_or((own, named));
        let owned = str::to_owned;
        Some(Self { mode, keys_namespace: owned(keys_namespace), keys_name: owned(keys_name) })
    }

    /// Namespace and name of the ConfigMap with the keys.
    #[must_use]
    pub fn keys(&self) -> (&str, &str) {
        (&self.keys_namespace, &self.keys_name)
    }

    /// The rules, once its ConfigMap was read; `None`: there is none.
    #[must_use]
    pub fn with_keys(self, config_map: Option<&Value>) -> Rules {
        let data = config_map.map(|map| {
            let entries = map.get("data").and_then(Value::as_object).into_iter().flatten();
            entries
                .map(|(name, text)| (name.clone(), text.as_str().unwrap_or_default().to_owned()))
                .collect()
        });
        let keys_from = format!("{}/{}", self.keys_namespace, self.keys_name);
        let (mode, fault) = match self.mode {
            Ok(mode) => (mode, None),
            // Nobody knows what was meant: the stricter of the two.
            Err(why) => (Mode::Enforce, Some(why)),
        };
        Rules { mode, keys_from, data, fault }
    }
}

/// A policy as it was written, to be kept and compared.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Rules {
    mode: Mode,
    keys_from: String,
    data: Option<BTreeMap<String, String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    fault: Option<String>,
}

impl Rules {
    /// What becomes of images that are refused.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// `NAMESPACE/NAME` of the ConfigMap with the keys, for messages.
    #[must_use]
    pub fn keys_from(&self) -> &str {
        &self.keys_from
    }

    /// The policy these rules make.
    ///
    /// # Errors
    ///
    /// [`Refusal::Policy`]: no image passes until a person mends it.
    pub fn policy(&self) -> Result<Policy, Refusal> {
        if let Some(why) = &self.fault {
            return Err(Refusal::Policy(why.clone()));
        }
        let from = &self.keys_from;
        let Some(data) = &self.data else {
            return Err(Refusal::Policy(format!("ConfigMap {from} with the keys does not exist")));
        };
        Policy::read(data).map_err(|why| Refusal::Policy(format!("ConfigMap {from}: {why}")))
    }
}

/// Why an image does not pass.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The policy cannot be used. A person must mend it.
    #[error("{0}")]
    Policy(String),
    /// No key is meant for this image. A person must add one, or use another image.
    #[error("no key of the policy is for this image; there are keys for {0}")]
    NoKey(String),
    /// There is no signature. Somebody must sign it.
    #[error("it has no signature")]
    Unsigned,
    /// There are signatures, but none counts. Somebody must sign it with another key.
    #[error("none of its {count} signatures is good: {why}")]
    NotGood {
        /// How many were looked at.
        count: usize,
        /// What is wrong with the last of them.
        why: String,
    },
}

/// The keys of a policy, and what each is for.
#[derive(Debug)]
pub struct Policy {
    keys: Vec<Key>,
}

#[derive(Debug)]
struct Key {
    entry: String,
    key: PublicKey,
    /// None: it is for all images.
    images: Option<Vec<Pattern>>,
}

impl Policy {
    fn read(data: &BTreeMap<String, String>) -> Result<Self, String> {
        let mut keys = Vec::new();
        for (entry, text) in data {
            if let Some(stem) = entry.strip_suffix(".images") {
                let has_key =
                    [".pub", ".pem"].iter().any(|end| data.contains_key(&format!("{stem}{end}")));
                if !has_key {
                    return Err(format!("{entry} has no {stem}.pub with keys beside it"));
                }
                continue;
            }
            let stem = entry.strip_suffix(".pub").or_else(|| entry.strip_suffix(".pem"));
            let Some(stem) = stem else {
                return Err(format!(
                    "{entry} ends neither in .pub or .pem, for keys, nor in .images"
                ));
            };
            let images = data.get(&format!("{stem}.images")).map(|text| patterns(entry, text));
            let images = images.transpose()?;
            for key in PublicKey::read_all(text).map_err(|why| format!("{entry}: {why}"))? {
                keys.push(Key { entry: entry.clone(), key, images: images.clone() });
            }
        }
        match keys.len() {
            0 => Err("it has no keys; an entry such as cosign.pub holds them".to_owned()),
            1..=KEYS_MAX => Ok(Self { keys }),
            more => Err(format!("it has {more} keys, at most {KEYS_MAX} are allowed")),
        }
    }

    /// Which of the evidence shows that one of the policy's keys signed the image `name` (host and
    /// repository, without tag) of the digest `sha256:<hex>`; with the entry that holds the key.
    ///
    /// # Errors
    ///
    /// See [`Refusal`].
    pub fn judge<'a>(
        &self,
        name: &str,
        hex: &str,
        evidence: &'a [Evidence],
    ) -> Result<(&'a Evidence, &str), Refusal> {
        let is_for = |key: &&Key| {
            key.images.as_ref().is_none_or(|all| all.iter().any(|pattern| pattern.matches(name)))
        };
        let keys: Vec<&Key> = self.keys.iter().filter(is_for).collect();
        if keys.is_empty() {
            let all = self.keys.iter().flat_map(|key| key.images.iter().flatten());
            let names: Vec<_> = all.map(ToString::to_string).collect();
            return Err(Refusal::NoKey(names.join(", ")));
        }
        let mut why = None;
        for one in evidence {
            if let Err(wrong) = one.check_claim(hex) {
                why = Some(wrong);
                continue;
            }
            match keys.iter().find(|key| one.is_signed_by(&key.key)) {
                Some(key) => return Ok((one, &key.entry)),
                None => why = Some("it was made by none of the policy's keys".to_owned()),
            }
        }
        match why {
            None => Err(Refusal::Unsigned),
            Some(why) => Err(Refusal::NotGood { count: evidence.len(), why }),
        }
    }
}

/// One pattern per line; lines that begin with `#` are for people.
fn patterns(entry: &str, text: &str) -> Result<Vec<Pattern>, String> {
    let lines =
        text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let all: Vec<Pattern> = lines.map(Pattern::new).collect();
    match all.len() {
        0 => Err(format!("the .images beside {entry} has no pattern")),
        1..=PATTERNS_MAX => Ok(all),
        more => Err(format!("{more} patterns beside {entry}, at most {PATTERNS_MAX} are allowed")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::testing::{Signer, digest_of};
    use super::*;

    fn namespace(labels: &Value, annotations: &Value) -> Value {
        json!({"metadata": {"name": "shop", "labels": labels, "annotations": annotations}})
    }

    fn rules(data: &Value) -> Rules {
        let demand = Demand::of(&namespace(&json!({MODE_LABEL: "enforce"}), &json!({}))).unwrap();
        demand.with_keys(Some(&json!({"data": data})))
    }

    #[test]
    fn a_namespace_names_its_mode_and_its_keys() {
        assert_eq!(Demand::of(&namespace(&json!({}), &json!({KEYS_ANNOTATION: "x"}))), None);
        let demand = Demand::of(&namespace(&json!({MODE_LABEL: "warn"}), &json!({}))).unwrap();
        assert_eq!(demand.keys(), ("shop", "image-policy"));
        assert_eq!(demand.with_keys(None).mode(), Mode::Warn);
        let elsewhere = json!({KEYS_ANNOTATION: "kube-system/keys"});
        let demand = Demand::of(&namespace(&json!({MODE_LABEL: "enforce"}), &elsewhere)).unwrap();
        assert_eq!(demand.keys(), ("kube-system", "keys"));
    }

    #[test]
    fn a_policy_that_cannot_be_understood_lets_nothing_pass() {
        let key = Signer::new().public_pem();
        let mistyped = Demand::of(&namespace(&json!({MODE_LABEL: "Enforce"}), &json!({}))).unwrap();
        let mistyped = mistyped.with_keys(Some(&json!({"data": {"cosign.pub": key}})));
        assert_eq!(mistyped.mode(), Mode::Enforce);
        let demand = Demand::of(&namespace(&json!({MODE_LABEL: "enforce"}), &json!({}))).unwrap();
        let cases = [
            (mistyped, "must be \"enforce\" or \"warn\""),
            (demand.with_keys(None), "ConfigMap shop/image-policy with the keys does not exist"),
            (rules(&json!({})), "it has no keys"),
            (rules(&json!({"cosign.pub": "no key"})), "cosign.pub: "),
            (rules(&json!({"cosign.key": key})), "cosign.key ends neither"),
            (rules(&json!({"a.pub": key, "b.images": "x"})), "b.images has no b.pub"),
            (rules(&json!({"a.pub": key, "a.images": "\n# none\n"})), "has no pattern"),
        ];
        for (rules, why) in cases {
            let refused = rules.policy().unwrap_err().to_string();
            assert!(refused.contains(why), "{refused}");
        }
    }

    #[test]
    fn one_good_signature_among_others_is_enough() {
        let (ours, theirs) = (Signer::new(), Signer::new());
        let policy = rules(&json!({"cosign.pub": ours.public_pem()})).policy().unwrap();
        let hex = digest_of(b"manifest");
        let other = digest_of(b"another manifest");
        let judge = |evidence: &[Evidence]| {
            policy.judge("ghcr.io/a/b", &hex, evidence).map(|(_, entry)| entry.to_owned())
        };
        assert_eq!(judge(&[]), Err(Refusal::Unsigned));
        assert_eq!(judge(&[theirs.sign(&hex), ours.sign(&hex)]), Ok("cosign.pub".to_owned()));
        assert_eq!(judge(&[ours.sign_bundle(&hex)]), Ok("cosign.pub".to_owned()));
        let refused = judge(&[theirs.sign(&hex), ours.sign(&other)]).unwrap_err().to_string();
        assert!(
            refused.contains("none of its 2 signatures") && refused.contains(&other),
            "{refused}"
        );
    }

    #[test]
    fn a_key_counts_only_for_the_images_it_is_for() {
        let (ours, theirs) = (Signer::new(), Signer::new());
        let policy = rules(&json!({
            "ours.pub": ours.public_pem(), "ours.images": "ghcr.io/us/**\n",
            "theirs.pub": theirs.public_pem(), "theirs.images": "docker.io/them/*",
        }));
        let policy = policy.policy().unwrap();
        let hex = digest_of(b"manifest");
        let is_good = |name: &str, by: &Signer| policy.judge(name, &hex, &[by.sign(&hex)]).is_ok();
        assert!(is_good("ghcr.io/us/team/app", &ours) && is_good("docker.io/them/app", &theirs));
        assert!(!is_good("ghcr.io/us/team/app", &theirs) && !is_good("docker.io/them/app", &ours));
        let refused = policy.judge("quay.io/x", &hex, &[ours.sign(&hex)]).unwrap_err();
        assert_eq!(refused, Refusal::NoKey("ghcr.io/us/**, docker.io/them/*".to_owned()));
    }

    #[test]
    fn rules_are_read_again_as_they_were_kept() {
        let rules = rules(&json!({"cosign.pub": Signer::new().public_pem()}));
        let kept = serde_json::to_string(&rules).unwrap();
        assert_eq!(serde_json::from_str::<Rules>(&kept).unwrap(), rules);
    }
}
