//! From a name to what is here: what the name was resolved to before, or a pull.
//!
//! What a pull secret has opened is not there for everybody who knows the name. Whoever may make pods
//! in a namespace may use all secrets of it, so what counts is whether a secret of the pod's own
//! namespace has opened the image; if none has yet, the registry is asked for the manifest with the
//! pod's credentials. Layers that are here are not sent again.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;

use crate::agent::image::credentials::{self, Keyring};
use crate::agent::image::distribution::Fault;
use crate::agent::image::known::{Content, Resolved};
use crate::agent::image::reference::Reference;
use crate::agent::image::{ImageError, Images, Wanted};
use crate::agent::pod::plan::PullPolicy;

impl Images {
    /// What the reference means now; that is here afterwards, and may be used.
    pub(super) async fn resolve(
        &self,
        wanted: &Wanted<'_>,
        reference: &Reference,
        content: Content,
    ) -> Result<Resolved, ImageError> {
        let resolved = self.look_up(wanted, reference, content).await?;
        self.check_signature(wanted, reference, &resolved).await?;
        Ok(resolved)
    }

    async fn look_up(
        &self,
        wanted: &Wanted<'_>,
        reference: &Reference,
        content: Content,
    ) -> Result<Resolved, ImageError> {
        let may_use_known = wanted.pull != PullPolicy::Always;
        if let Some(known) = self.open_to(wanted, reference, content).filter(|_| may_use_known) {
            self.tell_present(wanted, &known.layer);
            return Ok(known);
        }
        if wanted.pull == PullPolicy::Never {
            return Err(match self.known(reference, content) {
                Some(_) => ImageError::NotOpened(wanted.image.to_owned()),
                None => ImageError::NeverPulled(wanted.image.to_owned()),
            });
        }
        let name = wanted.backoff_name();
        if let Some(failed) = self.pull_backoffs.waiting(&name) {
            let wait = failed.remaining();
            let (image, message) = (wanted.image.to_owned(), failed.message);
            return Err(ImageError::BackOff { image, message, wait });
        }
        let waiting_since = Instant::now();
        // Replicas that start together ask the registry once.
        let turn =
            if may_use_known { Some(self.locks.lock(&reference.file_name()).await) } else { None };
        if let Some(known) = self.open_to(wanted, reference, content).filter(|_| may_use_known) {
            self.tell_present(wanted, &known.layer);
            return Ok(known);
        }
        self.tell_pulling(wanted);
        let began = Instant::now();
        let pulled = self.pull_with_secrets(wanted, reference, content).await;
        drop(turn);
        match pulled {
            Ok(resolved) => {
                self.remember(reference, content, &resolved).await?;
                self.pull_backoffs.worked(&name);
                self.tell_pulled(wanted, &resolved, began, waiting_since);
                Ok(resolved)
            }
            Err(fault) => self.not_pulled(wanted, reference, content, fault),
        }
    }

    async fn pull_with_secrets(
        &self,
        wanted: &Wanted<'_>,
        reference: &Reference,
        content: Content,
    ) -> Result<Resolved, Fault> {
        let keyring = if reference.is_own() {
            Keyring::default()
        } else {
            let (keyring, missing) = credentials::read(&self.client, wanted.pod).await;
            self.tell_missing_secrets(wanted, &missing);
            keyring
        };
        let (mut resolved, was_opened_by_secret) = self.pull(reference, &keyring, content).await?;
        if was_opened_by_secret {
            resolved.namespaces = BTreeSet::from([wanted.namespace().to_owned()]);
        }
        Ok(resolved)
    }

    /// What the reference was resolved to last, if that is here and the pod may use it: it came
    /// without a secret, or a secret of the pod's namespace opened it, or the pod uses it already.
    fn open_to(
        &self,
        wanted: &Wanted<'_>,
        reference: &Reference,
        content: Content,
    ) -> Option<Resolved> {
        let known = self.known(reference, content)?;
        let is_open = known.namespaces.is_empty()
            || known.namespaces.contains(wanted.namespace())
            || self.ledger.lock().uses(wanted.uid(), &known.layer);
        is_open.then_some(known)
    }

    /// What becomes of a pull that failed: the image that is here, or a back-off.
    fn not_pulled(
        &self,
        wanted: &Wanted<'_>,
        reference: &Reference,
        content: Content,
        fault: Fault,
    ) -> Result<Resolved, ImageError> {
        // A node without a server runs what it has; a registry that answers has the last word.
        if matches!(fault, Fault::Unavailable { .. })
            && let Some(known) = self.open_to(wanted, reference, content)
        {
            tracing::warn!(err = %fault, image = wanted.image, "cannot pull, using the image on this node");
            self.tell_unasked(wanted, &fault);
            return Ok(known);
        }
        if let Fault::Disk(cause) = &fault
            && cause.kind() == std::io::ErrorKind::StorageFull
        {
            self.is_full.notify_one();
        }
        let wait_min = match &fault {
            Fault::Unavailable { retry_after, .. } => *retry_after,
            _ => Duration::ZERO,
        };
        let message = fault.to_string();
        let wait = self.pull_backoffs.failed(&wanted.backoff_name(), &message, wait_min);
        Err(ImageError::Pull { message, wait })
    }
}
