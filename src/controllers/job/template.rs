//! A pod of a Job's template.

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Container, EnvVar, EnvVarSource, ObjectFieldSelector, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt as _;

use crate::controllers::job::plan::NewPod;
use crate::controllers::job::tracking::{FINALIZER, INDEX, INDEX_FAILURES, INDEX_IGNORED};
use crate::controllers::object::controller_reference;

/// Variable with the index of a pod.
const INDEX_VARIABLE: &str = "JOB_COMPLETION_INDEX";
/// Bytes of a name before the server's suffix.
const BASE_BYTES_MAX: usize = 58;
/// Bytes of a host name.
const HOST_NAME_BYTES_MAX: usize = 63;

/// The pod, to be named by the server.
pub(super) fn pod_of(job: &Job, new: &NewPod) -> Pod {
    let template = job.spec.as_ref().map(|spec| spec.template.clone()).unwrap_or_default();
    let meta = template.metadata.unwrap_or_default();
    let mut finalizers = meta.finalizers.unwrap_or_default();
    finalizers.push(FINALIZER.to_owned());
    let name = job.name_any();
    let mut pod = Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", cut(&name, BASE_BYTES_MAX - 1))),
            namespace: job.namespace(),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: Some(finalizers),
            owner_references: Some(vec![controller_reference(job)]),
            ..ObjectMeta::default()
        },
        spec: template.spec,
        status: None,
    };
    if let Some(index) = new.index {
        number(&mut pod, &name, index, new.failures);
    }
    pod
}

/// Makes it the pod of that index.
fn number(pod: &mut Pod, job: &str, index: u32, failures: Option<(u32, u32)>) {
    let suffix = format!("-{index}-");
    let base = cut(job, BASE_BYTES_MAX.saturating_sub(suffix.len()));
    pod.metadata.generate_name = Some(format!("{base}{suffix}"));
    let annotations = pod.metadata.annotations.get_or_insert_default();
    annotations.insert(INDEX.to_owned(), index.to_string());
    if let Some((failures, ignored)) = failures {
        annotations.insert(INDEX_FAILURES.to_owned(), failures.to_string());
        if ignored > 0 {
            annotations.insert(INDEX_IGNORED.to_owned(), ignored.to_string());
        }
    }
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(INDEX.to_owned(), index.to_string());
    let Some(spec) = pod.spec.as_mut() else { return };
    // Pods of an Indexed Job find each other by it: a name of the template's would be that of all.
    let suffix = format!("-{index}");
    let base = cut(job, HOST_NAME_BYTES_MAX.saturating_sub(suffix.len()));
    spec.hostname = Some(format!("{base}{suffix}"));
    for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
        tell_index(container);
    }
}

fn tell_index(container: &mut Container) {
    let variables = container.env.get_or_insert_default();
    if variables.iter().any(|variable| variable.name == INDEX_VARIABLE) {
        return;
    }
    let field = ObjectFieldSelector {
        field_path: format!("metadata.annotations['{INDEX}']"),
        ..ObjectFieldSelector::default()
    };
    variables.push(EnvVar {
        name: INDEX_VARIABLE.to_owned(),
        value_from: Some(EnvVarSource { field_ref: Some(field), ..EnvVarSource::default() }),
        ..EnvVar::default()
    });
}

/// At most so many bytes of a name.
fn cut(name: &str, bytes_max: usize) -> &str {
    let mut end = name.len().min(bytes_max);
    while !name.is_char_boundary(end) {
        end = end.saturating_sub(1);
    }
    name.get(..end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn job(name: &str) -> Job {
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "n", "uid": "u"},
            "spec": {"template": {
                "metadata": {"labels": {"a": "b"}},
                "spec": {"containers": [{"name": "c"}], "initContainers": [{"name": "i"}]},
            }},
        }))
        .unwrap()
    }

    #[test]
    fn a_pod_is_tracked_and_owned() {
        let pod = pod_of(&job("pi"), &NewPod { index: None, failures: None });
        assert_eq!(pod.metadata.generate_name.as_deref(), Some("pi-"));
        assert_eq!(pod.finalizers(), [FINALIZER]);
        assert_eq!(pod.owner_references()[0].uid, "u");
        assert!(pod.spec.unwrap().hostname.is_none());
    }

    #[test]
    fn a_pod_of_an_index_knows_it_in_five_ways() {
        let new = NewPod { index: Some(3), failures: Some((1, 2)) };
        let pod = pod_of(&job("pi"), &new);
        assert_eq!(pod.metadata.generate_name.as_deref(), Some("pi-3-"));
        assert_eq!(pod.annotations()[INDEX], "3");
        assert_eq!(pod.labels()[INDEX], "3");
        assert_eq!(pod.annotations()[INDEX_FAILURES], "1");
        assert_eq!(pod.annotations()[INDEX_IGNORED], "2");
        let spec = pod.spec.unwrap();
        assert_eq!(spec.hostname.as_deref(), Some("pi-3"));
        let lists = [spec.containers, spec.init_containers.unwrap()];
        for container in lists.into_iter().flatten() {
            let variable = &container.env.unwrap()[0];
            assert_eq!(variable.name, "JOB_COMPLETION_INDEX");
            let field = variable.value_from.as_ref().unwrap().field_ref.as_ref().unwrap();
            assert_eq!(field.field_path, format!("metadata.annotations['{INDEX}']"));
        }
    }

    #[test]
    fn a_host_name_of_the_template_is_that_of_pods_without_an_index_only() {
        let mut job = job("pi");
        let template = &mut job.spec.as_mut().unwrap().template;
        template.spec.as_mut().unwrap().hostname = Some("mine".to_owned());
        for (index, wanted) in [(None, "mine"), (Some(3), "pi-3")] {
            let pod = pod_of(&job, &NewPod { index, failures: None });
            assert_eq!(pod.spec.unwrap().hostname.as_deref(), Some(wanted));
        }
    }

    #[test]
    fn long_names_make_room_for_the_index() {
        let pod = pod_of(&job(&"x".repeat(63)), &NewPod { index: Some(1234), failures: None });
        assert_eq!(pod.metadata.generate_name.unwrap(), format!("{}-1234-", "x".repeat(52)));
        assert_eq!(pod.spec.unwrap().hostname.unwrap(), format!("{}-1234", "x".repeat(58)));
    }
}
