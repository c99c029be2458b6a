//! Compiled code on its way between servers and nodes: where it is asked for, and the ticket with
//! which a server vouches for it. Pure: who signs and who checks is elsewhere.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

/// The route of compiled code, in axum's form.
pub const ROUTE: &str = "/edgeorc/compiled/v1/{engine}/{component}";
/// Query by which a server asks another one for what that one has or makes itself.
pub const ONLY_HERE: &str = "only=here";
/// Header of an answer with code: its [`Ticket`].
pub const TICKET_HEADER: &str = "edgeorc-code-ticket";
/// Largest code that is shared, in bytes.
pub const CODE_BYTES_MAX: u64 = 512 * 1024 * 1024;
/// Largest component that a node may bring to have it compiled, in bytes: it is sent in one piece.
pub const COMPONENT_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Longest ticket, in bytes.
const TICKET_BYTES_MAX: usize = 16 * 1024;
/// Version of tickets and of what is signed.
const VERSION: u32 = 1;
/// Digits of a SHA-256 in hex.
const SHA256_HEX: usize = 64;
/// Begins what is signed. The key is also the one of the server's TLS certificate, and nobody can have
/// a handshake sign this: the first 64 bytes that TLS 1.3 signs are spaces, and half of those that TLS
/// 1.2 signs are the server's own random ones.
const CONTEXT: &str =
    "edgeorc compiled code, version 1: engine, component, SHA-256 and size of the code follow\n";

/// Why there is no code, for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Absence {
    /// No server makes code for this engine.
    OtherEngine,
    /// A server would make it, but has no such component: it may be brought to that server.
    NoComponent,
    /// The component was refused by the compiler; the same bytes will be refused again.
    Refused,
    /// Making it did not come to an end. It may work another time, or elsewhere.
    Unfinished,
}

/// The body of an answer without code.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NoCode {
    /// For programs.
    pub reason: Absence,
    /// For people.
    pub message: String,
    /// The server that would make the code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
}

/// The path of the code of a component for an engine, both named by 64 hex digits.
#[must_use]
pub fn path(engine: &str, component: &str) -> String {
    format!("/edgeorc/compiled/v1/{engine}/{component}")
}

/// Whether `name` is 64 lower-case hex digits, as engines, components and code are named.
#[must_use]
pub fn is_sha256(name: &str) -> bool {
    let is_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    name.len() == SHA256_HEX && name.bytes().all(is_hex)
}

/// What a server vouches for: it had its compiler make this code.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statement {
    /// Which engines can run it.
    pub engine: String,
    /// SHA-256 of what it was made of, hex.
    pub component: String,
    /// SHA-256 of the code, hex.
    pub code: String,
    /// Size of the code.
    pub bytes: u64,
}

impl Statement {
    /// The bytes that are signed.
    #[must_use]
    pub fn message(&self) -> Vec<u8> {
        let Self { engine, component, code, bytes } = self;
        format!("{CONTEXT}{engine}\n{component}\n{code}\n{bytes}\n").into_bytes()
    }
}

/// Why a ticket is not accepted. Do not use the code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TicketError {
    /// There is none, or it cannot be read.
    #[error("it has no readable ticket")]
    Malformed,
    /// A newer server wrote it.
    #[error("its ticket has a version this edgeorc does not know")]
    Version,
    /// It is for other code than what was asked for.
    #[error("its ticket is for another engine or component")]
    Other,
    /// The code has more bytes than may be shared.
    #[error("the code has more than {CODE_BYTES_MAX} bytes")]
    TooLarge,
}

/// A [`Statement`] with its signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ticket {
    /// What is vouched for.
    pub statement: Statement,
    /// Certificate of the server, DER.
    pub certificate: Vec<u8>,
    /// Signature of [`Statement::message`] with the key of the certificate.
    pub signature: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
struct Written {
    version: u32,
    #[serde(flatten)]
    statement: Statement,
    certificate: String,
    signature: String,
}

impl Ticket {
    /// The ticket as the value of its header.
    #[must_use]
    pub fn to_text(&self) -> String {
        let written = Written {
            version: VERSION,
            statement: self.statement.clone(),
            certificate: STANDARD.encode(&self.certificate),
            signature: STANDARD.encode(&self.signature),
        };
        // Hex, base64 and numbers: always JSON, and always in visible ASCII.
        serde_json::to_string(&written).unwrap_or_default()
    }

    /// Reads a ticket for this code. The signature is not checked here.
    ///
    /// # Errors
    ///
    /// [`TicketError`].
    pub fn parse(text: &str, engine: &str, component: &str) -> Result<Self, TicketError> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        if text.len() > TICKET_BYTES_MAX {
            return Err(TicketError::Malformed);
        }
        let malformed = |_| TicketError::Malformed;
        let version: Version = serde_json::from_str(text).map_err(malformed)?;
        if version.version != VERSION {
            return Err(TicketError::Version);
        }
        let written: Written = serde_json::from_str(text).map_err(malformed)?;
        let bytes = |text: &str| STANDARD.decode(text).map_err(|_| TicketError::Malformed);
        let (certificate, signature) = (bytes(&written.certificate)?, bytes(&written.signature)?);
        let statement = written.statement;
        if statement.engine != engine || statement.component != component {
            return Err(TicketError::Other);
        }
        if !is_sha256(&statement.code) {
            return Err(TicketError::Malformed);
        }
        if statement.bytes > CODE_BYTES_MAX {
            return Err(TicketError::TooLarge);
        }
        Ok(Self { statement, certificate, signature })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticket() -> Ticket {
        let statement = Statement {
            engine: "e".repeat(64),
            component: "c".repeat(64),
            code: "a".repeat(64),
            bytes: 7,
        };
        Ticket { statement, certificate: vec![1, 2], signature: vec![3] }
    }

    #[test]
    fn a_ticket_is_read_as_it_was_written_and_for_its_own_code_only() {
        let (engine, component) = ("e".repeat(64), "c".repeat(64));
        let text = ticket().to_text();
        assert!(text.bytes().all(|b| b.is_ascii_graphic()), "{text}");
        assert_eq!(Ticket::parse(&text, &engine, &component), Ok(ticket()));
        assert_eq!(Ticket::parse(&text, &component, &component), Err(TicketError::Other));
        assert_eq!(Ticket::parse(&text, &engine, &engine), Err(TicketError::Other));
        let newer = text.replace("\"version\":1", "\"version\":2");
        assert_eq!(Ticket::parse(&newer, &engine, &component), Err(TicketError::Version));
        let mut large = ticket();
        large.statement.bytes = CODE_BYTES_MAX + 1;
        let read = Ticket::parse(&large.to_text(), &engine, &component);
        assert_eq!(read, Err(TicketError::TooLarge));
        for bad in ["", "{}", &text[..40], &"x".repeat(TICKET_BYTES_MAX + 1)] {
            assert_eq!(Ticket::parse(bad, &engine, &component), Err(TicketError::Malformed));
        }
    }

    #[test]
    fn what_is_signed_names_everything_and_cannot_be_a_handshake() {
        let message = |change: fn(&mut Statement)| {
            let mut statement = ticket().statement;
            change(&mut statement);
            statement.message()
        };
        let plain = message(|_| ());
        assert_ne!(plain, message(|s| s.engine = "f".repeat(64)));
        assert_ne!(plain, message(|s| s.component = "f".repeat(64)));
        assert_ne!(plain, message(|s| s.code = "f".repeat(64)));
        assert_ne!(plain, message(|s| s.bytes = 8));
        assert!(CONTEXT.len() > 64);
    }

    #[test]
    fn names_are_digests() {
        assert!(is_sha256(&"0af9".repeat(16)));
        for bad in ["", "..", &"A".repeat(64), &"a".repeat(63), &"/".repeat(64)] {
            assert!(!is_sha256(bad), "{bad}");
        }
    }
}
