//! Images that are volumes of a pod: found once, and kept for the pod's life.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;

use crate::agent::dirs::{Dirs, PodDir, read_json};
use crate::agent::image::{ImageError, ImageSource, ReadyVolume, Wanted};
use crate::agent::pod::env::MountedImage;
use crate::agent::pod::plan::pull_policy;
use crate::agent::pod::volumes::volumes_of;

/// Kind of the notes of what a volume was, beside the copies of objects.
const KIND: &str = "image";

/// The images of `pod`'s volumes, pulled and unpacked. What the pod had before it has again: a
/// container that starts anew finds what the others see, with or without a registry.
pub(crate) async fn collect(
    images: &dyn ImageSource,
    dirs: &Dirs,
    pod: &Pod,
    dir: &PodDir,
) -> Result<BTreeMap<String, MountedImage>, ImageError> {
    let mut found = BTreeMap::new();
    for volume in volumes_of(pod) {
        let Some(source) = &volume.image else { continue };
        let image = source.reference.as_deref().unwrap_or_default();
        let pull = pull_policy(source.pull_policy.as_deref(), image);
        // Of the pod, not of a container: so are the events.
        let wanted = Wanted { pod, field_path: String::new(), image, pull };
        let had: Option<ReadyVolume> = read_json(&dir.object_file(KIND, &volume.name));
        let ready = images.volume(&wanted, had.clone()).await?;
        if had.as_ref() != Some(&ready) {
            dir.keep_aside(KIND, &volume.name, &ready).await?;
        }
        let folder = dirs.image_tree(&ready.hex);
        found.insert(volume.name.clone(), MountedImage { folder, id: ready.id });
    }
    Ok(found)
}
