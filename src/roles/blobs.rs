//! Blobs between agents: who asks is told to the agent that serves, and the other way round the agent
//! dials through the node's endpoint.
//!
//! Every exchange has a connection of its own, apart from Raft's, the API's and the pods': QUIC shares
//! a connection among its streams, and none of those is to wait for a blob.

use axum::Router;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use http::{Request, Response};
use tower::ServiceBuilder;

use crate::agent::{AskingNode, PeerBody, PeerConnection, PeerDialler, PeerError};
use crate::net::{self, Alpn, Connection, Peers};
use crate::rt::TaskGroup;

/// The nodes of the cluster, by their names.
pub(super) struct Nodes(pub(super) Peers);

/// A connection for blobs. Closes when it is dropped, with all that is under way on it.
struct Line(Connection);

impl PeerDialler for Nodes {
    fn dial<'a>(
        &'a self,
        node: &'a str,
    ) -> BoxFuture<'a, Result<Box<dyn PeerConnection>, PeerError>> {
        async move {
            let connection = self.0.dial(node, Alpn::Blobs).await?;
            Ok(Box::new(Line(connection)) as Box<dyn PeerConnection>)
        }
        .boxed()
    }
}

impl PeerConnection for Line {
    fn send(&self, request: Request<()>) -> BoxFuture<'_, Result<Response<PeerBody>, PeerError>> {
        async move {
            let request = request.map(|()| net::http::empty());
            Ok(net::http::send(&self.0, request).await?)
        }
        .boxed()
    }
}

/// Serves the blobs of this node to one other until it hangs up.
pub(super) async fn serve(conn: Connection, blobs: Router, tasks: &TaskGroup) {
    let asking = AskingNode(conn.peer().node.clone());
    let service = ServiceBuilder::new()
        .map_request(move |mut request: Request<net::Body>| {
            request.extensions_mut().insert(asking.clone());
            request.map(axum::body::Body::new)
        })
        .service(blobs);
    net::http::serve(conn, service, tasks).await;
}
