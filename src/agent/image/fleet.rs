//! Compiled code from a server: asked for, checked, put into its place.
//!
//! Loading compiled code is trusting it, so a server must have signed for it: the ticket of an answer
//! is checked before a byte of the code is read, and the code against the ticket before it gets its
//! name.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use tokio::time::Instant;

use crate::agent::image::Images;
use crate::agent::image::distribution::{Fault, USER_AGENT};
use crate::agent::image::fetch::CHUNK_TIMEOUT;
use crate::agent::image::part::Part;
use crate::agent::image::transport::{Body, Transport};
use crate::api::compiled_code::{
    self, Absence, COMPONENT_BYTES_MAX, NoCode, TICKET_HEADER, Ticket,
};
use crate::client::AnswerWithin;

/// How long servers may take to answer at all: a pod must start without any in reach.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a component may take to be brought to the server that compiles it: this, and what a link of
/// half a Mbit/s needs.
const BRING_TIMEOUT: Duration = Duration::from_secs(60);
const BRING_BYTES_PER_SECOND: u64 = 64 * 1024;
/// How much longer than one compile a node waits for a server, which may have others to do first.
const QUEUE_MAX: Duration = Duration::from_secs(60);
/// Pause before a server is asked again that is still compiling. It answers late by itself.
const AGAIN: Duration = Duration::from_millis(100);
/// Transfers of one code that may break off.
const TRIES_MAX: u32 = 3;
/// Most that is read of an answer without code, in bytes.
const COMPLAINT_BYTES_MAX: usize = 16 * 1024;

/// Knows whose compiled code may be run.
pub trait CodeTrust: Send + Sync + 'static {
    /// Checks that `signature` of `message` is by the key of `certificate` (DER), and that this is a
    /// server's of this cluster. The server's name.
    ///
    /// # Errors
    ///
    /// What is wrong with it, in words: do not run the code.
    fn signer(
        &self,
        message: &[u8],
        certificate: &[u8],
        signature: &[u8],
    ) -> Result<String, String>;
}

/// Why no server gave the code. Compile.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotFetched {
    /// Servers were not asked: their code is not wanted, or this node has no engine.
    #[error("servers are not asked")]
    Unasked,
    /// No server answered in time.
    #[error("no server can be reached: {0}")]
    Unreachable(String),
    /// A server answered that there is none.
    #[error("{0}")]
    Absent(String),
    /// A server's compiler refused the component.
    #[error("{0}")]
    Refused(String),
    /// What came is not what a server signed.
    #[error("what a server sent was refused: {0}")]
    Tampered(String),
    /// The disk refused.
    #[error("cannot write the code: {0}")]
    Disk(#[from] std::io::Error),
}

impl NotFetched {
    /// Its name in the metrics.
    fn result(&self) -> Option<&'static str> {
        match self {
            Self::Unasked => None,
            Self::Unreachable(_) | Self::Disk(_) => Some("unreachable"),
            Self::Absent(_) => Some("absent"),
            Self::Refused(_) => Some("refused"),
            Self::Tampered(_) => Some("tampered"),
        }
    }
}

/// What a server said.
enum Answer {
    /// The code, from the given byte on.
    Code(Box<Ticket>, Body, u64),
    /// It is being made.
    Later,
    /// There is none.
    None(NoCode),
}

impl Images {
    /// Fetches the code of the layer into `output`.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: the next call goes on with what came.
    pub(super) async fn fetch_code(&self, hex: &str, output: &Path) -> Result<(), NotFetched> {
        let fetched = self.fetch_code_quietly(hex, output).await;
        let metrics = self.compiler.metrics();
        match &fetched {
            Ok(server) => {
                metrics.fetched("ok");
                tracing::info!(image.digest = hex, peer = server, "compiled code fetched");
            }
            Err(why) => {
                if let Some(result) = why.result() {
                    metrics.fetched(result);
                }
                if let NotFetched::Tampered(reason) = why {
                    tracing::warn!(image.digest = hex, reason, "compiled code refused");
                }
            }
        }
        fetched.map(|_| ())
    }

    /// As [`Self::fetch_code`]; the name of the server that signed.
    async fn fetch_code_quietly(&self, hex: &str, output: &Path) -> Result<String, NotFetched> {
        if self.code_trust.is_none() || !compiled_code::is_sha256(&self.engine) {
            return Err(NotFetched::Unasked);
        }
        let url = compiled_code::path(&self.engine, hex);
        let deadline = Instant::now() + self.compiler.time_max() + QUEUE_MAX;
        let mut part = Part::open(output.to_owned()).await.map_err(on_disk)?;
        let (mut tries, mut was_brought) = (0, false);
        let fetched = loop {
            let answer = match self.ask(&url, hex, part.size()).await {
                Ok(answer) => answer,
                Err(why) => break Err(why),
            };
            match answer {
                Answer::Code(ticket, body, start) => {
                    let received = self.receive(&ticket, body, start, &mut part).await;
                    tries += 1;
                    match received {
                        Err(NotFetched::Unreachable(_)) if tries < TRIES_MAX => {}
                        received => break received,
                    }
                }
                Answer::Later if Instant::now() < deadline => tokio::time::sleep(AGAIN).await,
                Answer::Later => {
                    let text = "the server does not come to an end with compiling";
                    break Err(NotFetched::Absent(text.to_owned()));
                }
                Answer::None(NoCode {
                    reason: Absence::NoComponent,
                    server: Some(server),
                    message,
                }) if !was_brought => {
                    was_brought = true;
                    if let Err(cause) = self.bring(&url, hex, &server).await {
                        break Err(NotFetched::Absent(format!("{message}: {cause}")));
                    }
                }
                Answer::None(none) if none.reason == Absence::Refused => {
                    break Err(NotFetched::Refused(none.message));
                }
                Answer::None(none) => break Err(NotFetched::Absent(none.message)),
            }
        };
        if fetched.is_err() && part.size() == 0 {
            part.remove().await;
        }
        fetched
    }

    async fn ask(&self, url: &str, hex: &str, offset: u64) -> Result<Answer, NotFetched> {
        let mut request = request(Method::GET, url)?;
        if offset > 0
            && let Ok(range) = format!("bytes={offset}-").parse()
        {
            request.headers_mut().insert(header::RANGE, range);
        }
        let away = |cause: String| NotFetched::Unreachable(cause);
        let transport = Transport::Cluster(self.client.clone());
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, transport.send(request))
            .await
            .map_err(|_| away("no answer in time".to_owned()))?
            .map_err(|cause| away(cause.to_string()))?;
        let start = match answer.status() {
            StatusCode::ACCEPTED => return Ok(Answer::Later),
            StatusCode::OK => 0,
            StatusCode::PARTIAL_CONTENT => offset,
            status => return no_code(status, answer).await.map(Answer::None),
        };
        let ticket = answer.headers().get(TICKET_HEADER).and_then(|value| value.to_str().ok());
        let tampered = |cause: compiled_code::TicketError| NotFetched::Tampered(cause.to_string());
        let ticket =
            Ticket::parse(ticket.unwrap_or_default(), &self.engine, hex).map_err(tampered)?;
        Ok(Answer::Code(Box::new(ticket), answer.into_body(), start))
    }

    /// Checks the signature, then takes the code; the server that signed.
    async fn receive(
        &self,
        ticket: &Ticket,
        body: Body,
        start: u64,
        part: &mut Part,
    ) -> Result<String, NotFetched> {
        let trust = self.code_trust.as_ref().ok_or(NotFetched::Unasked)?;
        let message = ticket.statement.message();
        let server = trust
            .signer(&message, &ticket.certificate, &ticket.signature)
            .map_err(NotFetched::Tampered)?;
        if start != part.size() {
            part.restart().await.map_err(on_disk)?;
        }
        let mut chunks = body.into_data_stream();
        loop {
            let chunk = tokio::time::timeout(CHUNK_TIMEOUT, chunks.try_next())
                .await
                .map_err(|_| NotFetched::Unreachable("the server stopped sending".to_owned()))?
                .map_err(|cause| NotFetched::Unreachable(cause.to_string()))?;
            let Some(chunk) = chunk else { break };
            if part.size() + chunk.len() as u64 > ticket.statement.bytes {
                part.restart().await.map_err(on_disk)?;
                return Err(NotFetched::Tampered("more bytes came than were signed".to_owned()));
            }
            part.append(&chunk).await.map_err(on_disk)?;
        }
        if part.size() < ticket.statement.bytes {
            return Err(NotFetched::Unreachable("the transfer ended early".to_owned()));
        }
        match part.finish(&ticket.statement.code).await {
            Ok(()) => Ok(server),
            Err(Fault::Disk(cause)) => Err(cause.into()),
            // It had begun with the bytes of other code: from the start, then.
            Err(Fault::Unavailable { message, .. }) => Err(NotFetched::Unreachable(message)),
            Err(fault) => Err(NotFetched::Tampered(fault.to_string())),
        }
    }

    /// Brings the component to a server that would compile it: one out of a registry that servers do
    /// not know.
    async fn bring(&self, url: &str, hex: &str, server: &str) -> Result<(), NotFetched> {
        let layer = self.blob(hex);
        let bytes = tokio::fs::metadata(&layer).await?.len();
        if bytes > COMPONENT_BYTES_MAX {
            let text = format!("it has {bytes} bytes, too many to bring it there");
            return Err(NotFetched::Absent(text));
        }
        let component = tokio::fs::read(&layer).await?;
        let mut request = request(Method::PUT, &format!("{url}?to={server}"))?
            .map(|_| kube::client::Body::from(component));
        let within = BRING_TIMEOUT + Duration::from_secs(bytes / BRING_BYTES_PER_SECOND);
        request.extensions_mut().insert(AnswerWithin(within));
        let sent = tokio::time::timeout(within, self.client.send(request)).await;
        let away = |cause: String| NotFetched::Unreachable(cause);
        let answer = sent
            .map_err(|_| away("bringing the component took too long".to_owned()))?
            .map_err(|cause| away(cause.to_string()))?;
        match answer.status() {
            status if status.is_success() => Ok(()),
            status => Err(NotFetched::Absent(format!("the server answered {status}"))),
        }
    }
}

fn request(method: Method, url: &str) -> Result<Request<Full<Bytes>>, NotFetched> {
    Request::builder()
        .method(method)
        .uri(url)
        .header(header::USER_AGENT, USER_AGENT)
        .body(Full::default())
        .map_err(|cause| NotFetched::Absent(cause.to_string()))
}

/// What an answer without code says; one that is no such answer counts as none.
async fn no_code(status: StatusCode, answer: Response<Body>) -> Result<NoCode, NotFetched> {
    let read = Limited::new(answer.into_body(), COMPLAINT_BYTES_MAX).collect();
    let body = match tokio::time::timeout(ANSWER_TIMEOUT, read).await {
        Ok(Ok(body)) => body.to_bytes(),
        _ => Bytes::new(),
    };
    match serde_json::from_slice::<NoCode>(&body) {
        Ok(none) => Ok(none),
        Err(_) if status.is_client_error() => {
            Err(NotFetched::Absent(format!("the server answered {status}")))
        }
        Err(_) => Err(NotFetched::Unreachable(format!("the server answered {status}"))),
    }
}

fn on_disk(fault: Fault) -> NotFetched {
    match fault {
        Fault::Disk(cause) => cause.into(),
        other => NotFetched::Unreachable(other.to_string()),
    }
}
