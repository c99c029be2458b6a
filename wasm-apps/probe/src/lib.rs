//! What a test asks of WASI 0.2, by the first argument:
//!
//! ```text
//! tls HOST PORT NAME   a session with the server NAME: sends "hello", prints what comes back
//! udp-echo PORT        gives back every datagram, until it is stopped
//! udp-ask ADDRESS TEXT sends TEXT, prints the answer and who sent it
//! udp-flood ADDRESS N  sends N datagrams, prints how many there was room for at once
//! exit CODE            ends with this exit code, as programs in Rust do
//! exit-with-code CODE  ends with it as WASI 0.2.12 has it
//! ```

mod tls;
mod udp;

use wasip2::cli::environment::get_arguments;
use wasip2::cli::exit;

wasip2::cli::command::export!(Probe);

struct Probe;

impl wasip2::exports::cli::run::Guest for Probe {
    fn run() -> Result<(), ()> {
        let args = get_arguments();
        let args: Vec<_> = args.iter().skip(1).map(String::as_str).collect();
        let done = match args.as_slice() {
            ["tls", host, port, name] => tls::session(host, port, name),
            ["udp-echo", port] => udp::echo(port),
            ["udp-ask", address, text] => udp::ask(address, text),
            ["udp-flood", address, count] => udp::flood(address, count),
            ["exit", code] => std::process::exit(code.parse().unwrap_or(255)),
            ["exit-with-code", code] => {
                exit::exit_with_code(code.parse().unwrap_or(255));
                Ok(())
            }
            _ => Err("wrong arguments".to_owned()),
        };
        done.map_err(|words| eprintln!("probe: {words}"))
    }
}
