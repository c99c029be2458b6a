//! Marks the Services whose workload may be scaled to zero, so that nodes keep their requests until there
//! is a pod again.

use std::sync::Arc;

use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::Service;
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};

use crate::api::node_load::SCALES_FROM_ZERO;
use crate::client::is_not_found;
use crate::controllers::autoscaler::Controller;
use crate::controllers::autoscaler::report::services_of;
use crate::controllers::object::{Key, is_deleting};

impl Controller {
    /// Marks the autoscaler's Services if it may go to zero, and no others.
    pub(super) async fn mark(
        &self,
        key: &Key,
        autoscaler: &HorizontalPodAutoscaler,
    ) -> Result<(), kube::Error> {
        let may_be_none =
            autoscaler.spec.min_replicas == Some(0) && !is_deleting(&autoscaler.metadata);
        let wanted = if may_be_none { services_of(autoscaler) } else { Vec::new() };
        for service in self.services(&key.0) {
            let has = service.annotations().get(SCALES_FROM_ZERO);
            if wanted.contains(&service.name_any()) {
                if has != Some(&key.1) {
                    self.annotate(&service, json!(key.1)).await?;
                }
            } else if has == Some(&key.1) {
                self.annotate(&service, Value::Null).await?;
            }
        }
        Ok(())
    }

    /// Takes the marks of an autoscaler that is gone.
    pub(super) async fn unmark(&self, key: &Key) -> Result<(), kube::Error> {
        for service in self.services(&key.0) {
            if service.annotations().get(SCALES_FROM_ZERO) == Some(&key.1) {
                self.annotate(&service, Value::Null).await?;
            }
        }
        Ok(())
    }

    fn services(&self, namespace: &str) -> Vec<Arc<Service>> {
        self.context.informers.services.store.in_namespace(namespace)
    }

    async fn annotate(&self, service: &Service, value: Value) -> Result<(), kube::Error> {
        let api: Api<Service> =
            Api::namespaced(self.context.client.clone(), &service.namespace().unwrap_or_default());
        let patch = json!({ "metadata": {
            "uid": service.uid(),
            "annotations": { SCALES_FROM_ZERO: value },
        }});
        let patch = Patch::Merge(patch);
        match api.patch(&service.name_any(), &PatchParams::default(), &patch).await {
            Err(err) if !is_not_found(&err) => Err(err),
            _ => Ok(()),
        }
    }
}
