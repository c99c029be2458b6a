//! The DNS server of a node, for its host and whoever else can reach it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Record, RecordType};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tracing::{debug, trace, warn};

use crate::mesh::Mesh;
use crate::mesh::cidr::Cidr;
use crate::mesh::dns::forward::Forward;
use crate::mesh::dns::message::{self, Parsed, Question};
use crate::mesh::dns::records::{self, Found};
use crate::rt::Rng;

/// Queries that wait for upstreams at once; those beyond are told that it failed.
const FORWARDED_MAX: usize = 512;
/// TCP connections at once; more wait to be accepted.
const CONNECTIONS_MAX: usize = 64;
/// Time for the next query of a connection, and for an answer to be taken.
const CONNECTION_IDLE_MAX: Duration = Duration::from_secs(10);
/// Queries of one connection.
const QUERIES_MAX: usize = 100;
/// Bytes of a query by UDP.
const QUERY_BYTES_MAX: usize = 4096;
/// Aliases that are followed in a row.
const ALIASES_MAX: usize = 8;
/// Pause after a socket failed: the process is out of something.
const PAUSE: Duration = Duration::from_millis(100);

/// Where the server listens.
#[derive(Debug)]
pub struct DnsSockets {
    /// For queries that fit a datagram.
    pub udp: UdpSocket,
    /// For the others, at the same address.
    pub tcp: TcpListener,
}

/// Whom the server asks.
#[derive(Debug, Clone, Default)]
pub struct DnsConfig {
    /// In this order; empty is those of the host's `/etc/resolv.conf`.
    pub upstreams: Vec<SocketAddr>,
    /// Ranges of Service addresses: names of these are not asked of others.
    pub service_ranges: Vec<String>,
}

/// One server.
#[derive(Debug)]
struct Server {
    mesh: Mesh,
    ranges: Vec<Cidr>,
    forward: Forward,
    forwarded: Semaphore,
}

impl Mesh {
    /// Serves the cluster's names, and others by asking upstreams, until the mesh's tasks are
    /// cancelled.
    pub async fn serve_dns(&self, sockets: DnsSockets, config: DnsConfig, rng: Rng) {
        let Ok(me) = sockets.udp.local_addr() else { return };
        let server = Arc::new(Server {
            mesh: self.clone(),
            ranges: config.service_ranges.iter().filter_map(|text| Cidr::parse(text)).collect(),
            forward: Forward::new(config.upstreams, me, rng),
            forwarded: Semaphore::new(FORWARDED_MAX),
        });
        let cancel = self.0.tasks.token().clone();
        let udp = Arc::new(sockets.udp);
        let serving = async {
            tokio::join!(
                Arc::clone(&server).serve_udp(udp),
                Arc::clone(&server).serve_tcp(sockets.tcp)
            )
        };
        let _ = cancel.run_until_cancelled(serving).await;
    }
}

/// What a query comes to.
enum Outcome {
    /// An answer at once.
    Now(Message),
    /// Others must be asked: for the question itself, or for what an alias leads to.
    Later(Box<Pending>),
}

/// A query that waits for upstreams.
struct Pending {
    query: Message,
    /// What is asked for next.
    next: Query,
    /// Aliases so far.
    aliases: Vec<Record>,
}

impl Server {
    async fn serve_udp(self: Arc<Self>, socket: Arc<UdpSocket>) {
        let mut buffer = vec![0; QUERY_BYTES_MAX];
        loop {
            let (size, from) = match socket.recv_from(&mut buffer).await {
                Ok(received) => received,
                Err(err) => {
                    debug!(%err, "cannot receive a DNS query");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            let (query, question) = match message::parse(buffer.get(..size).unwrap_or_default()) {
                Parsed::Question(query, question) => (query, question),
                Parsed::Refused(answer) => {
                    send(&socket, from, message::bytes(&answer, None, true));
                    continue;
                }
                Parsed::Silence => continue,
            };
            match self.answer(query.clone(), &question) {
                Outcome::Now(answer) => {
                    send(&socket, from, message::bytes(&answer, Some(&query), true));
                }
                Outcome::Later(pending) => {
                    let (server, socket) = (Arc::clone(&self), Arc::clone(&socket));
                    if self.forwarded.available_permits() == 0 {
                        let failed = failed(&query);
                        send(&socket, from, message::bytes(&failed, Some(&query), true));
                        continue;
                    }
                    self.mesh.0.tasks.spawn_until_cancelled("dns-forward", async move {
                        let answer = server.finish(*pending).await;
                        send(&socket, from, message::bytes(&answer, Some(&query), true));
                    });
                }
            }
        }
    }

    async fn serve_tcp(self: Arc<Self>, listener: TcpListener) {
        let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let Ok(permit) = Arc::clone(&connections).acquire_owned().await else { return };
            let client = match listener.accept().await {
                Ok((client, _)) => client,
                Err(err) => {
                    warn!(%err, "cannot accept a DNS connection");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            let server = Arc::clone(&self);
            self.mesh.0.tasks.spawn_until_cancelled("dns-connection", async move {
                if let Err(err) = server.serve_connection(client).await {
                    trace!(%err, "a DNS connection ended");
                }
                drop(permit);
            });
        }
    }

    async fn serve_connection(&self, mut client: TcpStream) -> std::io::Result<()> {
        for _ in 0..QUERIES_MAX {
            let reading = async {
                let mut bytes = vec![0; client.read_u16().await?.into()];
                client.read_exact(&mut bytes).await?;
                Ok::<_, std::io::Error>(bytes)
            };
            let Ok(bytes) = tokio::time::timeout(CONNECTION_IDLE_MAX, reading).await else {
                return Ok(());
            };
            let (answer, query) = match message::parse(&bytes?) {
                Parsed::Question(query, question) => {
                    let answer = match self.answer(query.clone(), &question) {
                        Outcome::Now(answer) => answer,
                        Outcome::Later(pending) => self.finish(*pending).await,
                    };
                    (answer, Some(query))
                }
                Parsed::Refused(answer) => (answer, None),
                Parsed::Silence => return Ok(()),
            };
            let Some(bytes) = message::bytes(&answer, query.as_ref(), false) else { return Ok(()) };
            let length = u16::try_from(bytes.len()).unwrap_or(0);
            let framed = [&length.to_be_bytes(), bytes.as_slice()].concat();
            let writing = client.write_all(&framed);
            let Ok(written) = tokio::time::timeout(CONNECTION_IDLE_MAX, writing).await else {
                return Ok(());
            };
            written?;
        }
        Ok(())
    }

    /// What the cluster itself can say.
    fn answer(&self, query: Message, question: &Question) -> Outcome {
        let kind = message::kind(question.query.query_type());
        let table = self.mesh.0.table.load();
        let mut aliases: Vec<Record> = Vec::new();
        let mut asked = question.query.clone();
        let mut name = question.name.clone();
        loop {
            let (answers, additional) =
                match records::look_up(&table.routes, &self.ranges, &name, kind) {
                    Found::NotOurs => {
                        return Outcome::Later(Box::new(Pending { query, next: asked, aliases }));
                    }
                    Found::NoSuchName => {
                        return Outcome::Now(no(&query, ResponseCode::NXDomain, aliases));
                    }
                    Found::Records { answers, additional } => (answers, additional),
                };
            if let [records::Record { data: records::Data::Alias(target), .. }] = answers.as_slice()
            {
                let alias = answers.first().and_then(|one| message::record(one, &asked));
                aliases.extend(alias);
                let Some(target_name) = message::name(target) else {
                    return Outcome::Now(failed(&query));
                };
                if question.query.query_type() == RecordType::CNAME || aliases.len() >= ALIASES_MAX
                {
                    return Outcome::Now(yes(&query, aliases, Vec::new()));
                }
                asked = Query::query(target_name, question.query.query_type());
                name.clone_from(target);
                continue;
            }
            if answers.is_empty() {
                return Outcome::Now(no(&query, ResponseCode::NoError, aliases));
            }
            let mut found: Vec<Record> =
                answers.iter().filter_map(|one| message::record(one, &asked)).collect();
            // Clients tend to take the first.
            let first = self.mesh.0.dice.below(found.len());
            found.rotate_left(first);
            aliases.extend(found);
            let beside = additional.iter().filter_map(|one| message::record(one, &asked));
            return Outcome::Now(yes(&query, aliases, beside.collect()));
        }
    }

    /// Asks upstreams for the rest.
    async fn finish(&self, pending: Pending) -> Message {
        let Pending { query, next, aliases } = pending;
        let Ok(_one) = self.forwarded.try_acquire() else { return failed(&query) };
        let name = message::text_of(next.name());
        let Some(found) = self.forward.ask(&next, &name).await else { return failed(&query) };
        let mut answer = message::response(&query);
        answer.metadata.response_code = found.metadata.response_code;
        answer.add_answers(aliases);
        answer.add_answers(found.answers);
        answer.add_authorities(found.authorities);
        answer.add_additionals(found.additionals);
        answer
    }
}

fn send(socket: &UdpSocket, to: SocketAddr, bytes: Option<Vec<u8>>) {
    let Some(bytes) = bytes else { return };
    // A full buffer loses it, as any network may; the client asks again.
    if let Err(err) = socket.try_send_to(&bytes, to) {
        trace!(%err, "a DNS answer was lost");
    }
}

fn yes(query: &Message, answers: Vec<Record>, additional: Vec<Record>) -> Message {
    let mut answer = message::response(query);
    answer.metadata.authoritative = true;
    answer.add_answers(answers);
    answer.add_additionals(additional);
    answer
}

/// No such name, or nothing of that kind; who says so tells for how long that is true.
fn no(query: &Message, code: ResponseCode, aliases: Vec<Record>) -> Message {
    let mut answer = yes(query, aliases, Vec::new());
    answer.metadata.response_code = code;
    let asked = query.queries.first().map(|query| message::text_of(query.name()));
    answer.add_authorities(message::authority(&asked.unwrap_or_default()));
    answer
}

fn failed(query: &Message) -> Message {
    let mut answer = message::response(query);
    answer.metadata.response_code = ResponseCode::ServFail;
    answer
}
