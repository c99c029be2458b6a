//! Between DNS messages and the cluster's records.

use std::net::IpAddr;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use crate::mesh::CLUSTER_DOMAIN;
use crate::mesh::dns::records::{self, Data, Kind};

/// Seconds that the cluster's records may be kept: its endpoints come and go.
pub(super) const TTL: u32 = 5;
/// Bytes of an answer by UDP at most, whatever the client could take: what passes every path
/// unfragmented (DNS flag day 2020).
const UDP_BYTES_MAX: u16 = 1232;
/// Bytes of an answer by UDP for clients that do not say what they can take.
const UDP_BYTES_PLAIN: u16 = 512;
/// Bytes of a message's head.
const HEAD_BYTES: usize = 12;

/// What the client wants to know.
pub(super) struct Question {
    pub(super) query: Query,
    /// In lower case, without the dot at the end.
    pub(super) name: String,
}

/// A message that is a question, or the answer to one that is not.
pub(super) enum Parsed {
    Question(Message, Box<Question>),
    Refused(Message),
    /// Too short or no query: nobody waits for an answer.
    Silence,
}

/// Reads a message.
pub(super) fn parse(bytes: &[u8]) -> Parsed {
    let Ok(message) = Message::from_vec(bytes) else {
        let Some([high, low]) = bytes.first_chunk::<2>().copied() else { return Parsed::Silence };
        let is_query = bytes.len() >= HEAD_BYTES && bytes.get(2).is_some_and(|b| b & 0x80 == 0);
        if !is_query {
            return Parsed::Silence;
        }
        let id = u16::from_be_bytes([high, low]);
        return Parsed::Refused(Message::error_msg(id, OpCode::Query, ResponseCode::FormErr));
    };
    if message.metadata.message_type != MessageType::Query {
        return Parsed::Silence;
    }
    let refuse = |code| {
        let mut answer = response(&message);
        answer.metadata.response_code = code;
        Parsed::Refused(answer)
    };
    if message.metadata.op_code != OpCode::Query {
        return refuse(ResponseCode::NotImp);
    }
    if message.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
        let mut answer = response(&message);
        answer.metadata.response_code = ResponseCode::BADVERS;
        return Parsed::Refused(answer);
    }
    let [query] = message.queries.as_slice() else { return refuse(ResponseCode::FormErr) };
    let query = query.clone();
    let transfers = [RecordType::AXFR, RecordType::IXFR];
    if query.query_class() != DNSClass::IN || transfers.contains(&query.query_type()) {
        return refuse(ResponseCode::Refused);
    }
    let name = text_of(query.name());
    Parsed::Question(message, Box::new(Question { query, name }))
}

/// A name in lower case, without the dot at the end.
pub(super) fn text_of(name: &Name) -> String {
    name.to_ascii().trim_end_matches('.').to_ascii_lowercase()
}

/// An empty answer to `query`.
pub(super) fn response(query: &Message) -> Message {
    let mut answer = Message::response(query.metadata.id, query.metadata.op_code);
    answer.metadata.recursion_desired = query.metadata.recursion_desired;
    answer.metadata.checking_disabled = query.metadata.checking_disabled;
    answer.metadata.recursion_available = true;
    answer.add_queries(query.queries.iter().cloned());
    if query.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(UDP_BYTES_MAX);
        answer.set_edns(edns);
    }
    answer
}

/// Which of the cluster's records a type is.
pub(super) fn kind(asked: RecordType) -> Kind {
    match asked {
        RecordType::A => Kind::A,
        RecordType::AAAA => Kind::Aaaa,
        RecordType::SRV => Kind::Srv,
        RecordType::PTR => Kind::Ptr,
        RecordType::TXT => Kind::Txt,
        RecordType::CNAME => Kind::Cname,
        RecordType::SOA => Kind::Soa,
        _ => Kind::Other,
    }
}

/// A record as it is sent; `asked` keeps the client's spelling of the name. `None` for a name that
/// no message can hold.
pub(super) fn record(record: &records::Record, asked: &Query) -> Option<Record> {
    let name = if text_of(asked.name()) == record.name {
        asked.name().clone()
    } else {
        name(&record.name)?
    };
    let data = match &record.data {
        Data::Address(IpAddr::V4(ip)) => RData::A(A(*ip)),
        Data::Address(IpAddr::V6(ip)) => RData::AAAA(AAAA(*ip)),
        Data::Service { weight, port, target } => {
            RData::SRV(SRV::new(0, *weight, *port, self::name(target)?))
        }
        Data::Pointer(target) => RData::PTR(PTR(self::name(target)?)),
        Data::Alias(target) => RData::CNAME(CNAME(self::name(target)?)),
        Data::Text(text) => RData::TXT(TXT::new(vec![text.clone()])),
        Data::Authority => return authority(&record.name),
    };
    Some(Record::from_rdata(name, TTL, data))
}

/// Who answers for `asked`, and for how long "no" is true: for a name in the cluster's domain that, for one of an
/// address the names of its neighbours.
pub(super) fn authority(asked: &str) -> Option<Record> {
    let is_reverse = asked.ends_with(".in-addr.arpa") || asked.ends_with(".ip6.arpa");
    let above = asked.split_once('.').map(|(_, above)| above);
    let zone = above.filter(|_| is_reverse).unwrap_or(CLUSTER_DOMAIN);
    let primary = name(&format!("ns.dns.{CLUSTER_DOMAIN}"))?;
    let mailbox = name(&format!("hostmaster.{CLUSTER_DOMAIN}"))?;
    let soa = SOA::new(primary, mailbox, 1, 7200, 1800, 86_400, TTL);
    Some(Record::from_rdata(name(zone)?, TTL, RData::SOA(soa)))
}

/// A whole name.
pub(super) fn name(text: &str) -> Option<Name> {
    Name::from_ascii(format!("{text}.")).ok()
}

/// The bytes to send: by UDP, those that fit the client; what does not is told to ask by TCP.
pub(super) fn bytes(answer: &Message, query: Option<&Message>, is_udp: bool) -> Option<Vec<u8>> {
    let bytes = answer.to_vec().ok()?;
    if !is_udp || bytes.len() <= udp_bytes_max(query) {
        return u16::try_from(bytes.len()).is_ok().then_some(bytes);
    }
    // What comes beside the answer goes first.
    let mut less = answer.clone();
    less.additionals.clear();
    let bytes = less.to_vec().ok()?;
    if bytes.len() <= udp_bytes_max(query) {
        return Some(bytes);
    }
    let mut cut = answer.truncate();
    cut.metadata.message_type = MessageType::Response;
    cut.to_vec().ok()
}

fn udp_bytes_max(query: Option<&Message>) -> usize {
    let said = query.and_then(|query| query.edns.as_ref()).map(Edns::max_payload);
    usize::from(said.unwrap_or(UDP_BYTES_PLAIN).clamp(UDP_BYTES_PLAIN, UDP_BYTES_MAX))
}
