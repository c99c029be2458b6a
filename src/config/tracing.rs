//! Where traces go, by OpenTelemetry's own environment variables.
//!
//! Off unless an endpoint is named. Headers may carry secrets, so they come from the environment
//! only, which other users of the machine cannot read.

use std::path::PathBuf;
use std::time::Duration;

use http::header::{HeaderName, HeaderValue};
use http::uri::{Scheme, Uri};

/// What is added to an endpoint that is for all signals.
const TRACES_PATH: &str = "/v1/traces";
/// Time for one attempt to export: OpenTelemetry's default.
const TIMEOUT: Duration = Duration::from_secs(10);
/// What spans are called unless told otherwise.
const SERVICE_NAME: &str = "edgeorc";

/// OpenTelemetry's variables, unread.
#[derive(Clone, Default)]
pub struct OtelEnvironment {
    /// `OTEL_SDK_DISABLED`.
    pub sdk_disabled: Option<String>,
    /// `OTEL_TRACES_EXPORTER`: `otlp` or `none`.
    pub traces_exporter: Option<String>,
    /// `OTEL_EXPORTER_OTLP_ENDPOINT`: `/v1/traces` is added.
    pub endpoint: Option<String>,
    /// `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`: taken as it stands.
    pub traces_endpoint: Option<String>,
    /// `OTEL_EXPORTER_OTLP_TRACES_PROTOCOL`, else `OTEL_EXPORTER_OTLP_PROTOCOL`.
    pub protocol: Option<String>,
    /// `OTEL_EXPORTER_OTLP_TRACES_HEADERS`, else `OTEL_EXPORTER_OTLP_HEADERS`.
    pub headers: Option<String>,
    /// `OTEL_EXPORTER_OTLP_TRACES_TIMEOUT`, else `OTEL_EXPORTER_OTLP_TIMEOUT`, in milliseconds.
    pub timeout: Option<String>,
    /// `OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE`, else `OTEL_EXPORTER_OTLP_CERTIFICATE`.
    pub certificate: Option<String>,
    /// `OTEL_TRACES_SAMPLER`.
    pub sampler: Option<String>,
    /// `OTEL_TRACES_SAMPLER_ARG`.
    pub sampler_arg: Option<String>,
    /// `OTEL_SERVICE_NAME`.
    pub service_name: Option<String>,
    /// `OTEL_RESOURCE_ATTRIBUTES`.
    pub resource_attributes: Option<String>,
}

impl std::fmt::Debug for OtelEnvironment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The headers may have keys in them.
        f.debug_struct("OtelEnvironment").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

impl OtelEnvironment {
    /// Takes the variables from wherever `var` has them.
    pub(super) fn read(var: impl Fn(&str) -> Option<String>) -> Self {
        let of_traces = |what: &str| {
            var(&format!("OTEL_EXPORTER_OTLP_TRACES_{what}"))
                .or_else(|| var(&format!("OTEL_EXPORTER_OTLP_{what}")))
        };
        Self {
            sdk_disabled: var("OTEL_SDK_DISABLED"),
            traces_exporter: var("OTEL_TRACES_EXPORTER"),
            endpoint: var("OTEL_EXPORTER_OTLP_ENDPOINT"),
            traces_endpoint: var("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"),
            protocol: of_traces("PROTOCOL"),
            headers: of_traces("HEADERS"),
            timeout: of_traces("TIMEOUT"),
            certificate: of_traces("CERTIFICATE"),
            sampler: var("OTEL_TRACES_SAMPLER"),
            sampler_arg: var("OTEL_TRACES_SAMPLER_ARG"),
            service_name: var("OTEL_SERVICE_NAME"),
            resource_attributes: var("OTEL_RESOURCE_ATTRIBUTES"),
        }
    }
}

/// Which requests become traces.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Part of the traces that begin here, from 0 to 1. Default 1.
    pub ratio: f64,
    /// Whether a request that comes with a trace is sampled as its sender says. Default true; false
    /// leaves senders no say, for an ingress that strangers reach.
    pub is_parent_based: bool,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { ratio: 1.0, is_parent_based: true }
    }
}

/// Where traces go, and which.
#[derive(Clone, PartialEq)]
pub struct TracingSettings {
    /// The whole URL that spans are posted to, `http:` or `https:`.
    pub endpoint: Uri,
    /// Sent with every export.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Time for one attempt to export. Default 10 s.
    pub timeout: Duration,
    /// CA certificates for `https:` in place of the system's.
    pub certificate: Option<PathBuf>,
    /// Which requests become traces.
    pub sampling: Sampling,
    /// `service.name` of the spans. Default `edgeorc`.
    pub service_name: String,
    /// Further attributes of the resource.
    pub resource: Vec<(String, String)>,
}

impl std::fmt::Debug for TracingSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TracingSettings")
            .field("endpoint", &self.endpoint)
            .field("sampling", &self.sampling)
            .finish_non_exhaustive()
    }
}

/// What of the tracing settings cannot be used. Give up; the text says what to change.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TracingError {
    /// No URL, or of another scheme.
    #[error("{name} {text:?} must be a URL like http://127.0.0.1:4318")]
    Endpoint {
        /// Flag or variable.
        name: &'static str,
        /// What was given.
        text: String,
    },
    /// A protocol other than OTLP over HTTP in protobuf.
    #[error(
        "OTEL_EXPORTER_OTLP_PROTOCOL {text:?} is not spoken: use http/protobuf, which collectors take on port 4318"
    )]
    Protocol {
        /// What was given.
        text: String,
    },
    /// Not `name=value` pairs with commas. The text is not repeated: it may hold a secret.
    #[error("{name} must be NAME=VALUE pairs with commas between")]
    Pairs {
        /// Variable.
        name: &'static str,
    },
    /// No number of milliseconds.
    #[error("OTEL_EXPORTER_OTLP_TIMEOUT {text:?} must be a number of milliseconds above 0")]
    Timeout {
        /// What was given.
        text: String,
    },
    /// An unknown sampler.
    #[error(
        "OTEL_TRACES_SAMPLER {text:?} must be one of always_on, always_off, traceidratio, parentbased_always_on, parentbased_always_off, parentbased_traceidratio"
    )]
    Sampler {
        /// What was given.
        text: String,
    },
    /// The part of the requests is none.
    #[error("{name} {text:?} must be a number from 0 to 1")]
    Ratio {
        /// Flag or variable.
        name: &'static str,
        /// What was given.
        text: String,
    },
}

impl TracingSettings {
    /// `None`: no traces. The flags `--otlp-endpoint` and `--trace-ratio` go before the variables.
    ///
    /// # Errors
    ///
    /// [`TracingError`].
    pub fn build(
        endpoint: Option<&str>,
        ratio: Option<&str>,
        otel: &OtelEnvironment,
    ) -> Result<Option<Self>, TracingError> {
        let is_disabled =
            otel.sdk_disabled.as_deref().is_some_and(|v| v.eq_ignore_ascii_case("true"));
        let is_none = otel.traces_exporter.as_deref() == Some("none");
        if endpoint.is_none() && (is_disabled || is_none) {
            return Ok(None);
        }
        let endpoint = match (endpoint, &otel.traces_endpoint, &otel.endpoint) {
            (Some(base), _, _) => of_base("--otlp-endpoint", base)?,
            (None, Some(whole), _) => url("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", whole, whole)?,
            (None, None, Some(base)) => of_base("OTEL_EXPORTER_OTLP_ENDPOINT", base)?,
            (None, None, None) => return Ok(None),
        };
        if let Some(text) = otel.protocol.as_ref().filter(|text| *text != "http/protobuf") {
            return Err(TracingError::Protocol { text: text.clone() });
        }
        let timeout = match &otel.timeout {
            None => TIMEOUT,
            Some(text) => {
                let millis = text.parse().ok().filter(|millis| *millis > 0);
                let bad = || TracingError::Timeout { text: text.clone() };
                Duration::from_millis(millis.ok_or_else(bad)?)
            }
        };
        let resource = pairs("OTEL_RESOURCE_ATTRIBUTES", otel.resource_attributes.as_deref())?;
        let named = resource.iter().find(|(key, _)| key == "service.name");
        let service_name = otel.service_name.clone().or(named.map(|(_, name)| name.clone()));
        Ok(Some(Self {
            endpoint,
            headers: headers(otel.headers.as_deref())?,
            timeout,
            certificate: otel.certificate.clone().map(PathBuf::from),
            sampling: sampling(ratio, otel)?,
            service_name: service_name.unwrap_or_else(|| SERVICE_NAME.to_owned()),
            resource: resource.into_iter().filter(|(key, _)| key != "service.name").collect(),
        }))
    }
}

fn of_base(name: &'static str, base: &str) -> Result<Uri, TracingError> {
    url(name, base, &format!("{}{TRACES_PATH}", base.trim_end_matches('/')))
}

fn url(name: &'static str, given: &str, whole: &str) -> Result<Uri, TracingError> {
    let parsed = whole.parse::<Uri>().ok().filter(|uri| {
        let is_http = uri.scheme() == Some(&Scheme::HTTP) || uri.scheme() == Some(&Scheme::HTTPS);
        is_http && uri.host().is_some_and(|host| !host.is_empty())
    });
    parsed.ok_or_else(|| TracingError::Endpoint { name, text: given.to_owned() })
}

/// `a=1,b=2`, with `%2C` and the like in the values.
fn pairs(name: &'static str, text: Option<&str>) -> Result<Vec<(String, String)>, TracingError> {
    let parts = text.unwrap_or_default().split(',').map(str::trim).filter(|part| !part.is_empty());
    let pair = |part: &str| {
        let (key, value) = part.split_once('=')?;
        let (key, value) = (key.trim(), unescaped(value.trim())?);
        (!key.is_empty()).then(|| (key.to_owned(), value))
    };
    parts.map(|part| pair(part).ok_or(TracingError::Pairs { name })).collect()
}

/// Percent-decoded.
fn unescaped(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, more)) = rest.split_first() {
        rest = more;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let (digits, more) = rest.split_at_checked(2)?;
        bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
        rest = more;
    }
    String::from_utf8(bytes).ok()
}

fn headers(text: Option<&str>) -> Result<Vec<(HeaderName, HeaderValue)>, TracingError> {
    const NAME: &str = "OTEL_EXPORTER_OTLP_HEADERS";
    let header = |(name, value): (String, String)| {
        let mut value = HeaderValue::try_from(value).ok()?;
        value.set_sensitive(true);
        Some((HeaderName::try_from(name).ok()?, value))
    };
    let pairs = pairs(NAME, text)?.into_iter();
    pairs.map(|pair| header(pair).ok_or(TracingError::Pairs { name: NAME })).collect()
}

fn sampling(flag: Option<&str>, otel: &OtelEnvironment) -> Result<Sampling, TracingError> {
    let sampler = otel.sampler.as_deref().unwrap_or("parentbased_always_on");
    let (is_parent_based, kind) = match sampler.strip_prefix("parentbased_") {
        Some(kind) => (true, kind),
        None => (false, sampler),
    };
    let argument = || match otel.sampler_arg.as_deref() {
        None => Ok(1.0),
        Some(text) => part("OTEL_TRACES_SAMPLER_ARG", text),
    };
    let of_variable = match kind {
        "always_on" => 1.0,
        "always_off" => 0.0,
        "traceidratio" => argument()?,
        _ => return Err(TracingError::Sampler { text: sampler.to_owned() }),
    };
    let ratio = match flag {
        Some(text) => part("--trace-ratio", text)?,
        None => of_variable,
    };
    Ok(Sampling { ratio, is_parent_based })
}

fn part(name: &'static str, text: &str) -> Result<f64, TracingError> {
    let number = text.trim().parse::<f64>().ok().filter(|part| (0.0..=1.0).contains(part));
    number.ok_or_else(|| TracingError::Ratio { name, text: text.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn otel(vars: &[(&str, &str)]) -> OtelEnvironment {
        OtelEnvironment::read(|name| {
            vars.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
    }

    fn build(vars: &[(&str, &str)]) -> Result<Option<TracingSettings>, TracingError> {
        TracingSettings::build(None, None, &otel(vars))
    }

    const AT: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318/");

    #[test]
    fn there_are_no_traces_without_an_endpoint() {
        assert_eq!(build(&[]).unwrap(), None);
        assert_eq!(build(&[AT, ("OTEL_SDK_DISABLED", "TRUE")]).unwrap(), None);
        assert_eq!(build(&[AT, ("OTEL_TRACES_EXPORTER", "none")]).unwrap(), None);
    }

    #[test]
    fn the_path_is_added_to_an_endpoint_for_all_signals_only() {
        let at = |settings: Option<TracingSettings>| settings.unwrap().endpoint.to_string();
        assert_eq!(at(build(&[AT]).unwrap()), "http://c:4318/v1/traces");
        let whole = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://t.example/in");
        assert_eq!(at(build(&[AT, whole]).unwrap()), "https://t.example/in");
        let flag = TracingSettings::build(Some("http://f:1"), None, &otel(&[AT, whole])).unwrap();
        assert_eq!(at(flag), "http://f:1/v1/traces");
        for bad in ["c:4318", "grpc://c:4317", "", "http://"] {
            let refused = build(&[("OTEL_EXPORTER_OTLP_ENDPOINT", bad)]);
            assert!(matches!(refused, Err(TracingError::Endpoint { .. })), "{bad}: {refused:?}");
        }
    }

    #[test]
    fn headers_and_attributes_are_pairs_and_a_secret_is_never_repeated() {
        let settings = build(&[
            AT,
            ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20x%2Cy, x-a=1"),
            ("OTEL_RESOURCE_ATTRIBUTES", "service.name=mine,deployment.environment.name=lab"),
        ]);
        let settings = settings.unwrap().unwrap();
        assert_eq!(settings.headers[0].1.to_str().unwrap(), "Bearer x,y");
        assert_eq!(settings.headers[1].0, "x-a");
        assert_eq!(settings.service_name, "mine");
        assert_eq!(settings.resource, [("deployment.environment.name".into(), "lab".into())]);
        assert!(!format!("{settings:?}").contains("Bearer"));
        for bad in ["secret", "a b=secret", "=secret", "a=secret%2"] {
            let refused = build(&[AT, ("OTEL_EXPORTER_OTLP_HEADERS", bad)]).unwrap_err();
            assert!(!refused.to_string().contains("secret"), "{refused}");
        }
    }

    #[test]
    fn samplers_have_opentelemetrys_names() {
        let sampler = |name, arg| {
            let vars = [AT, ("OTEL_TRACES_SAMPLER", name), ("OTEL_TRACES_SAMPLER_ARG", arg)];
            build(&vars).map(|settings| settings.unwrap().sampling)
        };
        let is = |ratio, is_parent_based| Ok(Sampling { ratio, is_parent_based });
        assert_eq!(build(&[AT]).unwrap().unwrap().sampling, Sampling::default());
        assert_eq!(sampler("always_on", "x"), is(1.0, false));
        assert_eq!(sampler("always_off", ""), is(0.0, false));
        assert_eq!(sampler("traceidratio", "0.25"), is(0.25, false));
        assert_eq!(sampler("parentbased_always_off", ""), is(0.0, true));
        assert_eq!(sampler("parentbased_traceidratio", "0.01"), is(0.01, true));
        assert!(matches!(sampler("jaeger_remote", ""), Err(TracingError::Sampler { .. })));
        for bad in ["2", "-1", "NaN", "x"] {
            let refused = sampler("traceidratio", bad);
            assert!(matches!(refused, Err(TracingError::Ratio { .. })), "{bad}");
        }
        let flag = TracingSettings::build(None, Some("0.5"), &otel(&[AT])).unwrap().unwrap();
        assert_eq!(flag.sampling, Sampling { ratio: 0.5, is_parent_based: true });
    }

    #[test]
    fn other_protocols_are_refused_by_name() {
        let refused = build(&[AT, ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")]).unwrap_err();
        assert!(refused.to_string().contains("http/protobuf"), "{refused}");
        assert!(build(&[AT, ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf")]).is_ok());
        assert!(build(&[AT, ("OTEL_EXPORTER_OTLP_TIMEOUT", "0")]).is_err());
        let fast = build(&[AT, ("OTEL_EXPORTER_OTLP_TIMEOUT", "250")]).unwrap().unwrap();
        assert_eq!(fast.timeout, Duration::from_millis(250));
    }
}
