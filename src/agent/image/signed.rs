//! The node's own judgement whether an image may run, after its tag was resolved. The API judged
//! before, but a tag may have moved since, and static pods never came by it.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::agent::dirs::{read_json, write_json_aside};
use crate::agent::image::credentials::{self, Keyring};
use crate::agent::image::reference::Reference;
use crate::agent::image::{ImageError, Images, Resolved, Wanted, signature};
use crate::agent::pod::mirror;
use crate::api::image_policy::{Evidence, Mode, Rules};
use crate::client::EventType;

/// Reason of events and waiting containers; kubelet's.
pub(crate) const SIGNATURE_VALIDATION_FAILED: &str = "SignatureValidationFailed";
/// Folder of the signatures that were good, by digest of the manifest.
pub(super) const SIGNATURES: &str = "signatures";

/// How long an image counts as not signed where that is only told: to look again at each start of a
/// container takes long when its registry does not answer.
const UNSIGNED_FOR: Duration = Duration::from_secs(600);
/// Images that are remembered as not signed; more are looked up again.
const UNSIGNED_MAX: usize = 1024;

/// Why images are not signed, by name, digest and what is demanded; and when that was found.
#[derive(Default)]
pub(super) struct Unsigned(BTreeMap<(String, String, Rules), (Instant, String)>);

impl Unsigned {
    fn find(&self, question: &(String, String, Rules)) -> Option<String> {
        let (at, why) = self.0.get(question)?;
        (at.elapsed() < UNSIGNED_FOR).then(|| why.clone())
    }

    fn note(&mut self, question: (String, String, Rules), why: &str) {
        self.0.retain(|_, (at, _)| at.elapsed() < UNSIGNED_FOR);
        if self.0.len() < UNSIGNED_MAX {
            self.0.insert(question, (Instant::now(), why.to_owned()));
        }
    }
}

impl Images {
    /// Refuses an image that the policy of the pod's namespace does not take.
    ///
    /// A signature that was good is kept, and proves itself again without a registry.
    pub(super) async fn check_signature(
        &self,
        wanted: &Wanted<'_>,
        reference: &Reference,
        resolved: &Resolved,
    ) -> Result<(), ImageError> {
        let namespace = wanted.pod.metadata.namespace.as_deref().unwrap_or("default");
        let name = format!("{}/signature", wanted.backoff_name());
        let rules = match self.policies.of(namespace, mirror::version(wanted.pod)).await {
            Ok(None) => return Ok(()),
            Ok(Some(rules)) => rules,
            // It is there to run before any API; nobody ever told this node of a policy.
            Err(_) if mirror::is_static(wanted.pod) => return Ok(()),
            Err(why) => {
                let why =
                    format!("the image policy of namespace {namespace:?} is not known: {why}");
                return Err(self.not_signed(wanted, &name, &why));
            }
        };
        let manifest = resolved.manifest.clone().unwrap_or_default();
        let question = (reference.name(), manifest, rules.clone());
        if rules.mode() == Mode::Warn
            && let Some(why) = self.unsigned.lock().find(&question)
        {
            self.tell_unsigned(wanted, &resolved.layer, &why);
            return Ok(());
        }
        let Err(why) = self.verify(wanted, reference, resolved, &rules, &name).await else {
            self.pull_backoffs.worked(&name);
            return Ok(());
        };
        match (rules.mode(), why) {
            (Mode::Warn, why) => {
                let why = why.unwrap_or_default();
                self.unsigned.lock().note(question, &why);
                self.tell_unsigned(wanted, &resolved.layer, &why);
                Ok(())
            }
            (Mode::Enforce, Some(why)) => Err(self.not_signed(wanted, &name, &why)),
            (Mode::Enforce, None) => {
                let (message, wait) = match self.pull_backoffs.waiting(&name) {
                    Some(failed) => (failed.message.clone(), failed.remaining()),
                    None => return Err(self.not_signed(wanted, &name, "it is verified again")),
                };
                Err(ImageError::Signature { message, wait })
            }
        }
    }

    /// Whether the image is signed. `Err(None)`: it was not a moment ago, and is not asked for yet.
    async fn verify(
        &self,
        wanted: &Wanted<'_>,
        reference: &Reference,
        resolved: &Resolved,
        rules: &Rules,
        backoff_name: &str,
    ) -> Result<(), Option<String>> {
        let policy = rules.policy().map_err(|why| Some(why.to_string()))?;
        let Some(hex) = &resolved.manifest else {
            let why =
                "its digest was not kept when it was pulled, pull it with imagePullPolicy: Always";
            return Err(Some(why.to_owned()));
        };
        let name = reference.name();
        let file = self.dirs.images().join(SIGNATURES).join(format!("{hex}.json"));
        let kept: Option<Evidence> = read_json(&file);
        if kept.is_some_and(|kept| policy.judge(&name, hex, &[kept]).is_ok()) {
            return Ok(());
        }
        if self.pull_backoffs.waiting(backoff_name).is_some() {
            return Err(None);
        }
        let keyring = if reference.is_own() {
            Keyring::default()
        } else {
            credentials::read(&self.client, wanted.pod).await.0
        };
        let sources = self.sources(reference, &keyring);
        let evidence = signature::find(&sources, &name, hex, &policy).await.map_err(Some)?;
        if let Err(err) = write_json_aside(file, &evidence).await {
            tracing::warn!(%err, image.digest = hex, "cannot keep an image's signature");
        }
        Ok(())
    }

    fn not_signed(&self, wanted: &Wanted<'_>, backoff_name: &str, why: &str) -> ImageError {
        let message = format!(
            "image pull failed for {} because the signature validation failed: {why}",
            wanted.image
        );
        let wait = self.pull_backoffs.failed(backoff_name, &message, Duration::ZERO);
        ImageError::Signature { message, wait }
    }

    /// It runs all the same. Told once per pod, not at each of its restarts.
    fn tell_unsigned(&self, wanted: &Wanted<'_>, layer: &str, why: &str) {
        if self.ledger.lock().uses(wanted.uid(), layer) {
            return;
        }
        let message = format!(
            "image {:?} would be refused by the image policy of the namespace: {why}",
            wanted.image
        );
        self.tell(wanted, EventType::Warning, SIGNATURE_VALIDATION_FAILED, message);
    }
}
