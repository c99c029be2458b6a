//! The scheduler's plugins: from the cluster's configuration to sandboxes that answer.
//!
//! Data in: ConfigMap `kube-system/kube-scheduler`, images of plugins. Data out: profiles for the
//! scheduler; events about the ConfigMap, metrics.
//!
//! # Invariants
//!
//! - A configuration that cannot be understood changes nothing: the last good one counts.
//! - A plugin that is not here yet, or no more, fails as its configuration says: nobody waits for it.
//! - What an image policy of `kube-system` refuses is not loaded.

mod fetch;
mod guard;
mod keeper;
mod metrics;

use fetch::Fetcher;
use guard::{Absent, Guarded};
pub(super) use keeper::{Keeper, Tools};
pub(super) use metrics::PluginMetrics;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use edgeorc_runtime::{Machine, PluginEngine, SchedulerPlugin};

use crate::agent::{CodeCompiler, CodeMetrics, Compiler, ImageReader};
use crate::config::Proxies;
use crate::scheduler::{Extension, FailurePolicy, Plugin, PluginArgs, Profile, ProfileConfig};

/// Time in which a plugin's instance must be made, its start functions included.
const START_WAIT_MAX: Duration = Duration::from_secs(1);

/// The profile, with what answers for each of its plugins.
pub(super) fn profile(
    config: &ProfileConfig,
    extension: impl Fn(&PluginArgs) -> Arc<dyn Extension>,
) -> Profile {
    let plugin = |args: &PluginArgs| Plugin {
        name: args.name.as_str().into(),
        extension: extension(args),
        is_required: args.failure_policy == FailurePolicy::Fail,
        time_max: args.timeout,
    };
    Profile {
        plugins: config.plugins.iter().map(plugin).collect(),
        filters: config.filters.clone(),
        scores: config.scores.clone(),
    }
}

/// Answers for a plugin that is asked nothing.
pub(super) fn nobody() -> Arc<dyn Extension> {
    Arc::new(Absent("it is not here".to_owned()))
}

/// Loads a plugin into this process, which is a command's and ends soon; its files go into `folder`.
pub(super) async fn load_here(
    client: &kube::Client,
    proxies: &Proxies,
    args: &PluginArgs,
    folder: &Path,
) -> Result<Arc<dyn Extension>, String> {
    let failed = |cause: std::io::Error| cause.to_string();
    let compiler = Compiler::new(std::env::current_exe().map_err(failed)?);
    let fetcher = Fetcher {
        reader: ImageReader::open(Some(client.clone()), None, None, proxies),
        compiler: CodeCompiler::new(compiler, CodeMetrics::default()),
        folder: folder.to_owned(),
        engine: edgeorc_runtime::compatibility_hash(),
    };
    let code = fetcher.fetch(&fetcher.find(&args.image).await?).await?;
    let engine = PluginEngine::new(Machine::probe()).map_err(|why| why.to_string())?;
    let plugin = load(engine, &code, args.memory_bytes).await?;
    let told = Arc::new(|_: &str| {});
    Ok(Arc::new(Guarded::new(&args.name, plugin, PluginMetrics::default(), told)))
}

/// Loads compiled code on a thread of its own.
pub(super) async fn load(
    engine: PluginEngine,
    code: &Path,
    memory_bytes: u64,
) -> Result<SchedulerPlugin, String> {
    let code = code.to_owned();
    let loaded =
        tokio::task::spawn_blocking(move || engine.load(&code, memory_bytes, START_WAIT_MAX));
    let loaded = loaded.await.map_err(|cause| cause.to_string())?;
    loaded.map_err(|cause| cause.to_string())
}
