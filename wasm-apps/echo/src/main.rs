//! Answers every TCP connection with its own bytes. Listens on `0.0.0.0:$PORT` (7000).
//!
//! One thread, many connections: each turn polls everything that can move and moves it. A client
//! that closes its sending half still gets all of its bytes back, and then the end.

mod connection;
mod listener;

use std::process::ExitCode;

use wasip2::io::poll::poll;

use crate::connection::Connection;
use crate::listener::Listener;

/// Port when `PORT` is not set.
const PORT_DEFAULT: u16 = 7000;
/// Most connections at once; further ones wait in the listener's backlog.
const CONNECTIONS_MAX: usize = 1024;

fn main() -> ExitCode {
    match serve() {
        Ok(never) => match never {},
        Err(message) => {
            eprintln!("echo: {message}");
            ExitCode::FAILURE
        }
    }
}

fn serve() -> Result<std::convert::Infallible, String> {
    let port = match std::env::var("PORT") {
        Ok(text) => text.parse().map_err(|_| format!("PORT={text} is not a port number"))?,
        Err(_) => PORT_DEFAULT,
    };
    let listener =
        Listener::bind(port).map_err(|code| format!("cannot listen on {port}: {code}"))?;
    println!("listening on 0.0.0.0:{port}");

    let mut connections: Vec<Connection> = Vec::new();
    loop {
        let is_accepting = connections.len() < CONNECTIONS_MAX;
        let mut pollables: Vec<_> = connections.iter().map(Connection::waits_for).collect();
        if is_accepting {
            pollables.push(listener.ready());
        }
        let mut is_ready = vec![false; pollables.len()];
        for index in poll(&pollables) {
            if let Some(flag) = usize::try_from(index).ok().and_then(|i| is_ready.get_mut(i)) {
                *flag = true;
            }
        }
        let has_newcomer = is_accepting && is_ready.pop() == Some(true);

        let mut turns = is_ready.into_iter();
        connections.retain_mut(|connection| match turns.next() {
            Some(true) => connection.advance(),
            _ => true,
        });
        if has_newcomer {
            match listener.accept() {
                Ok(newcomer) => connections.extend(newcomer),
                Err(code) => return Err(format!("cannot accept: {code}")),
            }
        }
    }
}
