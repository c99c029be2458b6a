//! Asks upstreams what the cluster does not know.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, OpCode, Query};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tracing::debug;

use crate::mesh::dns::cache::Cache;
use crate::mesh::dns::message;
use crate::rt::Rng;

/// Upstreams that are asked, one after the other.
const UPSTREAMS_MAX: usize = 4;
/// Wait for one of them.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// Times that all of them are asked.
const ROUNDS: usize = 2;
/// Bytes of an answer by UDP that are asked for.
const UDP_BYTES_MAX: u16 = 1232;
/// Bytes of an answer by UDP that are read.
const UDP_BUFFER_BYTES: usize = 4096;
/// Answers to other questions that are passed over before an upstream counts as broken.
const STRAYS_MAX: usize = 8;
/// Where a host says whom it asks.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// The port of DNS.
const PORT: u16 = 53;

/// See the module.
#[derive(Debug)]
pub(super) struct Forward {
    upstreams: Vec<SocketAddr>,
    cache: Cache,
    rng: Rng,
}

impl Forward {
    /// To `upstreams`, or to the host's if there are none; never to `me`.
    pub(super) fn new(upstreams: Vec<SocketAddr>, me: SocketAddr, rng: Rng) -> Self {
        let mut upstreams = upstreams;
        if upstreams.is_empty() {
            let text = std::fs::read_to_string(RESOLV_CONF).unwrap_or_default();
            upstreams = nameservers(&text);
        }
        upstreams.retain(|at| !is_same(*at, me));
        upstreams.truncate(UPSTREAMS_MAX);
        Self { upstreams, cache: Cache::default(), rng }
    }

    /// The answer to `query`, of the name `name`: from the cache, or from an upstream. `None` when
    /// none of them answers.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub(super) async fn ask(&self, query: &Query, name: &str) -> Option<Message> {
        if let Some(kept) = self.cache.get(name, query.query_type()) {
            return Some(kept);
        }
        for upstream in (0..ROUNDS).flat_map(|_| &self.upstreams) {
            match self.ask_one(*upstream, query).await {
                Ok(answer) => {
                    self.cache.put(name, query.query_type(), &answer);
                    return Some(answer);
                }
                Err(err) => debug!(%upstream, %err, "an upstream gave no answer"),
            }
        }
        None
    }

    async fn ask_one(&self, upstream: SocketAddr, query: &Query) -> io::Result<Message> {
        let id = u16::try_from(self.rng.below(1 << 16)).unwrap_or(0);
        let mut asking = Message::query();
        asking.metadata.id = id;
        asking.metadata.recursion_desired = true;
        asking.add_query(query.clone());
        let mut edns = Edns::new();
        edns.set_max_payload(UDP_BYTES_MAX);
        asking.set_edns(edns);
        let bytes = asking.to_vec().map_err(invalid)?;
        let limit = |_| io::Error::from(io::ErrorKind::TimedOut);
        let by_udp = by_udp(upstream, &bytes, id, query);
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, by_udp).await.map_err(limit)??;
        if !answer.metadata.truncation {
            return Ok(answer);
        }
        let by_tcp = by_tcp(upstream, &bytes, id, query);
        tokio::time::timeout(ANSWER_TIMEOUT, by_tcp).await.map_err(limit)?
    }
}

/// A socket of its own for each question: an answer must guess its port as well as its id.
async fn by_udp(upstream: SocketAddr, bytes: &[u8], id: u16, query: &Query) -> io::Result<Message> {
    let any: IpAddr = match upstream {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).await?;
    socket.connect(upstream).await?;
    socket.send(bytes).await?;
    let mut buffer = vec![0; UDP_BUFFER_BYTES];
    for _ in 0..STRAYS_MAX {
        let size = socket.recv(&mut buffer).await?;
        if let Ok(answer) = read(buffer.get(..size).unwrap_or_default(), id, query) {
            return Ok(answer);
        }
    }
    Err(io::ErrorKind::InvalidData.into())
}

async fn by_tcp(upstream: SocketAddr, bytes: &[u8], id: u16, query: &Query) -> io::Result<Message> {
    let mut stream = TcpStream::connect(upstream).await?;
    let length = u16::try_from(bytes.len()).map_err(invalid)?;
    stream.write_all(&[&length.to_be_bytes(), bytes].concat()).await?;
    let mut answer = vec![0; stream.read_u16().await?.into()];
    stream.read_exact(&mut answer).await?;
    read(&answer, id, query)
}

/// An answer, if it is one to this question.
fn read(bytes: &[u8], id: u16, query: &Query) -> io::Result<Message> {
    let answer = Message::from_vec(bytes).map_err(invalid)?;
    let is_it = answer.metadata.id == id
        && answer.metadata.message_type == hickory_proto::op::MessageType::Response
        && answer.metadata.op_code == OpCode::Query
        && answer.queries.first().is_some_and(|asked| {
            asked.query_type() == query.query_type()
                && message::text_of(asked.name()) == message::text_of(query.name())
        });
    if is_it { Ok(answer) } else { Err(io::ErrorKind::InvalidData.into()) }
}

fn invalid(err: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, err)
}

/// Whether a query to `at` would come back to `me`.
fn is_same(at: SocketAddr, me: SocketAddr) -> bool {
    at.port() == me.port()
        && (at.ip() == me.ip() || (me.ip().is_unspecified() && at.ip().is_loopback()))
}

/// The servers that a `resolv.conf` names.
fn nameservers(text: &str) -> Vec<SocketAddr> {
    let named = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next()).flatten()
    });
    named.filter_map(|ip| Some(SocketAddr::new(ip.parse().ok()?, PORT))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_servers_are_read_and_the_server_never_asks_itself() {
        let text = "# x\nsearch lan\nnameserver 192.0.2.1\nnameserver fd00::1\nnameserver bad\n";
        let found = nameservers(text);
        assert_eq!(found, ["192.0.2.1:53".parse().unwrap(), "[fd00::1]:53".parse().unwrap()]);
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        assert!(is_same(at("127.0.0.1:53"), at("0.0.0.0:53")));
        assert!(is_same(at("192.0.2.1:53"), at("192.0.2.1:53")));
        assert!(!is_same(at("127.0.0.1:53"), at("127.0.0.1:1053")));
        assert!(!is_same(at("192.0.2.1:53"), at("0.0.0.0:53")));
    }
}
