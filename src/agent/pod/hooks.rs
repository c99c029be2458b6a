//! Lifecycle hooks: what a container asks to be told after its start and before its end.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, ExecAction, LifecycleHandler};
use tokio::time::Instant;

use crate::agent::command::Commands;
use crate::agent::pod::http_get::http_get;
use crate::agent::pod::plan::seconds;
use crate::agent::pod::probe::{Miss, PodNetwork, tcp_socket};

/// One hook of one container, with all it needs to run.
pub(super) struct Hook {
    pub(super) handler: LifecycleHandler,
    pub(super) spec: Container,
    pub(super) ip: Option<IpAddr>,
    pub(super) network: Arc<dyn PodNetwork>,
    pub(super) commands: Commands,
}

impl Hook {
    /// Runs the hook to its end.
    pub(super) async fn run(self) -> Result<(), String> {
        let ip = self.ip.ok_or_else(|| "the pod has no address".to_owned())?;
        if let Some(pause) = &self.handler.sleep {
            tokio::time::sleep(seconds(pause.seconds)).await;
            Ok(())
        } else if let Some(get) = &self.handler.http_get {
            http_get(&*self.network, get, &self.spec, ip).await.map(drop).map_err(Miss::why)
        } else if let Some(tcp) = &self.handler.tcp_socket {
            tcp_socket(&*self.network, tcp, &self.spec, ip).await.map_err(Miss::why)
        } else if let Some(exec) = &self.handler.exec {
            self.run_command(exec).await
        } else {
            Err("the hook names nothing to do".to_owned())
        }
    }

    async fn run_command(&self, exec: &ExecAction) -> Result<(), String> {
        let command = exec.command.as_deref().unwrap_or_default();
        let container = self.commands.container(&self.spec.name);
        let container = container.ok_or_else(|| "the container is not running".to_owned())?;
        let ready = self.commands.prepare(&container, command).await.map_err(|e| e.to_string())?;
        let output = ready.run().await.map_err(|e| e.to_string())?;
        if output.code == 0 {
            return Ok(());
        }
        let (words, text) = (command.join(" "), output.text.trim_end());
        Err(format!("command '{words}' exited with {}: {text}", output.code))
    }
}

/// Runs a hook that has to be over at `ends_at`.
pub(super) async fn within(ends_at: Instant, hook: Hook) -> Result<(), String> {
    tokio::time::timeout_at(ends_at, hook.run())
        .await
        .unwrap_or_else(|_| Err("the hook took longer than the grace period".to_owned()))
}
