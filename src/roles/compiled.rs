//! Compiled code: the node's compiler behind the API server's door, and whose code the agent runs.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use edgeorc_runtime::Plan;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use crate::agent::{CodeCompiler, CodeMetrics, CodeTrust, CompileFailure, Compiler};
use crate::apiserver::{CodeMaker, CompiledConfig, MakeError};
use crate::config::NodeSettings;
use crate::net::Identity;
use crate::roles::NodeError;
use crate::roles::data_dir::DataDir;
use crate::roles::module::machine;
use crate::telemetry::Metrics;

/// The compiler of this node: this very program as a child. Without one, if it is not wanted, or if
/// this machine has no code generator.
pub(super) fn compiler(
    settings: &NodeSettings,
    metrics: &Metrics,
) -> Result<CodeCompiler, NodeError> {
    let program = std::env::current_exe()
        .map_err(|cause| NodeError::Failed(format!("cannot find this program's file: {cause}")))?;
    let counted = CodeMetrics::default();
    metrics.register(|registry| counted.register(registry));
    let is_here = settings.images.compiles && can_compile(settings);
    if !is_here {
        tracing::info!("this node does not compile, it runs what servers compile");
    }
    let mut compiler = Compiler { is_here, ..Compiler::new(program) };
    // For sandboxes of the same kind as this node's.
    if let Some(bits) = settings.sandboxes.address_bits_max {
        compiler.args.extend(["--address-bits-max".to_owned(), bits.to_string()]);
    }
    if settings.sandboxes.are_interpreted {
        compiler.args.push("--pulley".to_owned());
    }
    Ok(CodeCompiler::new(compiler, counted))
}

fn can_compile(settings: &NodeSettings) -> bool {
    let tried = Plan::new(machine(settings.sandboxes)).try_compiler();
    if let Err(err) = &tried {
        tracing::warn!(%err, "there is no compiler for this machine");
    }
    tried.is_ok()
}

/// What a server needs to compile for all nodes.
pub(super) fn sharing(
    dir: &DataDir,
    identity: &Identity,
    compiler: &CodeCompiler,
    settings: &NodeSettings,
) -> CompiledConfig {
    let its = || edgeorc_runtime::compatibility_hash_for(machine(settings.sandboxes));
    let engine = compiler.is_here().then(its);
    let maker = Arc::new(Maker { engine, compiler: compiler.clone() });
    let components: Vec<PathBuf> = vec![dir.join("agent").join("images").join("sha256")];
    let config = CompiledConfig::new(identity.clone(), maker, dir.join("compiled"));
    CompiledConfig { components, ..config }
}

struct Maker {
    engine: Option<String>,
    compiler: CodeCompiler,
}

impl CodeMaker for Maker {
    fn engine(&self) -> Option<&str> {
        self.engine.as_deref()
    }

    fn make<'a>(
        &'a self,
        component: &'a Path,
        code: &'a Path,
    ) -> BoxFuture<'a, Result<(), MakeError>> {
        let made = self.compiler.make(component, code);
        let error = |failure| match failure {
            CompileFailure::Refused(why) => MakeError::Refused(why),
            CompileFailure::Unfinished(why) => MakeError::Unfinished(why),
        };
        made.map(move |made| made.map_err(error)).boxed()
    }
}

/// Trusts what a server of this cluster signed.
pub(super) struct ServersOnly(pub(super) Identity);

impl CodeTrust for ServersOnly {
    fn signer(
        &self,
        message: &[u8],
        certificate: &[u8],
        signature: &[u8],
    ) -> Result<String, String> {
        let signer = self.0.verify_server(message, certificate, signature);
        signer.map(|peer| peer.node).map_err(|why| why.to_string())
    }
}
