//! Claims of storage through the API server: when they may grow.

use http::StatusCode;
use serde_json::{Value, json};

use crate::support::Api;

const CLAIMS: &str = "/api/v1/namespaces/default/persistentvolumeclaims";
const CLASSES: &str = "/apis/storage.k8s.io/v1/storageclasses";

fn sized(size: &str) -> Value {
    json!({"spec": {"resources": {"requests": {"storage": size}}}})
}

#[tokio::test]
async fn a_claim_grows_once_it_is_bound_and_if_its_class_allows_it() {
    let api = Api::start().await;
    let class = json!({"metadata": {"name": "fixed"}, "provisioner": "example.com/disks"});
    assert_eq!(api.post(CLASSES, &class).await.code, StatusCode::CREATED);
    for class in ["local-path", "fixed", "nowhere"] {
        let mut claim = sized("1Gi");
        claim["metadata"] = json!({"name": class});
        claim["spec"]["accessModes"] = json!(["ReadWriteOnce"]);
        claim["spec"]["storageClassName"] = json!(class);
        let made = api.post(CLAIMS, &claim).await;
        assert_eq!(made.code, StatusCode::CREATED, "{made:?}");
        let one = format!("{CLAIMS}/{class}");
        let early = api.patch(&one, "merge", &sized("2Gi")).await;
        assert_eq!(early.code.as_u16(), 422, "{early:?}");
        assert_eq!(early.at("/details/causes/0/field"), "spec");
        let bound = json!({"status": {"phase": "Bound", "capacity": {"storage": "1Gi"}}});
        let told = api.patch(&format!("{one}/status"), "merge", &bound).await;
        assert_eq!(told.code, StatusCode::OK, "{told:?}");
        let same = api.patch(&one, "merge", &sized("1024Mi")).await;
        assert_eq!(same.code, StatusCode::OK, "no larger: {same:?}");
        let larger = api.patch(&one, "merge", &sized("2Gi")).await;
        if class == "local-path" {
            assert_eq!(larger.code, StatusCode::OK, "{larger:?}");
            let smaller = api.patch(&one, "merge", &sized("1Gi")).await;
            assert_eq!(smaller.code.as_u16(), 422, "{smaller:?}");
        } else {
            assert_eq!(larger.code, StatusCode::FORBIDDEN, "{larger:?}");
            let said = format!(
                "persistentvolumeclaims {class:?} is forbidden: only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize"
            );
            assert_eq!(larger.at("/message"), said);
        }
    }
    let open = json!({"allowVolumeExpansion": true});
    assert_eq!(api.patch(&format!("{CLASSES}/fixed"), "merge", &open).await.code, StatusCode::OK);
    let larger = api.patch(&format!("{CLAIMS}/fixed"), "merge", &sized("2Gi")).await;
    assert_eq!(larger.code, StatusCode::OK, "{larger:?}");
    assert_eq!(larger.at("/spec/resources/requests/storage"), "2Gi");
}
