//! OpenID Connect discovery: how others check the cluster's tokens.

use axum::body::Body;
use http::{Method, Response, StatusCode};
use serde_json::json;

use crate::apiserver::context::Context;
use crate::apiserver::error::ApiError;
use crate::apiserver::response;
use crate::apiserver::service_account::ISSUER;

/// The two documents, at the paths that Kubernetes has them at.
const CONFIGURATION: &str = "/.well-known/openid-configuration";
const KEYS: &str = "/openid/v1/jwks";

/// Answers the paths of discovery; `None` for every other one.
pub(in crate::apiserver) async fn discover(
    context: &Context,
    method: &Method,
    path: &str,
) -> Result<Option<Response<Body>>, ApiError> {
    if !matches!(*method, Method::GET | Method::HEAD) {
        return Ok(None);
    }
    let document = match path {
        CONFIGURATION => json!({
            "issuer": ISSUER,
            "jwks_uri": format!("{ISSUER}{KEYS}"),
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
        }),
        KEYS => {
            let signer = context.signers.get(&context.store).await?;
            json!({"keys": [signer.public_jwk()]})
        }
        _ => return Ok(None),
    };
    Ok(Some(response::json(StatusCode::OK, &document)))
}
