//! The informers that every loop of the leader shares: each kind is watched once.

use std::fmt;

use k8s_openapi::api::apps::v1::{
    ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet,
};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{
    Endpoints, Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod,
    ReplicationController, ResourceQuota, Service, ServiceAccount,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::resource::v1::{
    DeviceClass, ResourceClaim, ResourceClaimTemplate, ResourceSlice,
};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;
use kube::runtime::watcher;
use kube::{Api, Resource};
use serde::de::DeserializeOwned;

use crate::api::node_load::LEASE_NAMESPACE;
use crate::client::informer::{Informer, informer, informer_among};
use crate::client::interned::Interned;
use crate::rt::TaskGroup;

/// One informer per kind the controllers and the scheduler read. Cheap to clone.
///
/// Made once per leadership; ends with its task group, and its subscribers with it.
#[derive(Debug, Clone)]
pub struct Informers {
    /// Pods of all namespaces.
    pub pods: Informer<Pod>,
    /// Nodes.
    pub nodes: Informer<Node>,
    /// The nodes' heartbeats, in `kube-node-lease`.
    pub leases: Informer<Lease>,
    /// Namespaces.
    pub namespaces: Informer<Namespace>,
    /// Services of all namespaces.
    pub services: Informer<Service>,
    /// `EndpointSlice`s of all namespaces.
    pub endpoint_slices: Informer<EndpointSlice>,
    /// `Endpoints` of all namespaces.
    pub endpoints: Informer<Endpoints>,
    /// Service accounts of all namespaces.
    pub service_accounts: Informer<ServiceAccount>,
    /// Deployments of all namespaces.
    pub deployments: Informer<Deployment>,
    /// Replica sets of all namespaces.
    pub replica_sets: Informer<ReplicaSet>,
    /// Stateful sets of all namespaces.
    pub stateful_sets: Informer<StatefulSet>,
    /// Daemon sets of all namespaces.
    pub daemon_sets: Informer<DaemonSet>,
    /// Replication controllers of all namespaces.
    pub replication_controllers: Informer<ReplicationController>,
    /// The templates that stateful sets and daemon sets had.
    pub controller_revisions: Informer<ControllerRevision>,
    /// Jobs of all namespaces.
    pub jobs: Informer<Job>,
    /// Cron jobs of all namespaces.
    pub cron_jobs: Informer<CronJob>,
    /// Horizontal pod autoscalers of all namespaces.
    pub autoscalers: Informer<HorizontalPodAutoscaler>,
    /// Disruption budgets of all namespaces.
    pub pod_disruption_budgets: Informer<PodDisruptionBudget>,
    /// Resource quotas of all namespaces.
    pub resource_quotas: Informer<ResourceQuota>,
    /// Claims of storage in all namespaces.
    pub claims: Informer<PersistentVolumeClaim>,
    /// Volumes that outlive pods.
    pub volumes: Informer<PersistentVolume>,
    /// How volumes are made.
    pub storage_classes: Informer<StorageClass>,
    /// What devices can be asked for by name.
    pub device_classes: Informer<DeviceClass>,
    /// Claims of devices in all namespaces.
    pub resource_claims: Informer<ResourceClaim>,
    /// What claims of devices are made from, in all namespaces.
    pub resource_claim_templates: Informer<ResourceClaimTemplate>,
    /// The devices that nodes have.
    pub resource_slices: Informer<ResourceSlice>,
    /// Versions of API groups that other servers answer.
    pub api_services: Informer<APIService>,
}

impl Informers {
    /// Starts them all.
    #[must_use]
    pub fn start(client: &kube::Client, tasks: &TaskGroup) -> Self {
        Self::start_among(client, Interned::default(), tasks)
    }

    /// As [`Informers::start`], with pods that the agent of this process holds as well.
    #[must_use]
    pub fn start_among(client: &kube::Client, pods: Interned<Pod>, tasks: &TaskGroup) -> Self {
        Self {
            pods: informer_among(Api::all(client.clone()), watcher::Config::default(), pods, tasks),
            nodes: everywhere(client, tasks),
            leases: informer(
                Api::namespaced(client.clone(), LEASE_NAMESPACE),
                watcher::Config::default(),
                tasks,
            ),
            namespaces: everywhere(client, tasks),
            services: everywhere(client, tasks),
            endpoint_slices: everywhere(client, tasks),
            endpoints: everywhere(client, tasks),
            service_accounts: everywhere(client, tasks),
            deployments: everywhere(client, tasks),
            replica_sets: everywhere(client, tasks),
            stateful_sets: everywhere(client, tasks),
            daemon_sets: everywhere(client, tasks),
            replication_controllers: everywhere(client, tasks),
            controller_revisions: everywhere(client, tasks),
            jobs: everywhere(client, tasks),
            cron_jobs: everywhere(client, tasks),
            autoscalers: everywhere(client, tasks),
            pod_disruption_budgets: everywhere(client, tasks),
            resource_quotas: everywhere(client, tasks),
            claims: everywhere(client, tasks),
            volumes: everywhere(client, tasks),
            storage_classes: everywhere(client, tasks),
            device_classes: everywhere(client, tasks),
            resource_claims: everywhere(client, tasks),
            resource_claim_templates: everywhere(client, tasks),
            resource_slices: everywhere(client, tasks),
            api_services: everywhere(client, tasks),
        }
    }

    /// Waits for the first complete list of every kind. Returns `false` when they ended before.
    pub async fn ready(&self) -> bool {
        self.pods.ready().await
            && self.nodes.ready().await
            && self.leases.ready().await
            && self.namespaces.ready().await
            && self.services.ready().await
            && self.endpoint_slices.ready().await
            && self.endpoints.ready().await
            && self.service_accounts.ready().await
            && self.deployments.ready().await
            && self.replica_sets.ready().await
            && self.stateful_sets.ready().await
            && self.daemon_sets.ready().await
            && self.replication_controllers.ready().await
            && self.controller_revisions.ready().await
            && self.jobs.ready().await
            && self.cron_jobs.ready().await
            && self.autoscalers.ready().await
            && self.pod_disruption_budgets.ready().await
            && self.resource_quotas.ready().await
            && self.claims.ready().await
            && self.volumes.ready().await
            && self.storage_classes.ready().await
            && self.device_classes.ready().await
            && self.resource_claims.ready().await
            && self.resource_claim_templates.ready().await
            && self.resource_slices.ready().await
            && self.api_services.ready().await
    }
}

fn everywhere<K>(client: &kube::Client, tasks: &TaskGroup) -> Informer<K>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + fmt::Debug + Send + Sync + 'static,
{
    informer(Api::all(client.clone()), watcher::Config::default(), tasks)
}
