//! Which Ingresses are ours.

use std::sync::Arc;

use k8s_openapi::api::networking::v1::{Ingress, IngressClass};

use crate::api::gateway::{CLASS_DEFAULT, INGRESS_CLASS, INGRESS_CONTROLLER, IS_DEFAULT_CLASS};

/// Whether an Ingress is one of ours: by class, by the annotation that came before it, or, when it names none, as our class is the
/// default, or there is no class at all.
#[must_use]
pub fn ingress_is_ours(ingress: &Ingress, classes: &[Arc<IngressClass>]) -> bool {
    let controller = |class: &IngressClass| {
        let controller = class.spec.as_ref().and_then(|spec| spec.controller.as_deref());
        controller == Some(INGRESS_CONTROLLER)
    };
    let named = ingress.spec.as_ref().and_then(|spec| spec.ingress_class_name.as_deref());
    let named = named.or_else(|| {
        let annotations = ingress.metadata.annotations.as_ref()?;
        annotations.get(INGRESS_CLASS).map(String::as_str)
    });
    match named {
        Some(name) => {
            let class = classes.iter().find(|class| class.metadata.name.as_deref() == Some(name));
            class.map_or(name == CLASS_DEFAULT, |class| controller(class))
        }
        None => {
            let is_default = |class: &&Arc<IngressClass>| {
                let annotations = class.metadata.annotations.as_ref();
                annotations.and_then(|all| all.get(IS_DEFAULT_CLASS)).is_some_and(|v| v == "true")
            };
            let mut default = classes.iter().filter(is_default).peekable();
            default.peek().is_none() || default.any(|class| controller(class))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn class(name: &str, controller: &str, is_default: bool) -> Arc<IngressClass> {
        let annotations = if is_default { json!({IS_DEFAULT_CLASS: "true"}) } else { json!({}) };
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"name": name, "annotations": annotations},
                "spec": {"controller": controller}}))
            .unwrap(),
        )
    }

    fn ingress(value: Value) -> Ingress {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn an_ingress_is_ours_by_class_annotation_or_default() {
        let named = |name: &str| ingress(json!({"spec": {"ingressClassName": name}}));
        let old = |name: &str| ingress(json!({"metadata": {"annotations": {INGRESS_CLASS: name}}}));
        let none = ingress(json!({}));
        let ours = class("edgeorc", INGRESS_CONTROLLER, false);
        let other = |is_default| class("nginx", "k8s.io/ingress-nginx", is_default);
        let both = [Arc::clone(&ours), other(false)];
        for (ingress, classes, is) in [
            (&named("edgeorc"), &both[..], true),
            (&old("edgeorc"), &both, true),
            (&named("nginx"), &both, false),
            (&old("nginx"), &both, false),
            (&named("unknown"), &both, false),
            (&none, &both, true),
            (&named("edgeorc"), &[], true),
            (&none, &[], true),
            (&none, &[other(true)], false),
            (&none, &[class("edgeorc", INGRESS_CONTROLLER, true)], true),
            (&named("edgeorc"), &[class("edgeorc", "x.io/y", false)], false),
            (&named("inner"), &[class("inner", INGRESS_CONTROLLER, false)], true),
        ] {
            assert_eq!(ingress_is_ours(ingress, classes), is, "{ingress:?} {classes:?}");
        }
    }
}
