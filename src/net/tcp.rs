//! How TCP connections of clients are kept.

use std::io;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

/// A connection on which nothing has come for this long is asked whether it is still there.
const KEEP_ALIVE_AFTER: Duration = Duration::from_secs(30);
/// And again so often, so many times: two minutes without an answer, and it is gone.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEP_ALIVE_PROBES: u32 = 6;

/// Sends small writes at once, and finds out when the other end is gone without a word: its battery, a
/// link, a NAT that has forgotten it. What waits for it would wait for ever. Not for connections that
/// have time-outs of their own. One that cannot be told so is gone already.
pub fn attend(stream: &TcpStream) {
    if let Err(err) = set(stream) {
        tracing::trace!(%err, "a connection was gone at once");
    }
}

fn set(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let keep_alive = TcpKeepalive::new()
        .with_time(KEEP_ALIVE_AFTER)
        .with_interval(KEEP_ALIVE_INTERVAL)
        .with_retries(KEEP_ALIVE_PROBES);
    SockRef::from(stream).set_tcp_keepalive(&keep_alive)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_connection_is_asked_whether_it_is_still_there() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        attend(&near);
        assert!(near.nodelay().unwrap());
        let socket = SockRef::from(&near);
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), KEEP_ALIVE_AFTER);
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), KEEP_ALIVE_INTERVAL);
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), KEEP_ALIVE_PROBES);
    }
}
