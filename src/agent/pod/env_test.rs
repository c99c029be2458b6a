//! Environment and arguments as containers get them.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ConfigMap, Container, Pod};
use serde_json::json;

use crate::agent::image::ImageConfig;
use crate::agent::pod::env::{
    ConfigError, Sources, arguments, environment, expand, skipped, with_image,
};

fn pod() -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": "web-1", "namespace": "shop", "uid": "u1",
            "labels": {"app.kubernetes.io/name": "web"}, "annotations": {"a": "b"}},
        "spec": {"nodeName": "node-1", "containers": [{"name": "app",
            "resources": {"limits": {"cpu": "1500m", "memory": "64Mi"}}}]}
    }))
    .unwrap()
}

fn sources() -> Sources {
    Sources {
        config_maps: BTreeMap::from([(
            "settings".into(),
            Some(ConfigMap {
                data: Some(BTreeMap::from([("MODE".into(), "fast".into())])),
                ..ConfigMap::default()
            }),
        )]),
        secrets: BTreeMap::from([("absent".into(), None)]),
        ips: vec![[10, 42, 0, 2].into()],
        host_ips: vec![[192, 0, 2, 1].into()],
        service_env: vec![("API_SERVICE_HOST".into(), "10.43.0.9".into())],
        allocatable: (4000, 1 << 30),
        ephemeral_bytes: 3 << 30,
        ..Sources::default()
    }
}

fn env_of(container: serde_json::Value) -> Result<BTreeMap<String, String>, ConfigError> {
    let container: Container = serde_json::from_value(container).unwrap();
    environment(&pod(), &container, &sources()).map(|env| env.into_iter().collect())
}

#[test]
fn dollar_names_are_expanded_as_in_kubernetes() {
    let env = [("A".to_owned(), "1".to_owned()), ("B".to_owned(), "$(A)".to_owned())];
    for (text, expanded) in [
        ("plain", "plain"),
        ("$(A)-$(B)", "1-$(A)"),
        ("$$(A)", "$(A)"),
        ("$(MISSING)", "$(MISSING)"),
        ("$A ${A} $", "$A ${A} $"),
        ("$(A", "$(A"),
    ] {
        assert_eq!(expand(text, &env), expanded, "{text}");
    }
}

#[test]
fn every_source_of_a_variable_is_read() {
    let env = env_of(json!({"name": "app",
        "envFrom": [{"prefix": "CFG_", "configMapRef": {"name": "settings"}}],
        "resources": {"limits": {"cpu": "1500m", "memory": "64Mi"}},
        "env": [
            {"name": "FIXED", "value": "x"},
            {"name": "BOTH", "value": "$(FIXED)-$(CFG_MODE)-$(API_SERVICE_HOST)"},
            {"name": "UID", "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}},
            {"name": "LABEL", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app.kubernetes.io/name']"}}},
            {"name": "HOST", "valueFrom": {"fieldRef": {"fieldPath": "status.hostIP"}}},
            {"name": "KEY", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "MODE"}}},
            {"name": "MAYBE", "valueFrom": {"secretKeyRef": {"name": "absent", "key": "k", "optional": true}}},
            {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
            {"name": "MEM", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}},
            {"name": "POD_IP", "value": "mine"},
        ]}))
    .unwrap();
    for (name, value) in [
        ("FIXED", "x"),
        ("BOTH", "x-fast-10.43.0.9"),
        ("UID", "u1"),
        ("LABEL", "web"),
        ("HOST", "192.0.2.1"),
        ("KEY", "fast"),
        ("CPU", "2"),
        ("MEM", "64"),
        ("POD_IP", "mine"),
        ("POD_NAME", "web-1"),
        ("POD_NAMESPACE", "shop"),
        ("NODE_NAME", "node-1"),
        ("HOSTNAME", "web-1"),
    ] {
        assert_eq!(env.get(name).map(String::as_str), Some(value), "{name}");
    }
    assert!(!env.contains_key("MAYBE"));
}

#[test]
fn resources_are_divided_rounded_up_and_stand_in_for_missing_limits() {
    let of = |source: serde_json::Value| {
        let env = env_of(json!({"name": "app", "resources": {
            "requests": {"cpu": "250m", "memory": "100Mi", "ephemeral-storage": "1500M"}},
            "env": [{"name": "X", "valueFrom": {"resourceFieldRef": source}}]}));
        env.unwrap().remove("X").unwrap()
    };
    for (resource, divisor, value) in [
        ("requests.cpu", "0", "1"),
        ("requests.cpu", "1m", "250"),
        ("requests.memory", "1Mi", "100"),
        ("requests.memory", "1Gi", "1"),
        ("requests.ephemeral-storage", "1M", "1500"),
        ("limits.cpu", "1", "4"),
        ("limits.memory", "1Mi", "1024"),
        ("limits.ephemeral-storage", "1Gi", "3"),
        ("limits.hugepages-2Mi", "1", "0"),
    ] {
        assert_eq!(of(json!({"resource": resource, "divisor": divisor})), value, "{resource}");
    }
}

#[test]
fn env_from_keeps_its_order_and_skips_what_cannot_be_a_name() {
    let map = |data: serde_json::Value| serde_json::from_value(json!({"data": data})).unwrap();
    let sources = Sources {
        config_maps: BTreeMap::from([
            (
                "a".into(),
                Some(map(json!({"KEY": "a", "with-dash": "1", "b=d": "2", "\u{fc}": "3"}))),
            ),
            ("b".into(), Some(map(json!({"KEY": "b"})))),
        ]),
        ..Sources::default()
    };
    let container = serde_json::from_value(json!({"name": "app",
        "envFrom": [{"configMapRef": {"name": "a"}}, {"configMapRef": {"name": "b"}},
            {"prefix": "P_", "configMapRef": {"name": "a"}}],
        "env": [{"name": "P_KEY", "value": "own"}]}))
    .unwrap();
    let env: BTreeMap<_, _> =
        environment(&pod(), &container, &sources).unwrap().into_iter().collect();
    for (name, value) in [("KEY", "b"), ("with-dash", "1"), ("P_KEY", "own"), ("P_with-dash", "1")]
    {
        assert_eq!(env.get(name).map(String::as_str), Some(value), "{name}");
    }
    assert!(!env.keys().any(|name| name.contains('=') || name.contains('\u{fc}')));
    let told = skipped(&pod(), &container, &sources);
    let words = "were skipped since they are considered invalid environment variable names.";
    let once = format!("Keys [b=d, \u{fc}] from the EnvFrom configMap shop/a {words}");
    assert_eq!(told, [once.clone(), once]);
}

#[test]
fn keys_of_secrets_are_skipped_too_and_missing_ones_are_not_told() {
    let secret = serde_json::from_value(json!({"data": {"a=b": "eA==", "c": "eA=="}})).unwrap();
    let sources = Sources {
        config_maps: BTreeMap::from([("none".into(), None)]),
        secrets: BTreeMap::from([("s".into(), Some(secret))]),
        ..Sources::default()
    };
    let container = serde_json::from_value(json!({"name": "app", "envFrom": [
        {"secretRef": {"name": "s"}}, {"configMapRef": {"name": "none", "optional": true}}]}))
    .unwrap();
    assert_eq!(
        skipped(&pod(), &container, &sources),
        [
            "Keys [a=b] from the EnvFrom secret shop/s were skipped since they are considered invalid environment variable names."
        ]
    );
    let env = environment(&pod(), &container, &sources).unwrap();
    assert!(env.contains(&("c".to_owned(), "x".to_owned())), "{env:?}");
}

#[test]
fn every_field_of_the_downward_api_is_told() {
    for (path, value) in [
        ("metadata.name", "web-1"),
        ("metadata.namespace", "shop"),
        ("metadata.uid", "u1"),
        ("metadata.labels['app.kubernetes.io/name']", "web"),
        ("metadata.labels['none']", ""),
        ("metadata.annotations['a']", "b"),
        ("spec.nodeName", "node-1"),
        ("spec.serviceAccountName", "default"),
        ("status.hostIP", "192.0.2.1"),
        ("status.hostIPs", "192.0.2.1,2001:db8::1"),
        ("status.podIP", "10.42.0.2"),
        ("status.podIPs", "10.42.0.2,fd00::2"),
    ] {
        let container = json!({"name": "app", "env": [
            {"name": "X", "valueFrom": {"fieldRef": {"fieldPath": path}}}]});
        let container = serde_json::from_value(container).unwrap();
        let sources = Sources {
            ips: vec![[10, 42, 0, 2].into(), "fd00::2".parse().unwrap()],
            host_ips: vec![[192, 0, 2, 1].into(), "2001:db8::1".parse().unwrap()],
            ..sources()
        };
        let env = environment(&pod(), &container, &sources).unwrap();
        assert!(env.contains(&("X".to_owned(), value.to_owned())), "{path}: {env:?}");
    }
}

#[test]
fn later_variables_take_the_place_of_earlier_ones() {
    // Services, then the pod's own, then envFrom, then env.
    let map = |data: serde_json::Value| serde_json::from_value(json!({"data": data})).unwrap();
    let sources = Sources {
        service_env: vec![
            ("API_PORT".into(), "service".into()),
            ("KEPT_PORT".into(), "service".into()),
            ("POD_NAME".into(), "service".into()),
        ],
        config_maps: BTreeMap::from([(
            "a".into(),
            Some(map(json!({"API_PORT": "map", "BOTH": "map", "HOSTNAME": "map"}))),
        )]),
        ..Sources::default()
    };
    let container = serde_json::from_value(json!({"name": "app",
        "envFrom": [{"configMapRef": {"name": "a"}}],
        "env": [{"name": "BOTH", "value": "env"}, {"name": "SEEN", "value": "$(BOTH)-$$(BOTH)-$(LATER)"},
            {"name": "LATER", "value": "x"}]}))
    .unwrap();
    let env: BTreeMap<_, _> =
        environment(&pod(), &container, &sources).unwrap().into_iter().collect();
    for (name, value) in [
        ("API_PORT", "map"),
        ("KEPT_PORT", "service"),
        ("POD_NAME", "web-1"),
        ("HOSTNAME", "map"),
        ("BOTH", "env"),
        ("SEEN", "env-$(BOTH)-$(LATER)"),
    ] {
        assert_eq!(env.get(name).map(String::as_str), Some(value), "{name}");
    }
}

#[test]
fn what_is_missing_is_named() {
    let of = |source: serde_json::Value| {
        env_of(json!({"name": "app", "env": [{"name": "X", "valueFrom": source}]}))
            .unwrap_err()
            .to_string()
    };
    assert_eq!(
        of(json!({"secretKeyRef": {"name": "absent", "key": "k"}})),
        "secret \"absent\" not found"
    );
    assert_eq!(
        of(json!({"configMapKeyRef": {"name": "settings", "key": "k"}})),
        "couldn't find key k in ConfigMap settings"
    );
    assert_eq!(
        of(json!({"fieldRef": {"fieldPath": "spec.secret"}})),
        "unsupported fieldPath: spec.secret"
    );
}

/// The table of Kubernetes' "Define a Command and Arguments for a Container".
#[test]
fn what_the_image_says_counts_where_the_pod_says_nothing() {
    let words = |words: &[&str]| words.iter().map(ToString::to_string).collect::<Vec<_>>();
    let argv = |entrypoint: &[&str], cmd: &[&str], c: serde_json::Value| {
        let (entrypoint, cmd) = (words(entrypoint), words(cmd));
        let image = ImageConfig { entrypoint, cmd, ..ImageConfig::default() };
        let env = [("A".into(), "1".into())];
        arguments(&serde_json::from_value(c).unwrap(), &env, &image)
    };
    let (entry, cmd) = (&["/app.wasm", "$(A)"][..], &["serve"][..]);
    let args = json!({"name": "c", "args": ["$(A)"]});
    let command = json!({"name": "c", "command": ["run"]});
    let both = json!({"name": "c", "command": ["run"], "args": ["x"]});
    let neither = json!({"name": "c"});
    assert_eq!(argv(entry, cmd, neither.clone()), ["/app.wasm", "$(A)", "serve"]);
    assert_eq!(argv(entry, cmd, args.clone()), ["/app.wasm", "$(A)", "1"]);
    assert_eq!(argv(entry, cmd, command), ["run"]);
    assert_eq!(argv(entry, cmd, both), ["run", "x"]);
    assert_eq!(argv(&[], &["/app.wasm", "-v"], neither.clone()), ["/app.wasm", "-v"]);
    assert_eq!(argv(&[], &["/app.wasm"], args), ["c", "1"], "a component needs no entry point");
    assert_eq!(argv(&[], &[], neither), ["c"]);

    let image = ImageConfig {
        env: words(&["A=of the image", "B=x=y", "no name", "=", "B=again"]),
        working_dir: "/data".to_owned(),
        ..ImageConfig::default()
    };
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let own = vec![pair("A", "of the pod")];
    let all = [pair("A", "of the pod"), pair("PWD", "/data"), pair("B", "x=y")];
    assert_eq!(with_image(own, &image), all);
    let own = vec![pair("PWD", "/elsewhere"), pair("B", "")];
    assert_eq!(with_image(own.clone(), &image), [own, vec![pair("A", "of the image")]].concat());
}

#[test]
fn command_and_args_make_argv() {
    let argv = |c: serde_json::Value| {
        let env = [("A".into(), "1".into())];
        arguments(&serde_json::from_value(c).unwrap(), &env, &ImageConfig::default())
    };
    assert_eq!(argv(json!({"name": "app"})), ["app"]);
    assert_eq!(argv(json!({"name": "app", "args": ["-a", "$(A)"]})), ["app", "-a", "1"]);
    assert_eq!(
        argv(json!({"name": "app", "command": ["run", "x"], "args": ["y"]})),
        ["run", "x", "y"]
    );
}
