//! The objects that `deploy` makes of an app.

use serde_json::{Value, json};

/// Label that ties the objects of an app together.
const APP_LABEL: &str = "app.kubernetes.io/name";
/// Who made the objects.
const MANAGED_BY: &str = "app.kubernetes.io/managed-by";

/// An app as the user described it.
#[derive(Debug, Clone)]
pub(super) struct App {
    /// Name of all its objects.
    pub(super) name: String,
    /// Namespace.
    pub(super) namespace: String,
    /// Image reference of the app itself.
    pub(super) image: String,
    /// Port it listens on.
    pub(super) port: u16,
    /// Environment.
    pub(super) env: Vec<(String, String)>,
    /// Replicas; `None` leaves them as they are.
    pub(super) replicas: Option<u32>,
    /// Name, image and port of each sidecar.
    pub(super) sidecars: Vec<(String, String, u16)>,
    /// Host name at the ingress.
    pub(super) host: String,
}

impl App {
    fn labels(&self) -> Value {
        json!({APP_LABEL: self.name, MANAGED_BY: "edgeorc"})
    }

    /// The Deployment. Sidecars are init containers that go on running, as Kubernetes has it.
    pub(super) fn deployment(&self) -> Value {
        let env: Vec<_> =
            self.env.iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
        let sidecars: Vec<_> = self
            .sidecars
            .iter()
            .map(|(name, image, port)| {
                json!({
                    "name": name, "image": image, "restartPolicy": "Always",
                    "ports": [{"containerPort": port}],
                })
            })
            .collect();
        let mut deployment = json!({
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": self.name, "namespace": self.namespace, "labels": self.labels()},
            "spec": {
                "selector": {"matchLabels": {APP_LABEL: self.name}},
                "template": {
                    "metadata": {"labels": self.labels()},
                    "spec": {
                        "containers": [{
                            "name": self.name, "image": self.image, "env": env,
                            "ports": [{"name": "http", "containerPort": self.port}],
                        }],
                        "initContainers": sidecars,
                    },
                },
            },
        });
        if let (Some(replicas), Some(spec)) =
            (self.replicas, deployment.get_mut("spec").and_then(Value::as_object_mut))
        {
            spec.insert("replicas".into(), json!(replicas));
        }
        deployment
    }

    /// The Service: port 80 in the cluster, a NodePort on every node.
    pub(super) fn service(&self) -> Value {
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": self.name, "namespace": self.namespace, "labels": self.labels()},
            "spec": {
                "type": "NodePort",
                "selector": {APP_LABEL: self.name},
                "ports": [{"name": "http", "port": 80, "targetPort": self.port}],
            },
        })
    }

    /// The Ingress: its own host name, and every other host as long as no older app asked for it.
    pub(super) fn ingress(&self) -> Value {
        let backend = json!({"service": {"name": self.name, "port": {"name": "http"}}});
        json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "Ingress",
            "metadata": {"name": self.name, "namespace": self.namespace, "labels": self.labels()},
            "spec": {
                "defaultBackend": backend,
                "rules": [{
                    "host": self.host,
                    "http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": backend}]},
                }],
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replicas_are_left_alone_unless_asked_for() {
        let app = App {
            name: "a".into(),
            namespace: "default".into(),
            image: "i".into(),
            port: 1,
            env: vec![("K".into(), "V".into())],
            replicas: None,
            sidecars: vec![("s".into(), "j".into(), 9090)],
            host: "a.default.localhost".into(),
        };
        let deployment = app.deployment();
        assert_eq!(deployment.pointer("/spec/replicas"), None);
        let sidecar = "/spec/template/spec/initContainers/0/restartPolicy";
        assert_eq!(deployment.pointer(sidecar), Some(&json!("Always")));
        let with = App { replicas: Some(3), ..app };
        assert_eq!(with.deployment().pointer("/spec/replicas"), Some(&json!(3)));
    }
}
