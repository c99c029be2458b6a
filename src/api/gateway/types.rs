//! The kinds of `gateway.networking.k8s.io` as structs.
//!
//! Fields that nobody here looks into are kept as JSON: they are read and written again as they came.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::{ClusterResourceScope, NamespaceResourceScope};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// API group of all of them.
pub const GROUP: &str = "gateway.networking.k8s.io";

/// A class of Gateways, and who looks after them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GatewayClass {
    /// As the API has it.
    pub api_version: Option<String>,
    /// As the API has it.
    pub kind: Option<String>,
    /// Its name, and what every object has.
    pub metadata: ObjectMeta,
    /// The wish.
    pub spec: GatewayClassSpec,
    /// What was seen.
    pub status: Option<Value>,
}

/// The wish of a [`GatewayClass`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GatewayClassSpec {
    /// Who looks after Gateways of this class.
    pub controller_name: String,
    /// Parameters; nobody here has some.
    pub parameters_ref: Option<Value>,
    /// For people.
    pub description: Option<String>,
}

/// Ports that are to be listened on, with certificates, for routes to attach to.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Gateway {
    /// As the API has it.
    pub api_version: Option<String>,
    /// As the API has it.
    pub kind: Option<String>,
    /// Its name, and what every object has.
    pub metadata: ObjectMeta,
    /// The wish.
    pub spec: GatewaySpec,
    /// What was seen.
    pub status: Option<Value>,
}

/// The wish of a [`Gateway`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GatewaySpec {
    /// Name of its class.
    pub gateway_class_name: String,
    /// What it listens to.
    pub listeners: Vec<Listener>,
    /// Addresses that are asked for; the nodes' own are all there are.
    pub addresses: Vec<Value>,
    /// Labels and annotations of what is made for it; nothing is made.
    pub infrastructure: Option<Value>,
    /// Which ListenerSets may attach; none are served.
    pub allowed_listeners: Option<Value>,
    /// TLS settings of the whole Gateway.
    pub tls: Option<Value>,
    /// Whether routes must name the Gateway.
    pub default_scope: Option<String>,
}

/// One port and host name of a [`Gateway`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Listener {
    /// Unique within the Gateway.
    pub name: String,
    /// The host it is for; `*.` in front stands for any number of labels. None or empty: every host.
    pub hostname: Option<String>,
    /// 1 to 65535.
    pub port: u16,
    /// `HTTP`, `HTTPS`, `TLS`, `TCP`, `UDP`.
    pub protocol: String,
    /// Certificates.
    pub tls: Option<ListenerTls>,
    /// Who may attach.
    pub allowed_routes: Option<AllowedRoutes>,
}

/// TLS of a [`Listener`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ListenerTls {
    /// `Terminate` (default) or `Passthrough`.
    pub mode: Option<String>,
    /// Secrets of type `kubernetes.io/tls`.
    pub certificate_refs: Vec<ObjectRef>,
    /// Checks of clients' certificates.
    pub frontend_validation: Option<Value>,
    /// Settings of single implementations.
    pub options: Option<Value>,
}

/// A reference to an object, in the namespace of who refers unless it says otherwise.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ObjectRef {
    /// API group; none is the core group.
    pub group: Option<String>,
    /// Kind.
    pub kind: Option<String>,
    /// Name.
    pub name: String,
    /// Namespace.
    pub namespace: Option<String>,
}

/// Who may attach to a [`Listener`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AllowedRoutes {
    /// From where.
    pub namespaces: Option<RouteNamespaces>,
    /// Which kinds.
    pub kinds: Vec<RouteGroupKind>,
}

/// Namespaces of routes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RouteNamespaces {
    /// `Same` (default), `All`, `Selector`, `None`.
    pub from: Option<String>,
    /// Labels of the namespaces, for `Selector`.
    pub selector: Option<LabelSelector>,
}

/// A kind of routes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RouteGroupKind {
    /// API group; none is [`GROUP`].
    pub group: Option<String>,
    /// Kind.
    pub kind: String,
}

/// HTTP rules that attach to Gateways.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HTTPRoute {
    /// As the API has it.
    pub api_version: Option<String>,
    /// As the API has it.
    pub kind: Option<String>,
    /// Its name, and what every object has.
    pub metadata: ObjectMeta,
    /// The wish.
    pub spec: HttpRouteSpec,
    /// What was seen.
    pub status: Option<Value>,
}

/// The wish of an [`HTTPRoute`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpRouteSpec {
    /// The Gateways it wants to attach to.
    pub parent_refs: Vec<ParentRef>,
    /// The hosts it is for; none: those of the listener.
    pub hostnames: Vec<String>,
    /// What becomes of requests.
    pub rules: Vec<HttpRouteRule>,
    /// Attach to default Gateways; there are none.
    pub use_default_gateways: Option<String>,
}

/// A Gateway, or one of its listeners.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ParentRef {
    /// API group; none is [`GROUP`].
    pub group: Option<String>,
    /// Kind; none is `Gateway`.
    pub kind: Option<String>,
    /// Namespace; none is the route's own.
    pub namespace: Option<String>,
    /// Name.
    pub name: String,
    /// Name of a listener; none: all that fit.
    pub section_name: Option<String>,
    /// Port of listeners; none: all that fit.
    pub port: Option<u16>,
}

/// A rule of an [`HTTPRoute`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpRouteRule {
    /// For people and policies.
    pub name: Option<String>,
    /// Any of these; none: every request.
    pub matches: Vec<HttpRouteMatch>,
    /// What is changed.
    pub filters: Vec<HttpRouteFilter>,
    /// Where requests go.
    pub backend_refs: Vec<HttpBackendRef>,
    /// How long they may take.
    pub timeouts: Option<HttpRouteTimeouts>,
    /// Retries; kept, without effect: idempotent requests are sent again anyway.
    pub retry: Option<Value>,
    /// Session persistence; kept, without effect.
    pub session_persistence: Option<Value>,
}

/// What a request must have; all of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpRouteMatch {
    /// The path.
    pub path: Option<PathMatch>,
    /// Header fields.
    pub headers: Vec<ValueMatch>,
    /// Parameters of the query.
    pub query_params: Vec<ValueMatch>,
    /// The method.
    pub method: Option<String>,
}

/// How a path is compared.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PathMatch {
    /// `Exact`, `PathPrefix` (default), `RegularExpression`.
    #[serde(rename = "type")]
    pub type_: Option<String>,
    /// Default `/`.
    pub value: Option<String>,
}

/// How a header field or query parameter is compared.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ValueMatch {
    /// `Exact` (default), `RegularExpression`.
    #[serde(rename = "type")]
    pub type_: Option<String>,
    /// Its name.
    pub name: String,
    /// What its value must be.
    pub value: String,
}

/// One change to requests or responses; the field named by `type` is set.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpRouteFilter {
    /// Which.
    #[serde(rename = "type")]
    pub type_: String,
    /// Changes to the request's header.
    pub request_header_modifier: Option<HeaderModifier>,
    /// Changes to the response's header.
    pub response_header_modifier: Option<HeaderModifier>,
    /// A copy to somewhere else.
    pub request_mirror: Option<RequestMirror>,
    /// An answer that sends the client elsewhere.
    pub request_redirect: Option<RequestRedirect>,
    /// Another host or path for the backend.
    pub url_rewrite: Option<UrlRewrite>,
    /// Of other implementations.
    pub extension_ref: Option<Value>,
    /// Cross-origin rules; not supported.
    pub cors: Option<Value>,
    /// Asking somebody else for permission; not supported.
    pub external_auth: Option<Value>,
}

/// Changes to header fields: set, then add, then remove.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HeaderModifier {
    /// Replaces all values.
    pub set: Vec<HeaderValuePair>,
    /// Adds one.
    pub add: Vec<HeaderValuePair>,
    /// Takes the field away.
    pub remove: Vec<String>,
}

/// A header field.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HeaderValuePair {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
}

/// Where copies of requests go, and of how many.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RequestMirror {
    /// The Service.
    pub backend_ref: BackendObjectRef,
    /// 0 to 100; none: all.
    pub percent: Option<u32>,
    /// The same as a fraction.
    pub fraction: Option<Fraction>,
}

/// A part of all.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Fraction {
    /// So many.
    pub numerator: u32,
    /// Of so many; default 100.
    pub denominator: Option<u32>,
}

/// A redirect; what is not set stays as the client sent it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RequestRedirect {
    /// `http` or `https`.
    pub scheme: Option<String>,
    /// Host.
    pub hostname: Option<String>,
    /// Path.
    pub path: Option<PathModifier>,
    /// Port; none: that of `scheme` if it is set, else the listener's.
    pub port: Option<u16>,
    /// 301, 302 (default), 303, 307, 308.
    pub status_code: Option<u16>,
}

/// Another path.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PathModifier {
    /// `ReplaceFullPath` or `ReplacePrefixMatch`.
    #[serde(rename = "type")]
    pub type_: String,
    /// The whole path.
    pub replace_full_path: Option<String>,
    /// What stands for the prefix that matched.
    pub replace_prefix_match: Option<String>,
}

/// Another host or path for the backend.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct UrlRewrite {
    /// Host.
    pub hostname: Option<String>,
    /// Path.
    pub path: Option<PathModifier>,
}

/// A Service port.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BackendObjectRef {
    /// API group; none is the core group.
    pub group: Option<String>,
    /// Kind; none is `Service`.
    pub kind: Option<String>,
    /// Name.
    pub name: String,
    /// Namespace; none is the route's own.
    pub namespace: Option<String>,
    /// The Service's port.
    pub port: Option<u16>,
}

/// A Service port with its share of the requests.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpBackendRef {
    /// API group; none is the core group.
    pub group: Option<String>,
    /// Kind; none is `Service`.
    pub kind: Option<String>,
    /// Name.
    pub name: String,
    /// Namespace; none is the route's own.
    pub namespace: Option<String>,
    /// The Service's port.
    pub port: Option<u16>,
    /// Share, relative to the sum of all; default 1.
    pub weight: Option<u32>,
    /// Changes to what goes here.
    pub filters: Vec<HttpRouteFilter>,
}

impl HttpBackendRef {
    /// Without the share.
    #[must_use]
    pub fn target(&self) -> BackendObjectRef {
        BackendObjectRef {
            group: self.group.clone(),
            kind: self.kind.clone(),
            name: self.name.clone(),
            namespace: self.namespace.clone(),
            port: self.port,
        }
    }
}

/// Limits of time, as `GEP-2257` durations (`10s`, `1m30s`); `0s` is no limit.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpRouteTimeouts {
    /// For the whole request.
    pub request: Option<String>,
    /// For one attempt at a backend.
    pub backend_request: Option<String>,
}

/// Allows objects of other namespaces to refer to objects of this one.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ReferenceGrant {
    /// As the API has it.
    pub api_version: Option<String>,
    /// As the API has it.
    pub kind: Option<String>,
    /// Its name, and what every object has.
    pub metadata: ObjectMeta,
    /// The wish.
    pub spec: ReferenceGrantSpec,
}

/// The wish of a [`ReferenceGrant`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ReferenceGrantSpec {
    /// Who may refer.
    pub from: Vec<GrantFrom>,
    /// To what.
    pub to: Vec<GrantTo>,
}

/// Objects of one kind in one namespace.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GrantFrom {
    /// API group; empty is the core group.
    pub group: String,
    /// Kind.
    pub kind: String,
    /// Namespace.
    pub namespace: String,
}

/// Objects of one kind, or one of them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GrantTo {
    /// API group; empty is the core group.
    pub group: String,
    /// Kind.
    pub kind: String,
    /// Name; none: all of them.
    pub name: Option<String>,
}

/// Tells the client library where a kind lives in the API.
macro_rules! served {
    ($kind:ident, $name:literal, $plural:literal, $version:literal, $scope:ty) => {
        impl k8s_openapi::Resource for $kind {
            const API_VERSION: &'static str = concat!("gateway.networking.k8s.io/", $version);
            const GROUP: &'static str = GROUP;
            const KIND: &'static str = $name;
            const VERSION: &'static str = $version;
            const URL_PATH_SEGMENT: &'static str = $plural;
            type Scope = $scope;
        }

        impl k8s_openapi::Metadata for $kind {
            type Ty = ObjectMeta;

            fn metadata(&self) -> &ObjectMeta {
                &self.metadata
            }

            fn metadata_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
        }
    };
}

served!(GatewayClass, "GatewayClass", "gatewayclasses", "v1", ClusterResourceScope);
served!(Gateway, "Gateway", "gateways", "v1", NamespaceResourceScope);
served!(HTTPRoute, "HTTPRoute", "httproutes", "v1", NamespaceResourceScope);
served!(ReferenceGrant, "ReferenceGrant", "referencegrants", "v1beta1", NamespaceResourceScope);
