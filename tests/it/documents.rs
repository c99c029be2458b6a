//! Discovery and OpenAPI, in the forms that clients of several ages ask for.

use http::StatusCode;
use http::header::CONTENT_TYPE;

use crate::support::Api;

/// Characters of a token (RFC 9110, 5.6.2), but for letters and digits.
const TOKEN_SIGNS: &str = "!#$%&'*+-.^_`|~";

/// Whether `media` is `type/subtype` and parameters, as strict parsers want it.
fn is_media_type(media: &str) -> bool {
    let is_token = |word: &str| {
        !word.is_empty()
            && word.chars().all(|c| c.is_ascii_alphanumeric() || TOKEN_SIGNS.contains(c))
    };
    let essence = media.split(';').next().unwrap_or_default();
    essence.split_once('/').is_some_and(|(kind, subtype)| is_token(kind) && is_token(subtype))
}

#[tokio::test]
async fn openapi_v2_is_answered_in_a_media_type_that_old_clients_can_parse() {
    let api = Api::start().await;
    let asked = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
    for accept in [asked, "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"] {
        let answer = api.get_in("/openapi/v2", accept).await;
        assert_eq!(answer.code, StatusCode::OK);
        let media = answer.headers[CONTENT_TYPE].to_str().unwrap();
        assert!(is_media_type(media) && media.ends_with("+protobuf"), "{media}");
        // Field 1 of gnostic's Document: the version of Swagger.
        assert!(answer.bytes.starts_with(b"\x0a\x032.0"), "{:?}", answer.bytes);
    }
    let json = api.get_in("/openapi/v2", "application/json").await;
    assert_eq!(json.at("/swagger"), "2.0");
}

#[tokio::test]
async fn every_document_has_a_media_type_that_parses() {
    let api = Api::start().await;
    for path in ["/api", "/apis", "/api/v1", "/apis/apps/v1", "/openapi/v3", "/metrics", "/version"]
    {
        let answer = api.get_in(path, "*/*").await;
        assert_eq!(answer.code, StatusCode::OK, "{path}");
        let media = answer.headers[CONTENT_TYPE].to_str().unwrap();
        assert!(is_media_type(media), "{path}: {media}");
    }
}
