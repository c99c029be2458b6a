//! From a path to its handler.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use http::{Method, Request, Response, StatusCode};
use hyper::upgrade::OnUpgrade;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::api;
use crate::api::discovery;
use crate::api::status::Status;
use crate::api::user::UserInfo;
use crate::api::versions::Alias;
use crate::apiserver::context::Context;
use crate::apiserver::error::ApiError;
use crate::apiserver::query::Query;
use crate::apiserver::request_info::RequestInfo;
use crate::apiserver::{
    access, aggregate, body, create, custom_metrics, delete, documents, health, logs, metrics,
    node_proxy, proxy, read, registry, renewals, reviews, service_account, streaming, subresource,
    update, versions, watch,
};
use crate::store::Store;

/// What the handlers of one request share.
pub(super) struct Call {
    pub(super) context: Context,
    pub(super) query: Query,
    pub(super) headers: http::HeaderMap,
    pub(super) info: RequestInfo,
    /// The version that was asked for, if it is not the stored one.
    pub(super) alias: Option<&'static Alias>,
    /// Present if the client's connection can change its protocol.
    pub(super) upgrade: Option<OnUpgrade>,
    /// Who asks, after impersonation.
    pub(super) user: UserInfo,
    /// What the client is told besides the answer.
    warnings: Mutex<Vec<String>>,
}

impl Call {
    /// Tells the client something besides the answer.
    pub(super) fn warn(&self, warning: String) {
        let mut warnings = self.warnings.lock();
        // A change may be tried several times.
        if !warnings.contains(&warning) {
            warnings.push(warning);
        }
    }

    /// What the client is to be told.
    pub(super) fn take_warnings(&self) -> Vec<String> {
        std::mem::take(&mut *self.warnings.lock())
    }
}

/// All paths lead to one handler: the API's paths are made of data (the table of resources), not
/// of routes.
pub(super) fn build(context: Context) -> Router {
    Router::new().fallback(entry).with_state(context)
}

async fn entry(State(context): State<Context>, mut request: Request<Body>) -> Response<Body> {
    let began = Instant::now();
    let alias = versions::enter(&mut request);
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let query = Query::parse(request.uri().query());
    let info = RequestInfo::parse(&path);
    let is_watch = query.is_set("watch");
    let verb = info.as_ref().map_or("other", |info| info.verb(&method, is_watch));
    let resource = info.as_ref().map_or("", |info| info.resource.plural);
    let stats = Arc::clone(&context);
    let dispatched = dispatch(context, request, info, query, alias).await;
    let mut response = dispatched.unwrap_or_else(ApiError::into_response);
    if let Some(alias) = alias {
        response = versions::show(alias, is_watch, response).await;
    }
    let code = response.status().as_u16();
    stats.stats.record(verb, resource, code, began.elapsed());
    tracing::debug!(
        http.method = %method,
        url.path = %path,
        http.status = code,
        elapsed_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
        "request"
    );
    response
}

async fn dispatch(
    context: Context,
    mut request: Request<Body>,
    info: Option<RequestInfo>,
    query: Query,
    alias: Option<&'static Alias>,
) -> Result<Response<Body>, ApiError> {
    let path = request.uri().path();
    let is_registry = path == "/v2" || path.starts_with("/v2/");
    if let Err(refused) = service_account::authenticate(&context, &mut request, is_registry).await {
        let refused = refused.into_response();
        let is_stranger = refused.status() == StatusCode::UNAUTHORIZED;
        return Ok(if is_registry && is_stranger { registry::unauthorized() } else { refused });
    }
    let user = access::user(&request)?;
    let path = request.uri().path();
    if is_registry {
        return Ok(registry::handle(&context, &user, request).await);
    }
    if let Some(response) = health::respond(&context, path, &query) {
        return Ok(response);
    }
    let Some(info) = info else {
        access::check_path(&user, request.method(), path)?;
        if reviews::is_review(&request) {
            return reviews::respond(&user, request).await;
        }
        if let Some(response) = service_account::discover(&context, request.method(), path).await? {
            return Ok(response);
        }
        let foreign = aggregate::group_version(path);
        if let Some((group, version)) = foreign
            && (!discovery::is_served(group, version) || custom_metrics::is_below(path))
            && let Some(api_service) = aggregate::find(&context, group, version).await?
        {
            return aggregate::respond(&context, &user, &api_service, request).await;
        }
        let (head, _) = request.into_parts();
        return documents::respond(&context, &head).await;
    };
    if custom_metrics::is_foreign(&info)
        && let Some((group, version)) = aggregate::group_version(path)
        && let Some(api_service) = aggregate::find(&context, group, version).await?
    {
        return aggregate::respond(&context, &user, &api_service, request).await;
    }
    let is_watch = query.is_set("watch") || query.is_set("follow");
    access::check(&user, info.verb(request.method(), is_watch), &info)?;
    if info.subresource.as_deref() != Some(renewals::SUBRESOURCE)
        && Store::is_volatile(info.resource, info.namespace.as_deref())
        && let Some(leader) = context.store.leader_elsewhere()
    {
        return context.forward.to_leader(&leader, request, &user).await;
    }
    if proxy::is_for(&info) {
        return proxy::respond(&context, &info, request).await;
    }
    let mut headers = request.headers().clone();
    let method = request.method().clone();
    let upgrade = request.extensions_mut().remove::<OnUpgrade>();
    let body = body::enter(&mut headers, request.into_body()).await?;
    let body = match alias {
        Some(alias) => versions::store(alias, &mut headers, body).await?,
        None => body,
    };
    let warnings = Mutex::default();
    let call = Call { context, query, headers, info, alias, upgrade, user, warnings };
    resource(call, &method, body).await
}

/// A request for a resource, by verb and subresource.
async fn resource(call: Call, method: &Method, body: Body) -> Result<Response<Body>, ApiError> {
    let has_name = call.info.name.is_some();
    if call.info.resource.group == api::metrics::GROUP {
        return metrics::respond(call, method).await;
    }
    if call.info.resource.group == api::custom_metrics::GROUP {
        return custom_metrics::respond(call, method).await;
    }
    if let Some(sub) = call.info.subresource.clone() {
        if sub == "proxy" && call.info.resource.plural == "nodes" {
            return node_proxy::respond(call, method).await;
        }
        if sub == "log" && call.info.resource.plural == "pods" {
            return logs::respond(call).await;
        }
        if sub == renewals::SUBRESOURCE && call.info.resource.plural == "leases" {
            return renewals::respond(call, method, body).await;
        }
        if let Some(kind) = streaming::Kind::of(&sub)
            && call.info.resource.plural == "pods"
        {
            return streaming::respond(call, method, kind).await;
        }
        return subresource::respond(call, method, &sub, body).await;
    }
    match (method.as_str(), has_name) {
        ("GET", _) if call.query.is_set("watch") => watch::respond(call).await,
        ("GET" | "HEAD", true) => read::get(call).await,
        ("GET" | "HEAD", false) => read::list(call).await,
        ("POST", false) => create::respond(call, body).await,
        ("PUT", true) => update::put(call, body).await,
        ("PATCH", true) => update::patch(call, body).await,
        ("DELETE", true) => delete::one(call, body).await,
        ("DELETE", false) => delete::collection(call, body).await,
        (other, _) => Err(Status::method_not_allowed(call.info.resource, other).into()),
    }
}
