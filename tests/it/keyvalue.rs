//! Buckets of guests in the store: kept across nodes, never lost to a race, bounded.

use std::sync::Arc;

use edgeorc::agent::ClusterKeyValue;
use edgeorc_runtime::{KeyValue as _, KeyValueError, PodId};
use serde_json::json;

use crate::support::Api;

const BUCKET: &str = "/api/v1/namespaces/default/configmaps/keyvalue-hits";

fn store(api: &Api) -> ClusterKeyValue {
    let store = ClusterKeyValue::default();
    store.set(api.client());
    store
}

fn pod(namespace: &str) -> PodId {
    PodId { namespace: namespace.to_owned(), name: "p".to_owned(), uid: "u".to_owned() }
}

fn key(name: &str) -> Vec<String> {
    vec![name.to_owned()]
}

#[tokio::test]
async fn values_are_kept_in_a_config_map_of_the_namespace() {
    let api = Api::start().await;
    let (pod, one) = (pod("default"), store(&api));
    assert_eq!(one.get(&pod, "hits", &key("a/b")).await.unwrap(), [None], "nothing yet");
    let changes = vec![("a/b".to_owned(), Some("x".into())), ("c".to_owned(), Some("y".into()))];
    one.write(&pod, "hits", changes).await.unwrap();

    let two = store(&api);
    assert_eq!(two.get(&pod, "hits", &key("a/b")).await.unwrap(), [Some("x".into())]);
    assert_eq!(two.keys(&pod, "hits").await.unwrap(), ["a/b", "c"]);
    two.write(&pod, "hits", vec![("c".to_owned(), None)]).await.unwrap();
    assert_eq!(one.keys(&pod, "hits").await.unwrap(), ["a/b"]);

    let map = api.get(BUCKET).await;
    assert_eq!(map.at("/metadata/labels/edgeorc.io~1keyvalue"), json!("hits"));
    assert_eq!(map.at("/binaryData/a_2fb"), json!("eA=="));
}

#[tokio::test]
async fn increments_at_the_same_time_are_all_counted() {
    let api = Api::start().await;
    let store = Arc::new(store(&api));
    let pod = pod("default");
    let adds = (0..8).map(|_| store.increment(&pod, "hits", "n", 5));
    let mut sums: Vec<_> =
        futures_util::future::join_all(adds).await.into_iter().map(Result::unwrap).collect();
    sums.sort_unstable();
    assert_eq!(sums, [5, 10, 15, 20, 25, 30, 35, 40]);
    assert_eq!(store.get(&pod, "hits", &key("n")).await.unwrap(), [Some("40".into())]);
}

#[tokio::test]
async fn a_bucket_is_bounded_and_says_so() {
    let api = Api::start().await;
    let (pod, store) = (pod("default"), store(&api));
    let large = |name: &str| vec![(name.to_owned(), Some(vec![0; 600 << 10].into()))];
    store.write(&pod, "hits", large("a")).await.unwrap();
    let error = store.write(&pod, "hits", large("b")).await.unwrap_err();
    assert!(matches!(&error, KeyValueError::Other(text) if text.contains("1048576")), "{error}");
    assert_eq!(store.keys(&pod, "hits").await.unwrap(), ["a"], "nothing was written");
}

#[tokio::test]
async fn a_config_map_that_is_no_bucket_is_left_alone() {
    let api = Api::start().await;
    let map =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "keyvalue-hits"}});
    api.post("/api/v1/namespaces/default/configmaps", &map).await;
    let error = store(&api).increment(&pod("default"), "hits", "n", 1).await.unwrap_err();
    assert!(error.to_string().contains("lacks the label"), "{error}");
    assert!(api.get(BUCKET).await.json().get("binaryData").is_none());
}
