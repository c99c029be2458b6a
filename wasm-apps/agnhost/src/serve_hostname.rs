//! Answers with the pod's name, over HTTP or bare TCP.

use crate::Failure;
use crate::flags::{Given, switch, value};
use crate::http::{Request, Response, handler, serve};
use crate::tcp::{Listener, Stream};
use crate::{host, rt};

pub(crate) fn run(args: &[String]) -> Result<(), Failure> {
    let known = [switch("tcp"), switch("udp"), switch("http"), switch("close"), value("port")];
    let given = Given::read(args, &known)?;
    let port = given.number("port", 9376)?;
    if given.is_set("udp", false)? {
        return Err(Failure::Usage("pods have no UDP".to_owned()));
    }
    if given.is_set("tcp", false)? {
        return Err(Failure::Failed(rt::run(bare(port))));
    }
    let is_closing = given.is_set("close", false)?;
    let answer = move |_: Request| async move {
        let response = Response::text(200, host::name());
        if is_closing { response.with("connection", "close") } else { response }
    };
    Err(Failure::Failed(rt::run(serve(port, handler(answer)))))
}

async fn bare(port: u16) -> String {
    let listener = match Listener::bind(port).await {
        Ok(listener) => listener,
        Err(code) => return format!("cannot listen on port {port}: {code}"),
    };
    println!("serving TCP on port {port}");
    loop {
        match listener.accept().await {
            Ok(stream) => rt::spawn(greet(stream)),
            Err(code) => return format!("cannot accept on port {port}: {code}"),
        }
    }
}

async fn greet(stream: Stream) {
    let name = format!("{}\n", host::name());
    if stream.write(name.as_bytes()).await.is_ok() {
        // A client that is gone already is nobody's error.
        let _gone = stream.finish().await;
    }
}
