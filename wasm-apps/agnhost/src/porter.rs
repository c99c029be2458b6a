//! Serves values of the environment: that of `SERVE_PORT_n` on port n.

use crate::Failure;
use crate::flags::{Given, switch};
use crate::http::{Request, Response, handler, serve};
use crate::rt;

pub(crate) fn run(args: &[String]) -> Result<(), Failure> {
    let given = Given::read(args, &[switch("json-response")])?;
    let is_json = given.is_set("json-response", false)?;
    let mut ports = Vec::new();
    for (name, text) in std::env::vars() {
        if name.starts_with("SERVE_TLS_PORT_") || name.starts_with("SERVE_SCTP_PORT_") {
            eprintln!("agnhost porter: {name} is left out: only SERVE_PORT_n is served");
        } else if let Some(port) = name.strip_prefix("SERVE_PORT_") {
            let port: u16 = port.parse().map_err(|_| format!("{name}: not a port"))?;
            ports.push((port, text));
        }
    }
    let Some((last_port, last_text)) = ports.pop() else {
        return Err(Failure::Usage("no variable SERVE_PORT_n is set".to_owned()));
    };
    let failure = rt::run(async move {
        for (port, text) in ports {
            rt::spawn(async move {
                // One port that cannot be served ends the program, as the others could not know.
                eprintln!("agnhost porter: {}", serve_text(port, text, is_json).await);
                std::process::exit(1);
            });
        }
        serve_text(last_port, last_text, is_json).await
    });
    Err(Failure::Failed(failure))
}

async fn serve_text(port: u16, text: String, is_json: bool) -> String {
    let answer = move |request: Request| {
        let text = if is_json {
            format!(
                "{{\"method\":{},\"body\":{}}}",
                crate::dial::quoted(&request.method),
                crate::dial::quoted(&text)
            )
        } else {
            text.clone()
        };
        async move { Response::text(200, text) }
    };
    serve(port, handler(answer)).await
}
