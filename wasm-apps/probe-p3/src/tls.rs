//! A TLS session over the standard streams.

use wasip3::cli::{stdin, stdout};
use wasip3::{spawn_local, wit_stream};

use self::bindings::wasi::tls::client::Connector;

mod bindings {
    wit_bindgen::generate!({
        path: "wit",
        world: "edgeorc:probe/imports",
        generate_all,
    });
}

/// Sends "hello", and says what comes back.
pub async fn session(name: &str) -> Result<(), String> {
    let connector = Connector::new();
    let (mut clear, to_send) = wit_stream::new();
    let (sent, _sending) = connector.send(to_send);
    let _writing = stdout::write_via_stream(sent);
    let (received, _reading) = stdin::read_via_stream();
    let (answer, _receiving) = connector.receive(received);
    spawn_local(async move {
        let _unsent = clear.write_all(b"hello".to_vec()).await;
    });
    Connector::connect(connector, name.to_owned())
        .await
        .map_err(|error| format!("handshake: {}", error.to_debug_string()))?;
    let answer = answer.collect().await;
    eprint!("{}", String::from_utf8_lossy(&answer));
    Ok(())
}
