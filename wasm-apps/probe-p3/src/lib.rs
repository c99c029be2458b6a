//! What a test asks of WASI 0.3, by the first argument:
//!
//! ```text
//! tls NAME             a session with the server NAME, which is at the other end of the standard
//!                      streams: sends "hello", says on stderr what comes back
//! tcp-echo ADDRESS     gives every connection its own bytes back, until it is stopped
//! tcp-ask ADDRESS TEXT sends TEXT and the end, prints what comes back until the end
//! tcp-serve-once ADDR  takes one connection and keeps it without reading
//! udp-echo ADDRESS     gives back every datagram, until it is stopped
//! udp-ask ADDRESS TEXT sends TEXT, prints the answer and who sent it
//! lookup NAME          prints the addresses of NAME
//! volume               how much the first folder takes, in several ways
//! exit-with-code CODE  ends with this exit code
//! ```

mod sockets;
mod tls;
mod volume;

use wasip3::cli::environment::get_arguments;
use wasip3::cli::exit;

wasip3::cli::command::export!(Probe);

struct Probe;

impl wasip3::exports::cli::run::Guest for Probe {
    async fn run() -> Result<(), ()> {
        let args = get_arguments();
        let args: Vec<_> = args.iter().skip(1).map(String::as_str).collect();
        let done = match args.as_slice() {
            ["tls", name] => tls::session(name).await,
            ["tcp-echo", address] => sockets::tcp_echo(address).await,
            ["tcp-ask", address, text] => sockets::tcp_ask(address, text).await,
            ["tcp-serve-once", address] => sockets::tcp_serve_once(address).await,
            ["udp-echo", address] => sockets::udp_echo(address).await,
            ["udp-ask", address, text] => sockets::udp_ask(address, text).await,
            ["lookup", name] => sockets::lookup(name).await,
            ["volume"] => volume::fill().await,
            ["exit-with-code", code] => {
                exit::exit_with_code(code.parse().unwrap_or(255));
                Ok(())
            }
            _ => Err("wrong arguments".to_owned()),
        };
        done.map_err(|words| eprintln!("probe-p3: {words}"))
    }
}
