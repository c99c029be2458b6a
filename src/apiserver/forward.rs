//! Requests that another process must answer: the leader, another server, a node's agent.

use axum::Router;
use axum::body::Body;
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use tower::ServiceExt as _;

use crate::api::status::Status;
use crate::api::user::UserInfo;
use crate::apiserver::access;
use crate::apiserver::context::ApiServerConfig;
use crate::apiserver::error::ApiError;
use crate::net::{self, Alpn, Peers};

/// The ways out of this process.
#[derive(Debug)]
pub(super) struct Forward {
    node_name: String,
    peers: Option<Peers>,
    node_api: Option<Router>,
}

impl Forward {
    pub(super) fn new(config: &ApiServerConfig) -> Self {
        Self {
            node_name: config.node_name.clone(),
            peers: config.peers.clone(),
            node_api: config.node_api.clone(),
        }
    }

    /// Lets the leader answer `request` for `user`; a watch streams through.
    pub(super) async fn to_leader(
        &self,
        leader: &str,
        mut request: Request<Body>,
        user: &UserInfo,
    ) -> Result<Response<Body>, ApiError> {
        access::impersonate(request.headers_mut(), user)?;
        self.server(leader, request).await
    }

    /// Sends `request` to another server's API.
    pub(super) async fn server(
        &self,
        server: &str,
        request: Request<Body>,
    ) -> Result<Response<Body>, ApiError> {
        self.remote(server, Alpn::Api, request).await
    }

    /// Sends `request` to the agent of a node.
    pub(super) async fn node(
        &self,
        node: &str,
        request: Request<Body>,
    ) -> Result<Response<Body>, ApiError> {
        match &self.node_api {
            Some(router) if node == self.node_name => match router.clone().oneshot(request).await {
                Ok(response) => Ok(response),
                Err(never) => match never {},
            },
            _ => self.remote(node, Alpn::Node, request).await,
        }
    }

    async fn remote(
        &self,
        peer: &str,
        alpn: Alpn,
        request: Request<Body>,
    ) -> Result<Response<Body>, ApiError> {
        let away = |err: &dyn std::fmt::Display| {
            tracing::debug!(peer, %err, "a peer could not be asked");
            ApiError::from(Status::unavailable(format!("node {peer} cannot be reached")))
        };
        let Some(peers) = &self.peers else { return Err(away(&"this server stands alone")) };
        let conn = peers.get(peer, alpn).await.map_err(|err| away(&err))?;
        let request = request.map(|body| body.map_err(net::BodyError::from).boxed_unsync());
        let response = net::http::send(&conn, request).await.map_err(|err| away(&err))?;
        Ok(response.map(Body::new))
    }
}

/// A GET without a body.
pub(super) fn get(path: &str) -> Request<Body> {
    let mut request = Request::new(Body::empty());
    if let Ok(uri) = path.parse() {
        *request.uri_mut() = uri;
    }
    request
}

/// Whether an answer is a success.
pub(super) fn is_ok(response: &Response<Body>) -> bool {
    (StatusCode::OK..StatusCode::MULTIPLE_CHOICES).contains(&response.status())
}
