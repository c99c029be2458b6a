//! The asking side.

use super::message::{Input, ReadError};
use crate::tcp::{ConnectError, Stream};

/// Body of the answer to a GET; a sentence when there is none, or its status is no success.
pub(crate) async fn get(host: &str, port: u16, target: &str) -> Result<String, String> {
    let stream = Stream::connect(host, port)
        .await
        .map_err(|why: ConnectError| format!("cannot connect to {host}:{port}: {why}"))?;
    let request =
        format!("GET {target} HTTP/1.1\r\nhost: {host}:{port}\r\nconnection: close\r\n\r\n");
    stream.write(request.as_bytes()).await.map_err(|why| format!("cannot ask {host}: {why}"))?;
    let mut input = Input::default();
    let unread = |why| match why {
        ReadError::Gone => format!("{host}:{port} closed the connection"),
        ReadError::Bad(_, words) => format!("{host}:{port} answered badly: {}", words.trim()),
    };
    let (first, headers) = input.head(&stream).await.map_err(unread)?;
    let status: u16 = first.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    let body = input.body(&stream, &headers, true).await.map_err(unread)?;
    let body = String::from_utf8_lossy(&body).into_owned();
    if (200..300).contains(&status) {
        Ok(body)
    } else {
        Err(format!("{host}:{port}{target} answered {status}: {}", body.trim()))
    }
}
