//! The built-in kinds, one file each: the row of the table and the strategy.
//!
//! Data in: objects of that kind. Data out: the same objects completed, errors, table cells.
//!
//! # Invariants
//!
//! - A kind is known nowhere else: a new one is a new file and a line in [`ALL`].

use crate::api::resource::Resource;

mod api_service;
mod autoscaler_rules;
mod config_map;
mod controller_revision;
mod cron_job;
mod csi_driver;
mod csi_node;
mod csi_storage_capacity;
mod daemon_set;
mod deployment;
mod device_allocation;
mod device_class;
mod device_counters;
mod device_requests;
mod endpoint_slice;
mod endpoints;
mod event;
mod gateway;
mod gateway_class;
mod horizontal_pod_autoscaler;
mod http_route;
mod ingress;
mod ingress_class;
mod job;
mod job_change;
mod job_rules;
mod lease;
mod limit_range;
mod namespace;
mod network_policy;
mod node;
mod persistent_volume;
mod persistent_volume_claim;
mod pod;
mod pod_claims;
mod pod_disruption_budget;
mod pod_env;
mod pod_placement;
mod pod_ports;
mod pod_probes;
mod pod_qos;
mod pod_resources;
mod pod_security;
mod pod_spec;
mod pod_update;
mod pod_volumes;
mod pod_warnings;
mod priority_class;
mod replica_set;
mod replication_controller;
mod resource_claim;
mod resource_claim_template;
mod resource_quota;
mod resource_slice;
mod runtime_class;
mod secret;
mod service;
mod service_account;
mod service_rules;
mod stateful_set;
mod storage_class;
mod taints;
mod volume_attachment;
mod volume_attributes_class;
mod workload;

pub(super) use horizontal_pod_autoscaler::{from_v1, to_v1};
pub(crate) use pod_qos::qos_class;
pub(super) use pod_spec::validate_container;
pub(crate) use resource_claim::CONSUMERS_MAX;

/// Every built-in resource, core group first, as discovery lists them.
pub(super) static ALL: &[Resource] = &[
    config_map::RESOURCE,
    endpoints::RESOURCE,
    event::RESOURCE,
    namespace::RESOURCE,
    node::RESOURCE,
    persistent_volume_claim::RESOURCE,
    persistent_volume::RESOURCE,
    limit_range::RESOURCE,
    pod::RESOURCE,
    replication_controller::RESOURCE,
    resource_quota::RESOURCE,
    secret::RESOURCE,
    service_account::RESOURCE,
    service::RESOURCE,
    api_service::RESOURCE,
    controller_revision::RESOURCE,
    daemon_set::RESOURCE,
    deployment::RESOURCE,
    replica_set::RESOURCE,
    stateful_set::RESOURCE,
    job::RESOURCE,
    cron_job::RESOURCE,
    horizontal_pod_autoscaler::RESOURCE,
    lease::RESOURCE,
    endpoint_slice::RESOURCE,
    ingress::RESOURCE,
    ingress_class::RESOURCE,
    network_policy::RESOURCE,
    priority_class::RESOURCE,
    pod_disruption_budget::RESOURCE,
    device_class::RESOURCE,
    resource_claim::RESOURCE,
    resource_claim_template::RESOURCE,
    resource_slice::RESOURCE,
    runtime_class::RESOURCE,
    csi_driver::RESOURCE,
    csi_node::RESOURCE,
    csi_storage_capacity::RESOURCE,
    storage_class::RESOURCE,
    volume_attachment::RESOURCE,
    volume_attributes_class::RESOURCE,
    gateway_class::RESOURCE,
    gateway::RESOURCE,
    http_route::RESOURCE,
    gateway_class::REFERENCE_GRANT,
];
