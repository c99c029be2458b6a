//! The OCI registry.

use http::{Method, StatusCode};
use http_body_util::BodyExt as _;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::support::Api;

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

#[tokio::test]
async fn a_pushed_image_is_pulled_by_tag_and_by_digest() {
    let api = Api::start().await;
    let blob = vec![7_u8; 100_000];
    let started = api.send(Method::POST, "/v2/a/b/blobs/uploads/", "", "").await;
    assert_eq!(started.code, StatusCode::ACCEPTED, "{started:?}");
    let location = started.headers[http::header::LOCATION].to_str().unwrap().to_owned();
    let piece = api
        .send(Method::PATCH, &location, "application/octet-stream", blob[..60_000].to_vec())
        .await;
    assert_eq!(piece.headers[http::header::RANGE], "0-59999");
    let put = format!("{location}?digest={}", digest(&blob));
    let done =
        api.send(Method::PUT, &put, "application/octet-stream", blob[60_000..].to_vec()).await;
    assert_eq!(done.code, StatusCode::CREATED, "{done:?}");
    let pulled = api.get(&format!("/v2/a/b/blobs/{}", digest(&blob))).await;
    assert_eq!(pulled.bytes, blob);
    for (range, code, length) in [
        ("bytes=99000-", StatusCode::PARTIAL_CONTENT, 1000),
        ("bytes=100000-", StatusCode::RANGE_NOT_SATISFIABLE, 0),
        ("bytes=5-9,20-30", StatusCode::OK, 100_000),
    ] {
        let request = http::Request::get(format!("/v2/a/b/blobs/{}", digest(&blob)))
            .header(http::header::RANGE, range)
            .body(kube::client::Body::empty())
            .unwrap();
        let answer = api.client().send(request).await.unwrap();
        assert_eq!(answer.status(), code, "{range}");
        let bytes = answer.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(bytes.len(), length, "{range}");
    }
    let manifest = json!({"schemaVersion": 2, "layers": [{"digest": digest(&blob)}]}).to_string();
    let media = "application/vnd.oci.image.manifest.v1+json";
    let put = api.send(Method::PUT, "/v2/a/b/manifests/v1", media, manifest.clone()).await;
    assert_eq!(put.code, StatusCode::CREATED, "{put:?}");
    for reference in ["v1".to_owned(), digest(manifest.as_bytes())] {
        let pulled = api.get(&format!("/v2/a/b/manifests/{reference}")).await;
        assert_eq!(pulled.bytes, manifest.as_bytes());
        assert_eq!(pulled.headers[http::header::CONTENT_TYPE], media);
    }
    assert_eq!(api.get("/v2/a/b/tags/list").await.json(), json!({"name": "a/b", "tags": ["v1"]}));
}

#[tokio::test]
async fn wrong_bytes_and_strangers_are_refused() {
    let api = Api::start().await;
    let wrong = format!("/v2/a/blobs/uploads/?digest={}", digest(b"other"));
    let refused = api.send(Method::POST, &wrong, "", "bytes").await;
    assert_eq!(refused.code, StatusCode::BAD_REQUEST);
    assert_eq!(refused.at("/errors/0/code"), json!("DIGEST_INVALID"));
    let missing = api.get(&format!("/v2/a/blobs/{}", digest(b"none"))).await;
    assert_eq!(missing.at("/errors/0/code"), json!("BLOB_UNKNOWN"));
    let stranger = api.send_as(None, Method::GET, "/v2/", "", "").await;
    assert_eq!(stranger.code, StatusCode::UNAUTHORIZED);
    let escape = api.get("/v2/../etc/blobs/sha256:x").await;
    assert!(escape.code.is_client_error(), "{escape:?}");
}

#[tokio::test]
async fn tags_are_listed_page_by_page_past_digests_and_repositories_below() {
    let api = Api::start().await;
    let media = "application/vnd.oci.image.manifest.v1+json";
    for (repository, tag) in
        [("a", "alpha"), ("a", "beta"), ("a/b", "below"), ("a", "tau"), ("a", "zeta")]
    {
        let manifest = json!({"schemaVersion": 2, "annotations": {"tag": tag}}).to_string();
        let path = format!("/v2/{repository}/manifests/{tag}");
        let put = api.send(Method::PUT, &path, media, manifest).await;
        assert_eq!(put.code, StatusCode::CREATED, "{put:?}");
    }
    let all = api.get("/v2/a/tags/list").await;
    assert_eq!(all.at("/tags"), json!(["alpha", "beta", "tau", "zeta"]));
    assert!(!all.headers.contains_key(http::header::LINK));
    let mut path = "/v2/a/tags/list?n=3".to_owned();
    let mut pages = Vec::new();
    loop {
        let page = api.get(&path).await;
        pages.push(page.at("/tags"));
        let Some(next) = page.headers.get(http::header::LINK) else { break };
        let next = next.to_str().unwrap();
        path = next.split(['<', '>']).nth(1).unwrap().to_owned();
    }
    assert_eq!(pages, [json!(["alpha", "beta", "tau"]), json!(["zeta"])]);
}
