//! From a bearer token to a user.

use axum::body::Body;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{Request, header};
use serde_json::Value;

use crate::api::meta;
use crate::api::status::Status;
use crate::api::user::UserInfo;
use crate::apiserver::context::Context;
use crate::apiserver::error::ApiError;
use crate::apiserver::service_account::{CLAIMS, ISSUER, USER_PREFIX, find};

/// Puts the user of a bearer token into the request. A certificate, or the connection of another
/// process of the cluster, counts before it. `takes_basic`: a token may be the password of a basic
/// authentication, whatever the name.
///
/// # Errors
///
/// 401 for a token that is not good.
pub(in crate::apiserver) async fn authenticate(
    context: &Context,
    request: &mut Request<Body>,
    takes_basic: bool,
) -> Result<(), ApiError> {
    if request.extensions().get::<UserInfo>().is_some() {
        return Ok(());
    }
    let header = request.headers().get(header::AUTHORIZATION);
    let token = header.and_then(|value| {
        let value = value.to_str().ok()?;
        let password = || if takes_basic { password(value) } else { None };
        bearer(value).map(str::to_owned).or_else(password)
    });
    let Some(token) = token else { return Ok(()) };
    let user = user_of(context, &token).await?;
    request.extensions_mut().insert(user);
    Ok(())
}

fn bearer(header: &str) -> Option<&str> {
    let (scheme, token) = header.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

/// The password of basic authentication: clients of registries know no other way to show a token.
fn password(header: &str) -> Option<String> {
    let (scheme, encoded) = header.split_once(' ')?;
    let decoded = STANDARD.decode(encoded.trim()).ok()?;
    let decoded = String::from_utf8(decoded).ok()?;
    let (_, password) = decoded.split_once(':')?;
    (scheme.eq_ignore_ascii_case("basic") && !password.is_empty()).then(|| password.to_owned())
}

async fn user_of(context: &Context, token: &str) -> Result<UserInfo, ApiError> {
    let refused = |reason: &str| {
        tracing::debug!(reason, "a bearer token was refused");
        ApiError::from(Status::unauthorized())
    };
    let signer = context.signers.get(&context.store).await?;
    let claims = signer.verify(token).map_err(|err| refused(&err.to_string()))?;
    check_life(&claims, context.clock.now().as_second()).map_err(refused)?;
    let text = |path: &str| claims.pointer(path).and_then(Value::as_str).unwrap_or_default();
    let own = |name: &str, key: &str| text(&format!("/{CLAIMS}/{name}{key}"));
    let (namespace, name) = (own("namespace", ""), own("serviceaccount", "/name"));
    if text("/sub") != format!("{USER_PREFIX}{namespace}:{name}") {
        return Err(refused("its subject is not its account"));
    }
    for (plural, claim, within) in [
        ("serviceaccounts", "serviceaccount", Some(namespace)),
        ("pods", "pod", Some(namespace)),
        ("secrets", "secret", Some(namespace)),
    ] {
        let bound = own(claim, "/name");
        if bound.is_empty() {
            continue;
        }
        let object = find(context, plural, within, bound).await?;
        if object.is_none_or(|object| meta::uid(&object) != own(claim, "/uid")) {
            return Err(refused("what it is bound to is gone"));
        }
    }
    Ok(UserInfo {
        name: format!("{USER_PREFIX}{namespace}:{name}"),
        groups: vec![
            "system:serviceaccounts".to_owned(),
            format!("system:serviceaccounts:{namespace}"),
            "system:authenticated".to_owned(),
        ],
    })
}

/// Checks issuer, audience and life.
fn check_life(claims: &Value, now: i64) -> Result<(), &'static str> {
    let number = |key: &str| claims.get(key).and_then(Value::as_i64);
    if claims.get("iss").and_then(Value::as_str) != Some(ISSUER) {
        return Err("it is of another issuer");
    }
    let audiences = claims.get("aud").and_then(Value::as_array);
    if !audiences.into_iter().flatten().any(|audience| audience.as_str() == Some(ISSUER)) {
        return Err("it is for another audience");
    }
    if number("exp").is_none_or(|end| now >= end) {
        return Err("it has expired");
    }
    // When it begins says nothing: it is good from the moment that it is made, by a server whose clock
    // may be hours before this one's.
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_token_is_good_for_its_life_and_its_audience() {
        let claims = |aud: &str| json!({"iss": ISSUER, "aud": [aud], "exp": 2000, "nbf": 1000});
        assert_eq!(check_life(&claims(ISSUER), 1500), Ok(()));
        assert!(check_life(&claims("vault"), 1500).is_err());
        assert!(check_life(&claims(ISSUER), 2000).is_err());
        assert_eq!(check_life(&claims(ISSUER), 900), Ok(()), "the clock here is behind");
        assert!(check_life(&json!({"iss": ISSUER, "aud": [ISSUER]}), 1500).is_err());
    }

    #[test]
    fn the_scheme_is_bearer_in_any_case() {
        assert_eq!(bearer("Bearer abc"), Some("abc"));
        assert_eq!(bearer("bearer  abc"), Some("abc"));
        assert_eq!(bearer("Basic abc"), None);
        assert_eq!(bearer("Bearer "), None);
    }
}
