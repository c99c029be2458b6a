//! Workers against a scripted runtime: what is started, stopped and told, in which order.

use std::time::Duration;

use k8s_openapi::api::core::v1::{ContainerStatus, PodStatus};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::agent::dirs::Dirs;

#[path = "worker_test/changes.rs"]
mod changes;
#[path = "worker_test/commands.rs"]
mod commands;
#[path = "worker_test/ending.rs"]
mod ending;
#[path = "worker_test/eviction.rs"]
mod eviction;
#[path = "worker_test/fencing.rs"]
mod fencing;
#[path = "worker_test/harness.rs"]
mod harness;
#[path = "worker_test/next_agent.rs"]
mod next_agent;
#[path = "worker_test/probes.rs"]
mod probes;
#[path = "worker_test/restarts.rs"]
mod restarts;
#[path = "worker_test/starting.rs"]
mod starting;

use harness::{PATIENCE, World, is, of, root, waiting};
