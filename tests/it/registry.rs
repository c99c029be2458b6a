//! The OCI registry: the flows of the distribution specification's conformance suite, in its words and
//! in those of the clients that are met: oras, wkg, skopeo, docker.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use edgeorc::api::user::UserInfo;
use http::{Method, Request, StatusCode, header};
use http_body_util::BodyExt as _;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use tower::ServiceExt as _;

use crate::support::{Answer, Api};

pub(crate) fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

#[tokio::test]
async fn a_pushed_image_is_pulled_by_tag_and_by_digest() {
    let api = Api::start().await;
    let blob = vec![7_u8; 100_000];
    let started = api.send(Method::POST, "/v2/a/b/blobs/uploads/", "", "").await;
    assert_eq!(started.code, StatusCode::ACCEPTED, "{started:?}");
    let location = started.headers[header::LOCATION].to_str().unwrap().to_owned();
    let piece = api
        .send(Method::PATCH, &location, "application/octet-stream", blob[..60_000].to_vec())
        .await;
    assert_eq!(piece.headers[header::RANGE], "0-59999");
    let put = format!("{location}?digest={}", digest(&blob));
    let done =
        api.send(Method::PUT, &put, "application/octet-stream", blob[60_000..].to_vec()).await;
    assert_eq!(done.code, StatusCode::CREATED, "{done:?}");
    let pulled = api.get(&format!("/v2/a/b/blobs/{}", digest(&blob))).await;
    assert_eq!(pulled.bytes, blob);
    for (range, code, length) in [
        ("bytes=99000-", StatusCode::PARTIAL_CONTENT, 1000),
        ("bytes=100000-", StatusCode::RANGE_NOT_SATISFIABLE, 0),
        ("bytes=10-19", StatusCode::PARTIAL_CONTENT, 10),
        ("bytes=99990-200000", StatusCode::PARTIAL_CONTENT, 10),
        ("bytes=19-10", StatusCode::OK, 100_000),
        ("bytes=5-9,20-30", StatusCode::OK, 100_000),
    ] {
        let request = Request::get(format!("/v2/a/b/blobs/{}", digest(&blob)))
            .header(header::RANGE, range)
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
        assert_eq!(pulled.headers[header::CONTENT_TYPE], media);
    }
    assert_eq!(api.get("/v2/a/b/tags/list").await.json(), json!({"name": "a/b", "tags": ["v1"]}));
}

#[tokio::test]
async fn a_repository_may_have_the_name_of_the_interface() {
    let api = Api::start().await;
    for repository in ["v2/app", "v2app/x", "v2-api/web"] {
        let manifest = json!({"schemaVersion": 2, "layers": [], "annotations": {"of": repository}});
        push_manifest(&api, &format!("/v2/{repository}/manifests/v1"), &manifest).await;
        assert_eq!(
            api.get(&format!("/v2/{repository}/tags/list")).await.at("/name"),
            json!(repository)
        );
    }
    let names = api.get("/v2/_catalog").await.at("/repositories");
    assert_eq!(names, json!(["v2-api/web", "v2/app", "v2app/x"]));
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
async fn a_manifest_is_taken_when_what_it_names_is_there() {
    let api = Api::start().await;
    let layer = push_blob(&api, "a", b"layer").await;
    let put = async |manifest: String| {
        ask(&api, Method::PUT, "/v2/a/manifests/v1", &[(header::CONTENT_TYPE, MANIFEST)], manifest)
            .await
    };
    let of = |digest: &str, size: u64| {
        json!({"schemaVersion": 2, "layers": [{"digest": digest, "size": size}]}).to_string()
    };
    let none = digest(b"none");
    let large =
        json!({"schemaVersion": 2, "layers": [], "annotations": {"x": "x".repeat(2 << 20)}});
    for (manifest, code, word) in [
        (of(&none, 4), StatusCode::NOT_FOUND, "MANIFEST_BLOB_UNKNOWN"),
        (of(&layer, 4), StatusCode::BAD_REQUEST, "MANIFEST_INVALID"),
        (of("sha256:x", 4), StatusCode::BAD_REQUEST, "DIGEST_INVALID"),
        ("{}".to_owned(), StatusCode::BAD_REQUEST, "MANIFEST_INVALID"),
        ("[]".to_owned(), StatusCode::BAD_REQUEST, "MANIFEST_INVALID"),
        (large.to_string(), StatusCode::PAYLOAD_TOO_LARGE, "SIZE_INVALID"),
    ] {
        let refused = put(manifest).await;
        assert_eq!(
            (refused.code, refused.at("/errors/0/code")),
            (code, json!(word)),
            "{refused:?}"
        );
    }
    assert_eq!(put(of(&layer, 5)).await.code, StatusCode::CREATED);
}

#[tokio::test]
async fn all_repositories_are_listed_page_by_page() {
    let api = Api::start().await;
    let manifest = json!({"schemaVersion": 2, "layers": []});
    for repository in ["b", "a/b", "a", "a-c", "c"] {
        push_manifest(&api, &format!("/v2/{repository}/manifests/v1"), &manifest).await;
    }
    let all = api.get("/v2/_catalog").await;
    assert_eq!(all.at("/repositories"), json!(["a", "a-c", "a/b", "b", "c"]));
    let first = api.get("/v2/_catalog?n=3").await;
    assert_eq!(first.at("/repositories"), json!(["a", "a-c", "a/b"]));
    assert_eq!(field(&first, "link"), "</v2/_catalog?n=3&last=a/b>; rel=\"next\"");
    let next = api.get("/v2/_catalog?n=3&last=a/b").await;
    assert_eq!(next.at("/repositories"), json!(["b", "c"]));
    let wrong = api.get("/v2/_catalog?n=many").await;
    assert_eq!(wrong.at("/errors/0/code"), json!("PAGINATION_NUMBER_INVALID"));
    for path in
        ["/v2/", "/v2/_catalog", "/v2/a/tags/list", &format!("/v2/a/referrers/{}", digest(b""))]
    {
        let refused = ask(&api, Method::POST, path, &[], "").await;
        assert_eq!(refused.code, StatusCode::METHOD_NOT_ALLOWED, "{path}");
    }
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
    assert!(!all.headers.contains_key(header::LINK));
    let mut path = "/v2/a/tags/list?n=3".to_owned();
    let mut pages = Vec::new();
    loop {
        let page = api.get(&path).await;
        pages.push(page.at("/tags"));
        let Some(next) = page.headers.get(header::LINK) else { break };
        let next = next.to_str().unwrap();
        path = next.split(['<', '>']).nth(1).unwrap().to_owned();
    }
    assert_eq!(pages, [json!(["alpha", "beta", "tau"]), json!(["zeta"])]);
}

pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const BYTES: &str = "application/octet-stream";

/// A request of the administrator with these header fields.
pub(crate) async fn ask(
    api: &Api,
    method: Method,
    path: &str,
    headers: &[(header::HeaderName, &str)],
    body: impl Into<axum::body::Body>,
) -> Answer {
    let user = UserInfo::new("admin", &["system:masters"]);
    ask_as(api, Some(user), method, path, headers, body).await
}

async fn ask_as(
    api: &Api,
    user: Option<UserInfo>,
    method: Method,
    path: &str,
    headers: &[(header::HeaderName, &str)],
    body: impl Into<axum::body::Body>,
) -> Answer {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(name, *value);
    }
    let mut request = request.body(body.into()).unwrap();
    if let Some(user) = user {
        request.extensions_mut().insert(user);
    }
    let (head, body) = api.router.clone().oneshot(request).await.unwrap().into_parts();
    let bytes = body.collect().await.unwrap().to_bytes();
    Answer { code: head.status, headers: head.headers, bytes }
}

fn field(answer: &Answer, name: &str) -> String {
    let value = answer.headers.get(name).unwrap_or_else(|| panic!("no {name} in {answer:?}"));
    value.to_str().unwrap().to_owned()
}

/// Starts an upload; where it goes on.
async fn begin(api: &Api, repository: &str) -> String {
    let path = format!("/v2/{repository}/blobs/uploads/");
    let begun = ask(api, Method::POST, &path, &[(header::CONTENT_LENGTH, "0")], "").await;
    assert_eq!(begun.code, StatusCode::ACCEPTED, "{begun:?}");
    field(&begun, "location")
}

pub(crate) async fn push_blob(api: &Api, repository: &str, bytes: &'static [u8]) -> String {
    let digest = digest(bytes);
    let path = format!("{}?digest={digest}", begin(api, repository).await);
    let done = ask(api, Method::PUT, &path, &[(header::CONTENT_TYPE, BYTES)], bytes).await;
    assert_eq!(done.code, StatusCode::CREATED, "{done:?}");
    assert_eq!(field(&done, "location"), format!("/v2/{repository}/blobs/{digest}"));
    assert_eq!(field(&done, "docker-content-digest"), digest);
    digest
}

/// Puts a manifest; its digest.
pub(crate) async fn push_manifest(api: &Api, place: &str, manifest: &serde_json::Value) -> String {
    let text = manifest.to_string();
    let digest = digest(text.as_bytes());
    let put = ask(api, Method::PUT, place, &[(header::CONTENT_TYPE, MANIFEST)], text).await;
    assert_eq!(put.code, StatusCode::CREATED, "{put:?}");
    assert_eq!(field(&put, "docker-content-digest"), digest);
    digest
}

#[tokio::test]
async fn a_blob_is_pushed_with_one_post_or_with_a_post_and_a_put() {
    let api = Api::start().await;
    let path = format!("/v2/a/b/blobs/uploads/?digest={}", digest(b"one"));
    let length = [(header::CONTENT_LENGTH, "3"), (header::CONTENT_TYPE, BYTES)];
    let done = ask(&api, Method::POST, &path, &length, "one").await;
    assert_eq!(done.code, StatusCode::CREATED, "{done:?}");
    let two = push_blob(&api, "a/b", b"two").await;
    for (digest, length) in [(digest(b"one"), "3"), (two, "3")] {
        let head = ask(&api, Method::HEAD, &format!("/v2/a/b/blobs/{digest}"), &[], "").await;
        assert_eq!((head.code, field(&head, "content-length")), (StatusCode::OK, length.into()));
        assert_eq!(field(&head, "docker-content-digest"), digest);
    }
}

#[tokio::test]
async fn pieces_are_taken_in_order_and_a_client_is_told_where_to_go_on() {
    let api = Api::start().await;
    let path = begin(&api, "a").await;
    let piece = |range: &'static str, length: &'static str| {
        [(header::CONTENT_RANGE, range), (header::CONTENT_LENGTH, length)]
    };
    // Out of order from the start.
    let early = ask(&api, Method::PATCH, &path, &piece("3-5", "3"), "two").await;
    assert_eq!(early.code, StatusCode::RANGE_NOT_SATISFIABLE, "{early:?}");
    assert_eq!(early.at("/errors/0/code"), json!("BLOB_UPLOAD_INVALID"));
    let first = ask(&api, Method::PATCH, &path, &piece("0-2", "3"), "one").await;
    assert_eq!((first.code, field(&first, "range")), (StatusCode::ACCEPTED, "0-2".into()));
    // The same again: it was lost on the way back.
    let again = ask(&api, Method::PATCH, &path, &piece("0-2", "3"), "one").await;
    assert_eq!(again.code, StatusCode::RANGE_NOT_SATISFIABLE);
    assert_eq!((field(&again, "range"), field(&again, "location")), ("0-2".into(), path.clone()));
    let status = ask(&api, Method::GET, &path, &[], "").await;
    assert_eq!((status.code, field(&status, "range")), (StatusCode::NO_CONTENT, "0-2".into()));
    assert_eq!(field(&status, "location"), path);
    // A range that is not what is sent spoils nothing.
    let wrong = ask(&api, Method::PATCH, &path, &piece("3-9", "3"), "two").await;
    assert_eq!(wrong.code, StatusCode::BAD_REQUEST);
    let second = ask(&api, Method::PATCH, &path, &piece("3-5", "3"), "two").await;
    assert_eq!(field(&second, "range"), "0-5");
    // The last piece comes with the PUT.
    let put = format!("{path}?digest={}", digest(b"onetwothree"));
    let done = ask(&api, Method::PUT, &put, &piece("6-10", "5"), "three").await;
    assert_eq!(done.code, StatusCode::CREATED, "{done:?}");
    let gone = ask(&api, Method::GET, &path, &[], "").await;
    assert_eq!(gone.code, StatusCode::NOT_FOUND);
    assert_eq!(gone.at("/errors/0/code"), json!("BLOB_UPLOAD_UNKNOWN"));
    // As docker and skopeo do: one piece without a range, then an empty PUT.
    let path = begin(&api, "a").await;
    let all = ask(&api, Method::PATCH, &path, &[(header::CONTENT_TYPE, BYTES)], "all").await;
    assert_eq!(all.code, StatusCode::ACCEPTED);
    let put = format!("{path}?digest={}", digest(b"all"));
    let done = ask(&api, Method::PUT, &put, &[(header::CONTENT_LENGTH, "0")], "").await;
    assert_eq!(done.code, StatusCode::CREATED, "{done:?}");
}

#[tokio::test]
async fn a_blob_is_mounted_from_another_repository_or_an_upload_begins() {
    let api = Api::start().await;
    let blob = push_blob(&api, "from", b"shared").await;
    let mount = |digest: &str| format!("/v2/to/blobs/uploads/?mount={digest}&from=from");
    let mounted = ask(&api, Method::POST, &mount(&blob), &[], "").await;
    assert_eq!(mounted.code, StatusCode::CREATED, "{mounted:?}");
    assert_eq!(field(&mounted, "location"), format!("/v2/to/blobs/{blob}"));
    assert_eq!(api.get(&format!("/v2/to/blobs/{blob}")).await.bytes, "shared");
    let begun = ask(&api, Method::POST, &mount(&digest(b"nowhere")), &[], "").await;
    assert_eq!(begun.code, StatusCode::ACCEPTED, "{begun:?}");
    let status = ask(&api, Method::GET, &field(&begun, "location"), &[], "").await;
    assert_eq!(status.code, StatusCode::NO_CONTENT);
}

#[tokio::test]
async fn what_is_not_there_is_told_with_the_codes_of_the_specification() {
    let api = Api::start().await;
    let none = digest(b"none");
    let cases = [
        (Method::GET, format!("/v2/a/blobs/{none}"), 404, "BLOB_UNKNOWN"),
        (Method::GET, "/v2/a/manifests/none".to_owned(), 404, "MANIFEST_UNKNOWN"),
        (Method::GET, "/v2/a/manifests/.INVALID_MANIFEST_NAME".to_owned(), 404, "MANIFEST_UNKNOWN"),
        (Method::GET, format!("/v2/a/manifests/{none}"), 404, "MANIFEST_UNKNOWN"),
        (Method::DELETE, "/v2/a/manifests/none".to_owned(), 404, "MANIFEST_UNKNOWN"),
        (Method::GET, "/v2/none/tags/list".to_owned(), 404, "NAME_UNKNOWN"),
        (Method::GET, "/v2/a/blobs/uploads/none".to_owned(), 404, "BLOB_UPLOAD_UNKNOWN"),
        (Method::GET, "/v2/A/tags/list".to_owned(), 400, "NAME_INVALID"),
        (Method::GET, "/v2/a/blobs/sha256:totallywrong".to_owned(), 400, "DIGEST_INVALID"),
        (Method::PUT, "/v2/a/manifests/.x".to_owned(), 400, "MANIFEST_INVALID"),
        (Method::PUT, format!("/v2/a/manifests/{none}"), 400, "DIGEST_INVALID"),
        (Method::PUT, "/v2/a/manifests/x".to_owned(), 400, "MANIFEST_INVALID"),
        (Method::DELETE, format!("/v2/a/blobs/{none}"), 404, "BLOB_UNKNOWN"),
    ];
    for (method, path, code, word) in cases {
        let body = if path.ends_with("/x") { "no JSON" } else { "{}" };
        let answer = ask(&api, method.clone(), &path, &[], body).await;
        assert_eq!(answer.code.as_u16(), code, "{method} {path}: {answer:?}");
        assert_eq!(answer.at("/errors/0/code"), json!(word), "{method} {path}");
        assert_eq!(field(&answer, "docker-distribution-api-version"), "registry/2.0");
    }
    // Blobs belong to all repositories, and are not deleted by one.
    let blob = push_blob(&api, "a", b"stays").await;
    let refused = ask(&api, Method::DELETE, &format!("/v2/a/blobs/{blob}"), &[], "").await;
    assert_eq!(refused.code, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(refused.at("/errors/0/code"), json!("UNSUPPORTED"));
}

#[tokio::test]
async fn a_manifest_is_deleted_by_tag_or_by_digest_with_its_tags() {
    let api = Api::start().await;
    let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "layers": []});
    let mut digest = String::new();
    for tag in ["v1", "v2", "v3"] {
        digest = push_manifest(&api, &format!("/v2/a/manifests/{tag}"), &manifest).await;
    }
    let other = json!({"schemaVersion": 2, "layers": [], "annotations": {"other": "one"}});
    push_manifest(&api, "/v2/a/manifests/other", &other).await;
    let delete = async |reference: &str| {
        ask(&api, Method::DELETE, &format!("/v2/a/manifests/{reference}"), &[], "").await.code
    };
    assert_eq!(delete("v1").await, StatusCode::ACCEPTED);
    assert_eq!(delete("v1").await, StatusCode::NOT_FOUND);
    assert_eq!(api.get("/v2/a/manifests/v2").await.code, StatusCode::OK);
    assert_eq!(api.get(&format!("/v2/a/manifests/{digest}")).await.code, StatusCode::OK);
    assert_eq!(delete(&digest).await, StatusCode::ACCEPTED);
    for reference in ["v2", "v3", &digest] {
        let gone = api.get(&format!("/v2/a/manifests/{reference}")).await;
        assert_eq!(gone.code, StatusCode::NOT_FOUND, "{reference}");
    }
    assert_eq!(api.get("/v2/a/tags/list").await.at("/tags"), json!(["other"]));
    // A repository whose last tag went has no tags, and is there.
    assert_eq!(delete("other").await, StatusCode::ACCEPTED);
    assert_eq!(api.get("/v2/a/tags/list").await.at("/tags"), json!([]));
}

#[tokio::test]
async fn tags_are_listed_from_a_place_on_and_none_when_none_are_wanted() {
    let api = Api::start().await;
    for tag in ["b", "a", "d", "c"] {
        let manifest = json!({"schemaVersion": 2, "layers": []});
        push_manifest(&api, &format!("/v2/a/manifests/{tag}"), &manifest).await;
    }
    for (query, tags) in [
        ("", json!(["a", "b", "c", "d"])),
        ("?n=0", json!([])),
        ("?n=2", json!(["a", "b"])),
        ("?last=b", json!(["c", "d"])),
        ("?n=1&last=b", json!(["c"])),
        ("?last=z", json!([])),
    ] {
        assert_eq!(api.get(&format!("/v2/a/tags/list{query}")).await.at("/tags"), tags, "{query}");
    }
}

#[tokio::test]
async fn manifests_are_found_by_their_subject() {
    let api = Api::start().await;
    let image = json!({"schemaVersion": 2, "mediaType": MANIFEST, "layers": []});
    let subject = push_manifest(&api, "/v2/a/manifests/v1", &image).await;
    let list = format!("/v2/a/referrers/{subject}");
    let empty = api.get(&list).await;
    assert_eq!((empty.code, empty.at("/manifests")), (StatusCode::OK, json!([])));
    assert_eq!(field(&empty, "content-type"), "application/vnd.oci.image.index.v1+json");
    let refers = |kind: &str| {
        json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": kind, "layers": [],
            "subject": {"mediaType": MANIFEST, "digest": subject, "size": 1},
            "annotations": {"kind": kind},
        })
    };
    let mut digests = Vec::new();
    for kind in ["application/signature", "application/sbom"] {
        let text = refers(kind).to_string();
        let own = digest(text.as_bytes());
        let place = format!("/v2/a/manifests/{own}");
        let put = ask(&api, Method::PUT, &place, &[(header::CONTENT_TYPE, MANIFEST)], text).await;
        assert_eq!(put.code, StatusCode::CREATED, "{put:?}");
        assert_eq!(field(&put, "oci-subject"), subject);
        digests.push(own);
    }
    assert_eq!(api.get(&list).await.at("/manifests").as_array().unwrap().len(), 2);
    let filtered = api.get(&format!("{list}?artifactType=application%2Fsbom")).await;
    assert_eq!(field(&filtered, "oci-filters-applied"), "artifactType");
    let found = filtered.at("/manifests");
    assert_eq!(found.as_array().unwrap().len(), 1, "{found}");
    assert_eq!(found[0]["digest"], json!(digests[1]));
    assert_eq!(found[0]["artifactType"], json!("application/sbom"));
    assert_eq!(found[0]["annotations"], json!({"kind": "application/sbom"}));
    assert_eq!(found[0]["mediaType"], json!(MANIFEST));
    let place = format!("/v2/a/manifests/{}", digests[1]);
    assert_eq!(ask(&api, Method::DELETE, &place, &[], "").await.code, StatusCode::ACCEPTED);
    assert_eq!(api.get(&list).await.at("/manifests/0/digest"), json!(digests[0]));
    // A client without the endpoint's knowledge keeps the list itself, under a tag.
    let tag = subject.replace(':', "-");
    push_manifest(&api, &format!("/v2/a/manifests/{tag}"), &image).await;
    assert_eq!(api.get(&format!("/v2/a/manifests/{tag}")).await.code, StatusCode::OK);
}

#[tokio::test]
async fn a_stranger_is_asked_for_a_password_and_a_token_is_one() {
    let api = Api::start().await;
    let stranger = ask_as(&api, None, Method::GET, "/v2/", &[], "").await;
    assert_eq!(stranger.code, StatusCode::UNAUTHORIZED);
    assert_eq!(field(&stranger, "www-authenticate"), "Basic realm=\"edgeorc\"");
    assert_eq!(field(&stranger, "docker-distribution-api-version"), "registry/2.0");
    assert_eq!(stranger.at("/errors/0/code"), json!("UNAUTHORIZED"));
    let account =
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "robot"}});
    let made = api.post("/api/v1/namespaces/default/serviceaccounts", &account).await;
    assert_eq!(made.code, StatusCode::CREATED, "{made:?}");
    let asked =
        json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
    let path = "/api/v1/namespaces/default/serviceaccounts/robot/token";
    let token = api.post(path, &asked).await.at("/status/token");
    let token = token.as_str().unwrap();
    let login = async |password: &str, method: Method, path: &str| {
        let basic = format!("Basic {}", STANDARD.encode(format!("anybody:{password}")));
        ask_as(&api, None, method, path, &[(header::AUTHORIZATION, &basic)], "").await
    };
    assert_eq!(login(token, Method::GET, "/v2/").await.code, StatusCode::OK);
    let wrong = login("wrong", Method::GET, "/v2/").await;
    assert_eq!(wrong.code, StatusCode::UNAUTHORIZED);
    assert_eq!(field(&wrong, "www-authenticate"), "Basic realm=\"edgeorc\"");
    assert_eq!(wrong.at("/errors/0/code"), json!("UNAUTHORIZED"));
    let push = login(token, Method::POST, "/v2/a/blobs/uploads/").await;
    assert_eq!(push.code, StatusCode::FORBIDDEN);
    assert_eq!(push.at("/errors/0/code"), json!("DENIED"));
    // Elsewhere a password is no token.
    let elsewhere = login(token, Method::GET, "/api/v1/namespaces/default/pods").await;
    assert_eq!(elsewhere.code, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn an_account_that_is_told_to_pushes_below_its_namespace_and_nowhere_else() {
    let api = Api::start().await;
    let path = "/api/v1/namespaces/shop/serviceaccounts";
    let shop = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}});
    api.post("/api/v1/namespaces", &shop).await;
    let account = |name: &str, value: &str| {
        json!({
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": name, "annotations": {"edgeorc.io/registry-push": value}},
        })
    };
    for (name, value) in [("ci", "true"), ("reader", "no")] {
        let made = api.post(path, &account(name, value)).await;
        assert_eq!(made.code, StatusCode::CREATED, "{made:?}");
    }
    let user =
        |name: &str| Some(UserInfo::new(name, &["system:serviceaccounts", "system:authenticated"]));
    let push = async |name: &str, repository: &str| {
        let path = format!("/v2/{repository}/blobs/uploads/?digest={}", digest(b"bytes"));
        ask_as(&api, user(name), Method::POST, &path, &[], "bytes").await.code
    };
    let ci = "system:serviceaccount:shop:ci";
    assert_eq!(push(ci, "shop/cart").await, StatusCode::CREATED);
    let manifest = json!({"schemaVersion": 2, "layers": []}).to_string();
    let media = [(header::CONTENT_TYPE, "application/vnd.oci.image.manifest.v1+json")];
    let tag = "/v2/shop/cart/manifests/v1";
    let tagged = ask_as(&api, user(ci), Method::PUT, tag, &media, manifest.clone()).await;
    assert_eq!(tagged.code, StatusCode::CREATED, "{tagged:?}");
    for repository in ["shop", "shopper/cart", "other/shop/cart", "_replicas", "shop/../other"] {
        let code = push(ci, repository).await;
        assert!(code.is_client_error(), "{repository} {code}");
    }
    for name in [
        "system:serviceaccount:shop:reader",
        "system:serviceaccount:shop:nobody",
        "system:serviceaccount:other:ci",
    ] {
        assert_eq!(push(name, "shop/cart").await, StatusCode::FORBIDDEN, "{name}");
    }
    let refused =
        ask_as(&api, user(ci), Method::PUT, "/v2/cart/manifests/v1", &media, manifest.clone());
    let refused = refused.await;
    assert_eq!(refused.at("/errors/0/code"), json!("DENIED"));
    assert!(refused.at("/errors/0/message").to_string().contains("edgeorc.io/registry-push"));
}
