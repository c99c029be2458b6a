//! The API server of this very process, without a socket.

use kube::client::Body;
use tower::ServiceExt as _;

use crate::api::user::UserInfo;
use crate::client::streamed;

/// A client that calls `router` directly, as the user `name` in `groups`.
///
/// Must be called within a tokio runtime: the client queues requests on a task of its own, which
/// ends when the last clone of the client is dropped.
#[must_use]
pub fn in_process(router: axum::Router, name: &str, groups: &[&str]) -> kube::Client {
    let user = UserInfo::new(name, groups);
    let service = router.map_request(move |mut request: http::Request<Body>| {
        request.extensions_mut().insert(user.clone());
        streamed::body_of(request)
    });
    kube::Client::new(service, "default")
}

#[cfg(test)]
mod tests {
    use axum::Extension;
    use axum::routing::get;

    use super::*;

    #[tokio::test]
    async fn the_router_sees_the_user() {
        let router = axum::Router::new()
            .route("/whoami", get(|Extension(user): Extension<UserInfo>| async move { user.name }));
        let client = in_process(router, "system:node:a", &["system:nodes"]);
        let request = http::Request::get("/whoami").body(Vec::new()).unwrap();
        assert_eq!(client.request_text(request).await.unwrap(), "system:node:a");
    }
}
