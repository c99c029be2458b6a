//! What kubelet would tell the pod's events about its images, in kubelet's words.

use std::time::Duration;

use tokio::time::Instant;

use crate::agent::image::distribution::Fault;
use crate::agent::image::known::Resolved;
use crate::agent::image::{ImageError, Images, SIGNATURE_VALIDATION_FAILED, Wanted};
use crate::client::{EventType, Regarding};

impl Images {
    pub(super) fn tell(
        &self,
        wanted: &Wanted<'_>,
        kind: EventType,
        reason: &'static str,
        message: String,
    ) {
        let mut regarding = Regarding::of(wanted.pod);
        if !wanted.field_path.is_empty() {
            regarding = regarding.field(&wanted.field_path);
        }
        self.events.record(regarding, kind, reason, message);
    }

    /// The image was here. Told once per pod, not at each of its restarts.
    pub(super) fn tell_present(&self, wanted: &Wanted<'_>, layer: &str) {
        if self.ledger.lock().uses(wanted.uid(), layer) {
            return;
        }
        let message = format!(
            "Container image \"{}\" already present on machine and can be accessed by the pod",
            wanted.image
        );
        self.tell(wanted, EventType::Normal, "Pulled", message);
    }

    /// The registry could not be asked whether the image is still the newest of its name.
    pub(super) fn tell_unasked(&self, wanted: &Wanted<'_>, fault: &Fault) {
        let message = format!(
            "Failed to pull image \"{}\": {fault}. The image that is on this node is used",
            wanted.image
        );
        self.tell(wanted, EventType::Warning, "Failed", message);
    }

    pub(super) fn tell_pulling(&self, wanted: &Wanted<'_>) {
        let message = format!("Pulling image \"{}\"", wanted.image);
        self.tell(wanted, EventType::Normal, "Pulling", message);
    }

    pub(super) fn tell_pulled(
        &self,
        wanted: &Wanted<'_>,
        resolved: &Resolved,
        began: Instant,
        waiting_since: Instant,
    ) {
        let size = || std::fs::metadata(self.blob(&resolved.layer)).map_or(0, |meta| meta.len());
        let bytes = resolved.bytes.unwrap_or_else(size);
        let message = format!(
            "Successfully pulled image \"{}\" in {} ({} including waiting). Image size: {bytes} bytes.",
            wanted.image,
            duration(began.elapsed()),
            duration(waiting_since.elapsed()),
        );
        self.tell(wanted, EventType::Normal, "Pulled", message);
    }

    pub(super) fn tell_missing_secrets(&self, wanted: &Wanted<'_>, missing: &[String]) {
        if missing.is_empty() {
            return;
        }
        let message = format!(
            "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
            missing.join(", ")
        );
        self.tell(wanted, EventType::Warning, "FailedToRetrieveImagePullSecret", message);
    }

    pub(super) fn tell_failure(&self, wanted: &Wanted<'_>, error: &ImageError) {
        let image = wanted.image;
        let (normal, warning) = (EventType::Normal, EventType::Warning);
        let (first, then) = match error {
            ImageError::Name(why) => {
                ((warning, "InspectFailed", why.clone()), "InvalidImageName".to_owned())
            }
            ImageError::NeverPulled(_) | ImageError::NotOpened(_) => {
                ((warning, "ErrImageNeverPull", error.to_string()), "ErrImageNeverPull".to_owned())
            }
            ImageError::Pull { message, .. } => (
                (warning, "Failed", format!("Failed to pull image \"{image}\": {message}")),
                "ErrImagePull".to_owned(),
            ),
            ImageError::Signature { message, .. } => (
                (
                    warning,
                    "Failed",
                    format!(
                        "Failed to pull image \"{image}\": {SIGNATURE_VALIDATION_FAILED}: {message}"
                    ),
                ),
                SIGNATURE_VALIDATION_FAILED.to_owned(),
            ),
            ImageError::Disk(_) | ImageError::Vanished => (
                (warning, "Failed", format!("Failed to pull image \"{image}\": {error}")),
                "ErrImagePull".to_owned(),
            ),
            ImageError::BackOff { .. } => (
                (normal, "BackOff", format!("Back-off pulling image \"{image}\"")),
                "ImagePullBackOff".to_owned(),
            ),
            ImageError::Refused { message, .. } | ImageError::Compile { message, .. } => {
                self.tell(wanted, warning, "Failed", format!("Error: {message}"));
                return;
            }
        };
        self.tell(wanted, first.0, first.1, first.2);
        self.tell(wanted, warning, "Failed", format!("Error: {then}"));
    }
}

/// A duration as Go prints it, to the millisecond: `823ms`, `1.5s`, `2m3.25s`.
fn duration(elapsed: Duration) -> String {
    let ms = elapsed.as_millis();
    if ms < 1000 {
        return format!("{ms}ms");
    }
    let (minutes, rest) = (ms / 60_000, ms % 60_000);
    let seconds = format!("{}.{:03}", rest / 1000, rest % 1000);
    let seconds = seconds.trim_end_matches('0').trim_end_matches('.');
    if minutes > 0 { format!("{minutes}m{seconds}s") } else { format!("{seconds}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_as_go_does() {
        for (ms, text) in
            [(0, "0ms"), (823, "823ms"), (1500, "1.5s"), (3000, "3s"), (123_250, "2m3.25s")]
        {
            assert_eq!(duration(Duration::from_millis(ms)), text);
        }
    }
}
