//! `edgeorc bundle`: images in one file, for clusters without a way to registries.

use std::collections::BTreeSet;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::api::Session;
use super::args::{Global, OutputFormat};
use super::exit::{self, Failure};
use super::progress::Progress;
use super::{documents, output};
use crate::config::Environment;
use crate::roles::{self, BundleError, BundlePlan, Bundled, LoadPlan, Loaded};

/// `edgeorc bundle`.
#[derive(Debug, Subcommand)]
pub(super) enum Bundle {
    /// Write images with their signatures into one file
    Create(Create),
    /// Load such a file into the cluster's own registry
    Load(Load),
}

/// `edgeorc bundle create`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  edgeorc bundle create apps.tar ghcr.io/org/app:v1 ghcr.io/org/tool:v2\n  \
    edgeorc bundle create apps.tar -f manifests/ -R\n\n\
    The file is an OCI image layout, which skopeo, oras and others read. Credentials come from\n\
    registries.yaml and from ~/.docker/config.json."
)]
pub(super) struct Create {
    /// File to write
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Images, as pods name them
    #[arg(value_name = "IMAGE")]
    images: Vec<String>,
    /// File or folder with objects whose images are taken; `-` is standard input
    #[arg(short, long = "filename", value_name = "FILE|DIR|-")]
    filename: Vec<PathBuf>,
    /// Look into the folders of a folder as well
    #[arg(short = 'R', long)]
    recursive: bool,
    /// Take all platforms of an image, not only the one that runs on nodes
    #[arg(long)]
    all_platforms: bool,
    /// Mirrors and credentials of image registries [default: registries.yaml in the data folder of
    /// this machine's node]
    #[arg(long, value_name = "FILE")]
    registries_file: Option<PathBuf>,
    /// Format of the output
    #[arg(short, long, value_enum)]
    output: Option<OutputFormat>,
}

/// `edgeorc bundle load`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  edgeorc bundle load apps.tar\n  \
    edgeorc bundle load image.tar --name ghcr.io/org/app\n\n\
    Pods go on naming the images as before: the copies stand for them. A load that broke off goes on\n\
    where it ended when it is run again.")]
pub(super) struct Load {
    /// An OCI image layout as a tar archive
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Name of images of which the file has only a tag
    #[arg(long, value_name = "HOST/REPOSITORY")]
    name: Option<String>,
    /// Format of the output
    #[arg(short, long, value_enum)]
    output: Option<OutputFormat>,
}

impl From<BundleError> for Failure {
    fn from(error: BundleError) -> Self {
        let code = match &error {
            BundleError::File { .. } | BundleError::Archive { .. } => exit::INPUT,
            BundleError::Unreachable(_) => exit::UNREACHABLE,
            BundleError::Image { .. } | BundleError::NoRoom { .. } => exit::FAILED,
        };
        Self::with(code, error.to_string())
    }
}

/// Makes or loads a bundle.
pub(super) async fn run(
    bundle: Bundle,
    global: &Global,
    environment: &Environment,
) -> Result<(), Failure> {
    match bundle {
        Bundle::Create(flags) => create(flags, global, environment).await,
        Bundle::Load(flags) => load(flags, global, environment).await,
    }
}

async fn create(flags: Create, global: &Global, environment: &Environment) -> Result<(), Failure> {
    let mut images = flags.images;
    for document in documents::read(&flags.filename, flags.recursive)? {
        let bad = |why| Failure::with(exit::INPUT, format!("{}: {why}", document.place));
        let object = document.object.map_err(bad)?;
        let mut found = BTreeSet::new();
        images_in(&object, &mut found);
        images.extend(found);
    }
    let mut seen = BTreeSet::new();
    images.retain(|image| seen.insert(image.clone()));
    if images.is_empty() {
        let text = "name an image, or with -f a file with objects that name some";
        return Err(Failure::with(exit::USAGE, text));
    }
    let own = || environment.default_data_dir().join("registries.yaml");
    let docker = environment.home.as_ref().map(|home| home.join(".docker/config.json"));
    let plan = BundlePlan {
        file: flags.file,
        images,
        registries_file: Some(flags.registries_file.unwrap_or_else(own)),
        docker_config: docker,
        proxies: environment.proxies.clone(),
        all_platforms: flags.all_platforms,
    };
    // Only images of the cluster's own registry need it.
    let client = Session::open(global, environment).await.ok().map(|session| session.client);
    let mut progress = Progress::start(&format!("writing {}", plan.file.display()));
    let done = roles::create_bundle(&plan, client, &mut |step| progress.step(step)).await;
    progress.finish();
    tell_created(&plan, &done?, flags.output)
}

async fn load(flags: Load, global: &Global, environment: &Environment) -> Result<(), Failure> {
    let session = Session::open(global, environment).await?;
    let plan = LoadPlan { file: flags.file, name: flags.name };
    let mut progress = Progress::start(&format!("reading {}", plan.file.display()));
    let done = roles::load_bundle(&plan, &session.client, &mut |step| progress.step(step)).await;
    progress.finish();
    tell_loaded(&plan, &done?, flags.output)
}

fn tell_created(
    plan: &BundlePlan,
    done: &Bundled,
    format: Option<OutputFormat>,
) -> Result<(), Failure> {
    let Bundled { images, blobs, bytes } = done;
    match format {
        Some(format @ (OutputFormat::Json | OutputFormat::Yaml)) => {
            let image = |(name, digest, signatures): &(String, String, usize)| json!({"name": name, "digest": digest, "signatures": signatures});
            let images: Vec<_> = images.iter().map(image).collect();
            let file = plan.file.display().to_string();
            let document = json!({"file": file, "images": images, "blobs": blobs, "bytes": bytes});
            output::document(&document, format)
        }
        Some(OutputFormat::Name) => names(images.iter().map(|(name, ..)| name)),
        _ => {
            let mut rows = vec![["IMAGE", "DIGEST", "SIGNATURES"].map(str::to_owned).to_vec()];
            rows.extend(images.iter().map(|(name, digest, signatures)| {
                vec![name.clone(), digest.clone(), signatures.to_string()]
            }));
            output::data(&output::columns(&rows))?;
            let file = plan.file.display();
            output::words(&format!(
                "{file}: {} images, {blobs} blobs, {bytes} bytes",
                images.len()
            ));
            Ok(())
        }
    }
}

fn tell_loaded(
    plan: &LoadPlan,
    done: &Loaded,
    format: Option<OutputFormat>,
) -> Result<(), Failure> {
    let Loaded { images, signatures, sent, present, bytes } = done;
    match format {
        Some(format @ (OutputFormat::Json | OutputFormat::Yaml)) => {
            let image = |(name, digest): &(String, String)| json!({"name": name, "digest": digest});
            let images: Vec<_> = images.iter().map(image).collect();
            let document = json!({
                "file": plan.file.display().to_string(), "images": images, "signatures": signatures,
                "blobsSent": sent, "blobsPresent": present, "bytesSent": bytes,
            });
            output::document(&document, format)
        }
        Some(OutputFormat::Name) => names(images.iter().map(|(name, _)| name)),
        _ => {
            let mut rows = vec![["IMAGE", "DIGEST"].map(str::to_owned).to_vec()];
            rows.extend(images.iter().map(|(name, digest)| vec![name.clone(), digest.clone()]));
            output::data(&output::columns(&rows))?;
            output::words(&format!(
                "{}: {} images loaded; {sent} blobs sent ({bytes} bytes), {present} were there",
                plan.file.display(),
                images.len()
            ));
            Ok(())
        }
    }
}

fn names<'a>(names: impl Iterator<Item = &'a String>) -> Result<(), Failure> {
    names.into_iter().try_for_each(|name| output::data_line(name))
}

/// All images that an object names: in its own pod or in the template of one.
fn images_in(object: &Value, found: &mut BTreeSet<String>) {
    match object {
        Value::Object(fields) => {
            for (key, value) in fields {
                let place = match key.as_str() {
                    "containers" | "initContainers" | "ephemeralContainers" => "/image",
                    "volumes" => "/image/reference",
                    _ => "",
                };
                let list = value.as_array().filter(|_| !place.is_empty());
                let images = list.into_iter().flatten().filter_map(|one| one.pointer(place));
                found.extend(images.filter_map(Value::as_str).map(str::to_owned));
                images_in(value, found);
            }
        }
        Value::Array(values) => values.iter().for_each(|value| images_in(value, found)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_images_of_objects_are_those_of_their_pods() {
        let pod = json!({"spec": {
            "containers": [{"image": "a"}, {"name": "none"}],
            "initContainers": [{"image": "b"}],
            "volumes": [{"image": {"reference": "c"}}, {"emptyDir": {}}],
        }});
        let job =
            json!({"spec": {"jobTemplate": {"spec": {"template": pod}}}, "data": {"image": "no"}});
        let mut found = BTreeSet::new();
        images_in(&json!([job, {"spec": {"containers": [{"image": "a"}]}}]), &mut found);
        assert_eq!(found.into_iter().collect::<Vec<_>>(), ["a", "b", "c"]);
    }
}
