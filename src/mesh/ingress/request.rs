//! One request at the ingress: find its route, change it, send it, change the answer.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::header::{self, HeaderValue};
use http::{Method, Request, Response, StatusCode, Uri, Version};
use tokio::time::Instant;

use super::action::{Action, Arrival, Choice, Protocol, Redirect, Rewrite};
use super::body::{AnswerBody, ClientBody, begun, limited};
use super::headers::{self, Target};
use super::refusal::Refusal;
use super::server::Client;
use super::upgrade;
use crate::api::gateway::{HTTP_PORT, HTTPS_PORT};
use crate::mesh::Mesh;
use crate::mesh::balancer::Backend;
use crate::mesh::call::HeadTimeout;
use crate::mesh::policy::Origin;
use crate::mesh::traced::span_name;
use crate::net::Body;
use crate::telemetry::trace::Span;

type LiveAction = Action<Arc<Backend>>;
pub(super) type LiveChoice = Choice<Arc<Backend>>;
pub(super) type Answer = Response<AnswerBody>;

/// Longest wait for a request whose route says that there is no limit.
const NO_LIMIT: Duration = Duration::from_secs(24 * 60 * 60);

/// What a line of the access log tells of a request.
struct Asked {
    method: Method,
    uri: Uri,
    host: String,
    version: Version,
}

impl Asked {
    fn of<B>(request: &Request<B>) -> Self {
        let host = headers::target(request).map(|target| target.host.to_owned());
        Self {
            method: request.method().clone(),
            uri: request.uri().clone(),
            host: host.unwrap_or_default(),
            version: request.version(),
        }
    }

    fn write(&self, client: &Client, route: &str, status: StatusCode, seconds: f64) {
        let from = client.from.as_ref().and_then(|from| from.to_str().ok()).unwrap_or_default();
        tracing::info!(
            target: "edgeorc::access",
            client = from,
            method = %self.method,
            scheme = client.entry.scheme(),
            host = self.host,
            path = self.uri.path(),
            version = ?self.version,
            status = status.as_u16(),
            elapsed_ms = seconds * 1000.0,
            route,
            "request"
        );
    }
}

impl Mesh {
    pub(super) async fn answer_client<B: ClientBody>(
        &self,
        mut request: Request<B>,
        client: &Client,
    ) -> Answer {
        let started = Instant::now();
        let span = self.server_span(&mut request, client);
        let asked = self.0.ingress.has_access_log.then(|| Asked::of(&request));
        let mut route = None;
        let mut answer = match self.route_client(request, client, &mut route).await {
            Ok(answer) => answer,
            Err(refusal) => {
                self.0.ingress.refusals.note(&refusal, client.from.as_ref());
                refusal.answer()
            }
        };
        let (status, took) = (answer.status(), started.elapsed());
        let metrics = &self.0.metrics;
        metrics.ingress_answered(status, took.as_secs_f64());
        if let Some(action) = &route {
            let stats = action.stats.get_or_init(|| metrics.routes.of(&[&action.name]));
            stats.answered(status, took);
        }
        if let Some(asked) = asked {
            let name = route.as_ref().map(|action| &*action.name).unwrap_or_default();
            asked.write(client, name, status, took.as_secs_f64());
        }
        if client.is_http2 {
            // Fields of a connection mean nothing there, and clients refuse them.
            answer.headers_mut().remove(header::CONNECTION);
        }
        if client.entry.is_tls
            && client.entry.port == HTTPS_PORT
            && let Some(alt_svc) = self.0.ingress.alt_svc.get()
        {
            answer.headers_mut().insert(header::ALT_SVC, alt_svc.clone());
        }
        match span {
            None => answer,
            Some(span) => traced(span, route.as_ref().map(|action| &*action.name), answer),
        }
    }

    /// The span of a request that belongs to a sampled trace; it is in the request's extensions for
    /// those it is sent on by.
    fn server_span<B>(&self, request: &mut Request<B>, client: &Client) -> Option<Span> {
        if !self.0.tracer.is_on() {
            return None;
        }
        let name = span_name(request);
        let mut span = self.0.tracer.enter(request.headers_mut(), || name)?;
        span.method(request.method());
        span.text("url.scheme", client.entry.scheme());
        span.text("url.path", request.uri().path().to_owned());
        if let Ok(target) = headers::target(request) {
            span.text("server.address", target.host.to_owned());
            if let Some(port) = target.port {
                span.number("server.port", port);
            }
        }
        if let Some(from) = client.from.as_ref().and_then(|from| from.to_str().ok()) {
            span.text("client.address", from.to_owned());
        }
        span.text(
            "network.protocol.version",
            match request.version() {
                Version::HTTP_3 => "3",
                Version::HTTP_2 => "2",
                Version::HTTP_10 => "1.0",
                _ => "1.1",
            },
        );
        request.extensions_mut().insert(*span.context());
        Some(span)
    }

    async fn route_client<B: ClientBody>(
        &self,
        request: Request<B>,
        client: &Client,
        route: &mut Option<Arc<LiveAction>>,
    ) -> Result<Answer, Refusal> {
        if request.method() == Method::CONNECT {
            return Err(Refusal::Method);
        }
        let fields = request.headers();
        if fields.contains_key(header::TRANSFER_ENCODING)
            && fields.contains_key(header::CONTENT_LENGTH)
        {
            return Err(Refusal::Length);
        }
        let codings = fields.get_all(header::TRANSFER_ENCODING);
        if codings.iter().any(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"chunked")) {
            return Err(Refusal::Coding);
        }
        let target = headers::target(&request)?;
        let found = {
            let table = self.0.table.load();
            table.ingress.find(client.entry.port, target.host, &request)
        };
        let Some((action, prefix_bytes)) = found else {
            let text = format!("no route for {}{}", target.host, request.uri().path());
            return Err(Refusal::NotFound(text));
        };
        let action: &LiveAction = route.insert(action);
        if let Some(redirect) = &action.redirect {
            return Ok(self.redirect(redirect, client, target, request.uri(), prefix_bytes));
        }
        let choice = action.choose(|total| self.0.dice.below64(total));
        let choice = choice.ok_or(Refusal::NoBackend(action.missing))?;
        let backend = choice.backend.as_ref().ok_or(Refusal::NoBackend(action.missing))?;
        let from = client.from.as_ref().and_then(|from| from.to_str().ok()).unwrap_or_default();
        let backend = &self.for_client(Arc::clone(backend), from);
        let way = (action, choice, backend);
        match action.timeout {
            None => self.send_client(request, client, way, prefix_bytes).await,
            Some(limit) => {
                let sending = self.send_client(request, client, way, prefix_bytes);
                // Boxed: most routes have no limit, and their requests should not be as large.
                let limited = Box::pin(tokio::time::timeout(limit.min(NO_LIMIT), sending));
                limited.await.unwrap_or(Err(Refusal::Timeout))
            }
        }
    }

    async fn send_client<B: ClientBody>(
        &self,
        mut request: Request<B>,
        client: &Client,
        (action, choice, backend): (&LiveAction, &LiveChoice, &Arc<Backend>),
        prefix_bytes: usize,
    ) -> Result<Answer, Refusal> {
        let upgrade = upgrade::wanted(&mut request);
        let wants_trailers = choice.protocol == Protocol::H2c
            && headers::has_word(request.headers(), &header::TE, "trailers");
        let (parts, body) = request.into_parts();
        let (body, fate) = limited(body, action.body_bytes_max)?;
        let mut request = Request::from_parts(parts, body);
        headers::prepare(&mut request, client.from.as_ref(), client.entry.scheme());
        action.request.apply(request.headers_mut());
        choice.request.apply(request.headers_mut());
        if let Some(rewrite) = &action.rewrite {
            rewrite_request(rewrite, &mut request, prefix_bytes);
        }
        if action.timeout.is_some() || action.backend_timeout.is_some() {
            let limit = action.backend_timeout.or(action.timeout).unwrap_or(NO_LIMIT);
            request.extensions_mut().insert(HeadTimeout(limit.min(NO_LIMIT)));
        }
        if !action.mirrors.is_empty() {
            request = self.mirror(&action.mirrors, request);
        }
        let is_both_ways = upgrade.is_some() || choice.protocol == Protocol::H2c;
        let answered = if let Some(upgrade) = upgrade {
            Box::pin(self.upgrade(backend, request, upgrade)).await
        } else if choice.protocol == Protocol::H2c {
            Box::pin(self.call_http2(backend, request, wants_trailers)).await
        } else {
            self.call_client(backend, request).await
        };
        let mut answer = match (answered, fate) {
            (Err(err), fate) => {
                return Err(fate.and_then(|fate| fate.refusal()).unwrap_or(err));
            }
            (Ok(answer), Some(fate)) if !is_both_ways => Box::pin(begun(answer, &fate)).await?,
            (Ok(answer), _) => answer,
        };
        choice.response.apply(answer.headers_mut());
        action.response.apply(answer.headers_mut());
        Ok(answer)
    }

    async fn call_client(
        &self,
        backend: &Backend,
        request: Request<Body>,
    ) -> Result<Answer, Refusal> {
        let mut response = self.call(backend, Origin::Node, request).await?;
        headers::remove_hop_by_hop(response.headers_mut());
        *response.version_mut() = Version::HTTP_11;
        Ok(response.map(|body| AnswerBody::Pod { body }))
    }

    fn redirect(
        &self,
        redirect: &Redirect,
        client: &Client,
        target: Target<'_>,
        uri: &Uri,
        prefix_bytes: usize,
    ) -> Answer {
        let ingress = &self.0.ingress;
        let real = |port: &std::sync::atomic::AtomicU16| port.load(Ordering::Relaxed);
        let at = Arrival {
            scheme: client.entry.scheme(),
            port: client.entry.port,
            is_ingress: matches!(client.entry.port, HTTP_PORT | HTTPS_PORT),
            host: target.host,
            client_port: target.port,
            ingress_ports: (real(&ingress.http_port), real(&ingress.https_port)),
        };
        let mut answer = Response::new(AnswerBody::Line { body: Default::default() });
        *answer.status_mut() = redirect.status;
        // What came in a valid request makes a valid field.
        if let Ok(to) = HeaderValue::try_from(redirect.location(at, uri, prefix_bytes)) {
            answer.headers_mut().insert(header::LOCATION, to);
        }
        answer
    }
}

/// The answer, which ends the span when its body has.
fn traced(mut span: Span, route: Option<&str>, answer: Answer) -> Answer {
    if let Some(route) = route {
        span.text("edgeorc.route", route.to_owned());
        span.rename(|method| format!("{method} {route}"));
    }
    span.answered(answer.status());
    answer.map(|body| AnswerBody::Traced { body: Box::new(body), _span: span })
}

fn rewrite_request(rewrite: &Rewrite, request: &mut Request<Body>, prefix_bytes: usize) {
    if let Some(host) = &rewrite.host {
        request.headers_mut().insert(header::HOST, host.clone());
    }
    let Some(change) = &rewrite.path else { return };
    let path = change.apply(request.uri().path(), prefix_bytes);
    let query = request.uri().query().map(|query| format!("?{query}")).unwrap_or_default();
    // A path that is none leaves the request as it was.
    if let Ok(uri) = format!("{path}{query}").parse() {
        *request.uri_mut() = uri;
    }
}
